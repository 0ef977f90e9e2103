"""Models that nobody here wrote, at their real sizes, on the meta device: from configs alone, no weights, no download.

litgpt's GPT is in litgpt_models.py: it cannot be installed beside transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False)


def _hf(family: str, model: str, **kwargs: Any) -> nn.Module:
    import transformers

    return getattr(transformers, model)(getattr(transformers, f"{family}Config")(**kwargs))


def _llava() -> nn.Module:
    import transformers

    vision = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=transformers.LlamaConfig())
    return transformers.LlavaForConditionalGeneration(config)


def _diffusers(name: str, **kwargs: Any) -> nn.Module:
    import diffusers

    return getattr(diffusers, name)(**kwargs)


_QWEN = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
_SD15 = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
_CLIP_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}

# Name -> (recipe, builder).
MODELS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "Llama 2 7B": ("llm", partial(_hf, "Llama", "LlamaForCausalLM")),
    "Qwen2.5 7B": ("llm/muon", partial(_hf, "Qwen2", "Qwen2ForCausalLM", **_QWEN)),
    "Mamba 2.8B": ("llm", partial(_hf, "Mamba", "MambaForCausalLM", hidden_size=2560, num_hidden_layers=64)),
    "Mixtral 8x7B": ("llm/muon", partial(_hf, "Mixtral", "MixtralForCausalLM")),
    "T5 large": (
        "llm/finetune",
        partial(_hf, "T5", "T5ForConditionalGeneration", d_model=1024, d_ff=4096, num_layers=24, num_heads=16, d_kv=64),
    ),
    "CLIP L/14": (
        "vlm",
        partial(_hf, "CLIP", "CLIPModel", text_config=_CLIP_TEXT, vision_config=_CLIP_VISION, projection_dim=768),
    ),
    "LLaVA 1.5 7B": ("vlm", _llava),
    "ViT L/16": ("vit", partial(_timm, "vit_large_patch16_224")),
    "Swin L": ("vit/muon", partial(_timm, "swin_large_patch4_window7_224")),
    "ConvNeXt L": ("vit", partial(_timm, "convnext_large")),
    "EfficientNet B4": ("cnn", partial(_timm, "efficientnet_b4")),
    "MambaOut base": ("vit", partial(_timm, "mambaout_base")),
    "Stable Diffusion 1.5 UNet": ("diffusion", partial(_diffusers, "UNet2DConditionModel", **_SD15)),
    "DiT XL/2": ("diffusion", partial(_diffusers, "DiTTransformer2DModel")),
    "SD3 medium": (
        "diffusion",
        partial(
            _diffusers, "SD3Transformer2DModel", num_layers=24, num_attention_heads=24, caption_projection_dim=1536
        ),
    ),
    "Flux": ("diffusion", partial(_diffusers, "FluxTransformer2DModel")),
}


def build(name: str) -> tuple[str, nn.Module]:
    """Recipe and model, on the meta device."""
    recipe, make = MODELS[name]
    with torch.device("meta"):
        return recipe, make()
