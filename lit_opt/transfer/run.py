"""How rate, betas, epsilon and decay follow the batch and the length of the run: for all parameters alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lit_opt.transfer.spec import Transfer
from lit_opt.transfer.width import DERIVED

# Of the best rate on the number of tokens, language models of 50 M to 7 B parameters.
HORIZON_POWER = 0.32

ADAM_SQRT = "square root rule, arXiv:2205.10287"
LINEAR = "linear rule, arXiv:1706.02677"
_ADAM_KIND = {"adam", "adamw", "amsgrad", "nadam", "radam", "rmsprop", "adamw_8bit", "adamw_4bit", "adamw_fp8",
              "schedule_free_adamw"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunFactors:
    """What batch and horizon do to the numbers of a recipe.

    Args:
        lr: Multiplies rates.
        weight_decay: Multiplies decays.
        eps: Multiplies epsilons.
        forgetting: Multiplies 1 - beta of every moving average over steps, and 1 - momentum.
        words: What was done, each with its source.

    Example:
        >>> RunFactors().lr
        1.0
    """

    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0
    forgetting: float = 1.0
    words: tuple[str, ...] = ()


def run_factors(asked: Transfer, algorithm: str, batch: int | None, steps: int | None) -> tuple[RunFactors, list[str]]:
    """The factors, and which facts are missing in sentences.

    Args:
        asked: What the user asks for.
        algorithm: Registry name of the recipe's optimizer.
        batch: Global batch of the run in samples.
        steps: Optimizer steps of the run.

    Example:
        >>> asked = Transfer(base=dict, batch="sqrt", base_batch_size=64)
        >>> factors, _ = run_factors(asked, "adamw", 256, None)
        >>> factors.lr, factors.forgetting, factors.eps, factors.weight_decay
        (2.0, 4.0, 0.5, 2.0)
    """
    missing = []
    if asked.batch is not None and batch is None:
        missing.append(
            f"transfer.batch: {asked.batch!r} needs the global batch of the run, which is unknown; give batch_size=."
        )
    if asked.horizon is not None and steps is None:
        missing.append(
            f"transfer.horizon: {asked.horizon!r} needs the length of the run, which is unknown; give total_steps=."
        )
    if asked.horizon is not None and asked.base_batch_size is not None and batch is None:
        missing.append("transfer.base_batch_size: the global batch of the run is unknown; give batch_size=.")
    if missing:
        return RunFactors(), missing
    lr = decay = eps = forgetting = 1.0
    words = []
    grown = 1.0 if batch is None or asked.base_batch_size is None else batch / asked.base_batch_size
    if asked.batch is not None and grown != 1.0:
        sgd = algorithm in ("sgd", "nesterov")
        if asked.batch == "sqrt":
            lr, decay, source = math.sqrt(grown), math.sqrt(grown), ADAM_SQRT
            eps, forgetting = (1.0, 1.0) if sgd else (1 / math.sqrt(grown), grown)
            source += "" if algorithm in _ADAM_KIND else f" for Adam; {DERIVED} for {algorithm}"
        else:
            lr, source = grown, LINEAR if sgd else f"{LINEAR} for SGD; {DERIVED} for {algorithm}"
            forgetting = 1.0 if sgd else grown
        also = "" if sgd else f", 1 - beta x {forgetting:.4g}, eps x {eps:.4g}"
        words.append(f"batch x {grown:.4g}: lr x {lr:.4g}{also}, weight_decay x {decay:.4g} ({source})")
    if asked.horizon is not None:
        assert steps is not None and asked.base_total_steps is not None
        longer = grown * steps / asked.base_total_steps
        if asked.horizon == "lr":
            by, source = longer**-HORIZON_POWER, "arXiv:2409.19913"
            lr *= by
            words.append(f"horizon x {longer:.4g} in samples: lr x {by:.4g} ({source}, for AdamW's language models)")
        else:
            # lr x weight_decay follows 1 / steps. A batch rule has multiplied it by the batch, so that samples remain.
            by, unit = (longer, "samples") if asked.batch is not None else (longer / grown, "steps")
            decay /= by
            words.append(f"horizon x {by:.4g} in {unit}: weight_decay x {1 / by:.4g} (arXiv:2405.13698)")
    return RunFactors(lr=lr, weight_decay=decay, eps=eps, forgetting=forgetting, words=tuple(words)), []


def forget_faster(beta: float, factor: float) -> float | None:
    """1 - beta times a factor; None where nothing would be left to average.

    Example:
        >>> round(forget_faster(0.95, 4.0), 3), forget_faster(0.9, 16.0)
        (0.8, None)
    """
    new = 1 - factor * (1 - beta)
    return new if new >= 0 else None
