"""`RecipeCheck`: looks at a run when it begins, and says what is misconfigured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from lit_opt.errors import RecipeError, nearest
from lit_opt.preflight.check import Report, ignorable, judge
from lit_opt.preflight.check_report import problems, report_text
from lit_opt.preflight.collect import setting_key
from lit_opt.preflight.trainer_evidence import evidence_of_trainer

_ON_ERROR = ("warn", "raise")


class RecipeCheck(Callback):
    """Check optimizer, groups, schedule, clipping and averages when training starts.

    Works with and without a recipe: it reads the optimizers and schedulers as they were built, and the real Trainer. One
    table is printed on rank 0. Module, optimizer, scheduler and random states are left as they are.

    Args:
        setting: "llm", "vit", "cnn", "diffusion", "large_batch", "vlm", or "llm/finetune", "vit/finetune" and
            "diffusion/finetune". A recipe among the callbacks says it itself. Without it, what depends on it is not
            judged, and the table says so.
        on_error: "warn" prints; "raise" stops the run before its first step if a finding has the level error.
        ignore: Ids of findings that are meant, such as ["beta2-llm"]: they leave the table and never raise. The table
            says how many there were, and `report.silenced` has them.

    Raises:
        RecipeError: Unknown setting or id; findings of level error, with on_error="raise".

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> check = RecipeCheck()
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> Trainer(max_steps=3, callbacks=[check], accelerator="cpu", enable_model_summary=False, **quiet).fit(BoringModel())
        >>> [finding.id for finding in check.report.findings]
        ['horizon-mismatch']
    """

    def __init__(
        self,
        setting: str | None = None,
        *,
        on_error: Literal["warn", "raise"] = "warn",
        ignore: Sequence[str] = (),
    ) -> None:
        found = []
        if setting is not None:
            try:
                setting_key(setting)
            except RecipeError as error:
                found += error.problems
        if on_error not in _ON_ERROR:
            found.append(f"on_error: {on_error!r} is unknown.{nearest(on_error, _ON_ERROR)} Known: 'warn', 'raise'.")
        try:
            self.ignore = ignorable(ignore)
        except RecipeError as error:
            found += error.problems
        if found:
            raise RecipeError(found)
        self.setting = setting
        self.on_error = on_error
        self.report: Report | None = None
        """What was found, once training has started."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Look, print, and raise if that was asked for."""
        try:
            evidence = evidence_of_trainer(trainer, pl_module, self.setting)
        except RecipeError as error:
            rank_zero_info(f"RecipeCheck: nothing was judged. {error}")
            return
        self.report = judge(evidence, self.ignore)
        _print(self.report)
        errors = problems(self.report)
        if errors and self.on_error == "raise":
            raise RecipeError(errors)


@rank_zero_only
def _print(report: Report) -> None:
    rank_zero_info("RecipeCheck\n" + report_text(report))
