"""The matrix methods on the language-model workload: same budget and data order, three rates, three seeds.

Each arm at its starting values and with its learning rate halved and doubled (the matrices' rate; AdamW's beside it stays
where the two are separate). Each finished run is one line of a JSONL file, so a stopped benchmark goes on where it was.

    python -m benchmarks.matrix_language_model             # all that is missing, about 100 CPU-minutes
    python -m benchmarks.matrix_language_model --seeds 0
    python -m benchmarks.matrix_language_model --report    # only write the table anew
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from benchmarks.optimizer_step import cpu_name
from lit_opt import Recipe
from lit_opt.workloads import ByteText, LanguageModel

RESULTS = Path(__file__).parent / "results" / "matrix_language_model.jsonl"
STEPS = 225
# arm -> (starting learning rate, keywords of Recipe)
ARMS: dict[str, tuple[float, dict[str, Any]]] = {
    "llm": (6e-4, {"name": "llm"}),
    "llm/muon": (0.02, {"name": "llm/muon"}),
    "llm/muon_rms": (6e-4, {"name": "llm/muon_rms"}),
    "llm/normuon": (0.02, {"name": "llm/normuon"}),
    # nobody published values for TEON: Muon's
    "llm, teon": (0.02, {"name": "llm", "optimizer": "teon", "weight_decay": 0.01}),
    "llm, mars_m": (1e-3, {"name": "llm", "optimizer": "mars_m"}),
    "llm/soap": (3e-3, {"name": "llm/soap"}),
    "llm/shampoo": (6e-4, {"name": "llm/shampoo"}),
    "llm/splus": (0.2, {"name": "llm/splus"}),
    "llm/scion": (2**-12, {"name": "llm/scion"}),
    "llm/aro": (6e-4, {"name": "llm/aro"}),
}
FACTORS = (1.0, 0.5, 2.0)


class StepTime(Callback):
    """CPU time of each training step and of the optimizer's part of it, in ms."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.optimizer: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._start = time.process_time()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self._before = time.process_time()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.process_time()
        self.steps.append(1e3 * (now - self._start))
        self.optimizer.append(1e3 * (now - self._before))


def run(arm: str, factor: float, seed: int) -> dict[str, Any]:
    """One training run; returns its line of the ledger."""
    start, keywords = ARMS[arm]
    seed_everything(seed, verbose=False)
    module, data, timer = LanguageModel(), ByteText(seed=seed), StepTime()
    recipe = Recipe(**keywords, lr=start * factor)
    trainer = Trainer(
        accelerator="cpu", devices=1, callbacks=[recipe, timer], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, max_steps=STEPS,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    value = trainer.validate(module, datamodule=data, verbose=False)[0]["val_bpb"]
    return {
        "arm": arm, "lr": start * factor, "factor": factor, "seed": seed, "bits_per_byte": value,
        "steps": trainer.global_step, "step_ms": round(statistics.median(timer.steps), 1),
        "clip_and_step_ms": round(statistics.median(timer.optimizer), 1), "torch": torch.__version__,
    }  # fmt: skip


def report(rows: list[dict[str, Any]]) -> str:
    """Mean and each seed, for each arm and rate."""
    lines = [
        "# Matrix methods on the language-model workload",
        "",
        f"{cpu_name()}, 1 thread, float32. Not run on a GPU. Script: `python -m benchmarks.matrix_language_model`.",
        f"The workload's own model (0.8 M parameters) and data (4,096 bytes a step), {STEPS} steps: half the budget of",
        "`lit-opt fit --config llm`. Same initial weights and data order per seed. Lower is better. Times are CPU",
        "milliseconds on a machine that ran other work, medians: the whole step, and clipping with the optimizer's step.",
        "",
        "| arm | lr | bits per byte | each seed | step ms | clip + optimizer ms |",
        "|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        for factor in FACTORS:
            mine = sorted((r for r in rows if (r["arm"], r["factor"]) == (arm, factor)), key=lambda r: r["seed"])
            if mine:
                values = [r["bits_per_byte"] for r in mine]
                each = ", ".join(f"{v:.3f}" for v in values)
                label = {1.0: "start", 0.5: "halved", 2.0: "doubled"}[factor]
                step = statistics.median(r["step_ms"] for r in mine)
                part = statistics.median(r["clip_and_step_ms"] for r in mine)
                lines.append(
                    f"| {arm} | {mine[0]['lr']:g} ({label}) | {statistics.mean(values):.3f} | {each} | {step:.0f} | {part:.0f} |"
                )
    return "\n".join(lines) + "\n" + NOTES


NOTES = """
## What it shows

- **A short run.** Every arm that was doubled is still better at its doubled rate. So this ranks starting values at a small budget; it does
  not say which method is best when tuned.
- **At the starting values**, `llm/scion` apart, NorMuon, Muon and SOAP win, then TEON; AdamW (`llm`) follows. MARS-M and `llm/muon_rms` lose to
  AdamW.
- **NorMuon and Muon** differ by less than 0.03 and not always in one direction: not shown to differ.
- **TEON** loses to Muon at every rate and on every seed. It has no published rate; Muon's was taken.
- **llm/muon_rms** loses to AdamW at the same rate, at all three rates: AdamW's 6e-4 is too low for it here.
- **MARS-M** at its published 1e-3 loses to AdamW at 1.2e-3. Its correction is that of the last step's gradient (approx).
- **Step time.** Clipping and the optimizer take 3 ms with AdamW and 16 to 21 ms with the matrix methods, of a step of
  about 480 ms; Shampoo takes 22 to 27 ms, SPlus 32 to 40, ARO 40 to 57, SOAP 52 to 74 (beside other programs).
- **llm/scion** at its starting values is the best of all arms, on every seed. It differs in more than the method: no
  warmup and a constant rate with a linear end, no clipping, and the head and the embedding in a norm of their own.
- **llm/soap** beats AdamW on every seed, and is not shown to differ from Muon: 2.624 beside 2.597, better on one seed of
  three. Its rate is five times AdamW's, so that the rate is a part of it.
- **llm/shampoo** with AdamW's rate, length of steps and decay is better than AdamW on every seed, by 0.03 to 0.06.
- **llm/splus** loses to AdamW on every seed. It is validated on averages over 1,000 steps: here all 225 count alike,
  the first ones too. Its published runs are longer.
- **llm/aro** at AdamW's 6e-4 loses to AdamW: as for `llm/muon_rms` the rate is too low here. It has no published one.
- Scion, ARO, SOAP, Shampoo and SPlus were run at their starting values alone.
- Only the matrices' rate is halved and doubled in the arms in Muon's units; AdamW beside it stays at 3e-4.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--factors", nargs="+", type=float, default=list(FACTORS))
    parser.add_argument("--report", action="store_true", help="write the table from what is there")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)

    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    done = {(r["arm"], r["factor"], r["seed"]) for r in rows}
    for seed in args.seeds:
        for factor in args.factors:
            for arm in args.arms:
                if args.report or (arm, factor, seed) in done:
                    continue
                row = run(arm, factor, seed)
                print(row, flush=True)
                rows.append(row)
                with RESULTS.open("a") as ledger:
                    ledger.write(json.dumps(row) + "\n")
    RESULTS.with_suffix(".md").write_text(report(rows))


if __name__ == "__main__":
    main()
