"""Methods put on a module for the length of a run, and taken off again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from lit_opt.callbacks.facts import is_deepspeed
from lit_opt.errors import RecipeError
from lit_opt.recipes.schema import ClipSpec


class Patched:
    """A method in an instance's dictionary, for the length of a run.

    Copies and pickles hold what was there before: they are unpatched and never reach back to the original.
    Lightning's `is_overridden` reads `__wrapped__`.

    Args:
        module: The module that has it.
        name: Of the method.
        function: Called with the module first.
        owner: The recipe.
    """

    def __init__(self, module: Any, name: str, function: Callable[..., Any], owner: object) -> None:
        self.module, self.__name__, self.__wrapped__, self.owner = module, name, function, owner
        self.before = module.__dict__.get(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function with the module first."""
        return self.__wrapped__(self.module, *args, **kwargs)

    def __reduce__(self) -> Any:
        return (getattr, (self.module, self.__name__)) if self.before is None else (_same, (self.before,))


class Patches:
    """Instance methods installed on one module, in order; `remove` leaves the module as it was found."""

    def __init__(self) -> None:
        self._installed: list[Patched] = []

    def install(self, module: Any, name: str, function: Callable[..., Any], owner: object = None) -> None:
        """Put `function(module, ...)` in the place of the method `name`."""
        patched = Patched(module, name, function, owner)
        self._installed.append(patched)
        module.__dict__[name] = patched

    def remove(self) -> None:
        """Take off what was installed, last first. Safe to call twice."""
        while self._installed:
            patched = self._installed.pop()
            if patched.before is None:
                patched.module.__dict__.pop(patched.__name__, None)
            else:
                patched.module.__dict__[patched.__name__] = patched.before


class Attached:
    """A module's `configure_callbacks` that also gives a recipe. Copies and pickles of the module keep theirs."""

    def __init__(self, module: Any, recipe: Any) -> None:
        self.module, self.recipe = module, recipe
        self.before = module.__dict__.get("configure_callbacks")

    def __call__(self) -> list[Any]:
        """The module's own callbacks and the recipe."""
        own = self.before() if self.before is not None else type(self.module).configure_callbacks(self.module)
        callbacks = [*(own if isinstance(own, list | tuple) else [own]), self.recipe]
        trainer = self.module._trainer
        if trainer is not None:
            # Lightning lets a module's callback replace a Trainer's of the same type, without a word.
            refuse_other_owners(self.module, self.recipe, [*trainer.callbacks, *callbacks])
            self.recipe.open(trainer, self.module)
        return callbacks


def patched_by(module: Any, name: str) -> object:
    """The recipe that patched this method, or None."""
    return getattr(module.__dict__.get(name), "owner", None)


# What a recipe cannot set while the module's own optimizer and scheduler stay.
OF_THE_OPTIMIZER = (
    "optimizer", "lr", "base_lr", "base_batch_size", "weight_decay", "betas", "momentum", "warmup", "decay",
    "optimizer_kwargs", "fallback", "groups", "layer_decay", "parts", "transfer",
)  # fmt: skip


def _same(x: Any) -> Any:
    return x


def is_overridden(module: Any, name: str) -> bool:
    """Whether the module has its own method `name`. Works in both Lightning namespaces."""
    method = getattr(module, name, None)
    return method is not None and getattr(method, "__qualname__", "") != f"LightningModule.{name}"


def attachment_problems(recipe: Any, trainer: Any, module: Any, *, own: bool, clip: ClipSpec | None) -> list[str]:
    """What stands in the way of a recipe on this module and Trainer: methods of its own, clipping twice.

    Args:
        recipe: The recipe.
        trainer: A Trainer inside `fit`.
        module: Its LightningModule.
        own: Whether the module has its own configure_optimizers.
        clip: What the recipe clips, None for nothing.
    """
    problems = []
    name = type(module).__name__
    if own and recipe.existing == "error":
        problems.append(
            f"existing: {name} has its own configure_optimizers, and existing='error' was given. Remove the method, "
            "or give existing='replace' or 'keep'."
        )
    if own and recipe.existing is None and not module.automatic_optimization:
        problems.append(
            f"existing: {name} has its own configure_optimizers and optimizes manually, so it is not replaced "
            "silently. Give existing='keep' (its optimizer stays) or existing='replace'."
        )
    unused = [field for field in OF_THE_OPTIMIZER if field in recipe.overrides]
    if own and recipe.existing == "keep" and unused:
        problems.append(
            f"{', '.join(unused)}: existing='keep' leaves the optimizer and scheduler of {name}, so "
            f"{'=, '.join(unused)}= would change nothing. Set it in {name}.configure_optimizers, or give existing='replace'."
        )
    if clip is not None and trainer.gradient_clip_val:
        problems.append(
            f"clip: both Trainer(gradient_clip_val={trainer.gradient_clip_val}) and the recipe "
            f"(clip={clip.limit:g}) clip gradients. Remove gradient_clip_val, or give Recipe(..., clip=0)."
        )
    if clip is not None and clip.kind == "value" and is_deepspeed(trainer):
        problems.append(
            "clip: DeepSpeed clips by the global norm only, and kind='value' was given. Give Recipe(..., clip=1.0)."
        )
    if clip is not None and "clip" in recipe.overrides and is_overridden(module, "configure_gradient_clipping"):
        problems.append(
            f"clip: {name} has its own configure_gradient_clipping, and Recipe(clip=...) was given. Keep one."
        )
    return problems


def refuse_other_owners(module: Any, recipe: object, callbacks: list[Any]) -> None:
    """Two recipes, or a recipe beside a LightningCLI optimizer, are an error: the last would win silently."""
    others = [c for c in callbacks if type(c) is type(recipe) and c is not recipe]
    before = patched_by(module, "configure_optimizers")
    if others or (before is not None and before is not recipe):
        names = sorted(map(repr, {id(c): c for c in [recipe, *others, before] if c is not None}.values()))
        raise RecipeError([f"callbacks: two recipes want to set the optimizer ({', '.join(names)}). Keep one of them."])
    own = module.__dict__.get("configure_optimizers")
    if isinstance(getattr(own, "__func__", None), partial):
        raise RecipeError(
            [
                "optimizer: the command line (LightningCLI --optimizer) and the recipe both set the optimizer. Remove "
                "--optimizer and --lr_scheduler, or the recipe; a recipe takes its optimizer by Recipe(optimizer=...)."
            ]
        )


def refuse_several(configured: Any) -> None:
    """Refuse to replace several optimizers, which a training_step under manual optimization unpacks, by one.

    Args:
        configured: What the module's own configure_optimizers returned.

    Raises:
        RecipeError: It has more than one optimizer.

    Example:
        >>> refuse_several({"optimizer": None})
    """
    parts = configured if isinstance(configured, list | tuple) else [configured]
    if len(parts) == 2 and isinstance(parts[0], list | tuple):
        parts = parts[0]  # optimizers and schedulers
    if len(parts) > 1:
        raise RecipeError(
            [
                f"existing: the module's own configure_optimizers makes {len(parts)} optimizers, and a recipe brings one, so "
                "that self.optimizers() would not be what training_step expects. Give existing='keep'."
            ]
        )
