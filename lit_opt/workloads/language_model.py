"""A small Llama that learns to write bytes: a language model in two minutes on two CPU cores."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F

from lit_opt.errors import RecipeError
from lit_opt.workloads.pretrained import load_weights
from lit_opt.workloads.require import require, whole_number_problems


class LanguageModel(LightningModule):
    """Hugging Face's Llama architecture, built small and from scratch, over the 256 bytes.

    Logs `train_loss` and `val_loss` (nats per byte) and `val_bpb` (bits per byte; 8 is guessing). It has no
    `configure_optimizers`: a recipe brings it, or a subclass defines it.

    Args:
        layers: Transformer blocks.
        width: Size of the hidden state.
        heads: Attention heads; they divide `width` into parts of even size.
        mlp_width: Inner size of each block's gated MLP.
        context: Most bytes that it can look back on; at least the `seq_len` of the data.
        weights: Start from the checkpoint of another run of this model; its averages where it has them.
        lora_rank: Train adapters of this rank beside all linear layers but the head (peft's LoRA, with alpha twice
            the rank) and freeze everything else; 0 trains the model itself.
        residual_scale: Multiplies what attention and MLP of each block add. For `Transfer(depth=True)`: blocks of the small
            model / blocks. `weights` do not show it, nor `heads`: give those of their run.

    Raises:
        RecipeError: An argument is out of range, the weights do not fit, or transformers (for adapters peft) is not
            installed.

    Example:
        >>> model = LanguageModel(layers=1, width=16, heads=2, mlp_width=32, context=64)
        >>> model(torch.zeros(2, 10, dtype=torch.long)).shape
        torch.Size([2, 10, 256])
        >>> len(model.sample("def ", n_bytes=0))
        4
    """

    def __init__(
        self,
        *,
        layers: int = 4,
        width: int = 128,
        heads: int = 4,
        mlp_width: int = 352,
        context: int = 256,
        weights: str | None = None,
        lora_rank: int = 0,
        residual_scale: float = 1.0,
    ) -> None:
        super().__init__()
        problems = whole_number_problems(
            1, layers=layers, width=width, heads=heads, mlp_width=mlp_width, context=context
        )
        problems += whole_number_problems(0, lora_rank=lora_rank)
        if not problems and width % (2 * heads):
            problems = [f"width={width}: a multiple of {2 * heads} is needed for heads={heads}."]
        if (
            isinstance(residual_scale, bool)
            or not isinstance(residual_scale, int | float)
            or not 0 < residual_scale < math.inf
        ):
            problems.append(
                f"residual_scale={residual_scale!r}: a number above 0 is needed, 1 for a model that does not scale its branches."
            )
        if problems:
            raise RecipeError(problems)
        self.save_hyperparameters(ignore="weights")  # a checkpoint holds the weights themselves
        self.context, self.residual_scale = context, float(residual_scale)
        transformers = require("transformers", "LanguageModel")
        self.model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=256,
                num_hidden_layers=layers,
                hidden_size=width,
                num_attention_heads=heads,
                num_key_value_heads=heads,
                intermediate_size=mlp_width,
                max_position_embeddings=context,
                use_cache=False,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        if weights is not None:
            load_weights(self, weights)
        if self.residual_scale != 1.0:
            # Llama's blocks have no such factor; their branches are modules, and a hook multiplies what these give.
            for block in self.model.model.layers:
                for branch in (block.self_attn, block.mlp):
                    branch.register_forward_hook(partial(_multiplied, self.residual_scale))
        if lora_rank:
            self._add_adapters(lora_rank, on_random_weights=weights is None)

    def _add_adapters(self, rank: int, *, on_random_weights: bool) -> None:
        peft = require("peft", "LanguageModel(lora_rank=...)")
        if on_random_weights:
            rank_zero_info(
                "LanguageModel: adapters on random weights, since weights= is not given. Right for resuming a run; a new "
                "one learns little. Train the model first, and give its checkpoint."
            )
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        self.model = peft.get_peft_model(self.model, config)

    def forward(self, tokens: Tensor) -> Tensor:
        """Bytes (batch, length) to logits (batch, length, 256) of the byte that follows each."""
        logits: Tensor = self.model(input_ids=tokens).logits
        return logits

    def loss(self, windows: Tensor) -> Tensor:
        """The mean cross-entropy in nats per byte.

        Args:
            windows: Bytes as integers, (batch, length + 1).
        """
        logits = self(windows[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())

    def training_step(self, windows: Tensor, batch_idx: int) -> Tensor:
        """One micro-batch."""
        loss = self.loss(windows)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, windows: Tensor, batch_idx: int) -> None:
        """The mean over all validation windows, on any number of processes."""
        loss = self.loss(windows)
        for name, value in {"val_loss": loss, "val_bpb": loss / math.log(2)}.items():
            self.log(name, value, prog_bar=name == "val_bpb", batch_size=len(windows), sync_dist=True)

    @torch.no_grad()
    def sample(self, prompt: str = "", n_bytes: int = 200, temperature: float = 0.8, seed: int = 0) -> str:
        """Continue a prompt byte by byte.

        Args:
            prompt: Where to begin; a newline where it is empty.
            n_bytes: How many bytes to add.
            temperature: Divides the logits; 0 always takes the likeliest byte.
            seed: Decides the draws; the global generators are left alone.

        Returns:
            The prompt with what follows. Bytes that are no valid UTF-8 show as U+FFFD.

        Raises:
            RecipeError: A negative number of bytes or temperature.
        """
        problems = whole_number_problems(0, n_bytes=n_bytes, seed=seed)
        if not (math.isfinite(temperature) and temperature >= 0):
            problems.append(f"temperature={temperature!r}: 0 or a positive number is needed.")
        if problems:
            raise RecipeError(problems)
        generator = torch.Generator().manual_seed(seed)
        text = bytearray((prompt or "\n").encode())
        was_training = self.training
        self.eval()
        for _ in range(n_bytes):
            tokens = torch.tensor([list(text[-self.context :])], device=self.device)
            logits = self(tokens)[0, -1].float().cpu()
            if temperature == 0:
                text.append(int(logits.argmax()))
            else:
                chances = torch.softmax(logits / temperature, dim=-1)
                text.append(int(torch.multinomial(chances, 1, generator=generator)))
        self.train(was_training)
        return text.decode(errors="replace")


def _multiplied(scale: float, branch: nn.Module, args: Any, output: Any) -> Any:
    """A forward hook; attention gives its scores as well."""
    return (output[0] * scale, *output[1:]) if isinstance(output, tuple) else output * scale
