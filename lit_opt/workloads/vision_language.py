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
    """A narrow ResNet-18 of timm, a two-layer projector and a Llama over bytes, all from scratch.

    The architecture is LLaVA's (2304.08485, 2310.03744) with a ResNet for the eyes, as CLIP's first ones (2103.00020),
    since it learns to see from few images: the places of its feature map, projected to the width of the language
    model, stand before the caption. The parts have LLaVA's names, so `Recipe("vlm")` finds them.

    A batch is (images, captions): float images (batch, channels, image_size, image_size) and integers (batch,
    length): the bytes of a caption, END (10), and PAD (0) from there. Logs `train_loss` and `val_loss` (nats per
    byte of the caption), and for the first `decoded` validation images, written the likeliest byte at a time,
    `caption_accuracy`, the share of captions without a mistake, and `word_accuracy`, the share of their words that
    stand in their place.

    Args:
        channels: 1 for grey images, 3 for colour.
        vision_width: Channels of the vision tower's first stage; the published network has 64. It looks at images
            in squares of 16 pixels.
        width: Hidden size of the language model.
        layers: Its blocks.
        heads: Its attention heads.
        decoded: Validation images, in each process, that are captioned for `caption_accuracy`.

    Raises:
        RecipeError: An argument is out of range, or transformers is not installed.

    Example:
        >>> model = VisionLanguageModel(vision_width=8, width=16, layers=1, heads=2)
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
        channels: int = 1,
        vision_width: int = 32,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        decoded: int = 128,
    ) -> None:
        super().__init__()
        problems = whole_number_problems(
            1, channels=channels, vision_width=vision_width, width=width, layers=layers, heads=heads, decoded=decoded
        )
        if not problems and width % (2 * heads):
            problems.append(f"width={width}: a multiple of {2 * heads} is needed for heads={heads}.")
        if problems:
            raise RecipeError(problems)
        self.save_hyperparameters()
        self.decoded = decoded
        self.shown: list[tuple[str, str]] = []  # true and written captions of the last validation
        self._left = 0
        transformers = require("transformers", "VisionLanguageModel")
        import timm  # a second of import time that reading this module need not cost

        # to the third of four stages: 2 x 2 places for an image of 28 or 32 pixels
        self.vision_tower = timm.create_model(
            "resnet18",
            pretrained=False,
            features_only=True,
            out_indices=(3,),
            in_chans=channels,
            channels=tuple(vision_width * 2**stage for stage in range(4)),
        )
        self.multi_modal_projector = nn.Sequential(
            nn.Linear(4 * vision_width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.language_model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=256,
                num_hidden_layers=layers,
                hidden_size=width,
                num_attention_heads=heads,
                num_key_value_heads=heads,
                intermediate_size=8 * width // 3,
                max_position_embeddings=512,
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
        """The places of the image as the language model takes them: (batch, places, width)."""
        (features,) = self.vision_tower(images)  # (batch, channels, height, width)
        seen: Tensor = self.multi_modal_projector(features.flatten(2).mT)
        return seen

    def loss(self, images: Tensor, captions: Tensor) -> Tensor:
        """The mean cross-entropy in nats over the bytes of the captions, END included and PAD left out.

        Args:
            images: (batch, channels, size, size).
            captions: Bytes as integers, (batch, length).
        """
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
        pairs = [(a.split(" "), b.split(" ")) for a, b in zip(true, written, strict=True)]
        right = sum(a == b for a, b in pairs) / n
        words = sum(a == b for pair in pairs for a, b in zip(*pair, strict=False)) / sum(len(a) for a, _ in pairs)
        for name, value in {"caption_accuracy": right, "word_accuracy": words}.items():
            self.log(name, value, prog_bar=True, batch_size=n, sync_dist=True)

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
