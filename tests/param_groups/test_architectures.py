"""The groups of real architectures, each against a hand-written list of what must not be decayed.

The lists are globs over names, so they are independent of the rules, which look at owners first.
"""

from __future__ import annotations

import fnmatch
import functools

import pytest
import torch
from torch import nn

from lit_opt.param_groups import ParamGroups, ParamSnapshot, group_parameters, snapshot_parameters
from tests.param_groups.architectures import BUILDERS, build
from tests.param_groups.deciders import DECIDERS

# True of all architectures; "!" takes names out again.
COMMON = ("*.bias", "*norm*.weight", "*LayerNorm.weight", "*bn*.weight", "*ln_*.weight")
_ADALN = "!*norm*.linear.weight"

EXPECTED: dict[str, tuple[str, ...]] = {
    "timm/vit": ("cls_token", "pos_embed"),
    "timm/vit_reg": ("cls_token", "reg_token", "pos_embed", "blocks.?.ls?.gamma"),
    "timm/deit_distilled": ("cls_token", "dist_token", "pos_embed"),
    "timm/swin": ("*.relative_position_bias_table",),
    # timm lists the small network that makes the position bias (cpb_mlp) in no_weight_decay().
    "timm/swinv2": ("*.q_bias", "*.v_bias", "*.logit_scale", "*.cpb_mlp.?.weight"),
    "timm/convnext": ("stem.1.weight", "stages.?.downsample.0.weight", "*.gamma"),
    "timm/convnextv2": ("stem.1.weight", "stages.?.downsample.0.weight", "*.grn.weight"),
    "timm/beit": ("cls_token", "*.gamma_?", "*.q_bias", "*.v_bias", "*.relative_position_bias_table"),
    "timm/cait": ("cls_token", "pos_embed", "*.gamma_?"),
    "timm/maxvit": ("*.relative_position_bias_table",),
    "timm/coatnet": ("*.relative_position_bias_table",),
    "timm/efficientnet": (),
    "timm/mobilenetv3": (),
    "timm/resnet": ("*.downsample.1.weight",),
    "timm/regnet": (),
    "timm/densenet": (),
    "timm/eva": ("cls_token", "pos_embed", "*.q_bias", "*.v_bias"),
    "timm/hiera": ("pos_embed",),
    "timm/mixer": (),
    "timm/resmlp": ("*.ls?", "*norm*.alpha", "*norm*.beta"),
    "timm/levit": ("*.attention_biases",),
    "timm/xcit": ("cls_token", "*.gamma?", "*.temperature", "patch_embed.proj.*.1.weight", "pos_embed.*"),
    "timm/nfnet": ("*.gain",),
    "timm/tiny_vit": ("*.attention_biases",),
    "timm/mvitv2": ("*.rel_pos_h", "*.rel_pos_w"),
    "timm/vit_sam": ("pos_embed", "*.rel_pos_h", "*.rel_pos_w", "neck.1.weight", "neck.3.weight"),
    "torchvision/resnet": ("*.downsample.1.weight",),
    "torchvision/swin": ("features.0.2.weight", "*.relative_position_bias_table"),
    "torchvision/swin_v2": ("features.0.2.weight", "*.logit_scale"),
    "torchvision/vit": ("class_token", "encoder.pos_embedding", "encoder.ln.weight", "*.in_proj_bias"),
    "torchvision/maxvit": (
        "stem.?.1.weight",
        "*.conv_[ab].1.weight",
        "*.attn_layer.0.weight",
        "*.mlp_layer.0.weight",
        "*.relative_position_bias_table",
        "classifier.2.weight",
    ),
    "torchvision/convnext": (
        "features.0.1.weight",
        "features.[246].0.weight",
        "*.block.2.weight",
        "*.layer_scale",
        "classifier.0.weight",
    ),
    "torchvision/inception": (),
    "torchvision/densenet": (),
    "transformers/gpt2": ("transformer.wte.weight", "transformer.wpe.weight"),
    "transformers/llama": ("model.embed_tokens.weight",),
    "transformers/llama_tied": ("model.embed_tokens.weight",),
    "transformers/mistral": ("model.embed_tokens.weight",),
    "transformers/qwen2": ("model.embed_tokens.weight",),
    "transformers/qwen3": ("model.embed_tokens.weight",),
    "transformers/qwen3_next": ("model.embed_tokens.weight", "*.A_log", "*.dt_bias"),
    "transformers/gemma2": ("model.embed_tokens.weight",),
    "transformers/phi": ("model.embed_tokens.weight",),
    "transformers/cohere": ("model.embed_tokens.weight",),
    "transformers/opt": ("model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"),
    "transformers/bloom": ("transformer.word_embeddings.weight",),
    "transformers/t5": ("shared.weight", "*.relative_attention_bias.weight"),
    "transformers/bert": ("bert.embeddings.*_embeddings.weight",),
    "transformers/roberta": ("roberta.embeddings.*_embeddings.weight",),
    "transformers/deberta_v2": ("deberta.embeddings.*_embeddings.weight", "deberta.encoder.rel_embeddings.weight"),
    "transformers/mamba": ("backbone.embeddings.weight", "*.A_log", "*.D"),
    "transformers/mamba2": ("backbone.embeddings.weight", "*.A_log", "*.D", "*.dt_bias"),
    "transformers/rwkv": ("rwkv.embeddings.weight", "*.ln?.weight", "*.pre_ln.weight", "*.time_*"),
    "transformers/mixtral": ("model.embed_tokens.weight",),
    "transformers/gpt_oss": ("model.embed_tokens.weight", "*_proj_bias", "*.sinks"),
    "transformers/jamba": ("model.embed_tokens.weight", "*.A_log", "*.D"),
    "transformers/clip": (
        "logit_scale",
        "*.token_embedding.weight",
        "*.position_embedding.weight",
        "*.class_embedding",
    ),
    "transformers/siglip": (
        "logit_scale",
        "logit_bias",
        "*.token_embedding.weight",
        "*.position_embedding.weight",
        "*.in_proj_bias",
        "vision_model.head.probe",
    ),
    "transformers/llava": ("*.embed_tokens.weight", "*.class_embedding", "*.position_embedding.weight"),
    "transformers/whisper": ("model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"),
    "transformers/vit": ("vit.embeddings.cls_token", "vit.embeddings.position_embeddings"),
    "transformers/dinov2": ("*.cls_token", "*.mask_token", "*.position_embeddings", "*.lambda1"),
    "transformers/swin": ("*.relative_position_bias_table",),
    "transformers/convnextv2": ("*.downsampling_layer.0.weight", "*.grn.weight"),
    "transformers/sam": (
        "shared_image_embedding.positional_embedding",
        "vision_encoder.pos_embed",
        "*.rel_pos_h",
        "*.rel_pos_w",
        "mask_decoder.iou_token.weight",
        "mask_decoder.mask_tokens.weight",
        "prompt_encoder.*_embed.weight",
        "prompt_encoder.point_embed.?.weight",
    ),
    "transformers/detr": ("model.query_position_embeddings.weight",),
    "transformers/wav2vec2": (
        "wav2vec2.masked_spec_embed",
        "quantizer.codevectors",
        "*.parametrizations.weight.original0",
    ),
    "diffusers/unet2d": (),
    "diffusers/unet2d_condition": (),
    "diffusers/dit": (_ADALN, "!*.linear_?.weight", "*.embedding_table.weight"),
    "diffusers/pixart": ("*scale_shift_table", "!adaln_single.*.weight", "!adaln_single.linear.weight"),
    "diffusers/sd3": (_ADALN, "!*norm?_context.linear.weight"),
    "diffusers/flux": (_ADALN, "!*norm?_context.linear.weight"),
    "diffusers/vae": (),
}

# What must be decayed although a rule of thumb may miss it.
DECAYED = {
    "timm/convnext": "stages.0.blocks.0.conv_dw.weight",  # (40, 1, 7, 7), depthwise
    "timm/cait": "blocks.0.attn.proj_l.weight",
    "timm/levit": "head.linear.weight",
    "torchvision/vit": "encoder.layers.encoder_layer_0.self_attention.in_proj_weight",
    "torchvision/swin_v2": "features.1.0.attn.cpb_mlp.0.weight",
    "transformers/gpt2": "transformer.h.0.attn.c_attn.weight",  # transformers' Conv1D
    "transformers/llama": "lm_head.weight",  # an untied head
    "transformers/mixtral": "model.layers.0.mlp.experts.gate_up_proj",
    "transformers/gpt_oss": "model.layers.0.mlp.router.weight",
    "transformers/mamba": "backbone.layers.0.mixer.conv1d.weight",
    "transformers/siglip": "vision_model.head.attention.in_proj_weight",
    "transformers/llava": "model.multi_modal_projector.linear_1.weight",
    "transformers/wav2vec2": "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1",
    "transformers/clip": "vision_model.embeddings.patch_embedding.weight",
    "diffusers/dit": "transformer_blocks.0.norm1.linear.weight",  # a Linear in AdaLayerNormZero
    "diffusers/flux": "norm_out.linear.weight",
}


@functools.cache
def _module(name: str) -> nn.Module:
    return build(name)


@functools.cache
def _snapshot(name: str) -> ParamSnapshot:
    return snapshot_parameters(_module(name))


def _groups(name: str) -> ParamGroups:
    return group_parameters(_snapshot(name), "llm")


def _matches(name: str, globs: tuple[str, ...]) -> bool:
    taken = any(fnmatch.fnmatchcase(name, g[1:]) for g in globs if g.startswith("!"))
    return not taken and any(fnmatch.fnmatchcase(name, g) for g in globs if not g.startswith("!"))


def test_at_least_forty_architectures_with_a_list_each():
    assert set(EXPECTED) == set(BUILDERS)
    assert len(BUILDERS) >= 70
    assert {name.split("/")[0] for name in BUILDERS} == {"timm", "torchvision", "transformers", "diffusers"}


@pytest.mark.parametrize("name", BUILDERS)
def test_every_trainable_parameter_is_in_exactly_one_group(name):
    module = _module(name)
    groups = _groups(name).for_optimizer(module.named_parameters())
    placed = [id(p) for group in groups for p in group["params"]]
    assert sorted(placed) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    assert [r.name for r in _groups(name).rows()] == [n for n, p in module.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("name", BUILDERS)
def test_what_is_not_decayed_is_exactly_the_list(name):
    rows = _groups(name).rows()
    undecayed = {r.name for r in rows if r.group == "no_decay"}
    listed = {r.name for r in rows if _matches(r.name, COMMON + EXPECTED[name])}
    assert undecayed == listed
    assert {r.weight_decay for r in rows if r.name in undecayed} <= {0.0}
    assert {r.weight_decay for r in rows if r.name not in undecayed} == {0.1}


@pytest.mark.parametrize("name", BUILDERS)
def test_each_glob_of_the_list_matches_something(name):
    names = [r.name for r in _groups(name).rows()]
    for glob in EXPECTED[name]:
        assert any(fnmatch.fnmatchcase(n, glob.removeprefix("!")) for n in names), glob


@pytest.mark.parametrize(("name", "parameter"), DECAYED.items())
def test_what_rules_of_thumb_miss_is_decayed(name, parameter):
    assert {r.name: r.group for r in _groups(name).rows()}[parameter] == "decay"


@pytest.mark.parametrize("name", BUILDERS)
def test_no_layer_weight_is_left_out_and_no_norm_or_table_is_decayed(name):
    rows = {r.name: r for r in _groups(name).rows()}
    for path, owner in _module(name).named_modules():
        for leaf, _ in owner.named_parameters(recurse=False):
            row = rows.get(f"{path}.{leaf}".lstrip("."))
            if row is None:  # frozen, or a tied name
                continue
            if isinstance(owner, nn.Linear | nn.modules.conv._ConvNd) and leaf == "weight":
                assert row.group == "decay" or "no_weight_decay()" in row.reason or "tied" in row.reason, row
            if isinstance(owner, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm | nn.Embedding):
                assert row.group == "no_decay", row
            if leaf == "bias":
                assert row.group == "no_decay", row


@pytest.mark.parametrize("name", BUILDERS)
def test_each_row_has_a_reason_and_the_summary_adds_up(name):
    groups = _groups(name)
    rows = groups.rows()
    assert all(": decayed" in r.reason or ": not decayed" in r.reason for r in rows)
    assert sum(s.tensors for s in groups.summary()) == len(rows)
    assert sum(s.parameters for s in groups.summary()) == sum(torch.Size(r.shape).numel() for r in rows)


# Decider -> what it decays and we do not, by role, with what it does so for; and the other way round.
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    # It knows neither embeddings nor positions, tokens and gains of modules that do not list them.
    "timm": ({"embedding", "position", "token", "scale", "ssm", "bias", "norm", "vector"}, set()),
    # Its types are LayerNorm only and its names "norm" and "bias": BatchNorm called "bn1" is decayed, and so is
    # a Linear called "norm.linear" not (the second set).
    "hf": ({"embedding", "position", "token", "scale", "ssm", "norm", "vector", "listed"}, {"matrix"}),
    # Two dimensions are a matrix, whatever they hold.
    "ndim": ({"embedding", "position", "token", "scale", "ssm", "bias", "norm", "vector", "listed"}, set()),
}


@functools.cache
def _differences(name: str, decider: str) -> tuple[set[str], set[str]]:
    """Categories of what the decider decays and we do not, and the other way round."""
    module = _module(name)
    ours = {r.name for r in _groups(name).rows() if r.group == "decay"}
    theirs = DECIDERS[decider](module)
    infos = {i.name: i for i in _snapshot(name).parameters}

    def categories(names: set[str]) -> set[str]:
        return {"listed" if infos[n].role == "matrix" and infos[n].listed else infos[n].role for n in names}

    return categories(theirs - ours), categories(ours - theirs)


@pytest.mark.parametrize("decider", DECIDERS)
@pytest.mark.parametrize("name", BUILDERS)
def test_differences_from_other_deciders_have_a_category(name, decider):
    more, less = _differences(name, decider)
    assert more <= ALLOWED[decider][0]
    assert less <= ALLOWED[decider][1]


@pytest.mark.parametrize("decider", DECIDERS)
def test_each_category_occurs(decider):
    found = [_differences(name, decider) for name in BUILDERS]
    assert set().union(*(more for more, _ in found)) == ALLOWED[decider][0]
    assert set().union(*(less for _, less in found)) == ALLOWED[decider][1]


@pytest.mark.parametrize(
    ("decider", "name", "parameter", "they_decay"),
    [
        ("hf", "timm/resnet", "bn1.weight", True),
        ("hf", "timm/vit_reg", "blocks.0.ls1.gamma", True),
        ("hf", "diffusers/flux", "single_transformer_blocks.0.norm.linear.weight", False),
        ("hf", "transformers/clip", "logit_scale", True),
        ("ndim", "transformers/gpt2", "transformer.wte.weight", True),
        ("ndim", "timm/vit", "pos_embed", True),
        ("ndim", "transformers/gpt_oss", "model.layers.0.mlp.experts.down_proj_bias", True),
        ("timm", "torchvision/vit", "class_token", True),
        ("timm", "transformers/mamba", "backbone.layers.0.mixer.A_log", True),
        ("timm", "transformers/cohere", "model.layers.0.self_attn.q_norm.weight", True),
    ],
)
def test_documented_faults_of_the_others_are_real_and_not_ours(decider, name, parameter, they_decay):
    assert (parameter in DECIDERS[decider](_module(name))) is they_decay
    ours = {r.name: r.group == "decay" for r in _groups(name).rows()}
    assert ours[parameter] is not they_decay
