"""What a run shows at its end: a few closing lines, and a picture of its losses."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_opt.errors import RecipeError
from lit_opt.workloads.require import require

if TYPE_CHECKING:
    from lit_opt.workloads.image_classifier import ImageClassifier
    from lit_opt.workloads.language_model import LanguageModel
    from lit_opt.workloads.vision_language import VisionLanguageModel

_BLUE, _ORANGE, _GREEN, _GREY = "#2f6db3", "#d9822b", "#3a8a5c", "#5f6770"
_METRICS = {  # what is shown of the validation, best name first
    "val_bpb": "validation, bits per byte",
    "val_acc": "validation accuracy",
    "val_loss": "validation loss",
}


# Where the sample of a language model begins: the text is Python's own source.
_PROMPT = "def "


def language_model_lines(model: LanguageModel, metrics: Mapping[str, Any]) -> list[str]:
    """The result of a text run and a sample of what the model now writes.

    Args:
        model: The trained model.
        metrics: `trainer.callback_metrics`, or any mapping with `val_bpb`.

    Example:
        >>> from lit_opt.workloads import LanguageModel
        >>> model = LanguageModel(layers=1, width=16, heads=2, mlp_width=32)
        >>> language_model_lines(model, {"val_bpb": 1.97})[0]
        'Validation: 1.970 bits per byte (guessing: 8).'
    """
    sample = model.sample(_PROMPT, n_bytes=300)
    return [
        *(
            [f"Validation: {float(metrics['val_bpb']):.3f} bits per byte (guessing: 8)."]
            if "val_bpb" in metrics
            else []
        ),
        f"A sample, continued from {_PROMPT!r}:",
        *(f"  | {line}" for line in sample.splitlines()),
    ]


def image_classifier_lines(model: ImageClassifier, metrics: Mapping[str, Any]) -> list[str]:
    """The result of an image run.

    Args:
        model: The trained model.
        metrics: `trainer.callback_metrics`, or any mapping with `val_acc`.

    Example:
        >>> from lit_opt.workloads import ImageClassifier
        >>> image_classifier_lines(ImageClassifier(width=0.125), {"val_acc": 0.983, "val_loss": 0.084})
        ['Validation: 98.3 % correct (guessing: 10.0 %), loss 0.084.']
    """
    if "val_acc" not in metrics:
        return []
    loss = f", loss {float(metrics['val_loss']):.3f}" if "val_loss" in metrics else ""
    guessing = 100 / model.hparams["num_classes"]
    return [f"Validation: {100 * float(metrics['val_acc']):.1f} % correct (guessing: {guessing:.1f} %){loss}."]


def vision_language_lines(model: VisionLanguageModel, metrics: Mapping[str, Any]) -> list[str]:
    """The result of a captioning run, and three validation images' captions beside what the model writes.

    Args:
        model: The model after a validation.
        metrics: `trainer.callback_metrics`, or any mapping with `caption_accuracy`.

    Example:
        >>> from lit_opt.workloads import VisionLanguageModel
        >>> model = VisionLanguageModel(vision_width=8, width=16, layers=1, heads=2)
        >>> model.shown = [("a mono digit 7", "a mono digit 1")]
        >>> for line in vision_language_lines(model, {"caption_accuracy": 0.25, "val_loss": 0.2}):
        ...     print(line)
        Validation: 25.0 % of the captions without a mistake, loss 0.200.
          is:      a mono digit 7
          written: a mono digit 1
    """
    lines = []
    if "caption_accuracy" in metrics:
        loss = f", loss {float(metrics['val_loss']):.3f}" if "val_loss" in metrics else ""
        right = 100 * float(metrics["caption_accuracy"])
        lines.append(f"Validation: {right:.1f} % of the captions without a mistake{loss}.")
    for true, written in model.shown[:3]:
        lines += [f"  is:      {true}", f"  written: {written}"]
    return lines


def loss_plot(metrics: str | Path | Iterable[Mapping[str, Any]], png_path: str | Path) -> Path:
    """Draw the training loss, the validation metric and the learning rates over the optimizer steps.

    Args:
        metrics: The `metrics.csv` that Lightning's `CSVLogger` writes, or its rows. Learning rates are the
            columns that begin with "lr", as `LearningRateMonitor` names them.
        png_path: Where the picture goes; its folder is made.

    Returns:
        The path of the picture.

    Raises:
        RecipeError: The file is not there, it holds no `train_loss`, or matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> rows = [{"step": s, "train_loss": 8 / (s + 1), "lr-AdamW": 1e-3} for s in range(0, 100, 10)]
        >>> loss_plot(rows, f"{tempfile.mkdtemp()}/loss.png").name
        'loss.png'
    """
    rows = _read(metrics) if isinstance(metrics, str | Path) else list(metrics)
    train = _series(rows, "train_loss") or _series(rows, "train_loss_step")
    if not train:
        known = sorted({name for row in rows for name in row})
        raise RecipeError([f"metrics: no value of train_loss among the columns {', '.join(known) or '(none)'}."])
    val = next((name for name in _METRICS if _series(rows, name)), None)
    rates = {name: _series(rows, name) for name in dict.fromkeys(name for row in rows for name in row)}
    rates = {name: points for name, points in rates.items() if name.startswith("lr") and points}

    figure_class = require("matplotlib.figure", "loss_plot").Figure
    heights = [3.0, *([2.0] if val else []), *([1.3] if rates else [])]
    figure = figure_class(figsize=(8, 1.0 + sum(heights)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)
    axes = list(figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])

    steps, losses = zip(*train, strict=True)
    axes[0].plot(steps, losses, color=_BLUE, alpha=0.25, linewidth=0.8)
    axes[0].plot(steps, _smooth(losses), color=_BLUE, linewidth=1.8)
    _title(axes[0], "training loss", f"{_smooth(losses)[-1]:.3f} at the end (thin: as logged, thick: smoothed)")
    if val:
        steps, values = zip(*_series(rows, val), strict=True)
        axes[1].plot(steps, values, color=_ORANGE, linewidth=1.8, marker="o", markersize=3.5)
        best = max(values) if val == "val_acc" else min(values)
        _title(axes[1], _METRICS[val], f"{values[-1]:.3f} at the end, best {best:.3f}")
    if rates:
        for name, points in rates.items():
            steps, values = zip(*points, strict=True)
            axes[-1].plot(steps, values, linewidth=1.6, label=name, **({"color": _GREEN} if len(rates) == 1 else {}))
        axes[-1].set_ylim(bottom=0)
        axes[-1].yaxis.set_major_formatter("{x:g}")
        if len(rates) > 1:
            axes[-1].legend(frameon=False, fontsize=8)
        peak = max(value for points in rates.values() for _, value in points)
        _title(axes[-1], "learning rate", f"peak {peak:.2g}")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#b9c0c7")
        axis.grid(axis="y", color="#e3e6e9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(colors=_GREY, labelsize=9)
    axes[-1].set_xlabel("optimizer steps", color=_GREY)
    axes[-1].set_xlim(left=0)

    png_path = Path(png_path)
    png_path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png_path, dpi=150, format="png")
    return png_path


def _title(axis: Any, name: str, facts: str) -> None:
    axis.set_title(name, loc="left", fontsize=11, fontweight="bold", color="#23282d")
    axis.set_title(facts, loc="right", fontsize=9, color=_GREY)


def _read(path: str | Path) -> list[dict[str, str]]:
    try:
        with Path(path).open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except OSError as error:
        raise RecipeError(
            [f"metrics={str(path)!r}: cannot be read ({error}). Give the metrics.csv of a CSVLogger."]
        ) from error


def _series(rows: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) pairs, without rows where the value is blank (CSVLogger's way) or not finite."""
    points = [(int(float(row["step"])), float(row[name])) for row in rows if row.get(name) not in (None, "")]
    return [(step, value) for step, value in points if math.isfinite(value)]


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean over neighbours on both sides, a twentieth of the run; unlike a running mean it does not lag."""
    reach = len(values) // 40
    around = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in around]
