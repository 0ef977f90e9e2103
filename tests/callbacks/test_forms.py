"""Groups, decay and training of modules in every form are those of the plain module, in one process and in two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_opt import ClipSpec, Recipe
from lit_opt.errors import RecipeError
from tests.callbacks.forms import FORMS, SAME, Formed, module_of, placed, plain
from tests.callbacks.forms_processes import LAYOUTS, recipe_of
from tests.callbacks.modules import Net, trainer
from tests.callbacks.processes import STEPS, Share
from tests.processes import launch as launch_processes

PLAIN = {f"net.{i}.weight": ("decay", 0.1) for i in (0, 2, 3)} | dict.fromkeys(
    ("net.0.bias", "net.1.weight", "net.1.bias", "net.2.bias", "net.3.bias"), ("no_decay", 0.0)
)
# The direction is decayed, the magnitude is not.
NORMED = {name: where for name, where in PLAIN.items() if name != "net.2.weight"} | {
    "net.2.parametrizations.weight.original0": ("no_decay", 0.0),
    "net.2.parametrizations.weight.original1": ("decay", 0.1),
}
LORA = {f"net.{i}.lora_{side}.default.weight" for i in (0, 2) for side in "AB"}


def one_process(form: str) -> tuple[Any, dict[str, Any]]:
    module, recipe = module_of(form), recipe_of(form)
    t = trainer(recipe, max_steps=STEPS)
    t.fit(module, Share(0, 1))
    return t.lightning_module, placed(recipe)


def expected(form: str) -> dict[str, Any]:
    return NORMED if form == "weight_normed" else PLAIN


def check_placed(form: str, found: dict[str, Any]) -> None:
    if form == "lora":
        assert found.keys() == LORA
    else:
        assert found == expected(form)


@pytest.fixture(scope="module")
def alone() -> list[torch.Tensor]:
    return [p.detach() for p in one_process("plain")[0].parameters()]


@pytest.mark.parametrize("form", FORMS)
def test_in_one_process(form: str, alone: list[torch.Tensor]) -> None:
    module, found = one_process(form)
    check_placed(form, found)
    if form in SAME:
        torch.testing.assert_close([p.detach() for p in module.parameters()], alone, rtol=0, atol=1e-6)


def test_an_adapter_leaves_the_frozen_weights_alone() -> None:
    module, _ = one_process("lora")
    frozen = dict(plain().named_parameters())
    for name, p in module.net.named_parameters():
        if "lora" not in name:
            assert torch.equal(p, frozen[name.replace("base_layer.", "")]), name


def test_a_lazy_module_that_meets_no_batch_is_refused() -> None:
    class Lazy(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.LazyLinear(4))

    with pytest.raises(RecipeError, match=r"'net.0.weight'.*Run one batch through the module first.*configure_model"):
        trainer(Recipe("llm"), max_steps=1).fit(Lazy(), Share(0, 1))


def test_a_module_that_stays_on_the_meta_device_is_grouped_by_its_shapes() -> None:
    from lit_opt.param_groups import group_parameters

    rows = group_parameters(Formed("meta"), "llm").rows()
    assert {row.name: (row.group, row.weight_decay) for row in rows} == PLAIN


def test_quantised_weights_are_frozen_and_what_is_beside_them_is_trained() -> None:
    """bitsandbytes' layers of 4 bits hold packed bytes, whose shape is not that of the layer."""
    bnb = pytest.importorskip("bitsandbytes")

    class Quantised(Formed):
        def __init__(self) -> None:
            super().__init__()
            layer = bnb.nn.Linear4bit(16, 16, quant_type="nf4", compute_dtype=torch.float32)
            layer.load_state_dict(self.net[2].state_dict())
            self.net[2] = layer.to("cpu")
            layer.weight.requires_grad_(False)

    module, recipe = Quantised(), recipe_of("plain")
    layer: Any = module.net[2]
    assert layer.weight.dtype == torch.uint8
    before = layer.weight.detach().clone()
    trainer(recipe, max_steps=STEPS).fit(module, Share(0, 1))
    assert placed(recipe) == {name: where for name, where in PLAIN.items() if name != "net.2.weight"}
    assert torch.equal(layer.weight, before)


# ---- two processes


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms")
    result = launch_processes("tests.callbacks.forms_processes", folder)
    assert result.returncode == 0, result.stderr[-6000:]
    return folder


def seen(folder: Path, layout: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{layout}.{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_two_processes(layout: str, form: str, launched: Path, alone: list[torch.Tensor]) -> None:
    for found in seen(launched, layout):
        if (layout, form) == ("fsdp2", "compiled_whole"):
            assert (
                "compiled model is incompatible with the current strategy" in found[form]["error"]
            )  # Lightning says so
            continue
        assert "error" not in found[form], found[form]["error"]
        check_placed(form, found[form]["placed"])
        if form in SAME:
            torch.testing.assert_close(found[form]["weights"], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_clipping_by_value_is_that_of_one_process(layout: str, launched: Path) -> None:
    module = module_of("plain")
    clip = ClipSpec(limit=1e-3, kind="value")
    recipe = Recipe("cnn", lr=0.1, momentum=0.0, warmup=0, clip=clip, batch_size=8)
    trainer(recipe, max_steps=STEPS).fit(module, Share(0, 1))
    ours = [p.detach() for p in module.parameters()]
    moved = max(float((p - q).abs().max()) for p, q in zip(ours, plain().parameters(), strict=True))
    assert 0 < moved < 0.1 * 1.1e-3 * STEPS
    for found in seen(launched, layout):
        torch.testing.assert_close(found["by_value"]["weights"], ours, rtol=0, atol=1e-7)


def test_fsdp1_without_names_is_refused_with_the_remedy(launched: Path) -> None:
    for found in seen(launched, "fsdp1"):
        assert found["nameless"].startswith("RecipeError") and "use_orig_params=True" in found["nameless"]
