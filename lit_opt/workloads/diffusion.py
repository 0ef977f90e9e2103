"""A small UNet that learns to draw digits, by DDPM or by flow matching."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F

from lit_opt.errors import RecipeError, nearest
from lit_opt.workloads.pretrained import load_weights
from lit_opt.workloads.require import require, whole_number_problems

OBJECTIVES = ("ddpm", "flow")
NOISE_LEVELS = 1000
SAMPLES_AT_ONCE = 128
_GOLDEN = (math.sqrt(5) - 1) / 2


class DiffusionModel(LightningModule):
    """diffusers' UNet2DModel in three resolutions, built small and from scratch, for grey images.

    `objective="ddpm"` predicts the noise (2006.11239) and samples by DDIM (2010.02502). `objective="flow"`
    predicts the velocity of the straight path x_t = (1 - t) noise + t image (2210.02747) at uniform t, and samples
    by Euler steps from t = 0 to 1.

    A batch is (images, labels): float images (batch, channels, image_size, image_size), whose channels are
    averaged, and integers (batch,). Logs `train_loss` and `val_loss`, both mean squared errors, of the images
    scaled to -1..1. Each validation image has its own fixed noise and time, so `val_loss` is comparable between
    epochs, runs, batch sizes and numbers of processes. Each validation of a fit writes `samples-step000600.png`
    into the trainer's log folder, from the weights that were validated: the averages, where a recipe keeps some.

    Args:
        objective: "ddpm" or "flow".
        image_size: Height and width in pixels, a multiple of 4.
        width: Channels at full resolution, a multiple of 8; twice and four times as many at the halves below it.
        num_classes: Labels to draw by; 0 ignores the labels.
        value_range: Black and white in the data; by default those of `Digits`.
        grid_steps: Sampling steps of the picture after a validation; 0 draws none.
        weights: Start from the checkpoint of another run of this model; its averages where it has them.

    Raises:
        RecipeError: An argument is out of range, diffusers is not installed, or the images have another size.

    Example:
        >>> model = DiffusionModel(width=8, objective="flow")
        >>> model(torch.zeros(2, 1, 16, 16), torch.tensor([0.0, 1.0]), torch.tensor([3, 4])).shape
        torch.Size([2, 1, 16, 16])
        >>> model.sample(5, steps=2).shape
        torch.Size([5, 1, 16, 16])
    """

    def __init__(
        self,
        *,
        objective: str = "ddpm",
        image_size: int = 16,
        width: int = 16,
        num_classes: int = 10,
        value_range: tuple[float, float] = (-0.812, 1.848),
        grid_steps: int = 20,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        problems = whole_number_problems(1, image_size=image_size, width=width)
        if not problems and image_size % 4:
            problems.append(f"image_size={image_size}: a multiple of 4 is needed.")
        if not problems and width % 8:
            problems.append(f"width={width}: a multiple of 8 is needed.")
        problems += whole_number_problems(0, num_classes=num_classes, grid_steps=grid_steps)
        if objective not in OBJECTIVES:
            problems.append(f"objective={objective!r}: 'ddpm' or 'flow' is needed.{nearest(objective, OBJECTIVES)}")
        elif grid_steps and not problems:
            problems += _step_problems(objective, "grid_steps", grid_steps)
        if len(value_range) != 2 or not -math.inf < value_range[0] < value_range[1] < math.inf:
            problems.append(f"value_range={value_range!r}: two numbers are needed, black below white.")
        if problems:
            raise RecipeError(problems)
        self.save_hyperparameters(ignore="weights")  # a checkpoint holds the weights themselves
        self.objective, self.image_size, self.num_classes = objective, image_size, num_classes
        self.value_range, self.grid_steps = (float(value_range[0]), float(value_range[1])), grid_steps
        self.last_grid: Path | None = None
        """The picture of the last validation of a fit."""
        self._seen = 0
        diffusers = require("diffusers", "DiffusionModel")
        self.scheduler = diffusers.DDPMScheduler(num_train_timesteps=NOISE_LEVELS)
        self.sampler = diffusers.DDIMScheduler.from_config(self.scheduler.config, timestep_spacing="trailing")
        self.model = diffusers.UNet2DModel(
            sample_size=image_size,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(width, 2 * width, 4 * width),
            down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3,
            norm_num_groups=8,
            attention_head_dim=8,
            num_class_embeds=num_classes or None,
        )
        if weights is not None:
            load_weights(self, weights)

    def forward(self, noisy: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Noisy images (batch, 1, height, width), times (batch,) in 0..1, labels (batch,) to the prediction.

        The prediction is the noise under "ddpm", where time 1 is noise, and image minus noise under "flow",
        where time 1 is the image.
        """
        conditions = {"class_labels": labels} if self.num_classes else {}
        return self.model(noisy.to(self.dtype), times * NOISE_LEVELS, **conditions).sample.float()

    def loss(self, images: Tensor, labels: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The squared error (batch,) of the prediction, mean over pixels.

        Args:
            images: (batch, 1, size, size), scaled to -1..1.
            labels: (batch,), integers.
            noise: As the images.
            times: (batch,), from 0 to 1.
        """
        if self.objective == "ddpm":
            levels = (times * NOISE_LEVELS).long()
            noisy, target = self.scheduler.add_noise(images, noise, levels), noise
            times = levels / NOISE_LEVELS
        else:
            t = times[:, None, None, None]
            noisy, target = (1 - t) * noise + t * images, images - noise
        return F.mse_loss(self(noisy, times, labels), target, reduction="none").mean(dim=(1, 2, 3))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One micro-batch, with noise and times from the global generator."""
        images = self._scaled(batch[0])
        noise, times = torch.randn_like(images), torch.rand(len(images), device=images.device)
        loss = self.loss(images, batch[1], noise, times).mean()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Count the validation images anew: an image's noise depends on its place among all."""
        self._seen = 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The mean over all validation images, on any number of processes."""
        images = self._scaled(batch[0])
        # EvaluationLoader deals the images out in turn.
        world, rank = self.trainer.world_size, self.trainer.global_rank
        places = [place * world + rank for place in range(self._seen, self._seen + len(images))]
        self._seen += len(images)
        noise = torch.stack([_noise(images.shape[1:], seed=place) for place in places]).to(images)
        # multiples of the golden ratio: evenly spread, however many images there are
        times = torch.tensor([(0.5 + place * _GOLDEN) % 1 for place in places], device=images.device)
        loss = self.loss(images, batch[1], noise, times).mean()
        self.log("val_loss", loss, prog_bar=True, batch_size=len(images), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Draw the picture. Callbacks swap averaged weights out only after this hook."""
        trainer = self.trainer
        if not self.grid_steps or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if getattr(trainer, "fast_dev_run", False):  # which leaves no files
            return
        # log_dir is a collective, and so is the model under sharding: all processes take part.
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        images = self.sample(64, self.grid_steps)
        self.last_grid = folder / f"samples-step{trainer.global_step:06d}.png"
        if trainer.is_global_zero:
            save_grid(images, self.last_grid, self.value_range)

    @torch.no_grad()
    def sample(self, n: int, steps: int = 20, seed: int = 0) -> Tensor:
        """Draw images from the present weights.

        Args:
            n: How many. With classes they are of label 0, 1, 2, ... in turn.
            steps: Evaluations of the network; under "ddpm" a divisor of 1000.
            seed: Decides the noise; the global generators are left alone.

        Returns:
            Images (n, 1, image_size, image_size) in the values of the data.

        Raises:
            RecipeError: An argument is out of range.
        """
        problems = whole_number_problems(1, n=n) + whole_number_problems(0, seed=seed)
        problems += _step_problems(self.objective, "steps", steps)
        if problems:
            raise RecipeError(problems)
        was_training = self.training
        self.eval()
        noise = _noise((n, 1, self.image_size, self.image_size), seed).to(self.device)
        labels = torch.arange(n, device=self.device) % max(1, self.num_classes)
        draw = self._ddim if self.objective == "ddpm" else self._euler
        parts = zip(noise.split(SAMPLES_AT_ONCE), labels.split(SAMPLES_AT_ONCE), strict=True)
        images = torch.cat([draw(x, y, steps) for x, y in parts])
        self.train(was_training)
        black, white = self.value_range
        return black + (white - black) * (images.clamp(-1, 1) + 1) / 2

    def _ddim(self, images: Tensor, labels: Tensor, steps: int) -> Tensor:
        self.sampler.set_timesteps(steps)
        for level in self.sampler.timesteps.tolist():
            times = torch.full((len(images),), level / NOISE_LEVELS, device=images.device)
            images = self.sampler.step(self(images, times, labels), level, images).prev_sample
        return images

    def _euler(self, images: Tensor, labels: Tensor, steps: int) -> Tensor:
        for step in range(steps):
            times = torch.full((len(images),), step / steps, device=images.device)
            images = images + self(images, times, labels) / steps
        return images

    def _scaled(self, images: Tensor) -> Tensor:
        """One grey channel in -1..1, as diffusers' schedulers take it."""
        if tuple(images.shape[-2:]) != (self.image_size, self.image_size):
            size = "x".join(map(str, images.shape[-2:]))
            raise RecipeError([f"image_size={self.image_size}: the images are {size}. Give both the same size."])
        black, white = self.value_range
        return 2 * (images.float().mean(dim=1, keepdim=True) - black) / (white - black) - 1


def save_grid(images: Tensor, path: Path, value_range: tuple[float, float]) -> Path:
    """Write images as a PNG, eight in a row, each pixel enlarged to 4 x 4.

    Args:
        images: (n, channels, height, width).
        path: Where; its folder is made.
        value_range: The values of black and white.

    Returns:
        The path.

    Raises:
        RecipeError: torchvision is not installed.

    Example:
        >>> import tempfile
        >>> save_grid(torch.rand(64, 1, 8, 8), Path(tempfile.mkdtemp()) / "grid.png", (0.0, 1.0)).name
        'grid.png'
    """
    utils = require("torchvision.utils", "save_grid")
    black, white = value_range
    grey = ((images.float() - black) / (white - black)).clamp(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    utils.save_image(F.interpolate(grey, scale_factor=4.0), path, nrow=8, padding=4, pad_value=0.5)
    return path


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _step_problems(objective: str, name: str, steps: int) -> list[str]:
    problems = whole_number_problems(1, **{name: steps})
    if not problems and objective == "ddpm" and NOISE_LEVELS % steps:
        # DDIMScheduler steps down by 1000 // steps, whatever the timesteps are.
        problems = [f"{name}={steps}: a divisor of 1000 is needed, such as 20, 25 or 50."]
    return problems
