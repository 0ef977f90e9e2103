"""Architectures that the rules of `lit_opt.preflight.choose` were not written with, and ones that are no setting of ours.

They were listed and labelled before the rules were run on them; benchmarks/choose.py reports the first run. Built on the
meta device from configurations; no weights, no download.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.param_groups.architectures import _ENCODER, _SMALL, _UNET, _diffusers, _hf, _small, _timm, _torchvision


def _detection(name: str, **kwargs: Any) -> nn.Module:
    from torchvision import models

    return models.get_model(name, weights=None, weights_backbone=None, **kwargs)


def _detection_plain(name: str) -> nn.Module:
    from torchvision import models

    return models.get_model(name, weights=None)


def _vlm(family: str, model: str, text: str, vision: dict[str, Any], **kwargs: Any) -> nn.Module:
    import transformers

    text_config = getattr(transformers, f"{text}Config")(**_SMALL)
    config = getattr(transformers, f"{family}Config")(text_config=text_config, vision_config=vision, **kwargs)
    return getattr(transformers, model)(config)


# ---- written by hand, as people write them


class CharacterLM(nn.Module):
    """A GPT of torch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(96, 64), nn.Embedding(32, 64)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 256, batch_first=True), 3)
        self.to_logits = nn.Linear(64, 96)


class LSTMLM(nn.Module):
    """A recurrent language model."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(5000, 64)
        self.lstm = nn.LSTM(64, 128, num_layers=2)
        self.out = nn.Linear(128, 5000)


class TimeUNet(nn.Module):
    """A denoiser: what many tutorials have."""

    class Block(nn.Module):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(128, b))
            self.conv1, self.conv2 = nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(b, b, 3, padding=1)
            self.n1, self.n2 = nn.GroupNorm(8, a), nn.GroupNorm(8, b)

    def __init__(self) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(32, 128), nn.SiLU(), nn.Linear(128, 128))
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.down = nn.ModuleList([self.Block(32, 64), self.Block(64, 128)])
        self.up = nn.ModuleList([self.Block(128, 64), self.Block(64, 32)])
        self.last = nn.Conv2d(32, 3, 1)


class VelocityMLP(nn.Module):
    """Flow matching of points in the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))


class TinyCNN(nn.Module):
    """The tutorial's CNN: no normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 32, 5), nn.Conv2d(32, 64, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(1600, 120), nn.Linear(120, 84), nn.Linear(84, 10)


class HandViT(nn.Module):
    """Patches by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.to_patches = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 64), nn.LayerNorm(64))
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, 64)), nn.Parameter(torch.zeros(1, 65, 64))
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(64, 4, 128, norm_first=True) for _ in range(4))
        self.classify = nn.Linear(64, 100)


class GCN(nn.Module):
    """Graph convolutions with free weights."""

    class Layer(nn.Module):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.zeros(a, b)), nn.Parameter(torch.zeros(b))

    def __init__(self) -> None:
        super().__init__()
        self.gc1, self.gc2 = self.Layer(1433, 16), self.Layer(16, 7)


class FTTransformer(nn.Module):
    """A transformer over the columns of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.columns, self.cls = nn.Parameter(torch.zeros(12, 64)), nn.Parameter(torch.zeros(1, 1, 64))
        self.categories = nn.ModuleList(nn.Embedding(n, 64) for n in (12, 40, 7))
        self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128), 3)
        self.head = nn.Linear(64, 1)


class DLRM(nn.Module):
    """A recommender: large tables, a small MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(n, 16) for n in (1000, 200, 50_000))
        self.bottom = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 16))
        self.top = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))


class SignalCNN(nn.Module):
    """One-dimensional convolutions over an electrocardiogram."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(12, 32, 7), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 64, 7), nn.BatchNorm1d(64)
        )
        self.fc = nn.Linear(64, 5)


class GAN(nn.Module):
    """A generator and a discriminator in one module, as Lightning's example has them."""

    def __init__(self) -> None:
        super().__init__()
        up, down = nn.ConvTranspose2d, nn.Conv2d
        self.generator = nn.Sequential(up(100, 64, 4), nn.BatchNorm2d(64), nn.ReLU(), up(64, 3, 4), nn.Tanh())
        self.discriminator = nn.Sequential(
            down(3, 64, 4), nn.LeakyReLU(), down(64, 128, 4), nn.Flatten(), nn.Linear(2048, 1)
        )


class ConvAutoencoder(nn.Module):
    """An image in, the same image out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 32, 3, 2), nn.ReLU(), nn.Conv2d(32, 64, 3, 2))
        self.decoder = nn.Sequential(nn.ConvTranspose2d(64, 32, 3, 2), nn.ReLU(), nn.ConvTranspose2d(32, 3, 3, 2))


class SegmentationUNet(nn.Module):
    """An image in, a class for each pixel out."""

    def __init__(self) -> None:
        super().__init__()

        def pair(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(a, b, 3), nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, b, 3), nn.BatchNorm2d(b)
            )

        self.down1, self.down2, self.middle = pair(3, 32), pair(32, 64), pair(64, 128)
        self.up2, self.up1 = nn.ConvTranspose2d(128, 64, 2, 2), nn.ConvTranspose2d(64, 32, 2, 2)
        self.dec2, self.dec1 = pair(128, 64), pair(64, 32)
        self.out = nn.Conv2d(32, 21, 1)


class ActorCritic(nn.Module):
    """Reinforcement learning from the screen."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = nn.Sequential(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Flatten())
        self.body = nn.Linear(3136, 512)
        self.policy, self.value = nn.Linear(512, 18), nn.Linear(512, 1)


class Wrapped(nn.Module):
    """A user's module around a backbone without a head."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.backbone(x))
        return logits


def _headless(name: str, **kwargs: Any) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=0, **kwargs)


def _workload(name: str, **kwargs: Any) -> nn.Module:
    import lit_opt.workloads

    return getattr(lit_opt.workloads, name)(**kwargs)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1))


_S = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_AUDIO = {**_S, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
_DIT = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}

# Name -> (builder, accepted answers). "" is unsure. Where two are accepted either would be good advice.
HELD_OUT: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    # images with labels: convolutions
    "timm/vgg": (partial(_timm, "vgg11"), ("cnn",)),
    "timm/resnext": (partial(_timm, "resnext50_32x4d"), ("cnn",)),
    "timm/seresnet": (partial(_timm, "seresnet50"), ("cnn",)),
    "timm/ghostnet": (partial(_timm, "ghostnet_100"), ("cnn",)),
    "timm/repvgg": (partial(_timm, "repvgg_a0"), ("cnn",)),
    "timm/dla": (partial(_timm, "dla34"), ("cnn",)),
    "timm/hgnet": (partial(_timm, "hgnet_tiny"), ("cnn",)),
    "timm/cspdarknet": (partial(_timm, "cspdarknet53"), ("cnn",)),
    "torchvision/alexnet": (partial(_torchvision, "alexnet"), ("cnn",)),
    "torchvision/googlenet": (partial(_torchvision, "googlenet", init_weights=False), ("cnn",)),
    "torchvision/squeezenet": (partial(_torchvision, "squeezenet1_1"), ("cnn",)),
    "torchvision/shufflenet": (partial(_torchvision, "shufflenet_v2_x0_5"), ("cnn",)),
    "torchvision/mobilenet": (partial(_torchvision, "mobilenet_v2"), ("cnn",)),
    "torchvision/r3d": (partial(_torchvision, "r3d_18"), ("cnn",)),
    "transformers/resnet": (
        partial(_hf, "ResNet", "ResNetForImageClassification", hidden_sizes=[16, 32], depths=[1, 1], embedding_size=16),
        ("cnn",),
    ),
    "own/tiny_cnn": (TinyCNN, ("cnn",)),
    "own/wrapped_resnet": (lambda: Wrapped(_headless("resnet18"), 512), ("cnn",)),
    "workload/classifier": (partial(_workload, "ImageClassifier", width=0.25), ("cnn",)),
    # images with labels: attention, or trained like it
    "timm/pvt": (partial(_timm, "pvt_v2_b0"), ("vit",)),
    "timm/twins": (partial(_timm, "twins_pcpvt_small"), ("vit",)),
    "timm/mobilevit": (partial(_timm, "mobilevit_xxs"), ("vit",)),
    "timm/edgenext": (partial(_timm, "edgenext_xx_small"), ("vit",)),
    "timm/efficientformer": (partial(_timm, "efficientformer_l1"), ("vit",)),
    "timm/gcvit": (partial(_timm, "gcvit_xxtiny"), ("vit",)),
    "timm/volo": (partial(_timm, "volo_d1_224"), ("vit",)),
    "timm/crossvit": (partial(_timm, "crossvit_tiny_240"), ("vit",)),
    "timm/davit": (partial(_timm, "davit_tiny"), ("vit",)),
    "timm/focalnet": (partial(_timm, "focalnet_tiny_srf"), ("vit",)),
    "timm/poolformer": (partial(_timm, "poolformer_s12"), ("vit",)),
    "timm/convmixer": (partial(_timm, "convmixer_768_32"), ("vit",)),
    "timm/headless_vit": (partial(_headless, "vit_tiny_patch16_224", depth=2), ("vit", "")),
    "torchvision/mvit": (partial(_torchvision, "mvit_v1_b"), ("vit",)),
    "transformers/beit": (partial(_hf, "Beit", "BeitForImageClassification", **_ENCODER), ("vit",)),
    "transformers/videomae": (partial(_hf, "VideoMAE", "VideoMAEForVideoClassification", **_ENCODER), ("vit",)),
    "transformers/vit_mae": (
        partial(_hf, "ViTMAE", "ViTMAEForPreTraining", decoder_num_hidden_layers=1, decoder_hidden_size=32, decoder_num_attention_heads=4, **_ENCODER),
        ("vit", ""),
    ),
    "transformers/ast": (partial(_hf, "AST", "ASTForAudioClassification", **_ENCODER), ("vit", "")),
    "own/hand_vit": (HandViT, ("vit", "")),
    "own/wrapped_swin": (lambda: Wrapped(_headless("swin_tiny_patch4_window7_224", depths=(1, 1)), 192), ("vit",)),
    # text
    "transformers/falcon": (partial(_hf, "Falcon", "FalconForCausalLM", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=128), ("llm",)),
    "transformers/gpt_neox": (partial(_small, "GPTNeoX", "GPTNeoXForCausalLM"), ("llm",)),
    "transformers/olmo2": (partial(_small, "Olmo2", "Olmo2ForCausalLM"), ("llm",)),
    "transformers/stablelm": (partial(_small, "StableLm", "StableLmForCausalLM"), ("llm",)),
    "transformers/gemma3": (partial(_small, "Gemma3Text", "Gemma3ForCausalLM"), ("llm",)),
    "transformers/granite": (partial(_small, "Granite", "GraniteForCausalLM"), ("llm",)),
    "transformers/recurrent_gemma": (
        partial(_small, "RecurrentGemma", "RecurrentGemmaForCausalLM", num_hidden_layers=3), ("llm",),
    ),
    "transformers/bart": (
        partial(_hf, "Bart", "BartForConditionalGeneration", d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=128),
        ("llm",),
    ),
    "transformers/distilbert": (
        partial(_hf, "DistilBert", "DistilBertForMaskedLM", dim=32, hidden_dim=64, n_layers=2, n_heads=4, vocab_size=128),
        ("llm",),
    ),
    "transformers/albert": (
        partial(_hf, "Albert", "AlbertForMaskedLM", embedding_size=16, vocab_size=128, **_ENCODER), ("llm",),
    ),
    "transformers/modernbert": (
        partial(_hf, "ModernBert", "ModernBertForMaskedLM", vocab_size=128, pad_token_id=0, **_ENCODER), ("llm",),
    ),
    "transformers/esm": (
        partial(_hf, "Esm", "EsmForMaskedLM", vocab_size=33, pad_token_id=1, mask_token_id=32, **_ENCODER), ("llm",),
    ),
    "transformers/bert_classifier": (
        partial(_hf, "Bert", "BertForSequenceClassification", vocab_size=128, **_ENCODER), ("llm/finetune", ""),
    ),
    "own/character_lm": (CharacterLM, ("llm",)),
    "own/lstm_lm": (LSTMLM, ("llm", "")),
    "workload/language_model": (partial(_workload, "LanguageModel", layers=1, width=32, heads=2), ("llm",)),
    # images and text
    "transformers/paligemma": (
        partial(_vlm, "PaliGemma", "PaliGemmaForConditionalGeneration", "Gemma", {**_ENCODER, "model_type": "siglip_vision_model", "projection_dim": 32}, projection_dim=32),
        ("vlm",),
    ),
    "transformers/idefics3": (
        partial(_vlm, "Idefics3", "Idefics3ForConditionalGeneration", "Llama", dict(_ENCODER), image_token_id=3), ("vlm",),
    ),
    "transformers/qwen2_vl": (
        partial(_hf, "Qwen2VL", "Qwen2VLForConditionalGeneration", text_config=dict(_SMALL), vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4}),
        ("vlm",),
    ),
    "transformers/blip_caption": (
        partial(_hf, "Blip", "BlipForConditionalGeneration", text_config={**_ENCODER, "vocab_size": 128, "encoder_hidden_size": 32}, vision_config=dict(_ENCODER)),
        ("vlm",),
    ),
    "transformers/chinese_clip": (
        partial(_hf, "ChineseCLIP", "ChineseCLIPModel", text_config={**_ENCODER, "vocab_size": 128}, vision_config=dict(_ENCODER)),
        ("vlm",),
    ),
    "workload/vision_language": (
        partial(_workload, "VisionLanguageModel", vision_width=8, width=16, layers=1, heads=2), ("vlm",),
    ),
    # denoisers
    "diffusers/unet1d": (
        partial(_diffusers, "UNet1DModel", block_out_channels=(32, 32, 64)), ("diffusion",),
    ),
    "diffusers/unet3d": (
        partial(_diffusers, "UNet3DConditionModel", down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), cross_attention_dim=32, attention_head_dim=8, **_UNET),
        ("diffusion",),
    ),
    "diffusers/hunyuan": (
        partial(_diffusers, "HunyuanDiT2DModel", cross_attention_dim=32, cross_attention_dim_t5=32, pooled_projection_dim=16, mlp_ratio=2.0, in_channels=4, hidden_size=32, sample_size=8, patch_size=2, **_DIT),
        ("diffusion",),
    ),
    "diffusers/auraflow": (
        partial(_diffusers, "AuraFlowTransformer2DModel", sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=32),
        ("diffusion",),
    ),
    "diffusers/wan": (
        partial(_diffusers, "WanTransformer3DModel", num_attention_heads=2, attention_head_dim=16, text_dim=32, freq_dim=32, ffn_dim=64, num_layers=2, cross_attn_norm=True),
        ("diffusion",),
    ),
    "diffusers/sana": (
        partial(_diffusers, "SanaTransformer2DModel", num_attention_heads=2, attention_head_dim=16, num_layers=2, num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=32, sample_size=8),
        ("diffusion",),
    ),
    "diffusers/cogvideox": (
        partial(_diffusers, "CogVideoXTransformer3DModel", text_embed_dim=32, time_embed_dim=16, sample_width=8, sample_height=8, **_DIT),
        ("diffusion",),
    ),
    "own/time_unet": (TimeUNet, ("diffusion",)),
    "own/velocity_mlp": (VelocityMLP, ("diffusion", "")),
    "workload/diffusion": (partial(_workload, "DiffusionModel", width=8), ("diffusion",)),
    # none of our settings
    "diffusers/vq": (
        partial(_diffusers, "VQModel", block_out_channels=(32,), norm_num_groups=8, num_vq_embeddings=32), ("",),
    ),
    "diffusers/tiny_vae": (partial(_diffusers, "AutoencoderTiny"), ("",)),
    "torchvision/fasterrcnn": (partial(_detection, "fasterrcnn_resnet50_fpn"), ("",)),
    "torchvision/retinanet": (partial(_detection, "retinanet_resnet50_fpn"), ("",)),
    "torchvision/ssdlite": (partial(_detection, "ssdlite320_mobilenet_v3_large"), ("",)),
    "torchvision/fcn": (partial(_detection, "fcn_resnet50"), ("", "cnn")),
    "torchvision/deeplab": (partial(_detection, "deeplabv3_resnet50"), ("", "cnn")),
    "torchvision/raft": (partial(_detection_plain, "raft_small"), ("",)),
    "transformers/segformer": (
        partial(_hf, "Segformer", "SegformerForSemanticSegmentation", hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16),
        ("", "vit"),
    ),
    "transformers/yolos": (partial(_hf, "Yolos", "YolosForObjectDetection", **_ENCODER), ("",)),
    "transformers/dpt": (
        partial(_hf, "DPT", "DPTForDepthEstimation", backbone_out_indices=[0, 1, 1, 1], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, **_ENCODER),
        ("",),
    ),
    "transformers/hubert": (partial(_hf, "Hubert", "HubertForCTC", vocab_size=32, **_AUDIO), ("",)),
    "transformers/encodec": (partial(_hf, "Encodec", "EncodecModel"), ("",)),
    "transformers/speech2text": (
        partial(_hf, "Speech2Text", "Speech2TextForConditionalGeneration", d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=128),
        ("",),
    ),
    "transformers/patchtst": (
        partial(_hf, "PatchTST", "PatchTSTForPrediction", num_input_channels=7, d_model=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64),
        ("",),
    ),
    "transformers/decision": (
        partial(_hf, "DecisionTransformer", "DecisionTransformerModel", state_dim=17, act_dim=4, hidden_size=32, n_layer=2, n_head=4),
        ("",),
    ),
    "own/mlp": (_mlp, ("",)),
    "own/gcn": (GCN, ("",)),
    "own/ft_transformer": (FTTransformer, ("",)),
    "own/dlrm": (DLRM, ("",)),
    "own/signal_cnn": (SignalCNN, ("",)),
    "own/gan": (GAN, ("",)),
    "own/autoencoder": (ConvAutoencoder, ("",)),
    "own/segmentation_unet": (SegmentationUNet, ("", "cnn")),
    "own/actor_critic": (ActorCritic, ("",)),
}  # fmt: skip

# What would be good advice for the architectures that the rules were written with.
_CNN = ("efficientnet", "mobilenetv3", "resnet", "regnet", "densenet", "nfnet", "inception")
_UNSURE = ("whisper", "sam", "detr", "wav2vec2", "vae")


def truth(name: str) -> tuple[str, ...]:
    """Accepted answers for a name of `tests.param_groups.architectures.BUILDERS`."""
    library, _, model = name.partition("/")
    if library == "diffusers":
        return ("",) if model in _UNSURE else ("diffusion",)
    if library in ("timm", "torchvision"):
        return ("cnn",) if model in _CNN else ("vit",)
    if model in _UNSURE:
        return ("",)
    if model in ("vit", "dinov2", "swin", "convnextv2"):
        return ("vit",)
    if model in ("clip", "siglip", "llava"):
        return ("vlm",)
    return ("llm/finetune", "") if model == "roberta" else ("llm",)


def build_held_out(name: str) -> nn.Module:
    """The architecture, on the meta device."""
    with torch.device("meta"):
        return HELD_OUT[name][0]()
