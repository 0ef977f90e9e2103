"""Coordinate checks of every optimizer with a transfer rule, on the package's language model.

    python -m benchmarks.coordinate_check adamw muon scion soap --widths 64 128 256 512
    python -m benchmarks.coordinate_check adamw_depth muon_depth --widths 2 4 8 16
    python -m benchmarks.coordinate_check --report       the tables of all that was measured

One block with heads of 16 and an MLP twice as wide, two windows of 16 random bytes, three steps at a constant rate without
clipping, five seeds. The base is the first width. Names with `_depth` take numbers of blocks of width 64 in place of widths.
A picture and the numbers of each go to benchmarks/results/coordinate_check.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lit_opt.preflight.coordinate_check import CoordinateCheck, LayerSlope, coordinate_check
from lit_opt.preflight.coordinate_report import check_markdown, check_plot
from lit_opt.workloads import LanguageModel

RESULTS = Path(__file__).parent / "results" / "coordinate_check"

# AdamW's rate beside the matrices is that of AdamW, so that three steps move the head enough to be seen.
_BESIDE: dict[str, Any] = {"fallback": {"lr": 3e-3}}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 3e-3},
    "adamw_tied": {"optimizer": "adamw", "lr": 3e-3},  # head and embedding are one weight: what does not transfer
    "adam": {"lr": 3e-3},
    "amsgrad": {"lr": 3e-3},
    "nadam": {"lr": 3e-3},
    "radam": {"lr": 3e-3},
    "rmsprop": {"lr": 1e-3},
    "lion": {"lr": 1e-3},
    "signum": {"lr": 1e-3},
    "schedule_free_adamw": {"lr": 3e-3},
    "sgd": {"lr": 0.3},
    "nesterov": {"lr": 0.3},
    "muon": {"lr": 0.02, **_BESIDE},
    "muon_rms": {"optimizer": "muon", "lr": 3e-3, "optimizer_kwargs": {"scale": "match_rms_adamw"}},
    "normuon": {"lr": 0.02, **_BESIDE},
    "mars_m": {"lr": 3e-3},
    "teon": {"lr": 0.02, **_BESIDE},
    "scion": {"lr": 2.4e-4, **_BESIDE},
    "soap": {"lr": 3e-3},
    "shampoo": {"lr": 0.02, **_BESIDE},
    "splus": {"lr": 0.2, **_BESIDE},
    "lion_zero_head": {"optimizer": "lion", "lr": 1e-3},  # what the initial head does to the logits' slope
    "signum_zero_head": {"optimizer": "signum", "lr": 1e-3},
    "sgd_zero_head": {"optimizer": "sgd", "lr": 0.3},
    "nesterov_zero_head": {"optimizer": "nesterov", "lr": 0.3},
    "soap_zero_head": {"optimizer": "soap", "lr": 3e-3},
    "splus_zero_head": {"optimizer": "splus", "lr": 0.2, **_BESIDE},
    "adam_no_decay_zero_head": {
        "optimizer": "adam",
        "lr": 3e-3,
        "weight_decay": 0,
    },  # what L2 does to the adaptive kind
    "amsgrad_no_decay_zero_head": {"optimizer": "amsgrad", "lr": 3e-3, "weight_decay": 0},
    "nadam_zero_head": {"optimizer": "nadam", "lr": 3e-3},
    "radam_zero_head": {"optimizer": "radam", "lr": 3e-3},  # with --steps 12: its first five steps are not Adam's
    "rmsprop_no_decay_zero_head": {"optimizer": "rmsprop", "lr": 3e-4, "weight_decay": 0},
    "adamw_depth": {"optimizer": "adamw", "lr": 3e-3},
    "muon_depth": {"optimizer": "muon", "lr": 0.02, **_BESIDE},
}


def make(width: int, tied: bool = False, zero: bool = False) -> LanguageModel:
    """One block; what grows is the number of heads, not their size. The head may be tied, or start at 0."""
    model = LanguageModel(layers=1, width=width, heads=width // 16, mlp_width=2 * width, context=16)
    if tied:
        model.model.lm_head.weight = model.model.model.embed_tokens.weight
    if zero:
        torch.nn.init.zeros_(model.model.lm_head.weight)
    return model


def blocks(count: int, base: int) -> LanguageModel:
    """That many blocks of width 64, whose branches are multiplied as for a base of `base` blocks."""
    return LanguageModel(layers=count, width=64, heads=4, mlp_width=128, context=16, residual_scale=base / count)


def measure(name: str, widths: list[int], seeds: int, steps: int) -> None:
    """Check one optimizer, and write its picture and its numbers."""
    batch = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(0))
    overrides = {"optimizer": name, "weight_decay": 0.1, "clip": 0, **OPTIMIZERS[name]}
    begin = time.process_time()
    family: Callable[[int], LanguageModel] = partial(
        make, tied=name.endswith("_tied"), zero=name.endswith("_zero_head")
    )
    if name.endswith("_depth"):
        family = partial(blocks, base=widths[0])
        overrides |= {"transfer": {"depth": True}, "without": lambda count: blocks(count, count)}
    found = coordinate_check(family, widths, batch=batch, seeds=range(seeds), steps=steps, **overrides)
    seconds = time.process_time() - begin
    RESULTS.mkdir(parents=True, exist_ok=True)
    check_plot(found, RESULTS / f"{name}.png")
    kept = found.as_dict() | {"cpu_seconds": round(seconds, 1), "torch": torch.__version__}
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(f"{name}: worst slope {found.worst:+.2f}, {seconds:.0f} s of CPU", flush=True)


def report() -> str:
    """Markdown of everything measured: a summary, then a table for each optimizer."""
    parts = [
        "# Coordinate checks",
        "",
        "Written by `python -m benchmarks.coordinate_check --report`; see that file for the set-up. Slopes of log(RMS of the "
        "change of a layer's output) against log(width). On a CPU; not run on a GPU.",
        "",
        "Without the transfer both differ: the rates are the base's, and the weights start as the module makes them (a standard "
        "deviation of 0.02 at any width), so the columns at the start say what the initial weights alone do. With it the logits "
        "at the start fall as 1 / sqrt(width), which is muP's own.",
        "",
        "What does not transfer: a head that is tied with the embedding (adamw_tied). Changes of "
        "attention and MLP grow with the width, unless the module multiplies the logits by width of the base / width. A "
        "coordinate check says that steps keep their size, not that the best rate stays: for that see ../transfer_sweep.",
        "",
        "`adamw_depth` and `muon_depth` are over the number of blocks, 2 to 16 of width 64, with branches multiplied by 2 / blocks; "
        "`without transfer` is the same model with branches that are not multiplied. From one block on the slopes are not flat "
        "(tried at width 32 and higher rates: up to +0.36 in the MLP), so a base needs two.",
        "",
        "Beyond 0.1: adam, amsgrad and rmsprop, whose L2 decay is normalised with the gradient. The rule multiplies it by the width, as "
        "microsoft/mup does, and then it crowds out the gradient of wide models; take adamw, or no decay. A rule by the size of "
        "the gradient's entries was tried and not kept: adam -0.16, rmsprop +0.32.",
        "",
        "lion and signum are beyond it in the head alone. The change of the logits has a part that stays, from the head's own "
        "steps, and one from the initial head times the change of what it sees, which falls as 1 / sqrt(width): from 256 on "
        "(from_256/lion.json) its squares 0.213, 0.156 and 0.124 are near 0.098 + 29.4 / width. With a head that starts at 0 "
        "(lion_zero_head, signum_zero_head) the slope there is 0.00, and all are within 0.1. sgd and nesterov go the same way. A larger base "
        "does not help where weights start at 0.02, since its head is larger: from 256 to 1024 lion -0.20, signum -0.20, sgd -0.25, "
        "nesterov -0.22 (from_256). sgd's and nesterov's other layers beyond 0.1 differ by about as much or more between seeds. "
        "soap is beyond it in a block, and within it with a head that starts at 0, too; why was not looked into.",
        "",
        "radam's first five steps divide by nothing, so that Adam's rule makes them too short by the width (a slope near -1 after three "
        "steps); after twelve (radam_zero_head) that is over.",
        "",
        "So with a head that starts at 0, which muP's authors advise, and without L2 in an adaptive method's gradient all are within 0.1, "
        "radam after its first steps.",
        "",
        "| optimizer | widths | seeds | worst slope with the transfer | layer | worst without | s of CPU |",
        "|---|---|---:|---:|---|---:|---:|",
    ]
    tables = []
    for path in sorted(RESULTS.glob("*.json")):
        kept = json.loads(path.read_text())
        lines = tuple(LayerSlope(**line) for line in kept["layers"])
        found = CoordinateCheck(
            **{k: kept[k] for k in ("title", "widths", "steps", "seeds", "attention")},
            layers=lines,
            along=kept.get("along", "width"),
        )
        layer = max(lines, key=lambda line: abs(line.slope)).layer
        without = max((line.without for line in lines), key=abs)
        widths = f"{kept['widths'][0]} .. {kept['widths'][-1]}" + (" blocks" if path.stem.endswith("_depth") else "")
        parts.append(
            f"| {path.stem} | {widths} | {found.seeds} | {found.worst:+.2f} | {layer.replace('*', chr(92) + '*')} | "
            f"{without:+.2f} | {kept['cpu_seconds']:.0f} |"
        )
        tables += ["", f"## {path.stem}", "", f"{found.title}. ![picture]({path.stem}.png)", "", *check_markdown(found)]
    return "\n".join([*parts, *tables]) + "\n"


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*OPTIMIZERS, []], metavar="OPTIMIZER")
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 128, 256, 512, 1024])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.names if given.names or given.report else OPTIMIZERS:
        measure(name, given.widths, given.seeds, given.steps)
    (RESULTS / "README.md").write_text(report())


if __name__ == "__main__":
    main()
