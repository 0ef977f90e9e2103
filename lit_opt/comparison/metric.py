"""The logged name by which the arms are compared, and whether lower is better."""

from __future__ import annotations

from lit_opt.errors import RecipeError


def choose_metric(metric: str | None, mode: str | None, logged: frozenset[str]) -> tuple[str, str]:
    """The metric and whether lower or higher is better.

    Args:
        metric: As given.
        mode: As given, "min", "max" or None.
        logged: Names logged in validation.

    Raises:
        RecipeError: It is not logged, or cannot be guessed.

    Example:
        >>> choose_metric(None, None, frozenset({"val_loss", "val_acc"})), choose_metric("val_acc", None, frozenset())
        (('val_loss', 'min'), ('val_acc', 'max'))
    """
    if metric is None:
        metric = "val_loss" if "val_loss" in logged else next(iter(logged)) if len(logged) == 1 else None
        if metric is None:
            names = f"Logged are: {', '.join(sorted(logged))}." if logged else "Nothing is logged in validation."
            raise RecipeError([f"metric: which logged name decides? {names} Give metric= (--metric NAME)."])
    elif logged and metric not in logged:
        raise RecipeError([missing_metric(metric, set(logged))])
    if mode is None:
        words = metric.lower()
        lower = any(word in words for word in ("loss", "error", "err", "bpb", "ppl", "perplexity", "mse", "mae", "fid"))
        higher = any(
            word in words for word in ("acc", "auc", "f1", "iou", "map", "bleu", "score", "precision", "recall")
        )
        if lower == higher:
            raise RecipeError(
                [f"mode: is lower or higher better for {metric!r}? Give mode='min' or 'max' (--mode min)."]
            )
        mode = "min" if lower else "max"
    return metric, mode


def missing_metric(metric: str, logged: set[str]) -> str:
    """What to say where nothing of that name was logged in validation.

    Example:
        >>> missing_metric("val_loss", set())
        "metric: 'val_loss' was not logged in validation; nothing was. Log it in validation_step: self.log('val_loss', loss)."
    """
    there = f"logged were: {', '.join(sorted(logged))}. Give one of them as metric=" if logged else "nothing was"
    remedy = "" if logged else f" Log it in validation_step: self.log({metric!r}, loss)."
    return f"metric: {metric!r} was not logged in validation; {there}.{remedy}"
