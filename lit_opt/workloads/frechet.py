"""How far drawn images are from real ones: the Frechet distance, in features of a digit classifier."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lit_opt.callbacks.recipe import Recipe
from lit_opt.errors import RecipeError
from lit_opt.workloads.image_classifier import ImageClassifier
from lit_opt.workloads.image_data import Digits


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of the two Gaussians with the mean and covariance of two sets of features.

    |mean(a) - mean(b)|^2 + trace(A + B - 2 (A^1/2 B A^1/2)^1/2), with the covariances A and B (n - 1 in the
    denominator), in float64: the FID of 1706.08500, whatever the features. It grows as the sets get smaller, so
    compare only sets of equal size.

    Args:
        a: Features (n, d).
        b: Features (m, d).

    Returns:
        The distance, at least 0.

    Raises:
        RecipeError: Other shapes, fewer than two rows, or values that are not finite.

    Example:
        >>> a = torch.tensor([[0.0], [2.0]])
        >>> round(frechet_distance(a, 3 * a + 1), 6)  # means 1 and 4, standard deviations 2**.5 and 3 * 2**.5
        17.0
    """
    sets = {"a": a, "b": b}
    problems = [
        f"{name}: features (n, d) with n of at least 2 are needed, not {tuple(x.shape)}."
        for name, x in sets.items()
        if x.ndim != 2 or len(x) < 2
    ]
    if not problems and a.shape[1] != b.shape[1]:
        problems = [f"a and b: the same number of features is needed, not {a.shape[1]} and {b.shape[1]}."]
    problems += [f"{name}: finite values are needed." for name, x in sets.items() if not x.isfinite().all()]
    if problems:
        raise RecipeError(problems)
    a, b = a.double(), b.double()
    cov_a, cov_b = (torch.atleast_2d(torch.cov(x.mT)) for x in (a, b))
    root = _square_root(cov_a)
    cross = _square_root(root @ cov_b @ root).trace()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, float(distance))


def _square_root(matrix: Tensor) -> Tensor:
    """Of a symmetric matrix without negative eigenvalues, but for rounding."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


@cache
def digit_classifier(epochs: int = 15) -> ImageClassifier:
    """A classifier of `Digits` at 16 x 16, trained on the CPU once a process: about a minute, 98 % right.

    Example:
        >>> digit_classifier(epochs=0).training
        False
    """
    with isolate_rng():
        torch.manual_seed(0)
        model = ImageClassifier()
        if epochs:
            trainer = Trainer(
                accelerator="cpu", devices=1, max_epochs=epochs, callbacks=[Recipe("cnn", lr=0.05)],
                logger=False, enable_checkpointing=False, enable_progress_bar=False,
                enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
            )  # fmt: skip
            trainer.fit(model, datamodule=Digits())
    return model.eval()


def digit_features(images: Tensor, epochs: int = 15) -> Tensor:
    """What `digit_classifier` sees in images, before its last layer.

    Args:
        images: (n, 1 or 3, height, width), in the values of `Digits`.
        epochs: Length of the classifier's training.

    Returns:
        Features (n, 128) in float32, on the CPU.

    Example:
        >>> digit_features(torch.zeros(3, 1, 16, 16), epochs=0).shape
        torch.Size([3, 128])
    """
    network: Any = digit_classifier(epochs).model  # timm's
    parts = images.cpu().expand(-1, 3, -1, -1).split(256)
    with torch.no_grad():  # not around the classifier: a fit switches gradients on for good
        features = [network.forward_head(network.forward_features(part), pre_logits=True) for part in parts]
    return torch.cat(features)
