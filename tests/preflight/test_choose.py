"""Which setting: right on the architectures that the rules were written with, as measured on the others, and why."""

import dataclasses
import inspect
from typing import Any

import pytest
import torch
from torch import nn

from lit_opt import Recipe
from lit_opt.param_groups import group_parameters
from lit_opt.preflight import choose as rules
from lit_opt.preflight import layers as layer_rules
from lit_opt.preflight.choose import choose
from lit_opt.preflight.structure import read_structure
from lit_opt.recipes import get_recipe, list_recipes
from lit_opt.resolve import RunFacts, preview
from tests.param_groups.architectures import BUILDERS, build
from tests.preflight.held_out import HELD_OUT, CharacterLM, TimeUNet, TinyCNN, build_held_out, truth

torch.set_num_threads(1)

# Known and stated in benchmarks/results/choose.md: a decision transformer takes `timesteps`, and returns one number for one.
ERRORS = {"transformers/decision": "diffusion"}

# Of the held-out ones, some of each kind that are quick to build; all of them in the slow test.
QUICK = [name for name in HELD_OUT if name.startswith(("own/", "workload/"))] + [
    *("timm/poolformer", "timm/mobilevit", "torchvision/squeezenet", "transformers/olmo2", "transformers/esm"),
    *("transformers/idefics3", "transformers/chinese_clip", "diffusers/wan", "diffusers/vq", "transformers/yolos"),
    *("transformers/decision", "transformers/hubert"),
]


@pytest.mark.parametrize("name", BUILDERS)
def test_known_architectures(name):
    choice = choose(build(name))
    assert choice.recipe in truth(name), choice


def held_out(name):
    choice = choose(build_held_out(name))
    accepted = (ERRORS[name],) if name in ERRORS else HELD_OUT[name][1]
    assert choice.recipe in accepted, choice


@pytest.mark.parametrize("name", QUICK)
def test_held_out_architectures(name):
    held_out(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HELD_OUT if name not in QUICK])
def test_all_held_out_architectures(name):
    held_out(name)


def test_there_are_enough_of_them():
    names = [*BUILDERS, *HELD_OUT]
    libraries = {name.partition("/")[0] for name in names}
    assert len(BUILDERS) >= 60 and len(HELD_OUT) >= 60
    assert libraries >= {"timm", "torchvision", "transformers", "diffusers"}
    answers = {answer for _, accepted in HELD_OUT.values() for answer in accepted}
    assert answers == {"cnn", "vit", "llm", "vlm", "diffusion", "llm/finetune", ""}
    assert sum(accepted == ("",) for _, accepted in HELD_OUT.values()) >= 20


@pytest.mark.parametrize("name", ["transformers/llama", "timm/vit", "transformers/clip", "diffusers/vae"])
def test_a_choice_is_complete(name):
    choice = choose(build(name))
    assert choice.confidence in ("high", "medium", "low", "unsure")
    assert (choice.confidence == "unsure") == (choice.recipe == "")
    assert choice.reasons and all(text.endswith(".") for text in choice.reasons)
    assert all(other in list_recipes() and when for other, when in choice.alternatives)
    if choice.recipe:
        assert choice.setting == get_recipe(choice.recipe).setting
        # The overrides are arguments of Recipe that the recipe takes.
        assert set(choice.overrides) <= set(inspect.signature(Recipe).parameters)
        preview(get_recipe(choice.recipe), choice.overrides, RunFacts(total_steps=1000, global_batch=256))
    with pytest.raises(dataclasses.FrozenInstanceError):
        choice.recipe = "llm"  # type: ignore[misc]


def test_contrastive_values_are_open_clips():
    choice = choose(build("transformers/clip"))
    resolved = preview(get_recipe("vlm"), choice.overrides, RunFacts(total_steps=1000))
    assert (resolved.lr, resolved.weight_decay, resolved.hyperparameters["betas"]) == (5e-4, 0.2, (0.9, 0.98))
    assert set(resolved.parts.values()) == {1.0}
    assert len(group_parameters(build("transformers/clip"), resolved).rows()) > 50


# ---- no name decides where structure tells


def test_names_do_not_make_a_transformer():
    class AttentionNet(TinyCNN):
        """A CNN with an ambitious name."""

    assert choose(AttentionNet()).recipe == "cnn"


def test_classes_without_names_are_recognised():
    """Query, key and value by their shapes; the time by a linear layer in each block of convolutions."""

    class X(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(64, 64) for _ in range(4))

    class Z(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n, self.x, self.f, self.g = nn.LayerNorm(64), X(), nn.Linear(64, 256), nn.Linear(256, 64)

    class Y(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Embedding(500, 64)
            self.xs = nn.ModuleList(Z() for _ in range(3))
            self.z = nn.Linear(64, 500, bias=False)

    assert read_structure(Y()).attention == 3
    assert (choose(Y()).recipe, choose(Y()).confidence) == ("llm", "medium")
    net = TimeUNet()
    net.tau = net.time_mlp  # the same without the word
    del net.time_mlp
    choice = choose(net)
    assert (choice.recipe, choice.confidence) == ("diffusion", "high")
    assert not any("By name" in reason for reason in choice.reasons)


def test_a_gated_mlp_is_no_attention():
    mlp = nn.ModuleDict({"gate": nn.Linear(64, 172), "up": nn.Linear(64, 172), "down": nn.Linear(172, 64)})
    assert not layer_rules._is_attention(mlp)
    fused = nn.ModuleDict({"in": nn.Linear(64, 192), "out": nn.Linear(64, 64)})
    assert layer_rules._is_attention(fused)


def test_a_tied_head_is_seen():
    model = CharacterLM()
    assert read_structure(model).text_head == "untied"
    model.to_logits.weight = model.tokens.weight
    assert read_structure(model).text_head == "tied"
    model.to_logits = nn.Linear(64, 5)
    assert read_structure(model).text_head == ""
    assert choose(model).recipe == ""  # 96 tokens are few for a text classifier: not sure


# ---- the run, and weights that have been trained


@pytest.mark.parametrize(
    ("batch", "recipe"),
    [(None, "cnn"), (256, "cnn"), (8192, "cnn"), (8193, "large_batch/lars"), (65_536, "large_batch/lars")],
)
def test_a_large_batch(batch, recipe):
    choice = choose(build("timm/resnet"), RunFacts(global_batch=batch))
    assert choice.recipe == recipe
    if recipe != "cnn":
        assert choice.confidence == "medium"
        assert any(f"{batch:,} is above 8,192" in reason for reason in choice.reasons)
        assert choice.alternatives[0][0] == "large_batch/control"
    assert bool(choice.asks) == (batch is None)


def test_a_large_batch_of_a_vit_and_of_text():
    assert choose(build("timm/vit"), RunFacts(global_batch=16_384)).recipe == "large_batch/lamb"
    assert choose(build("transformers/llama"), RunFacts(global_batch=16_384)).recipe == "llm"


def vit():
    import timm

    return timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=32, num_heads=2, num_classes=10)


def test_trained_weights_are_fine_tuned():
    model = vit()
    fresh = choose(model)
    assert fresh.recipe == "vit" and not any("pretrained" in reason for reason in fresh.reasons)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.01)
    trained = choose(model)
    assert (trained.recipe, trained.confidence) == ("vit/finetune", "medium")
    assert any("trained before" in reason for reason in trained.reasons)
    assert trained.alternatives[0][0] == "vit"


def test_on_the_meta_device_it_says_that_it_cannot_know():
    reasons = choose(build("timm/vit")).reasons
    assert any("cannot be seen here; if they are, take vit/finetune" in reason for reason in reasons)


def test_frozen_weights_are_fine_tuned():
    model = vit()
    model.blocks[0].requires_grad_(False)
    choice = choose(model)
    assert choice.recipe == "vit/finetune"
    assert any("frozen" in reason for reason in choice.reasons)


class Adapter(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.zeros(4, linear.in_features))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, 4))


def test_adapters():
    model: Any = build("transformers/llama").requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.q_proj = Adapter(layer.self_attn.q_proj)
    choice = choose(model)
    assert choice.recipe == "llm/lora"
    assert any("4 adapter matrices" in reason for reason in choice.reasons)
    # For adapters of other models there is no recipe.
    unet: Any = build("diffusers/dit").requires_grad_(False)
    unet.transformer_blocks[0].attn1.to_q = Adapter(unet.transformer_blocks[0].attn1.to_q)
    other = choose(unet)
    assert other.confidence == "unsure" and other.alternatives[0][0] == "llm/lora"


def test_a_frozen_text_encoder_beside_a_denoiser_is_diffusion():
    class TextToImage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text_encoder = build("transformers/bert").requires_grad_(False)
            self.unet = build("diffusers/unet2d_condition")

    choice = choose(TextToImage())
    assert choice.setting == "diffusion", choice


def test_every_rule_is_used():
    """Each rule decides for some architecture of the tests."""
    used = set()
    for name in ("diffusers/dit", "transformers/wav2vec2", "transformers/llava", "transformers/gpt2", "timm/resnet"):
        seen = read_structure(build(name))
        names = ("_denoiser", "_sound", "_images_and_text", "_text", "_images")
        used.add(next(rule for rule in names if getattr(rules, rule)(seen) is not None))
    assert used == {"_denoiser", "_sound", "_images_and_text", "_text", "_images"}
