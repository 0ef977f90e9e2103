"""Real architectures, built from configurations on the meta device: no weights, no download, no memory.

Depths are cut (two layers or so) and names are kept, since names and owners are what is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

# One small width for all transformers; each config reads what it knows of it.
_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _timm(name: str, **kwargs: Any) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=10, **kwargs)


def _torchvision(name: str, **kwargs: Any) -> nn.Module:
    from torchvision import models

    return models.get_model(name, weights=None, num_classes=10, **kwargs)


def _hf(family: str, model: str, **kwargs: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{family}Config")(**kwargs)
    return getattr(transformers, model)(config)


def _small(family: str, model: str, **kwargs: Any) -> nn.Module:
    return _hf(family, model, **(_SMALL | kwargs))


def _diffusers(name: str, **kwargs: Any) -> nn.Module:
    import diffusers

    return getattr(diffusers, name)(**kwargs)


def _llava() -> nn.Module:
    import transformers

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = transformers.LlamaConfig(**_SMALL)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision), text_config=text, image_token_id=3
    )
    return transformers.LlavaForConditionalGeneration(config)


_ENCODER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 16}
_UNET = {"block_out_channels": (32, 64), "norm_num_groups": 8, "layers_per_block": 1}

BUILDERS: dict[str, Callable[[], nn.Module]] = {
    # timm
    "timm/vit": partial(_timm, "vit_tiny_patch16_224", depth=2),
    "timm/vit_reg": partial(_timm, "vit_small_patch14_reg4_dinov2", depth=2),
    "timm/deit_distilled": partial(_timm, "deit_tiny_distilled_patch16_224", depth=2),
    "timm/swin": partial(_timm, "swin_tiny_patch4_window7_224", depths=(2, 2)),
    "timm/swinv2": partial(_timm, "swinv2_tiny_window8_256", depths=(2, 2)),
    "timm/convnext": partial(_timm, "convnext_atto", depths=(1, 1, 1, 1)),
    "timm/convnextv2": partial(_timm, "convnextv2_atto", depths=(1, 1, 1, 1)),
    "timm/beit": partial(_timm, "beit_base_patch16_224", depth=2),
    "timm/cait": partial(_timm, "cait_xxs24_224", depth=2),
    "timm/maxvit": partial(_timm, "maxvit_pico_rw_256"),
    "timm/coatnet": partial(_timm, "coatnet_pico_rw_224"),
    "timm/efficientnet": partial(_timm, "efficientnet_b0"),
    "timm/mobilenetv3": partial(_timm, "mobilenetv3_small_100"),
    "timm/resnet": partial(_timm, "resnet18"),
    "timm/regnet": partial(_timm, "regnety_002"),
    "timm/densenet": partial(_timm, "densenet121"),
    "timm/eva": partial(_timm, "eva02_tiny_patch14_224", depth=2),
    "timm/hiera": partial(_timm, "hiera_tiny_224"),
    "timm/mixer": partial(_timm, "mixer_s32_224"),
    "timm/resmlp": partial(_timm, "resmlp_12_224"),
    "timm/levit": partial(_timm, "levit_128s"),
    "timm/xcit": partial(_timm, "xcit_nano_12_p16_224", depth=2),
    "timm/nfnet": partial(_timm, "nfnet_l0"),
    "timm/tiny_vit": partial(_timm, "tiny_vit_5m_224"),
    "timm/mvitv2": partial(_timm, "mvitv2_tiny"),
    "timm/vit_sam": partial(_timm, "samvit_base_patch16", depth=2),
    # torchvision
    "torchvision/resnet": partial(_torchvision, "resnet18"),
    "torchvision/swin": partial(_torchvision, "swin_t"),
    "torchvision/swin_v2": partial(_torchvision, "swin_v2_t"),
    "torchvision/vit": partial(_torchvision, "vit_b_16"),
    "torchvision/maxvit": partial(_torchvision, "maxvit_t"),
    "torchvision/convnext": partial(_torchvision, "convnext_tiny"),
    "torchvision/inception": partial(_torchvision, "inception_v3", init_weights=False),
    "torchvision/densenet": partial(_torchvision, "densenet121"),
    # transformers: text
    "transformers/gpt2": partial(_hf, "GPT2", "GPT2LMHeadModel", **_GPT2),
    "transformers/llama": partial(_small, "Llama", "LlamaForCausalLM"),
    "transformers/llama_tied": partial(_small, "Llama", "LlamaForCausalLM", tie_word_embeddings=True),
    "transformers/mistral": partial(_small, "Mistral", "MistralForCausalLM"),
    "transformers/qwen2": partial(_small, "Qwen2", "Qwen2ForCausalLM"),
    "transformers/qwen3": partial(_small, "Qwen3", "Qwen3ForCausalLM"),
    "transformers/qwen3_next": partial(
        _small, "Qwen3Next", "Qwen3NextForCausalLM", num_hidden_layers=4, num_experts=4, moe_intermediate_size=16
    ),
    "transformers/gemma2": partial(_small, "Gemma2", "Gemma2ForCausalLM"),
    "transformers/phi": partial(_small, "Phi", "PhiForCausalLM"),
    "transformers/cohere": partial(_small, "Cohere", "CohereForCausalLM", use_qk_norm=True),
    "transformers/opt": partial(_small, "OPT", "OPTForCausalLM", ffn_dim=64, word_embed_proj_dim=32),
    "transformers/bloom": partial(
        _hf, "Bloom", "BloomForCausalLM", hidden_size=32, n_layer=2, n_head=4, vocab_size=128
    ),
    "transformers/t5": partial(
        _hf, "T5", "T5ForConditionalGeneration", d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4, vocab_size=128
    ),
    "transformers/bert": partial(_hf, "Bert", "BertForMaskedLM", **_ENCODER),
    "transformers/roberta": partial(_hf, "Roberta", "RobertaForSequenceClassification", **_ENCODER),
    "transformers/deberta_v2": partial(
        _hf, "DebertaV2", "DebertaV2ForMaskedLM", relative_attention=True, pos_att_type=["p2c", "c2p"], **_ENCODER
    ),
    "transformers/mamba": partial(
        _hf, "Mamba", "MambaForCausalLM", hidden_size=32, num_hidden_layers=2, vocab_size=128
    ),
    "transformers/mamba2": partial(
        _hf, "Mamba2", "Mamba2ForCausalLM", hidden_size=32, num_hidden_layers=2, num_heads=8, head_dim=8, vocab_size=128
    ),
    "transformers/rwkv": partial(_hf, "Rwkv", "RwkvForCausalLM", hidden_size=32, num_hidden_layers=2, vocab_size=128),
    "transformers/mixtral": partial(_small, "Mixtral", "MixtralForCausalLM", num_local_experts=4),
    "transformers/gpt_oss": partial(_small, "GptOss", "GptOssForCausalLM", num_local_experts=4),
    "transformers/jamba": partial(_small, "Jamba", "JambaForCausalLM", num_hidden_layers=8, mamba_dt_rank=4),
    # transformers: image, sound, several
    "transformers/clip": partial(
        _hf, "CLIP", "CLIPModel", text_config=_ENCODER | {"vocab_size": 128}, vision_config=_ENCODER
    ),
    "transformers/siglip": partial(
        _hf, "Siglip", "SiglipModel", text_config=_ENCODER | {"vocab_size": 128}, vision_config=_ENCODER
    ),
    "transformers/llava": _llava,
    "transformers/whisper": partial(
        _hf,
        "Whisper",
        "WhisperForConditionalGeneration",
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
    ),
    "transformers/vit": partial(_hf, "ViT", "ViTForImageClassification", **_ENCODER),
    "transformers/dinov2": partial(_hf, "Dinov2", "Dinov2ForImageClassification", **_ENCODER),
    "transformers/swin": partial(
        _hf, "Swin", "SwinForImageClassification", embed_dim=32, depths=[2, 2], num_heads=[2, 4]
    ),
    "transformers/convnextv2": partial(
        _hf, "ConvNextV2", "ConvNextV2ForImageClassification", depths=[1, 1], hidden_sizes=[16, 32], num_stages=2
    ),
    "transformers/sam": partial(
        _hf, "Sam", "SamModel", vision_config={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ),
    "transformers/detr": partial(
        _hf,
        "Detr",
        "DetrForObjectDetection",
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
    ),
    "transformers/wav2vec2": partial(_hf, "Wav2Vec2", "Wav2Vec2ForPreTraining", **_ENCODER),
    # diffusers
    "diffusers/unet2d": partial(
        _diffusers,
        "UNet2DModel",
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **_UNET,
    ),
    "diffusers/unet2d_condition": partial(
        _diffusers,
        "UNet2DConditionModel",
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        **_UNET,
    ),
    "diffusers/dit": partial(
        _diffusers, "DiTTransformer2DModel", num_attention_heads=2, attention_head_dim=16, num_layers=2, sample_size=8
    ),
    "diffusers/pixart": partial(
        _diffusers,
        "PixArtTransformer2DModel",
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=8,
    ),
    "diffusers/sd3": partial(
        _diffusers,
        "SD3Transformer2DModel",
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        qk_norm="rms_norm",
    ),
    "diffusers/flux": partial(
        _diffusers,
        "FluxTransformer2DModel",
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    ),
    "diffusers/vae": partial(
        _diffusers,
        "AutoencoderKL",
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    ),
}


def build(name: str) -> nn.Module:
    """The architecture, on the meta device."""
    with torch.device("meta"):
        return BUILDERS[name]()
