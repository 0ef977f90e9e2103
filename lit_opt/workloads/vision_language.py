"""A small vision-language model that writes what it sees: a vision tower, a projector, a language model."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from lit_opt.errors import RecipeError
from lit_opt.workloads.require import require, whole_number_problems

END, PAD = 10, 0  # a newline ends a caption, zeros fill it up: as `lit_opt.workloads.Glyphs(captions=True)` gives them


class VisionLanguageModel(LightningModule):
    """SigLIP's vision transformer, a two-layer projector and a Llama over bytes, all small and from scratch.

    The architecture is LLaVA's (2304.08485, 2310.03744): the patches of the image, projected to the width of the
    language model, stand before the caption. The parts have LLaVA's names, so `Recipe("vlm")` finds them.

    A batch is (images, captions): float images (batch, channels, image_size, image_size) and integers (batch,
    length): the bytes of a caption, END (10), and PAD (0) from there. Logs `train_loss` and `val_loss` (nats per
    byte of the caption), and `caption_accuracy`: the share of the first `decoded` validation images whose caption is
    written without a mistake, the likeliest byte at a time.

    Args:
        image_size: Height and width of the images in pixels.
        channels: 1 for grey images, 3 for colour.
        patch_size: Pixels of a patch; it divides `image_size`.
        vision_width: Hidden size of the vision tower.
        vision_layers: Its blocks.
        width: Hidden size of the language model.
        layers: Its blocks.
        heads: Attention heads of both.
        decoded: Validation images, in each process, that are captioned for `caption_accuracy`.

    Raises:
        RecipeError: An argument is out of range, or transformers is not installed.

    Example:
        >>> model = VisionLanguageModel(vision_width=16, vision_layers=1, width=16, layers=1, heads=2)
        >>> images, captions = torch.zeros(2, 1, 28, 28), torch.tensor([[97, 10, 0], [97, 98, 10]])
        >>> model(images, captions).shape
        torch.Size([2, 3, 256])
        >>> len(model.write(images, length=5))
        2
        >>> from lit_opt.param_groups import group_parameters
        >>> sorted({row.group.split("/")[1] for row in group_parameters(model, "vlm").rows()})
        ['language_model', 'projector', 'vision_tower']
    """

    def __init__(
        self,
        *,
        image_size: int = 28,
        channels: int = 1,
        patch_size: int = 7,
        vision_width: int = 96,
        vision_layers: int = 3,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        decoded: int = 128,
    ) -> None:
        super().__init__()
        problems = whole_number_problems(
            1,
            image_size=image_size,
            channels=channels,
            patch_size=patch_size,
            vision_width=vision_width,
            vision_layers=vision_layers,
            width=width,
            layers=layers,
            heads=heads,
            decoded=decoded,
        )
        if not problems:
            for name, size in (("vision_width", vision_width), ("width", width)):
                if size % (2 * heads):
                    problems.append(f"{name}={size}: a multiple of {2 * heads} is needed for heads={heads}.")
            if image_size % patch_size:
                problems.append(f"patch_size={patch_size}: it has to divide image_size={image_size}.")
        if problems:
            raise RecipeError(problems)
        self.save_hyperparameters()
        self.decoded = decoded
        self.shown: list[tuple[str, str]] = []  # true and written captions of the last validation
        self._left = 0
        transformers = require("transformers", "VisionLanguageModel")
        self.vision_tower = transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(
                image_size=image_size,
                patch_size=patch_size,
                num_channels=channels,
                hidden_size=vision_width,
                intermediate_size=4 * vision_width,
                num_hidden_layers=vision_layers,
                num_attention_heads=heads,
                vision_use_head=False,
            )
        )
        self.multi_modal_projector = nn.Sequential(nn.Linear(vision_width, width), nn.GELU(), nn.Linear(width, width))
        self.language_model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=256,
                num_hidden_layers=layers,
                hidden_size=width,
                num_attention_heads=heads,
                num_key_value_heads=heads,
                intermediate_size=8 * width // 3,
                max_position_embeddings=256 + (image_size // patch_size) ** 2,
                bos_token_id=None,
                eos_token_id=None,
            )
        )

    def forward(self, images: Tensor, captions: Tensor) -> Tensor:
        """Logits (batch, length, 256) of each byte of the captions, from the image and the bytes before it."""
        seen = self._see(images)
        said = self.language_model.get_input_embeddings()(captions[:, :-1])
        hidden = self.language_model.model(
            inputs_embeds=torch.cat([seen, said], dim=1), use_cache=False
        ).last_hidden_state
        logits: Tensor = self.language_model.lm_head(hidden[:, seen.shape[1] - 1 :])
        return logits

    def _see(self, images: Tensor) -> Tensor:
        """The patches as the language model takes them: (batch, patches, width)."""
        seen: Tensor = self.multi_modal_projector(self.vision_tower(images).last_hidden_state)
        return seen

    def loss(self, images: Tensor, captions: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the bytes of the captions, END included and PAD left out."""
        captions = captions[:, : int((captions != PAD).sum(dim=1).max())]  # no work for what nobody wrote
        logits = self(images, captions)
        return F.cross_entropy(logits.flatten(0, 1).float(), captions.flatten(), ignore_index=PAD)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One micro-batch."""
        loss = self.loss(*batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Caption the same images each time."""
        self._left, self.shown = self.decoded, []

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The loss of all validation images, and the captions of the first ones."""
        images, captions = batch
        self.log("val_loss", self.loss(images, captions), batch_size=len(images), sync_dist=True)
        n = min(self._left, len(images))
        if n == 0:
            return
        self._left -= n
        true = [_text(caption) for caption in captions[:n].tolist()]
        written = self.write(images[:n], length=captions.shape[1])
        self.shown += list(zip(true, written, strict=True))
        right = sum(a == b for a, b in zip(true, written, strict=True)) / n
        self.log("caption_accuracy", right, prog_bar=True, batch_size=n, sync_dist=True)

    @torch.no_grad()
    def write(self, images: Tensor, length: int = 64) -> list[str]:
        """Caption images (batch, channels, height, width), the likeliest byte at a time.

        Args:
            images: As in training.
            length: Most bytes that are written.

        Returns:
            One text an image. Bytes that are no valid UTF-8 show as U+FFFD.
        """
        was_training = self.training
        self.eval()
        embed = self.language_model.get_input_embeddings()
        inputs, cache = self._see(images), None
        written = torch.zeros(len(images), 0, dtype=torch.long, device=images.device)
        for _ in range(length):
            out = self.language_model.model(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            byte = self.language_model.lm_head(out.last_hidden_state[:, -1]).argmax(dim=-1, keepdim=True)
            written = torch.cat([written, byte], dim=1)
            if bool((written == END).any(dim=1).all()):
                break
            inputs = embed(byte)
        self.train(was_training)
        return [_text(row) for row in written.tolist()]


def _text(caption: list[int]) -> str:
    """The text before the first END or PAD.

    Example:
        >>> _text([97, 98, 10, 0, 0])
        'ab'
    """
    end = next((i for i, byte in enumerate(caption) if byte in (END, PAD)), len(caption))
    return bytes(caption[:end]).decode(errors="replace")
