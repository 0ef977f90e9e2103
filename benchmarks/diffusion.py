"""The diffusion recipe beside plain AdamW(lr=1e-3), with and without averaged weights, by DDPM and flow matching.

Same initial weights, data order and noise per seed. Each finished run is one line of a JSONL file, or two where
the averages and the raw weights of one run are both judged, so a stopped benchmark goes on where it was.

    python -m benchmarks.diffusion                        # all that is missing, about 30 minutes
    python -m benchmarks.diffusion --objectives flow --seeds 0
    python -m benchmarks.diffusion --report               # only write the table anew
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lit_opt import EMA, Recipe
from lit_opt.workloads import DiffusionModel, Digits, digit_features, frechet_distance
from lit_opt.workloads.diffusion import OBJECTIVES, save_grid
from lit_opt.workloads.frechet import digit_classifier
from lit_opt.workloads.image_data import Images

RESULTS = Path(__file__).parent / "results" / "diffusion.jsonl"
STEPS, SAMPLES, SAMPLING_STEPS = 600, 500, 25
PLAIN = "plain AdamW(lr=1e-3)"
ARMS: dict[str, dict[str, Any]] = {"diffusion": {}, "diffusion, lr 1e-3": {"lr": 1e-3}}
PICTURES = {"diffusion": "recipe", "diffusion, lr 1e-3": "recipe_lr1e-3", PLAIN: "plain"}


@cache
def real_images() -> tuple[Tensor, Tensor]:
    """Training (1,437) and validation digits (359), each shifted once, as in training."""
    train, val = Digits().datasets()
    val = Images(val.images, val.labels, max_shift=train.max_shift)
    with isolate_rng():
        torch.manual_seed(0)
        together = [torch.stack([data[i][0][:1] for i in range(len(data))]) for data in (train, val)]
    return together[0], together[1]


def judge(module: DiffusionModel, picture: Path | None) -> dict[str, float]:
    """Figures of the weights that the module holds."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **quiet)
    val_loss = trainer.validate(module, datamodule=Digits(), verbose=False)[0]["val_loss"]
    images = module.sample(SAMPLES, SAMPLING_STEPS, seed=1)
    if picture:
        save_grid(images[:64], picture, module.value_range)
    predicted = digit_classifier()(images.expand(-1, 3, -1, -1)).argmax(dim=-1)
    right = (predicted == torch.arange(len(images)) % module.num_classes).float().mean()
    distance = frechet_distance(digit_features(images), digit_features(torch.cat(real_images())))
    return {"val_loss": val_loss, "frechet": distance, "label_agreement": float(right)}


def run(objective: str, arm: str, seed: int) -> list[dict[str, Any]]:
    """One training run; its lines of the ledger, one for each kind of weights."""
    seed_everything(seed, verbose=False)
    module = DiffusionModel(objective=objective)
    callbacks: list[Any] = []
    if arm == PLAIN:
        module.configure_optimizers = MethodType(  # type: ignore[method-assign]
            lambda self: torch.optim.AdamW(self.parameters(), lr=1e-3), module
        )
    else:
        callbacks = [Recipe("diffusion", **ARMS[arm])]
    trainer = Trainer(
        accelerator="cpu", devices=1, callbacks=callbacks, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        max_steps=STEPS,
    )  # fmt: skip
    cpu = time.process_time()
    trainer.fit(module, datamodule=Digits(seed=seed))
    cpu = time.process_time() - cpu
    facts = {
        "objective": objective, "arm": arm, "seed": seed, "steps": trainer.global_step,
        "cpu_seconds": round(cpu, 1), "parameters": sum(p.numel() for p in module.parameters()),
        "lr": trainer.optimizers[0].defaults["lr"], "samples": SAMPLES, "sampling_steps": SAMPLING_STEPS,
        "torch": torch.__version__,
    }  # fmt: skip
    name = RESULTS.with_name(f"diffusion_{objective}_{PICTURES[arm]}")
    pictures = {w: Path(f"{name}_{w}.png") if seed == 0 else None for w in ("raw", "averages")}
    rows = [{**facts, "weights": "raw", **judge(module, pictures["raw"])}]
    if callbacks:
        with tempfile.TemporaryDirectory() as folder:
            trainer.save_checkpoint(f"{folder}/end.ckpt")
            EMA.load(module, f"{folder}/end.ckpt")
        rows.append({**facts, "weights": "averages", **judge(module, pictures["averages"])})
    return rows


def floor() -> dict[str, Any]:
    """What real images get: validation digits against training digits."""
    train, val = real_images()
    logits = digit_classifier()(val.expand(-1, 3, -1, -1))
    right = (logits.argmax(dim=-1) == Digits().datasets()[1].labels).float().mean()
    distance = frechet_distance(digit_features(val), digit_features(train))
    return {"objective": "real", "arm": "real", "seed": 0, "frechet": distance, "label_agreement": float(right)}


def report(rows: list[dict[str, Any]]) -> str:
    """The figures as a Markdown table: mean and each seed."""
    lines = [
        "# The diffusion recipe beside plain AdamW, with and without averaged weights",
        "",
        f"Device: {platform.machine()} CPU, 1 thread. Not run on a GPU. Script: `python -m benchmarks.diffusion`.",
        f"{STEPS} steps of 64 digits of 16 x 16. Same initial weights, data order and noise per seed.",
        "Plain is AdamW(lr=1e-3), no schedule, groups, clipping or averages. Raw and averages are of the same run.",
        f"Frechet distance (lower is better): {SAMPLES} samples of {SAMPLING_STEPS} steps against all 1,797 real digits,",
        "shifted as in training, in 128 features of a classifier trained on the same digits. It is no FID of the",
        "literature and depends on the number of samples. Label agreement: share of the samples in which that",
        "classifier sees the digit that was asked for.",
        "",
        "| objective | arm | lr | weights | Frechet | each seed | label agreement | val_loss | each seed | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for objective in OBJECTIVES:
        for arm in [*ARMS, PLAIN]:
            for weights in ("averages", "raw"):
                key = (objective, arm, weights)
                mine = [r for r in rows if (r["objective"], r["arm"], r.get("weights")) == key]
                mine.sort(key=lambda r: r["seed"])
                if mine:
                    mean = {k: sum(r[k] for r in mine) / len(mine) for k in (*_FIGURES, "cpu_seconds")}
                    each = {k: ", ".join(f"{r[k]:.{digits}f}" for r in mine) for k, digits in _FIGURES.items()}
                    lines.append(
                        f"| {objective} | {arm} | {mine[0]['lr']:g} | {weights} | {mean['frechet']:.2f} |"
                        f" {each['frechet']} | {100 * mean['label_agreement']:.1f} % | {mean['val_loss']:.4f} |"
                        f" {each['val_loss']} | {mean['cpu_seconds']:.0f} |"
                    )
    for row in rows:
        if row["objective"] == "real":
            right = f"{100 * row['label_agreement']:.1f} %"
            lines.append(f"| | real: 359 digits against 1,437 | | | {row['frechet']:.2f} | | {right} | | | |")
    pictures = sorted(path.name for path in RESULTS.parent.glob("diffusion_*.png"))
    lines += ["", "64 samples of seed 0; in reading order they ask for 0 1 2 ... 9 0 1 ...", ""]
    lines += [f"![{name}]({name})" for name in pictures]
    return "\n".join(lines) + "\n"


_FIGURES = {"frechet": 2, "label_agreement": 3, "val_loss": 4}  # with digits after the point


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def write(rows: list[dict[str, Any]]) -> None:
    with RESULTS.open("a") as ledger:
        ledger.write("".join(json.dumps(row) + "\n" for row in rows))
    print(*rows, sep="\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--report", action="store_true", help="write the table from what is there")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)

    if not args.report:
        done = {(r["objective"], r["arm"], r["seed"]) for r in read()}
        if ("real", "real", 0) not in done:
            write([floor()])
        for seed in args.seeds:
            for objective in args.objectives:
                for arm in [*ARMS, PLAIN]:
                    if (objective, arm, seed) not in done:
                        write(run(objective, arm, seed))
    RESULTS.with_suffix(".md").write_text(report(read()))


if __name__ == "__main__":
    main()
