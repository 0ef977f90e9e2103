"""Parts of vision-language models: names of real transformers models, the user's globs, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lit_opt import Recipe
from lit_opt.errors import RecipeError
from lit_opt.param_groups import group_parameters
from lit_opt.param_groups.parts import KNOWN, known_part
from lit_opt.recipes import get_recipe
from lit_opt.recipes.schema import GroupRule, PartSpec
from lit_opt.resolve import preview

transformers = pytest.importorskip("transformers")

TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}


def model(family: str, **config: Any) -> nn.Module:
    kind = "Model" if family in ("CLIP", "Siglip") else "ForConditionalGeneration"
    with torch.device("meta"):
        return getattr(transformers, family + kind)(getattr(transformers, f"{family}Config")(**config))


def text(model_type: str, **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, **TEXT, **more}


CLIP_TOWER = {"model_type": "clip_vision_model", "projection_dim": 32, **VISION}
MODELS = {
    "LLaVA": lambda: model("Llava", vision_config=CLIP_TOWER, text_config=text("llama")),
    "LLaVA-NeXT": lambda: model("LlavaNext", vision_config=CLIP_TOWER, text_config=text("llama")),
    "PaliGemma": lambda: model(
        "PaliGemma",
        vision_config={"model_type": "siglip_vision_model", "projection_dim": 32, **VISION},
        text_config=text("gemma"),
        projection_dim=32,
        hidden_size=32,
    ),
    "Idefics3": lambda: model("Idefics3", vision_config=VISION, text_config=text("llama"), scale_factor=2),
    "SmolVLM": lambda: model("SmolVLM", vision_config=VISION, text_config=text("llama"), scale_factor=2),
    "Qwen2-VL": lambda: model(
        "Qwen2VL",
        text_config={**TEXT, **MROPE},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4},
    ),
    "Qwen2.5-VL": lambda: model(
        "Qwen2_5_VL",
        text_config={**TEXT, **MROPE},
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32},
    ),
    "CLIP": lambda: model("CLIP", text_config=TEXT, vision_config=VISION, projection_dim=32),
}
# A name of each part that has to be found, by the model's own naming.
SAMPLES = {
    "LLaVA": ("multi_modal_projector.linear_1.weight", "vision_tower.encoder.layers.0.self_attn.q_proj.weight", "lm_head.weight"),
    "LLaVA-NeXT": ("image_newline", "vision_tower.embeddings.class_embedding", "language_model.norm.weight"),
    "PaliGemma": ("multi_modal_projector.linear.bias", "vision_tower.post_layernorm.weight", "language_model.embed_tokens.weight"),
    "Idefics3": ("connector.modality_projection.proj.weight", "vision_model.post_layernorm.bias", "text_model.norm.weight"),
    "SmolVLM": ("connector.modality_projection.proj.weight", "vision_model.post_layernorm.bias", "lm_head.weight"),
    "Qwen2-VL": ("visual.merger.ln_q.weight", "visual.patch_embed.proj.weight", "language_model.layers.1.mlp.up_proj.weight"),
    "Qwen2.5-VL": ("visual.merger.mlp.0.weight", "visual.blocks.1.norm2.weight", "lm_head.weight"),
    "CLIP": ("visual_projection.weight", "vision_model.pre_layrnorm.weight", "text_model.final_layer_norm.weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_real_models(name):
    module = nn.ModuleDict({"net": MODELS[name]()})  # as an attribute of a LightningModule would be
    groups = group_parameters(module, "vlm")
    rows = groups.rows()
    for part, sample, lr in zip(KNOWN, SAMPLES[name], (1e-3, 5e-5, 5e-5), strict=True):
        [row] = [row for row in rows if row.name.endswith("." + sample)]
        assert row.group.split("/")[1] == part, row
        assert row.lr == pytest.approx(lr)
        assert f"; part {part}: lr x {10 if part == 'projector' else 0.5:g}" in row.reason
    in_none = [row.name for row in rows if "/" not in row.group]
    assert in_none == (["net.logit_scale"] if name == "CLIP" else [])
    expected = ("parts: 1 trainable tensor is in no part, with lr x 1: net.logit_scale.",) if name == "CLIP" else ()
    assert groups.notes == expected
    for row in rows:  # a part decides the rate alone: decay follows the role as ever
        assert (row.weight_decay == 0.1) == row.group.startswith("decay/")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.mm_projector.0.weight", "projector"),  # LLaVA's own code
        ("model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", "vision_tower"),
        ("model.layers.0.mlp.up_proj.weight", "language_model"),
        ("visual.merger.mlp.0.weight", "projector"),  # Qwen2-VL before transformers 4.52
        ("visual.blocks.0.attn.qkv.weight", "vision_tower"),
        ("base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight", "language_model"),
        ("logit_scale", None),
        ("my_visualizer.weight", None),  # whole components only
        ("connectors.weight", None),
    ],
)
def test_known_names(name, part):
    assert known_part(name) == part


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eyes, self.bridge, self.mouth = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.extra = nn.Linear(2, 2)


def resolved(**overrides: Any):
    return preview(get_recipe("vlm"), overrides)


PARTS: dict[str, Any] = {
    "projector": "bridge.*",
    "vision_tower": ["eyes.*"],
    "language_model": PartSpec(match="mouth.*", lr_scale=2.0),
}


def test_the_users_globs_and_factors():
    groups = group_parameters(Custom(), resolved(parts=PARTS))
    rates = {row.name: row.lr for row in groups.rows()}
    assert rates["bridge.weight"] == pytest.approx(1e-3)
    assert rates["eyes.bias"] == pytest.approx(5e-5)
    assert rates["mouth.weight"] == pytest.approx(2e-4)
    assert rates["extra.weight"] == pytest.approx(1e-4)
    assert [s.name for s in groups.summary()][2:4] == ["decay/projector", "no_decay/projector"]
    assert "; in no part: lr x 1" in next(row.reason for row in groups.rows() if row.name == "extra.weight")
    assert groups.notes == ("parts: 2 trainable tensors are in no part, with lr x 1: extra.weight, extra.bias.",)


def test_a_users_glob_wins_over_known_names_and_rules_multiply_on_top():
    module = nn.ModuleDict({"vision_tower": nn.Linear(2, 2), "language_model": nn.Linear(2, 2)})
    module["vision_tower"].adapter = nn.Linear(2, 2)
    rules = [GroupRule(match="*.adapter.weight", lr_scale=3.0)]
    recipe = resolved(parts={"projector": "vision_tower.adapter.*"}, groups=rules)
    rows = {row.name: row for row in group_parameters(module, recipe).rows()}
    assert rows["vision_tower.adapter.weight"].lr == pytest.approx(3e-3)
    assert rows["vision_tower.adapter.weight"].group == "decay/projector/adapter.weight"
    assert rows["vision_tower.adapter.bias"].lr == pytest.approx(1e-3)
    assert rows["vision_tower.weight"].lr == pytest.approx(5e-5)


def test_a_known_part_that_is_missing_or_frozen_is_said():
    module = nn.ModuleDict({"vision_tower": nn.Linear(2, 2), "connector": nn.Linear(2, 2)})
    module["vision_tower"].requires_grad_(False)
    assert group_parameters(module, "vlm").notes == (
        "parts: no language_model was found; give parts={'language_model': glob} if there is one.",
        "parts: the vision_tower is frozen (2 tensors).",
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (None, r"none of projector, language_model, vision_tower was found .*'eyes.weight'.* parts=\{\"projector\""),
        ({"projector": "brige.*"}, r"projector 'brige.\*' matches no parameter. Did you mean 'bridge"),
        ({"projector": "bridge.*", "vision_tower": "*.weight"}, "'bridge.weight' is matched by projector and by vision_tower"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_module_is_refused(parts, message):
    with pytest.raises(RecipeError, match=message):
        group_parameters(Custom(), resolved(parts=parts))


@pytest.mark.parametrize(
    ("recipe", "parts", "message"),
    [
        ("llm", {"projector": "x"}, "'llm' has one learning rate .* Recipe\\('vlm'\\)"),
        ("vlm", ["x"], "is a list; give a dictionary"),
        ("vlm", {"projektor": "x"}, "'projektor' is unknown. Did you mean 'projector'"),
        ("vlm", {"projector": 10.0}, "parts.projector: 10.0 is a float"),
        ("vlm", {"projector": ""}, "parts.projector: .* give a glob"),
        ("vlm", {"projector": {"glob": "x"}}, "'glob' is no field of PartSpec"),
        ("vlm", {"projector": {"lr_scale": -1}}, "lr_scale: -1 is not allowed"),
        ("vlm", {"projector": {"lr_scale": "1e1"}}, "lr_scale: '1e1' is not allowed"),
    ],
)
def test_wrong_parts_are_refused_at_once(recipe, parts, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(recipe, parts=parts)


def test_the_parts_of_a_checkpoint_give_the_same_groups():
    from lit_opt.callbacks.resume import as_overrides
    from lit_opt.resolve import RunFacts, resolve

    facts = RunFacts(total_steps=100)
    first = resolve(get_recipe("vlm"), {"parts": PARTS}, facts)
    name, overrides = as_overrides(first.as_dict(), {})
    again = resolve(get_recipe(name), overrides, facts)
    assert (again.parts, again.part_globs) == (first.parts, first.part_globs)
    assert group_parameters(Custom(), again).rows() == group_parameters(Custom(), first).rows()


def test_the_optimizer_gets_the_rates():
    torch.manual_seed(0)
    optimizer, scheduler = Recipe("vlm", parts=PARTS).configure(Custom(), total_steps=100)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    at_peak = {g["name"]: g["lr"] for g in optimizer.param_groups}
    assert at_peak["decay/projector"] == pytest.approx(1e-3)
    assert at_peak["decay/vision_tower"] == pytest.approx(5e-5)
