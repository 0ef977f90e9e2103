"""The plan's memory beside what a step really takes, for every optimizer of the registry.

    python -m benchmarks.memory_estimate

writes benchmarks/results/memory_estimate.md: the state on one device (CPU) and under FSDP2 on two processes (gloo),
the scratch of a step in both, and the textbook figures of a model with 7 billion parameters on the meta device.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lit_opt import Recipe
from lit_opt.optim import get_row
from lit_opt.preflight.memory import Memory, gigabytes
from lit_opt.preflight.plan import Plan
from tests.preflight.measured import measure, network, recipe, two_processes
from tests.rows import ALONE

WIDTH = 512
RESULT = Path(__file__).parent / "results" / "memory_estimate.md"
INTRO = """# Memory: the plan beside real steps

Written by `python -m benchmarks.memory_estimate` with torch {torch} on the CPU, float32.

An embedding, four blocks of two linear layers and a head, width {width}, {numbers:,} numbers; the inner width of
{hidden} cannot be halved. "state" are the bytes of the optimizer's state tensors after a step. "scratch" is the largest
growth of torch's CPU memory inside the second step, by the profiler's record of allocations; "peak" is that and the
weights, gradients and states that are held. "estimate" is what `lit-opt plan --trainer.accelerator=cpu` says. Under
FSDP2 the figures are those of the process that holds most. sam and asam are around AdamW, lookahead as well; the second
pass of sam needs activations again, no more of them. kfac's scratch has what the backward pass records for it.
adamw_8bit is bitsandbytes' here, with the embedding's moments in 32 bits.

Not run here: CUDA, where steps over lists take other scratch than loops; torchao's adamw_8bit, adamw_fp8 and
adamw_4bit, which are for CUDA; ZeRO and FSDP1; onebit_adam, which steps among processes; natural_gradient, which is for
10,000 parameters at most and holds the square of their number.
"""


def part(memory: Memory, name: str) -> int:
    return sum(line.bytes for line in memory.lines if line.name == name)


def row(name: str, plan: Plan, found: dict[str, int]) -> str:
    estimates = part(plan.memory, "optimizer state"), part(plan.memory, "scratch of a step")
    errors = estimates[0] / found["state"] - 1, plan.memory.peak / (found["held"] + found["scratch"]) - 1
    peak = found["held"] + found["scratch"]
    return (
        f"| {name} | {found['state']:,} | {estimates[0]:,} | {round(100 * errors[0], 2) + 0.0:+.2f} % "
        f"| {gigabytes(found['scratch'])} | {gigabytes(estimates[1])} "
        f"| {gigabytes(peak)} | {gigabytes(plan.memory.peak)} | {round(100 * errors[1], 1) + 0.0:+.1f} % |"
    )


def far_off(rows: list[str]) -> str:
    """A sentence about the peaks that are estimated badly."""
    last = {cells[1].strip(): cells[-2].strip() for cells in (row.split("|") for row in rows)}
    far = [f"{name} {error}" for name, error in last.items() if abs(float(error.split()[0])) > 10]
    return f"\nPeaks that are off by more than 10 %: {', '.join(far) or 'none'}."


def table(rows: list[str]) -> list[str]:
    head = "| optimizer | state | estimate | error | scratch | estimate | peak | estimate | error |"
    return [head, "|---|---:|---:|---:|---:|---:|---:|---:|---:|", *rows]


def textbook() -> list[str]:
    """Llama 2's 7 B on the meta device."""
    import transformers

    with torch.device("meta"):
        llama = transformers.LlamaForCausalLM(transformers.LlamaConfig())
    cases: list[tuple[str, Recipe, dict[str, Any], str]] = [
        ("adamw, float32, one device", Recipe("llm"), {}, "8 bytes a number: 54 GB; 56 GB at a round 7 B"),
        ("adamw, float32, DDP on 8", Recipe("llm"), {"devices": 8, "strategy": "ddp"}, "the same on each"),
        ("adamw, float32, FSDP2 on 8", Recipe("llm"), {"devices": 8, "strategy": "fsdp2"}, "an eighth"),
        ("adamw, bf16-true, one device", Recipe("llm"), {"precision": "bf16-true"}, "4 bytes a number"),
        (
            "adamw, bf16-mixed, ZeRO 1 on 8",
            Recipe("llm"),
            {"devices": 8, "strategy": "deepspeed_stage_1", "precision": "bf16-mixed"},
            "2 + 2 + 12 / 8 bytes a number (arXiv:1910.02054)",
        ),
        (
            "adamw, bf16-mixed, ZeRO 3 on 8",
            Recipe("llm"),
            {"devices": 8, "strategy": "deepspeed_stage_3", "precision": "bf16-mixed"},
            "16 / 8 bytes a number (arXiv:1910.02054)",
        ),
        ("llm/muon, float32, one device", Recipe("llm/muon"), {}, "4 bytes for matrices, 8 for the rest"),
        ("adamw and EMA, float32, one device", Recipe("llm", ema=0.999), {}, "20 bytes a number in all"),
    ]
    lines = [
        "| case | weights | gradients | state | held | in the step | by hand |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for title, ours, where, by_hand in cases:
        memory = ours.plan(llama, total_steps=1000, **where).memory
        state = part(memory, "optimizer state") + part(memory, "float32 weights")
        cells = (part(memory, "weights"), part(memory, "gradients"), state, memory.held, memory.peak)
        lines.append(f"| {title} | {' | '.join(map(gigabytes, cells))} | {by_hand} |")
    return lines


def main() -> None:
    """Write the tables."""
    torch.set_num_threads(1)
    names = [name for name in ALONE if get_row(name).scratch is not None]
    one_device = sorted([*names, "adamw_8bit", "kfac"])
    module = network(WIDTH)
    intro = INTRO.format(
        torch=version("torch"), width=WIDTH, hidden=2 * WIDTH + 3, numbers=sum(p.numel() for p in module.parameters())
    )
    alone = []
    for name in one_device:
        alone.append(row(name, recipe(name).plan(module, accelerator="cpu"), measure(name, network(WIDTH))))
    with tempfile.TemporaryDirectory() as folder:
        # adafactor_bv makes its factors with new_zeros, which shards them its own way
        cut = [name for name in names if name != "adafactor_bv"]
        both = two_processes(Path(folder), WIDTH, cut)
    sharded = []
    for name in cut:
        found = {key: max(result[name][key] for result in both) for key in ("state", "held", "scratch")}
        sharded.append(row(name, recipe(name).plan(module, devices=2, strategy="fsdp2", accelerator="cpu"), found))
    lines = [intro, "## One device", "", *table(alone), far_off(alone)]
    lines += ["", "## FSDP2, two processes", "", *table(sharded), far_off(sharded)]
    lines += ["", "## Llama 7 B (6,738,415,616 numbers), on the meta device", "", *textbook()]
    RESULT.write_text("\n".join(lines) + "\n")
    print(RESULT)


if __name__ == "__main__":
    main()
