"""An image classifier around any timm or torchvision model; by default a narrow ResNet-18 for tiny images."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from lit_opt.errors import RecipeError, nearest
from lit_opt.workloads.pretrained import load_weights
from lit_opt.workloads.require import require, whole_number_problems


class ImageClassifier(LightningModule):
    """A network from timm or torchvision, from scratch, with cross-entropy.

    Logs `train_loss`, `val_loss` (both in nats; the second without label smoothing) and `val_acc` (0..1).
    It has no `configure_optimizers`: a recipe brings it, or a subclass defines it.

    Args:
        model: Name in timm, or else in torchvision.
        num_classes: Size of the last layer.
        small_images: Replace a ResNet's stem (a 7 x 7 convolution with stride 2 and a pooling) by one 3 x 3
            convolution, as the ResNet paper does for CIFAR-10 (1512.03385, section 4.2). False takes the
            published model.
        width: Multiplies the channels of a timm ResNet with basic blocks; 1 is the published network.
        model_kwargs: Further arguments for the model, such as `{"img_size": 32, "patch_size": 4}` of a ViT.
        label_smoothing: Share of the target that is spread over all classes while training, 0 to below 1.
        channels_last: Store images and weights channels last, faster for convolutions on most devices.
        weights: Start from the checkpoint of another run of this model, its averages where it has them; the head may
            have another number of classes.

    Raises:
        RecipeError: An unknown model, or arguments or weights that do not fit it.

    Example:
        >>> model = ImageClassifier(width=0.125)
        >>> model(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 10])
        >>> small = {"img_size": 16, "patch_size": 4}
        >>> vit = ImageClassifier("vit_tiny_patch16_224", small_images=False, width=1.0, model_kwargs=small)
        >>> vit(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        model: str = "resnet18",
        *,
        num_classes: int = 10,
        small_images: bool = True,
        width: float = 0.25,
        model_kwargs: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
        channels_last: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        problems = whole_number_problems(1, num_classes=num_classes)
        if not 0 <= label_smoothing < 1:
            problems.append(f"label_smoothing={label_smoothing!r}: a number from 0 to below 1 is needed.")
        if not (math.isfinite(width) and width > 0):
            problems.append(f"width={width!r}: a positive number is needed; 1 is the published network.")
        if problems:
            raise RecipeError(problems)
        self.save_hyperparameters(ignore="weights")  # a checkpoint holds the weights themselves
        self.label_smoothing = label_smoothing
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        network = _build(model, num_classes, small_images, width, model_kwargs or {})
        self.model = network.to(memory_format=self.memory_format)
        if weights is not None:
            load_weights(self, weights)

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, 3, height, width) to logits (batch, num_classes)."""
        logits: Tensor = self.model(images.contiguous(memory_format=self.memory_format))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One micro-batch."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The mean over all validation images, on any number of processes."""
        images, labels = batch
        logits = self(images)
        accuracy = (logits.argmax(dim=-1) == labels).float().mean()
        for name, value in {"val_loss": F.cross_entropy(logits, labels), "val_acc": accuracy}.items():
            self.log(name, value, prog_bar=name == "val_acc", batch_size=len(labels), sync_dist=True)


def _build(name: str, num_classes: int, small_images: bool, width: float, kwargs: dict[str, Any]) -> nn.Module:
    import timm  # a second of import time that reading this module need not cost

    problems = []
    if not timm.is_model(name):
        if width != 1:
            problems.append(f"width={width:g}: only timm's ResNets can be narrowed. For {name!r} pass width=1.0.")
        published = require("torchvision.models", f"ImageClassifier({name!r})")
        if name not in published.list_models():
            known = [*timm.list_models(), *published.list_models()]
            problems = [f"model={name!r}: neither timm nor torchvision has it.{nearest(name, known)}"]
        if problems:
            raise RecipeError(problems)
        network: nn.Module = published.get_model(name, weights=None, num_classes=num_classes, **kwargs)
    else:
        if width != 1:
            kwargs = {
                "channels": tuple(max(8, round(width * c / 8) * 8) for c in (64, 128, 256, 512)),
                **kwargs,
            }
        try:
            network = timm.create_model(name, pretrained=False, num_classes=num_classes, **kwargs)
        except TypeError as unexpected:
            hint = " Pass width=1.0: only ResNets with basic blocks can be narrowed." if "channels" in kwargs else ""
            raise RecipeError([f"model={name!r} does not take these arguments: {unexpected}.{hint}"]) from unexpected
    if small_images:
        _replace_stem(name, network)
    return network


def _replace_stem(name: str, network: nn.Module) -> None:
    conv = getattr(network, "conv1", None)
    if not isinstance(conv, nn.Conv2d) or not hasattr(network, "maxpool"):
        raise RecipeError(
            [
                f"small_images=True: {name!r} has no ResNet stem (conv1 and maxpool) to replace. Pass"
                " small_images=False, with model_kwargs={'img_size': ..., 'patch_size': ...} for a ViT."
            ]
        )
    network.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
