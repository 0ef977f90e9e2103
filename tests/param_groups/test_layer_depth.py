from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_opt.param_groups import group_parameters, snapshot_parameters
from tests.param_groups.architectures import build


def layers(module: nn.Module) -> dict[str, int | None]:
    return {info.name: info.layer for info in snapshot_parameters(module).parameters}


class Encoder(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(4, 1, 4) for _ in range(depth))


class Classifier(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, 2)  # registered first on purpose
        self.stem = nn.Linear(4, 4)
        self.encoder = Encoder(depth)
        self.norm = nn.LayerNorm(4)
        self.pos_embed = nn.Parameter(torch.zeros(1, 3, 4))


def test_stem_blocks_and_head():
    found = layers(Classifier())
    assert found["stem.weight"] == found["pos_embed"] == 0
    assert [found[f"encoder.layers.{i}.norm1.weight"] for i in range(3)] == [1, 2, 3]
    assert found["norm.weight"] == found["classifier.weight"] == 4


def test_no_repeated_blocks_no_layers():
    assert set(layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))).values()) == {None}


def test_experts_inside_a_block_are_no_layers():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.TransformerEncoderLayer(4, 1, 4) for _ in range(4))

    found = layers(nn.ModuleDict({"blocks": nn.ModuleList(Block() for _ in range(2)), "head": nn.Linear(4, 2)}))
    assert sorted({v for v in found.values() if v is not None}) == [1, 2, 3]


def test_towers_side_by_side_are_aligned_at_the_head():
    module = nn.ModuleDict({"text": Classifier(2), "image": Classifier(4), "projection": nn.Linear(4, 4)})
    found = layers(module)
    assert (found["text.stem.weight"], found["image.stem.weight"]) == (2, 0)
    assert found["text.encoder.layers.1.norm1.weight"] == found["image.encoder.layers.3.norm1.weight"] == 4
    assert found["text.classifier.weight"] == found["image.norm.weight"] == found["projection.weight"] == 5


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "torchvision/resnet",
            {"conv1.weight": 0, "layer1.0.conv1.weight": 1, "layer4.1.conv1.weight": 8, "fc.bias": 9},
        ),
        ("torchvision/swin", {"features.0.0.weight": 0, "features.3.0.attn.qkv.weight": 3, "head.weight": 13}),
        (
            "transformers/gpt2",
            {"transformer.wpe.weight": 0, "transformer.h.1.ln_1.weight": 2, "transformer.ln_f.bias": 3},
        ),
        ("transformers/llama_tied", {"model.embed_tokens.weight": 0, "model.norm.weight": 3}),
        ("transformers/opt", {"model.decoder.final_layer_norm.weight": 3, "model.decoder.embed_positions.weight": 0}),
        ("transformers/mixtral", {"model.layers.1.mlp.gate.weight": 2, "lm_head.weight": 3}),
        ("transformers/t5", {"shared.weight": 0, "encoder.block.1.layer.0.SelfAttention.q.weight": 2}),
        ("transformers/bert", {"bert.embeddings.LayerNorm.weight": 0, "cls.predictions.bias": 3}),
    ],
)
def test_known_models(name, expected):
    found = layers(build(name))
    assert {n: found[n] for n in expected} == expected


@pytest.mark.parametrize("name", ["timm/vit", "timm/swin", "timm/convnext", "timm/efficientnet", "timm/beit"])
def test_timm_models_get_timms_scales(name):
    from timm.optim import param_groups_layer_decay

    module = build(name)
    recipe = _recipe(layer_decay=0.7)
    ours = {r.name: r.lr / recipe.lr for r in group_parameters(module, recipe).rows()}
    names = {id(p): n for n, p in module.named_parameters()}
    theirs = {
        names[id(p)]: g["lr_scale"] for g in param_groups_layer_decay(module, layer_decay=0.7) for p in g["params"]
    }
    assert ours == pytest.approx(theirs)


def test_a_timm_backbone_inside_another_module():
    backbone = build("timm/vit")
    backbone.head = nn.Identity()
    with torch.device("meta"):
        module = nn.ModuleDict({"adapter": nn.Linear(3, 3), "model": torch.compile(backbone), "top": nn.Linear(192, 2)})  # type: ignore[dict-item]
    found = layers(module)
    assert found["model.patch_embed.proj.weight"] == found["adapter.weight"] == 0
    assert found["model.blocks.1.norm1.weight"] == 2
    assert found["model.norm.weight"] == 2  # timm puts the last norm with the last block
    assert found["top.weight"] == 3


def test_lr_is_folded_into_the_groups():
    recipe = _recipe(layer_decay=0.5)
    groups = group_parameters(Classifier(), recipe)
    assert {s.name: s.lr / recipe.lr for s in groups.summary()} == {
        f"{kind}/layer_{i:02d}": 0.5 ** (4 - i) for i in range(5) for kind in ("decay", "no_decay")
    }
    assert "layer 0 of 4: lr x 0.0625" in next(r.reason for r in groups.rows() if r.name == "stem.weight")
    live = groups.for_optimizer(Classifier().named_parameters())
    assert [g["name"] for g in live] == [s.name for s in groups.summary()]
    assert not any("lr_scale" in g for g in live)


def _recipe(**changes):
    from dataclasses import replace

    from lit_opt.recipes import get_recipe
    from lit_opt.resolve import preview

    return replace(preview(get_recipe("llm")), **changes)
