"""What a session puts on the module and the strategy; `Session.close` takes it off again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lit_opt.callbacks import resume
from lit_opt.callbacks.checkpoint_file import guard_files
from lit_opt.callbacks.facts import is_deepspeed
from lit_opt.callbacks.patches import is_overridden, refuse_several
from lit_opt.param_groups import snapshot_parameters

if TYPE_CHECKING:
    from lit_opt.callbacks.session import Session


def install(session: Session) -> None:
    """Patch the module's methods and the strategy's step.

    Args:
        session: Of a fit that nothing stands in the way of.
    """
    _install_on_module(session)
    _install_on_strategy(session)


def _install_on_module(session: Session) -> None:
    module, patches, owner = session.module, session.patches, session.recipe
    before_setup, before_save, theirs = module.setup, module.on_save_checkpoint, module.configure_optimizers
    builds_later = is_overridden(module, "configure_model")

    def setup(self: Any, stage: str) -> None:
        before_setup(stage)
        if not builds_later:  # lazy layers may meet their first batch there
            session.snapshot = snapshot_parameters(module)

    def on_save_checkpoint(self: Any, checkpoint: dict[str, Any]) -> None:
        session.steps.settle()
        before_save(checkpoint)
        checkpoint[resume.KEY] = session.packed(full="optimizer_states" in checkpoint)

    def configure_optimizers(self: Any) -> dict[str, Any]:
        if not module.automatic_optimization and is_overridden(type(module), "configure_optimizers"):
            refuse_several(theirs())
        return session.configure()

    patches.install(module, "setup", setup, owner=owner)
    patches.install(module, "on_save_checkpoint", on_save_checkpoint, owner=owner)
    if builds_later:
        before_model = module.configure_model

        def configure_model(self: Any) -> None:
            before_model()
            session.snapshot = snapshot_parameters(module)

        patches.install(module, "configure_model", configure_model, owner=owner)
    if not session.keeps_theirs:
        patches.install(module, "configure_optimizers", configure_optimizers, owner=owner)
    if module.automatic_optimization and not is_deepspeed(session.trainer):
        before_clipping = module.configure_gradient_clipping

        def configure_gradient_clipping(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            session.steps.look(optimizer)
            if session.clip is not None:
                session.clip_gradients(optimizer)
            else:
                before_clipping(optimizer, *args, **kwargs)

        # Lightning calls it last before a step, whether or not anything clips.
        patches.install(module, "configure_gradient_clipping", configure_gradient_clipping, owner=owner)


def _install_on_strategy(session: Session) -> None:
    strategy = session.trainer.strategy
    before_step = strategy.optimizer_step

    def optimizer_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return session.steps.step(lambda: before_step(*args, **kwargs))

    session.patches.install(strategy, "optimizer_step", optimizer_step, owner=session.recipe)
    guard_files(session.patches, strategy, session.recipe)
