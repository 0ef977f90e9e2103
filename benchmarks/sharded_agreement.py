"""How far a matrix method on sharded weights is from the same on one process, after 50 steps.

    python -m benchmarks.sharded_agreement

writes benchmarks/results/sharded_agreement.md.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from benchmarks.optimizer_step import cpu_name
from lit_opt.optim.registry import get_row
from tests.optim.matrix.sharded_models import LARGE, METHODS, Weights, cut, noise, optimizer_of, shards_of, train, whole

RESULT = Path(__file__).parent / "results" / "sharded_agreement.md"
# Title -> dtype of the weights, ns_dtype.
PRECISIONS = {
    "float64": (torch.float64, "float64"),
    "float32": (torch.float32, "float32"),
    "float32, iteration in bfloat16": (torch.float32, "bfloat16"),
    "bfloat16, iteration in bfloat16": (torch.bfloat16, "bfloat16"),
}
# Those with an iteration whose dtype can be chosen; the others are stepped in float64 and float32.
ITERATES = {method for method, (name, _) in METHODS.items() if "ns_dtype" in get_row(name).hyperparameters}
CASES = [(m, p) for m in METHODS for p in PRECISIONS if m in ITERATES or "iteration" not in p]
HOWS = {2: ("ddp", "fsdp", "tp"), 4: ("fsdp", "hsdp", "fsdp+tp")}
LAST_BIT = 1e-7


def run(method: str, precision: str, how: str | None, last_bit: bool = False) -> dict[str, Tensor]:
    """Weights after 50 steps; with `last_bit` on gradients that differ by a rounding of float32."""
    dtype, ns_dtype = PRECISIONS[precision]
    module, noises = Weights(dtype, LARGE), noise(dtype, LARGE)
    if last_bit:
        generator = torch.Generator().manual_seed(2)
        for values in noises:
            for name, value in values.items():
                factor = 1 + LAST_BIT * torch.randn(value.shape, generator=generator, dtype=torch.float64)
                values[name] = (value.double() * factor).to(dtype)
    if how not in (None, "ddp"):
        noises = shards_of(noises, cut(module, how))
    optimizer = optimizer_of(method, module, **({"ns_dtype": ns_dtype} if method in ITERATES else {}))
    if how == "ddp":
        optimizer.share_work()
    train(module, optimizer, noises)
    return {name: value.double() for name, value in whole(module).items()}


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
    found = {(m, p, how): run(m, p, how) for how in HOWS[world] for m, p in CASES}
    if rank == 0:
        torch.save(found, f"{folder}/{world}.pt")
    dist.destroy_process_group()


def gap(one: dict[str, Tensor], other: dict[str, Tensor], start: dict[str, Tensor]) -> str:
    """The largest difference of an entry, and the distance as a part of the way that the weights have gone."""
    largest = max((one[name] - other[name]).abs().max().item() for name in one)
    apart = sum((one[name] - other[name]).square().sum().item() for name in one) ** 0.5
    way = sum((one[name] - start[name]).square().sum().item() for name in one) ** 0.5
    return f"{largest:.0e}, {apart / way:.0e}" if largest else "0"


def main() -> None:
    """Write the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for world in HOWS:
            mp.spawn(work, args=(world, folder), nprocs=world)
        found: dict[Any, dict[str, Tensor]] = {}
        for world in HOWS:
            found |= {(world, *key): value for key, value in torch.load(f"{folder}/{world}.pt").items()}
    columns = [(world, how) for world, hows in HOWS.items() for how in hows]
    lines = [
        "# Sharded steps beside one process",
        "",
        f"Written by `python -m benchmarks.sharded_agreement` on {cpu_name()}, torch {torch.__version__}, gloo. "
        "**Not run on a GPU.**",
        "",
        "Weights of eight matrices (64 x 64 to 288 x 96; one stack for TEON, one fused query, key and value) after 50 "
        "steps on the same gradients, which depend on the weights. Each cell: the largest difference of an entry, and "
        "the distance as a part of the way that the weights have gone; 0 where all bits are equal. The last column is "
        "one process again, on gradients in which each number is changed by a rounding of float32 (a relative 1e-7, "
        "what another order of an all-reduce does): no strategy can be closer than that in a real run.",
        "",
        f"| method | precision | {' | '.join(f'{how}, {world}' for world, how in columns)} | other rounding |",
        f"|---|---|{'---|' * (len(columns) + 1)}",
    ]
    for method, precision in CASES:
        alone = run(method, precision, None)
        start = {name: value.double() for name, value in whole(Weights(PRECISIONS[precision][0], LARGE)).items()}
        cells = [gap(alone, found[world, method, precision, how], start) for world, how in columns]
        cells.append(gap(alone, run(method, precision, None, last_bit=True), start))
        lines.append(f"| {method} | {precision} | {' | '.join(cells)} |")
    RESULT.write_text("\n".join(lines) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
