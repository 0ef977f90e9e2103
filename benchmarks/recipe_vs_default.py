"""Each workload with its recipe, beside the same budget with torch's plain defaults.

Same initial weights and same data order per seed; the plain arm is AdamW(lr=1e-3) without schedule, groups or
clipping. Each finished run is one line of a JSONL file, so a stopped benchmark goes on where it was.

    python -m benchmarks.recipe_vs_default                          # all that is missing, about 40 minutes
    python -m benchmarks.recipe_vs_default --workloads cnn --seeds 0
    python -m benchmarks.recipe_vs_default --report                 # only write the table anew
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything

from lit_opt import Recipe

RESULTS = Path(__file__).parent / "results" / "recipe_vs_default.jsonl"
Make = Callable[[int], tuple[LightningModule, LightningDataModule]]


def language_model(seed: int) -> tuple[LightningModule, LightningDataModule]:
    from lit_opt.workloads import ByteText, LanguageModel

    return LanguageModel(), ByteText(seed=seed)


def image_classifier(seed: int) -> tuple[LightningModule, LightningDataModule]:
    from lit_opt.workloads import Digits, ImageClassifier

    return ImageClassifier(), Digits(seed=seed)


def vision_transformer(seed: int) -> tuple[LightningModule, LightningDataModule]:
    """A batch of 256, where the vit recipe's rate applies as published."""
    from lit_opt.workloads import Digits, ImageClassifier

    size = {"img_size": 16, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
    model = ImageClassifier(
        "vit_tiny_patch16_224", small_images=False, width=1.0, model_kwargs=size, label_smoothing=0.1
    )
    return model, Digits(batch_size=256, seed=seed)


def vision_language_model(seed: int) -> tuple[LightningModule, LightningDataModule]:
    from lit_opt.workloads import Glyphs, VisionLanguageModel

    return VisionLanguageModel(), Glyphs(captions=True, batch_size=128, val_samples=512, seed=seed)


def large_batch(seed: int) -> tuple[LightningModule, LightningDataModule]:
    """Batches of 4,096 as 16 of 256: ResNet-18 with a quarter of its channels and its published stem."""
    from lit_opt.workloads import Glyphs, ImageClassifier

    model = ImageClassifier(num_classes=47, small_images=False, label_smoothing=0.1)
    return model, Glyphs(channels=3, batch_size=256, train_samples=400_000, seed=seed)


# workload -> (make, metric, Trainer arguments, recipe arms: label -> keywords of Recipe)
WORKLOADS: dict[str, tuple[Make, str, dict[str, Any], dict[str, dict[str, Any]]]] = {
    "llm": (
        language_model,
        "val_bpb",
        {"max_steps": 450},
        {
            "llm": {"name": "llm"},
            "llm, lr 1e-3": {"name": "llm", "lr": 1e-3},
            "llm, lr 2e-3, warmup 100": {"name": "llm", "lr": 2e-3, "warmup": 100},
            "llm/muon": {"name": "llm/muon"},
            "llm/muon_rms": {"name": "llm/muon_rms"},
            "llm/normuon": {"name": "llm/normuon"},
        },
    ),
    "cnn": (
        image_classifier,
        "val_acc",
        {"max_epochs": 15},
        {"cnn": {"name": "cnn"}, "cnn, lr 0.05": {"name": "cnn", "lr": 0.05}},
    ),
    "vit": (
        vision_transformer,
        "val_acc",
        {"max_steps": 400},
        {"vit": {"name": "vit"}, "vit, lr 3e-3": {"name": "vit", "lr": 3e-3}},
    ),
    "vlm": (
        vision_language_model,
        "word_accuracy",
        {"max_steps": 500},
        {
            "vlm": {"name": "vlm"},
            # from scratch, so no part is ahead of the others and the projector needs no rate of its own
            "vlm, lr 6e-3, projector x 1": {"name": "vlm", "lr": 6e-3, "parts": {"projector": {"lr_scale": 1.0}}},
        },
    ),
    "large_batch": (
        large_batch,
        "val_acc",
        {"max_steps": 50, "accumulate_grad_batches": 16},
        {
            "large_batch/lars": {"name": "large_batch/lars"},
            "large_batch/lamb": {"name": "large_batch/lamb"},
            "large_batch/control": {"name": "large_batch/control"},
        },
    ),
}
PLAIN = "plain AdamW(lr=1e-3)"
NOTES = """
## What it shows

- **llm.** At its published values the recipe loses to plain AdamW(1e-3) on every seed. The reason is the size: the
  model has 0.8 M parameters and the run 450 steps, where 6e-4 is too low. 1e-3 (what nanoGPT's character model uses)
  is better and still loses, probably since the cosine halves the mean rate. 2e-3 with the recipe's warmup of 2 % (9 steps)
  was tried on one seed and is worse (2.369); with 100 steps of warmup it wins on every seed. The pair was chosen on
  seed 0 after three tries; the plain arm was not tuned.
- **llm/muon, llm/muon_rms** at their starting values, seed 0 alone: 1.857 and 2.887. The first is the best arm here;
  the second takes AdamW's 6e-4 for every matrix and is the worst. More rates and seeds, at half the length, are in
  matrix_language_model.md.
- **cnn.** The rate scaled down to a batch of 64 (0.025) is too low for 330 steps and loses to plain AdamW; 0.05,
  inside the guide's range, wins on the mean and on two of three seeds. 0.05 was the first value tried.
- **vit.** 2.5e-4 at a batch of 256 is far too low for a tiny model in 400 steps; 3e-3 wins on the mean and on two of
  three seeds. It was chosen among two (1e-3, 3e-3) on seed 0 at 300 steps.
- **vlm.** From scratch in 500 steps the published 1e-4 learns next to nothing (20.7 % of the words). With 6e-3 and no
  extra rate for the projector it has 49.5 %, and plain AdamW(1e-3) 56.6 %: the recipe loses. The losses are close (0.140
  against 0.135 nats a byte on seed 1). On seed 0 also tried: 2e-3 (41.1 %), 3e-3 (44.3 %), 6e-3 with all parts at the
  same rate (49.2 %). Whole captions without a mistake are below 10 % in every arm: too short a run for that metric.
- **large_batch.** 50 steps of 4,096. LARS has 90.4 % and wins on every seed; its control, SGD with a scaled rate, has
  85.3 %. LAMB (25.2 %) loses to plain AdamW (37.4 %): its square-root rate is low for 50 steps. Nothing was tuned.
- The shipped configs set these values as labelled overrides; the recipes keep the guide's.
""".splitlines()


def run(workload: str, arm: str, seed: int) -> dict[str, Any]:
    """One training run; returns its line of the ledger."""
    make, metric, budget, arms = WORKLOADS[workload]
    seed_everything(seed, verbose=False)
    module, data = make(seed)
    callbacks: list[Any] = []
    if arm == PLAIN:
        module.configure_optimizers = MethodType(  # type: ignore[method-assign]
            lambda self: torch.optim.AdamW(self.parameters(), lr=1e-3), module
        )
    else:
        callbacks = [Recipe(**arms[arm])]
    trainer = Trainer(
        accelerator="cpu", devices=1, callbacks=callbacks, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **budget,
    )  # fmt: skip
    start = time.perf_counter()
    cpu = time.process_time()
    trainer.fit(module, datamodule=data)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    found = trainer.validate(module, datamodule=data, verbose=False)[0]
    value = found[metric]
    return {
        "workload": workload, "arm": arm, "seed": seed, "metric": metric, "value": value,
        "others": {key: round(number, 4) for key, number in found.items() if key != metric},
        "steps": trainer.global_step, "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1),
        "parameters": sum(p.numel() for p in module.parameters()), "torch": torch.__version__,
    }  # fmt: skip


def report(rows: list[dict[str, Any]]) -> str:
    """The figures as a Markdown table: mean and each seed."""
    lines = [
        "# Recipes beside torch's plain defaults",
        "",
        f"Device: {platform.machine()} CPU, 1 thread. Not run on a GPU. Script: `python -m benchmarks.recipe_vs_default`.",
        "Same initial weights and data order per seed. Plain is AdamW(lr=1e-3), no schedule, groups or clipping.",
        "The machine ran other work at the same time: CPU seconds are the honest cost, and they are not compared.",
        "",
        "| workload | arm | metric | mean | each seed | steps | CPU s a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for workload, (_, metric, _, arms) in WORKLOADS.items():
        for arm in [*arms, PLAIN]:
            mine = sorted((r for r in rows if (r["workload"], r["arm"]) == (workload, arm)), key=lambda r: r["seed"])
            if mine:
                values = [r["value"] for r in mine]
                each = ", ".join(f"{v:.4f}" for v in values)
                cost = sum(r["cpu_seconds"] for r in mine) / len(mine)
                mean = sum(values) / len(values)
                lines.append(
                    f"| {workload} | {arm} | {metric} | {mean:.4f} | {each} | {mine[0]['steps']} | {cost:.0f} |"
                )
    return "\n".join([*lines, *NOTES]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--arms", nargs="+", help="only these arms")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--report", action="store_true", help="write the table from what is there")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)

    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    done = {(r["workload"], r["arm"], r["seed"]) for r in rows}
    for seed in args.seeds:
        for workload in args.workloads:
            for arm in [*WORKLOADS[workload][3], PLAIN]:
                if args.report or (workload, arm, seed) in done or (args.arms and arm not in args.arms):
                    continue
                row = run(workload, arm, seed)
                print(row, flush=True)
                rows.append(row)
                with RESULTS.open("a") as ledger:
                    ledger.write(json.dumps(row) + "\n")
    RESULTS.with_suffix(".md").write_text(report(rows))


if __name__ == "__main__":
    main()
