"""Random runs: a module, a recipe, overrides, a Trainer and an interruption, and what may come of them."""

from __future__ import annotations

import logging
import tempfile
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from lit_opt import EMA, ClipSpec, DecaySpec, EMASpec, GroupRule, OptimizerMonitor, Recipe
from lit_opt.callbacks.patches import OF_THE_OPTIMIZER
from lit_opt.errors import RecipeError
from lit_opt.recipes import list_recipes
from tests.callbacks.modules import (
    Endless,
    Manual,
    ManualOwn,
    Net,
    OwnSGD,
    StatefulLoader,
    loader,
    snapshot,
    trainer,
    trainer_fields,
)
from tests.rows import HERE
from tests.survival import unusual

MODULES: list[type[Net]] = [Net, Net, OwnSGD, Manual, ManualOwn, *unusual.TRAINED, *unusual.REFUSED,
                            unusual.SkipsBatches, unusual.TwoOptimizers]  # fmt: skip
OPTIMIZERS: list[Any] = [*HERE, torch.optim.RMSprop, torch.optim.Adadelta, torch.optim.LBFGS, "adamv", 3]


class Boom(Exception):
    """A user's bug."""


class Interrupts(Callback):
    """At one step: an exception, Ctrl-C, a loss that is nan, or a checkpoint."""

    def __init__(self, kind: str, step: int, path: Path) -> None:
        self.kind, self.step, self.path, self.done = kind, step, path, False

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step and self.kind == "boom":
            raise Boom
        if trainer.global_step == self.step and self.kind == "ctrl-c":
            raise KeyboardInterrupt

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == self.step and self.kind == "nan":
            for p in pl_module.parameters():
                if p.grad is not None and not p.grad.is_sparse:
                    p.grad.fill_(float("nan"))

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if self.kind == "resume" and trainer.global_step >= max(self.step, 1) and not self.done:
            self.done = True
            trainer.save_checkpoint(self.path)


@dataclass
class Draw:
    """One random run."""

    module: type[Net]
    name: str
    overrides: dict[str, Any]
    trainer: dict[str, Any]
    data: str
    interruption: str
    step: int
    beside: list[str] = field(default_factory=list)


def maybe(good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any], weight: int = 14) -> st.SearchStrategy[Any]:
    """Mostly something that is allowed."""
    return st.integers(0, weight).flatmap(lambda i: bad if i == weight else good)


numbers = st.sampled_from([-1.0, 0.0, float("nan"), float("inf"), 1e30, "x", True, [1], {}])
OVERRIDES: dict[str, st.SearchStrategy[Any]] = {
    "lr": maybe(st.sampled_from([1e-3, 1e-2, 0.3]), numbers),
    "base_lr": maybe(st.sampled_from([1e-3, 0.1]), numbers, 4),
    "base_batch_size": maybe(st.sampled_from([4, 256]), numbers),
    "weight_decay": maybe(st.sampled_from([0.0, 1e-4, 0.1]), numbers),
    "betas": maybe(st.sampled_from([(0.9, 0.95), [0.5, 0.9]]), st.sampled_from([(0.9,), 1.0, (1.0, 2.0), "x"])),
    "momentum": maybe(st.sampled_from([0.0, 0.9]), numbers),
    "warmup": maybe(st.sampled_from([0, 0.1, 2, 3, "1 epochs", "2 steps", 0.5]), st.sampled_from([-1, "soon", 2.5, 99, []])),
    "decay": maybe(
        st.sampled_from(["cosine", "linear", "step", "polynomial", "constant", "wsd", DecaySpec(kind="linear", final=0.5),
                         DecaySpec(kind="wsd", cooldown=2), {"kind": "cosine", "final": 0.2}]),
        st.sampled_from(["cosin", 3, DecaySpec(kind="nothing"), {"knd": 1}, DecaySpec(final=-1.0)]),
    ),
    "clip": maybe(st.sampled_from([0, 0.0, 0.1, 1.0, ClipSpec(limit=0.5, kind="value")]), numbers),
    "ema": maybe(
        st.sampled_from([True, False, 0, 0.9, EMASpec(decay=0.5, warmup=False, start_step=2), EMASpec(checkpoint="ema"),
                         EMASpec(kind="swa", start_step=1, every=2), EMASpec(buffers=True, offload=True), {"decay": 0.8}]),
        st.sampled_from([1.0, -0.1, "x", EMASpec(every=3), {"decy": 1}, EMASpec(kind="sma")]),
    ),
    "batch_size": maybe(st.sampled_from([4, 256]), numbers),
    "batch_tokens": maybe(st.sampled_from([4096]), numbers),
    "total_steps": maybe(st.sampled_from([4, 6, 100]), numbers),
    "optimizer_kwargs": maybe(
        st.sampled_from([{}, {"eps": 1e-6}, {"rho": 0.1}, {"ns_steps": 3}, {"base": "lion"}, {"k": 2}, {"amsgrad": True}]),
        st.sampled_from([{"epz": 1}, {"eps": "x"}, 3, {"lr": 1.0}]), 4,
    ),
    "fallback": maybe(st.sampled_from([{"lr": 1e-3}, {"betas": (0.9, 0.99)}]), st.sampled_from([{"lrr": 1}, 3, {"lr": -1}])),
    "groups": maybe(
        st.sampled_from([[], [GroupRule(match="net.0.*", lr_scale=0.5)], [GroupRule(match="*", weight_decay=0.0)],
                         [GroupRule(match="*.bias", lr_scale=0.0)], [GroupRule(match="*", algorithm="adamw")]]),
        st.sampled_from([[GroupRule(match="nothing*", lr_scale=2.0)], [3], "x", [GroupRule(match="*")], [{"match": "*"}]]),
    ),
    "layer_decay": maybe(st.sampled_from([0.75, 1.0]), numbers, 3),
    "parts": maybe(st.sampled_from([{"projector": "net.0.*"}]), st.sampled_from([{"proj": "x"}, 3]), 1),
    "existing": st.sampled_from(["replace", "keep", "keep", "error", "kep"]),
    "on_resume": st.sampled_from(["error", "checkpoint", "config", "x"]),
    "on_nonfinite": st.sampled_from(["raise", "skip", "skip", "ignore", "x"]),
}  # fmt: skip
COMMON = ["clip", "decay", "ema", "groups", "lr", "on_nonfinite", "on_resume", "total_steps", "warmup", "weight_decay"]
TRAINER: dict[str, st.SearchStrategy[Any]] = {
    "accumulate_grad_batches": st.sampled_from([1, 2, 3]),
    "precision": st.sampled_from(["32-true", "bf16-mixed", "bf16-true", "64-true", "scaled"]),
    "gradient_clip_val": st.sampled_from([None, 0.5]),
    "limit_train_batches": st.sampled_from([3, 0.5, 1.0, 0]),
    "val_check_interval": st.sampled_from([1, 3, 0.5]),
    "fast_dev_run": st.sampled_from([False, 2]),
    "overfit_batches": st.sampled_from([0, 2]),
    "reload_dataloaders_every_n_epochs": st.sampled_from([0, 1]),
    "barebones": st.sampled_from([False, False, True]),
    "detect_anomaly": st.booleans(),
    "num_sanity_val_steps": st.sampled_from([0, 2]),
}


@st.composite
def draws(draw: Any) -> Draw:
    """A run."""
    keys = draw(st.lists(st.sampled_from(COMMON), max_size=3, unique=True))
    if not draw(st.integers(0, 3)):
        keys += draw(
            st.lists(st.sampled_from(sorted(set(OVERRIDES) - set(COMMON))), min_size=1, max_size=2, unique=True)
        )
    overrides = {key: draw(OVERRIDES[key]) for key in keys}
    module = draw(st.sampled_from(MODULES))
    if "base_batch_size" in overrides and draw(st.integers(0, 4)):
        overrides.setdefault("base_lr", 0.1)
        overrides.pop("lr", None)
    if issubclass(module, Manual) and draw(st.booleans()):
        overrides["existing"] = "keep"
    if draw(st.integers(0, 2)):
        overrides["optimizer"] = draw(maybe(st.sampled_from(OPTIMIZERS[:-2]), st.sampled_from(OPTIMIZERS)))
        # Most rows have no published values for most settings.
        if "base_lr" not in overrides:
            overrides.setdefault("lr", 1e-2)
        overrides.setdefault("weight_decay", 0.01)
    if overrides.get("existing") == "keep" and draw(st.integers(0, 3)):  # else mostly refused: they would do nothing
        overrides = {key: value for key, value in overrides.items() if key not in OF_THE_OPTIMIZER}
    how = {key: draw(TRAINER[key]) for key in draw(st.lists(st.sampled_from(sorted(TRAINER)), max_size=3, unique=True))}
    if module in (unusual.Complex, unusual.Orthogonal) and how.get("precision") == "bf16-true":
        how.pop("precision")  # neither has a forward pass in bfloat16
    how |= draw(
        st.sampled_from([{"max_steps": 4}, {"max_steps": 7}, {"max_epochs": 1}, {"max_epochs": 2}, {"max_steps": 9}])
    )
    return Draw(
        module=module,
        name=draw(maybe(st.sampled_from(list_recipes()), st.sampled_from(["lm", "", 3]), 30)),
        overrides=overrides,
        trainer=how,
        data=draw(st.sampled_from(["stateful", "stateful", "stateful", "stateful", "loader", "shuffled", "endless", "endless", "empty"])),
        interruption=draw(st.sampled_from(["", "resume", "resume", "boom", "ctrl-c", "nan"])),
        step=draw(st.integers(0, 5)),
        beside=draw(st.sampled_from([[], [], ["monitor"], ["monitor"], ["monitor", "ema"], ["recipe"]])),
    )  # fmt: skip


def data_of(draw: Draw) -> Any:
    if draw.data == "stateful":
        return StatefulLoader()
    if draw.data == "endless":
        return DataLoader(Endless(), 4)
    return loader(0 if draw.data == "empty" else 32, shuffle=draw.data == "shuffled")


def fields_of(t: Any) -> dict[str, Any]:
    """What a recipe could touch; Lightning itself sets max_epochs."""
    return {name: value for name, value in trainer_fields(t).items() if name != "max_epochs"}


def run(draw: Draw, module: Net, path: Path, interruption: str, ckpt_path: Path | None = None) -> str:
    """Fit; returns "trained", "refused", "interrupted" or what else came of it. Checks that nothing is left behind."""
    beside: dict[str, Any] = {
        "monitor": lambda: OptimizerMonitor(every_n_steps=1),
        "ema": EMA,
        "recipe": lambda: Recipe("llm"),
    }
    before, fields, t = snapshot(module), None, None
    methods = dict.fromkeys(("optimizer_step", "load_checkpoint", "load_model_state_dict"))
    try:
        ours = Recipe(draw.name, **draw.overrides)
        how = dict(draw.trainer)
        if how.get("precision") == "scaled":
            how.pop("precision")
            how["plugins"] = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))
        if how.get("barebones"):
            how = {
                k: v for k, v in how.items() if k in ("barebones", "max_steps", "max_epochs", "accumulate_grad_batches")
            }
            how |= dict.fromkeys(
                ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
            )
        callbacks = [beside[word]() for word in draw.beside]
        t = trainer(ours, *callbacks, Interrupts(interruption, draw.step, path), **how)
        fields = fields_of(t)
        t.fit(module, data_of(draw), loader(8), ckpt_path=ckpt_path)
        outcome = "trained"
    except RecipeError as error:
        outcome = "refused" if all(len(p) > 20 for p in error.problems) else f"an empty message: {error}"
    except MisconfigurationException:
        outcome = "refused"
    except ValueError as error:  # Lightning's: 3, with overfit_batches=2
        outcome = "refused" if "`val_check_interval` (" in str(error) else traceback.format_exc()
    except RuntimeError as error:  # torch's own, which a manual step meets before any check of ours
        named = draw.trainer.get("detect_anomaly") and "returned nan values" in str(error)
        outcome = "interrupted" if named else traceback.format_exc()
    except Boom:
        outcome = "interrupted"
    except SystemExit:  # Lightning's way out after Ctrl-C
        outcome = "interrupted"
    except Exception:
        outcome = traceback.format_exc()
    if outcome in ("trained", "refused", "interrupted"):
        left = snapshot(module)
        if left != before:
            outcome = f"left on the module: {sorted(set(left.items()) ^ set(before.items()))}"
        if t is not None and [name for name in methods if name in vars(t.strategy)]:
            outcome = "left on the strategy"
        if t is not None and fields is not None and fields_of(t) != fields:
            outcome = f"left on the Trainer: {fields} became {fields_of(t)}"
    return outcome


def try_out(draw: Draw) -> str:
    """What came of a draw; anything but "trained", "refused" and "interrupted" is a fault."""
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.ckpt"
        torch.manual_seed(0)
        module = draw.module()
        outcome = run(draw, module, path, draw.interruption)
        if outcome == "trained":
            tame = draw.overrides.get("lr", 0) in (0, 1e-3, 1e-2) and draw.interruption != "nan"
            bad = [name for name, p in module.named_parameters() if not p.isfinite().all()]
            if bad and tame:
                return f"not finite after training: {bad}"
        if outcome == "trained" and draw.interruption == "resume" and path.exists():
            torch.manual_seed(7)
            again = draw.module()
            outcome = run(draw, again, path, "", ckpt_path=path)
            # The data of other loaders are not the same after a resume, nor is a random order drawn again for
            # overfit_batches; float16 scales are.
            exact = draw.data == "stateful" and not draw.trainer.get("overfit_batches")
            if outcome == "trained" and exact and draw.trainer.get("limit_train_batches") is None:
                for (name, a), b in zip(module.named_parameters(), again.parameters(), strict=True):
                    if not torch.equal(a, b) and not (a.isnan() & b.isnan()).any():
                        return f"resumed: {name} differs by {(a - b).abs().max()}"
        return outcome
