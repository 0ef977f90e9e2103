from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from lit_opt.param_groups.roles import ROLES, type_name
from lit_opt.param_groups.snapshot import snapshot_parameters
from lit_opt.recipes import get_recipe


def roles(module: nn.Module) -> dict[str, str]:
    return {info.name: info.role for info in snapshot_parameters(module).parameters}


class Holder(nn.Module):
    """A module of any class name with free-standing parameters of its own."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))


def holder(kind: str, **shapes: tuple[int, ...]) -> nn.Module:
    return type(kind, (Holder,), {})(**shapes)


def test_every_role_of_the_recipes_exists():
    assert set(get_recipe("llm").no_decay.number) == set(ROLES) - {"matrix", "adapter"}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(3, 1), {"weight": "matrix", "bias": "bias"}),
        (nn.Conv2d(8, 8, 7, groups=8), {"weight": "matrix", "bias": "bias"}),
        (nn.ConvTranspose1d(2, 2, 1), {"weight": "matrix", "bias": "bias"}),
        (nn.Bilinear(2, 2, 1), {"weight": "matrix", "bias": "bias"}),
        (nn.LayerNorm((3, 4, 4)), {"weight": "norm", "bias": "bias"}),
        (nn.RMSNorm(4), {"weight": "norm"}),
        (nn.GroupNorm(2, 4), {"weight": "norm", "bias": "bias"}),
        (nn.BatchNorm1d(4), {"weight": "norm", "bias": "bias"}),
        (nn.SyncBatchNorm(4), {"weight": "norm", "bias": "bias"}),
        (nn.InstanceNorm2d(4, affine=True), {"weight": "norm", "bias": "bias"}),
        (nn.Embedding(5, 4), {"weight": "embedding"}),
        (nn.EmbeddingBag(5, 4), {"weight": "embedding"}),
        (nn.PReLU(4), {"weight": "vector"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_torch_layers(module, expected):
    assert roles(module) == expected


def test_attention_and_recurrent_layers():
    attention = roles(nn.MultiheadAttention(8, 2, add_bias_kv=True, kdim=4, vdim=4))
    assert attention.pop("out_proj.weight") == "matrix"
    assert {n: r for n, r in attention.items() if r == "matrix"} == dict.fromkeys(
        ("q_proj_weight", "k_proj_weight", "v_proj_weight"), "matrix"
    )
    assert {n for n, r in attention.items() if r == "bias"} == {"in_proj_bias", "bias_k", "bias_v", "out_proj.bias"}
    for layer in (nn.LSTM(4, 4, 2, bidirectional=True), nn.GRU(4, 4), nn.LSTMCell(4, 4)):
        assert {n.split("_")[0]: r for n, r in roles(layer).items()} == {"weight": "matrix", "bias": "bias"}


@pytest.mark.parametrize(
    "kind",
    [
        "LlamaRMSNorm",
        "T5LayerNorm",
        "LayerNorm2d",
        "RmsNorm",
        "GroupNormAct",
        "BatchNormAct2d",
        "MambaRMSNormGated",
        "RMSNorm",
        "EvoNorm2dB0",
        "NemotronLayerNorm1P",
        "GlobalResponseNorm",
        "ConvNextV2GRN",
        "Wav2Vec2LayerNorm",
    ],
)
def test_norms_by_class_name(kind):
    assert roles(holder(kind, weight=(4,), bias=(4,))) == {"weight": "norm", "bias": "bias"}
    # Cohere's query norm has a gain for each head and channel.
    assert roles(holder(kind, weight=(4, 8))) == {"weight": "norm"}


@pytest.mark.parametrize(
    "kind", ["NormedLinear", "NormLinear", "LinearNorm", "NormMlpClassifierHead", "WeightNormHead"]
)
def test_heads_called_norm_are_matrices(kind):
    assert roles(holder(kind, weight=(10, 8))) == {"weight": "matrix"}


def test_an_extra_matrix_in_a_norm_is_no_gain():
    class ProjectedNorm(nn.LayerNorm):
        def __init__(self):
            super().__init__(4)
            self.mix = nn.Parameter(torch.zeros(4, 4))

    assert roles(ProjectedNorm()) == {"weight": "norm", "bias": "bias", "mix": "matrix"}


def test_own_linear_classes_with_one_output_are_matrices_and_free_vectors_are_not():
    assert roles(holder("BitLinear", weight=(1, 8))) == {"weight": "matrix"}
    assert roles(holder("ColumnParallelLinear", weight=(8, 8), bias=(8,))) == {"weight": "matrix", "bias": "bias"}
    assert roles(holder("Something", thing=(1, 8))) == {"thing": "vector"}


def test_an_attribute_called_norm_that_is_a_linear():
    module = nn.ModuleDict({"norm": nn.Linear(4, 4), "embedding": nn.Linear(4, 4), "bias": nn.Linear(4, 4)})
    assert {r for n, r in roles(module).items() if n.endswith(".weight")} == {"matrix"}


def test_a_container_called_norm_owns_nothing():
    class AdaLayerNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 8)
            self.norm = nn.LayerNorm(4)

    found = roles(AdaLayerNorm())
    assert (found["linear.weight"], found["norm.weight"]) == ("matrix", "norm")


@pytest.mark.parametrize(
    ("leaf", "shape", "role"),
    [
        ("bias", (4,), "bias"),
        ("down_proj_bias", (8, 16), "bias"),
        ("pos_bias_u", (2, 8), "position"),
        ("logit_bias", (1,), "bias"),
        ("bias_scale", (4, 8), "matrix"),
        ("unbiased", (4, 8), "matrix"),
        ("pos_embed", (1, 16, 8), "position"),
        ("pos_embed_window", (1, 8, 4, 4), "position"),
        ("position_embeddings", (1, 16, 8), "position"),
        ("positional_embedding", (16, 8), "position"),
        ("relative_position_bias_table", (169, 3), "position"),
        ("attention_biases", (4, 49), "position"),
        ("rel_pos_h", (27, 8), "position"),
        ("pos_proj", (8, 8), "matrix"),
        ("posterior", (8, 8), "matrix"),
        ("relation", (8, 8), "matrix"),
        ("rel", (3, 8, 8), "matrix"),
        ("width_rel", (15, 8), "position"),
        ("cls_logits", (8, 8), "matrix"),
        ("tokens_to_logits", (8, 8), "matrix"),
        ("released_weight", (8, 8), "matrix"),
        ("cls_token", (1, 1, 8), "token"),
        ("reg_token", (1, 4, 8), "token"),
        ("register_tokens", (4, 8), "token"),
        ("dist_token", (1, 1, 8), "token"),
        ("mask_token", (1, 1, 8), "token"),
        ("query_tokens", (1, 32, 8), "token"),
        ("class_embedding", (8,), "token"),
        ("masked_spec_embed", (8,), "token"),
        ("token_projection", (8, 8), "matrix"),
        ("tokenizer_matrix", (8, 8), "matrix"),
        ("level_embed", (4, 8), "embedding"),
        ("embedding", (10, 8), "embedding"),
        ("gamma_1", (8,), "scale"),
        ("layer_scale", (8, 1, 1), "scale"),
        ("scale_shift_table", (6, 8), "scale"),
        ("logit_scale", (), "scale"),
        ("temperature", (4, 1, 1), "scale"),
        ("scale", (8, 8), "matrix"),
        ("alpha", (8, 8), "matrix"),
        ("A_log", (16, 4), "ssm"),
        ("dt_bias", (8,), "ssm"),
        ("D", (8,), "vector"),  # a single letter says nothing without an A_log beside it
        ("anything", (1, 1, 8), "vector"),
        ("gate_up_proj", (4, 8, 16), "matrix"),
        ("router", (4, 8), "matrix"),
        ("text_projection", (8, 8), "matrix"),
    ],
)
def test_free_standing_parameters(leaf, shape, role):
    assert roles(holder("Something", **{leaf: shape})) == {leaf: role}


def test_state_space_parameters_together():
    assert set(roles(holder("Mixer", A_log=(16, 4), D=(8,), dt_bias=(8,))).values()) == {"ssm"}


def test_position_embeddings_that_are_embeddings():
    module = nn.ModuleDict(
        {n: nn.Embedding(4, 2) for n in ("wpe", "embed_positions", "relative_attention_bias", "wte")}
    )
    assert [*roles(module).values()] == ["position", "position", "position", "embedding"]

    class LearnedPositionalEmbedding(nn.Embedding):
        pass

    assert roles(nn.Sequential(LearnedPositionalEmbedding(4, 2))) == {"0.weight": "position"}


def test_tables_of_embedding_classes_and_patch_projections():
    assert roles(holder("VocabParallelEmbedding", weight=(10, 8))) == {"weight": "embedding"}
    assert roles(holder("PatchEmbedding", weight=(8, 48))) == {"weight": "matrix"}


def test_weight_norm_in_both_forms():
    with pytest.warns(FutureWarning):
        old = roles(nn.utils.weight_norm(nn.Linear(4, 8)))
    assert old == {"bias": "bias", "weight_g": "scale", "weight_v": "matrix"}
    new = roles(nn.Sequential(parametrizations.weight_norm(nn.Conv1d(4, 8, 3))))
    assert {n.removeprefix("0."): r for n, r in new.items()} == {
        "bias": "bias",
        "parametrizations.weight.original0": "scale",
        "parametrizations.weight.original1": "matrix",
    }


def test_other_parametrizations_keep_the_role_of_what_they_wrap():
    assert roles(parametrizations.spectral_norm(nn.Linear(4, 1)))["parametrizations.weight.original"] == "matrix"
    assert roles(parametrizations.orthogonal(nn.Linear(4, 4)))["parametrizations.weight.original"] == "matrix"
    assert roles(spectral_norm(nn.Linear(4, 1)))["weight_orig"] == "matrix"


def test_a_parametrization_of_two_matrices_is_no_weight_norm():
    class LowRank(nn.Module):
        def forward(self, left, right):
            return left @ right

        def right_inverse(self, weight):
            return weight.detach().clone(), torch.eye(weight.shape[1])

    module = nn.Linear(4, 4, bias=False)
    nn.utils.parametrize.register_parametrization(module, "weight", LowRank(), unsafe=True)
    assert set(roles(module).values()) == {"matrix"}


def test_parameter_lists_and_dicts_take_the_name_of_the_list():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pos_embeds = nn.ParameterList([nn.Parameter(torch.zeros(4, 8))])
            self.experts = nn.ParameterList([nn.Parameter(torch.zeros(4, 8))])
            self.by_name = nn.ParameterDict({"cls_token": nn.Parameter(torch.zeros(2, 8))})

    assert roles(Net()) == {"pos_embeds.0": "position", "experts.0": "matrix", "by_name.cls_token": "token"}


def test_lora_by_hand():
    class LoraLayer(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer = nn.Linear(8, 8).requires_grad_(False)
            self.lora_A = nn.ModuleDict({"default": nn.Linear(8, 1, bias=False)})
            self.lora_B = nn.ModuleDict({"default": nn.Linear(1, 8)})
            self.lora_embedding_A = nn.ParameterDict({"default": nn.Parameter(torch.zeros(1, 8))})
            self.lora_magnitude_vector = nn.Parameter(torch.zeros(8))

    found = roles(nn.ModuleDict({"q_proj": LoraLayer()}))
    assert {n.removeprefix("q_proj."): r for n, r in found.items()} == {
        "lora_magnitude_vector": "vector",
        "base_layer.weight": "matrix",
        "base_layer.bias": "bias",
        "lora_A.default.weight": "adapter",
        "lora_B.default.weight": "adapter",
        "lora_B.default.bias": "bias",
        "lora_embedding_A.default": "adapter",
    }


def test_subclasses_that_torch_makes_keep_the_name_of_the_class():
    class FSDPModule:
        pass

    linear = type("FSDPLinear", (FSDPModule, nn.Linear), {})(2, 2)
    assert type_name(linear) == type_name(parametrizations.spectral_norm(nn.Linear(2, 2))) == "Linear"
    assert type_name(nn.Linear(2, 2)) == "Linear"
