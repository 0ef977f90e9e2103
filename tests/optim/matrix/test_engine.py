"""What holds for every method: identities, layouts, routing inside groups, state, and numbers that are no numbers."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from benchmarks.memory import extra_peak
from lit_opt.errors import RecipeError
from lit_opt.optim import MarsM, Muon, NorMuon, Teon, build
from lit_opt.optim.matrix.cost import orthogonalization_share
from lit_opt.optim.matrix.orthogonalize import orthogonalize
from lit_opt.optim.matrix.teon import find_stacks
from tests.optim.matrix.spectra import matrix

METHODS = ("muon", "normuon", "mars_m", "teon")
SCALE_FREE = ("muon", "normuon", "teon")
F64 = torch.float64


def params_of(*shapes: tuple[int, ...], dtype: torch.dtype = F64) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=generator, dtype=F64).to(dtype)) for shape in shapes]


def run(optimizer: torch.optim.Optimizer, params: list[Parameter], steps: int = 3, factor: float = 1.0) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(100 + step)
        for param in params:
            gradient = torch.randn(param.shape, generator=generator, dtype=F64).to(param.dtype)
            param.grad = gradient * factor
        optimizer.step()


def after(name: str, shapes: list[tuple[int, ...]], steps: int = 3, **keywords: Any) -> list[Tensor]:
    params = params_of(*shapes)
    run(build(name, params, **{"lr": 0.02, **keywords}), params, steps)
    return [param.detach() for param in params]


def assert_near(left: list[Tensor], right: list[Tensor], tolerance: float = 1e-12) -> None:
    assert max((a - b).abs().max().item() for a, b in zip(left, right, strict=True)) <= tolerance


# ---- identities

SHAPES: list[tuple[int, ...]] = [(8, 5), (5, 8), (6, 6), (4, 20), (6, 3, 2, 2)]


def test_teon_without_stacks_is_muon():
    assert_near(after("teon", SHAPES), after("muon", SHAPES), 0.0)


def test_teon_with_stacks_of_one_is_muon():
    params = params_of(*SHAPES)
    run(build("teon", params, lr=0.02, stack=[[param] for param in params]), params)
    assert_near([p.detach() for p in params], after("muon", SHAPES), 0.0)


def test_teon_orthogonalises_side_by_side():
    params = params_of((4, 3), (4, 3))
    before = [p.detach().clone() for p in params]
    run(build("teon", params, lr=1.0, stack=params, weight_decay=0.0, scale="unit"), params, steps=1)
    moved = torch.cat([b - p.detach() for b, p in zip(before, params, strict=True)], dim=1)
    assert (moved - orthogonalize(torch.cat([p.grad for p in params], dim=1))).abs().max() < 1e-12  # type: ignore[misc]


def test_mars_m_without_correction_is_muon():
    shared = {"nesterov": False, "scale": "original", "weight_decay": 0.01}
    for name, extra in (("mars_m", {"gamma": 0.0, "variant": "approx"}), ("muon", {})):
        params = params_of(*SHAPES)
        run(build(name, params, lr=0.02, **shared, **extra), params, factor=0.01)
        if name == "mars_m":
            corrected = [p.detach() for p in params]
    assert_near(corrected, [p.detach() for p in params], 1e-14)


def test_mars_m_exact_with_the_same_data_is_no_correction_once_weights_stand_still():
    """With lr 0 both gradients agree, so nothing is corrected from the second step on."""
    params = params_of((4, 4))
    optimizer = build("mars_m", params, lr=0.0, variant="exact", fallback={"lr": 1e-3})
    gradient = 0.01 * matrix(4, 4, "gauss")

    def closure() -> float:
        params[0].grad = gradient * (1 + params[0].detach().mean())
        return 0.0

    for _ in range(2):
        optimizer.step(closure)
    state = optimizer.state[params[0]]
    assert torch.equal(state["previous_gradient"], params[0].grad)  # type: ignore[arg-type]


def test_normuon_rows_have_one_length_on_the_first_step():
    params = params_of((6, 9))
    before = params[0].detach().clone()
    run(build("normuon", params, lr=1.0, weight_decay=0.0, scale="unit"), params, steps=1)
    moved = before - params[0].detach()
    rows = moved.norm(dim=1)
    assert (rows / rows.mean() - 1).abs().max() < 1e-9
    assert moved.norm() == pytest.approx(orthogonalize(params[0].grad).norm().item(), rel=1e-9)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", METHODS)
def test_a_bucket_equals_one_by_one(name: str):
    shapes = [(12, 30)] * 5 + [(30, 12)] * 3 + [(16, 16)] * 4
    params = params_of(*shapes, dtype=torch.float32)
    run(build(name, params, lr=0.02), params)
    for index in range(len(shapes)):
        alone = params_of(*shapes, dtype=torch.float32)
        optimizer = build(name, [alone[index]], lr=0.02)
        run(optimizer, alone)
        assert (alone[index] - params[index]).abs().max() <= 1e-6


@pytest.mark.parametrize("name", SCALE_FREE)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_the_length_of_gradients_does_not_matter(name: str, dtype: torch.dtype):
    shapes: list[tuple[int, ...]] = [(8, 5), (5, 16), (6, 3, 2, 2)]
    results = []
    for factor in (1.0, 1e-30, 1e30):
        params = params_of(*shapes, dtype=dtype)
        run(build(name, params, lr=0.02), params, factor=factor)
        results.append([p.detach() for p in params])
    for other in results[1:]:
        assert_near(results[0], other, 2e-6 if dtype == torch.float32 else 1e-13)


# ---- layouts


def single(shape: tuple[int, ...], name: str = "muon", **keywords: Any) -> tuple[Tensor, Tensor]:
    """The update of one step at lr 1 without decay, and its gradient."""
    (param,) = params_of(shape)
    before = param.detach().clone()
    run(build(name, [param], lr=1.0, weight_decay=0.0, **keywords), [param], steps=1)
    assert param.grad is not None
    return before - param.detach(), param.grad


def expected(gradient: Tensor) -> Tensor:
    return orthogonalize(gradient) * math.sqrt(max(1.0, gradient.size(-2) / gradient.size(-1)))


def test_convolutions_are_outputs_by_inputs_times_kernel():
    moved, gradient = single((24, 2, 3, 3))
    assert_near([moved], [expected(gradient.flatten(1)).view_as(moved)])
    moved, gradient = single((8, 2, 3))
    assert_near([moved], [expected(gradient.flatten(1)).view_as(moved)])
    moved, gradient = single((2, 24, 3, 3), layout="conv_transposed")
    assert_near([moved], [expected(gradient.transpose(0, 1).flatten(1)).view(24, 2, 3, 3).transpose(0, 1)])


@pytest.mark.parametrize("name", METHODS)
def test_channels_last_changes_nothing(name: str):
    results = []
    for form in (torch.contiguous_format, torch.channels_last):
        params = [Parameter(p.detach().to(memory_format=form)) for p in params_of((8, 3, 2, 2))]
        run(build(name, params, lr=0.02), params)
        results.append([p.detach() for p in params])
    assert_near(results[0], results[1])


@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_transposed_weights_move_as_their_transpose(name: str):
    (linear,), (conv1d,) = params_of((12, 4)), params_of((12, 4))
    conv1d = Parameter(conv1d.detach().mT.contiguous())
    first = build(name, [linear], lr=0.02)
    second = build(name, [{"params": [conv1d], "layout": "transposed"}], lr=0.02)
    for step in range(3):
        gradient = matrix(12, 4, "gauss", step)
        linear.grad, conv1d.grad = gradient, gradient.mT.contiguous()
        first.step(), second.step()
    assert_near([conv1d.detach().mT], [linear.detach()])


@pytest.mark.parametrize("name", METHODS)
def test_experts_are_matrices_of_their_own(name: str):
    keywords: dict[str, Any] = {"gamma": 0.0, "variant": "efficient"} if name == "mars_m" else {}
    stack, *alone = params_of((3, 8, 5), (8, 5), (8, 5), (8, 5))
    for index, param in enumerate(alone):
        param.data.copy_(stack.data[index])
    together = build(name, [stack], lr=0.02, layout="experts", **keywords)
    apart = build(name, alone, lr=0.02, **keywords)
    for step in range(3):
        gradients = [matrix(8, 5, "gauss", 10 * step + index) for index in range(3)]
        stack.grad = torch.stack(gradients)
        for param, gradient in zip(alone, gradients, strict=True):
            param.grad = gradient
        together.step(), apart.step()
    assert_near([stack.detach()], [torch.stack([p.detach() for p in alone])])
    moved, gradient = single((3, 5, 8), layout="experts_transposed")
    assert_near([moved], [expected(gradient.mT).mT])


@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_parts_and_heads_are_matrices_of_their_own(name: str):
    moved, gradient = single((8, 5), name, split_sizes=[3, 5])
    parts = [single_gradient(part, name) for part in gradient.split([3, 5])]
    assert_near([moved], [torch.cat(parts)])
    moved, gradient = single((8, 5), name, num_heads=4)
    assert_near([moved], [torch.cat([single_gradient(part, name) for part in gradient.split(2)])])


def single_gradient(gradient: Tensor, name: str) -> Tensor:
    param = Parameter(torch.zeros_like(gradient))
    param.grad = gradient
    build(name, [param], lr=1.0, weight_decay=0.0).step()
    return -param.detach()


def test_a_stack_of_fused_weights_stacks_each_part_with_itself():
    params = params_of((6, 5), (6, 5))
    before = [p.detach().clone() for p in params]
    optimizer = build("teon", params, lr=1.0, stack=params, weight_decay=0.0, scale="unit", split_sizes=[2, 4])
    run(optimizer, params, steps=1)
    for rows in (slice(0, 2), slice(2, 6)):
        moved = torch.cat([(b - p.detach())[rows] for b, p in zip(before, params, strict=True)], dim=1)
        gradient = torch.cat([p.grad[rows] for p in params], dim=1)  # type: ignore[index]
        assert (moved - orthogonalize(gradient)).abs().max() < 1e-12


def test_large_stacks_are_cut_to_the_memory_limit(monkeypatch: pytest.MonkeyPatch):
    shapes: list[tuple[int, ...]] = [(5, 4), (5, 4), (7, 4), (5, 4)]
    whole = {name: after(name, shapes) for name in METHODS}
    experts = after("normuon", [(7, 5, 4)], layout="experts")
    import lit_opt.optim.matrix.plan as plan

    monkeypatch.setattr(plan, "_SCRATCH_BYTES", 3000)
    for name in METHODS:
        assert_near(after(name, shapes), whole[name])
    assert_near(after("normuon", [(7, 5, 4)], layout="experts"), experts)
    params = params_of((7, 5, 4))
    run(optimizer := build("muon", params, lr=0.02, layout="experts"), params, steps=1)
    assert len(optimizer._plan) > 1  # type: ignore[attr-defined]


# ---- routing inside groups


def test_vectors_go_to_adamw_and_follow_the_groups_schedule():
    weight, bias = params_of((4, 3), (4,))
    reference = Parameter(bias.detach().clone())
    fallback = {"lr": 1e-3, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3}
    optimizer = build("muon", [weight, bias], lr=0.02, fallback=fallback)
    adamw = torch.optim.AdamW([reference], **fallback)  # type: ignore[arg-type]
    for step in range(4):
        gradient = torch.arange(4, dtype=F64) - step
        weight.grad, bias.grad, reference.grad = matrix(4, 3, "gauss", step), gradient, gradient.clone()
        optimizer.param_groups[0]["lr"], adamw.param_groups[0]["lr"] = 0.02 / (step + 1), 1e-3 / (step + 1)
        optimizer.step(), adamw.step()
    assert (bias - reference).abs().max() < 1e-15


@pytest.mark.parametrize(
    ("name", "keywords", "rate"),
    [("muon", {}, 3e-4), ("mars_m", {}, 0.02), ("muon", {"scale": "match_rms_adamw"}, 0.02), ("normuon", {}, 3e-4)],
)
def test_the_default_rate_of_vectors_is_that_of_the_unit_system(name: str, keywords: dict[str, Any], rate: float):
    weight, bias = params_of((4, 3), (4,))
    before = bias.detach().clone()
    run(build(name, [weight, bias], lr=0.02, weight_decay=0.0, **keywords), [weight, bias], steps=1)
    assert (before - bias.detach()).abs().max().item() == pytest.approx(rate, rel=1e-4)


def test_groups_of_adamw_have_its_options_alone():
    weight, table = params_of((4, 3), (10, 3))
    groups: list[dict[str, Any]] = [
        {"params": [weight], "name": "hidden", "algorithm": "muon"},
        {"params": [table], "name": "embedding", "algorithm": "adamw", "weight_decay": 0.0},
    ]
    optimizer = build("muon", groups, lr=0.02, weight_decay=0.1, fallback={"lr": 1e-3, "betas": (0.8, 0.9)})
    group = optimizer.param_groups[1]
    assert set(group) == {"params", "name", "algorithm", "lr", "betas", "eps", "weight_decay"}
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-3, (0.8, 0.9), 0.0)
    reference = Parameter(table.detach().clone())
    adamw = torch.optim.AdamW([reference], lr=1e-3, betas=(0.8, 0.9), weight_decay=0.0)
    for step in range(3):
        weight.grad, table.grad = matrix(4, 3, "gauss", step), matrix(10, 3, "gauss", step)
        reference.grad = table.grad.clone()
        optimizer.step(), adamw.step()
    assert (table - reference).abs().max() < 1e-15


def test_each_group_follows_its_own_options():
    first, second = params_of((6, 4), (6, 4))
    groups: list[dict[str, Any]] = [
        {"params": [first], "name": "a", "orthogonalize": "svd", "lr": 0.1},
        {"params": [second], "name": "b", "momentum": 0.5, "nesterov": False, "split_sizes": [2, 4]},
    ]
    run(build("muon", groups, lr=0.02), [first, second])
    alone = params_of((6, 4), (6, 4))
    run(build("muon", [alone[0]], lr=0.1, orthogonalize="svd"), alone)
    other = params_of((6, 4), (6, 4))
    run(build("muon", [other[1]], lr=0.02, momentum=0.5, nesterov=False, split_sizes=[2, 4]), other)
    assert_near([first.detach(), second.detach()], [alone[0].detach(), other[1].detach()])


def test_options_may_change_between_steps():
    params = params_of((6, 20))
    optimizer = build("muon", params, lr=0.02, momentum=0.0, nesterov=False, weight_decay=0.0)
    run(optimizer, params, steps=1)
    optimizer.param_groups[0]["orthogonalize"] = "svd"
    before = params[0].detach().clone()
    run(optimizer, params, steps=1)
    assert torch.linalg.svdvals((before - params[0].detach()) / 0.02).sub(1).abs().max() < 1e-10


# ---- refusals


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"ns_steps": 4}, "ns_steps: 4 with orthogonalize='polar_express'"),
        ({"orthogonalize": "newton"}, "orthogonalize: 'newton' is unknown"),
        ({"scale": "rms"}, "scale: 'rms' is unknown"),
        ({"ns_dtype": "float16"}, "ns_dtype: 'float16' is unknown"),
        ({"layout": "linear"}, "layout: 'linear' is unknown"),
        ({"layout": "experts"}, "layout: 'experts' is .* shape \\(8, 5\\)"),
        ({"split_sizes": [3, 3]}, "split_sizes: \\[3, 3\\] has a sum of 6"),
        ({"split_sizes": [3, 5], "num_heads": 2}, "both are given"),
        ({"num_heads": 3}, "num_heads: 3 does not divide the 8 outputs"),
        ({"num_heads": 2.0}, "num_heads: 2.0 is not a whole number"),
        ({"fallback": {"rate": 1}}, "fallback: rate: adamw has no such keyword"),
        ({"fallback": 3e-4}, "fallback: 0.0003 is not a dict"),
        ({"gamma": 0.1}, "gamma: muon has no such keyword"),
        ({"stack": []}, "stack: muon has no such keyword"),
    ],
)
def test_wrong_options_are_refused(keywords: dict[str, Any], words: str):
    with pytest.raises(RecipeError, match=words):
        build("muon", params_of((8, 5)), lr=0.02, **keywords)


def test_the_classes_refuse_as_well():
    weight = params_of((4, 4))
    for make, words in (
        (lambda: Muon(weight, ns_steps=4), "ns_steps: 4"),
        (lambda: NorMuon(weight, scale="x"), "scale: 'x'"),
        (lambda: MarsM(weight, variant="x"), "variant: 'x'"),
        (lambda: MarsM(weight, variant="efficient", nesterov=True), "nesterov: True"),
        (lambda: Teon(weight, stack=["layer"]), "stack: 1 of its lists"),
        (lambda: Muon([{"params": weight, "algorithm": "adam"}]), "algorithm: 'adam'.*Did you mean 'adamw'"),
        (lambda: Muon([Parameter(torch.ones(2, 2, dtype=torch.complex64))]), "complex64"),
    ):
        with pytest.raises(RecipeError, match=words):
            make()


def test_a_group_of_another_unit_system_brings_its_own_rate_and_decay():
    first, second = params_of((4, 4), (4, 4))
    groups: list[dict[str, Any]] = [
        {"params": [first], "name": "a"},
        {"params": [second], "name": "b", "scale": "match_rms_adamw"},
    ]
    with pytest.raises(RecipeError, match=r"group.*scale: 'match_rms_adamw' takes AdamW's.*RMS of 4.0e-03"):
        build("muon", groups, lr=0.02)
    groups[1] |= {"lr": 3e-4, "weight_decay": 0.1}
    build("muon", groups, lr=0.02)


def test_a_refused_group_is_not_added():
    optimizer = build("muon", params_of((4, 4)), lr=0.02)
    with pytest.raises(RecipeError, match="split_sizes"):
        optimizer.add_param_group({"params": params_of((4, 4)), "split_sizes": [1, 1]})
    assert len(optimizer.param_groups) == 1


def test_stacks_are_refused_where_they_do_not_fit():
    a, b, c = params_of((4, 4), (4, 4), (4, 5))
    for stack, words in (
        ([a, c], "shapes .* differ"),
        ([a, params_of((4, 4))[0]], "is not a parameter"),
        ([a, a], "twice"),
    ):
        with pytest.raises(RecipeError, match=words):
            build("teon", [{"params": [a, b, c], "stack": stack}], lr=0.02)
    with pytest.raises(RecipeError, match=r"'x' is not a parameter of the group\. Its names: a, b"):
        build("teon", [{"params": [("a", a), ("b", b)], "stack": ["a", "x"]}], lr=0.02)


def test_a_sparse_gradient_is_refused():
    table = nn.Embedding(4, 3, sparse=True)
    optimizer = build("muon", table.parameters(), lr=0.02)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RecipeError, match="sparse"):
        optimizer.step()


def test_mars_m_exact_asks_for_a_closure():
    params = params_of((4, 4))
    with pytest.raises(RecipeError, match="needs a closure"):
        run(build("mars_m", params, lr=1e-3, variant="exact"), params)


# ---- stacks by name


def test_stacks_are_found_by_name_in_consecutive_blocks():
    names = [f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1, 2, 4, 5) for p in "qkvo"]
    names += [f"h.{i}.{part}.weight" for i in (0, 1) for part in ("attn.c_attn", "mlp.c_fc")]
    shapes: list[tuple[int, ...]] = [(4, 4)] * len(names)
    shapes[1] = (2, 4)
    stacks = [[names[i] for i in stack] for stack in find_stacks(names, shapes)]
    layer = "model.layers.{}.self_attn.{}_proj.weight"
    assert [layer.format(0, "q"), layer.format(1, "q")] in stacks
    assert [layer.format(1, "k"), layer.format(2, "k")] in stacks
    assert [layer.format(4, "v"), layer.format(5, "v")] in stacks
    assert ["h.0.attn.c_attn.weight", "h.1.attn.c_attn.weight"] in stacks
    assert len(stacks) == 7
    assert not any("o_proj" in name or "mlp" in name for stack in stacks for name in stack)


def test_named_parameters_are_stacked_without_asking():
    blocks = nn.ModuleList(nn.ModuleDict({"q_proj": nn.Linear(4, 4), "o_proj": nn.Linear(4, 4)}) for _ in range(2))
    group = build("teon", blocks.named_parameters(), lr=0.02).param_groups[0]
    assert [[group["param_names"][i] for i in stack] for stack in group["stack"]] == [
        ["0.q_proj.weight", "1.q_proj.weight"]
    ]


def test_a_stack_without_one_of_its_gradients_goes_on_with_the_others():
    params = params_of((4, 4), (4, 4))
    optimizer = build("teon", params, lr=0.02, stack=params)
    run(optimizer, params[:1], steps=1)
    alone = params_of((4, 4), (4, 4))
    run(build("muon", alone, lr=0.02), alone[:1], steps=1)
    assert_near([p.detach() for p in params], [p.detach() for p in alone], 0.0)


# ---- state


@pytest.mark.parametrize(
    ("name", "keywords"),
    [(name, {}) for name in METHODS]
    + [("mars_m", {"variant": v}) for v in ("exact", "efficient")]
    + [("teon", {"stack": True})],
)
def test_resume_and_copies_go_on_bit_for_bit(name: str, keywords: dict[str, Any]):
    shapes: list[tuple[int, ...]] = [(8, 5), (8, 5), (7,), (6, 3, 2, 2)]

    def make() -> tuple[list[Parameter], torch.optim.Optimizer]:
        params = params_of(*shapes)
        chosen = {"stack": params[:2]} if "stack" in keywords else keywords
        return params, build(name, params, lr=0.02, **chosen)

    def go(params: list[Parameter], optimizer: torch.optim.Optimizer, first: int) -> None:
        for step in range(first, first + 3):

            def closure(step: int = step) -> float:
                for index, param in enumerate(params):
                    generator = torch.Generator().manual_seed(10 * step + index)
                    noise = torch.randn(param.shape, generator=generator, dtype=F64)
                    param.grad = noise + 0.1 * param.detach()
                return 0.0

            optimizer.step(closure)

    params, optimizer = make()
    go(params, optimizer, 0)
    file = io.BytesIO()
    torch.save([[p.detach() for p in params], optimizer.state_dict()], file)
    copied, copied_optimizer = copy.deepcopy((params, optimizer))
    go(params, optimizer, 3)
    go(copied, copied_optimizer, 3)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed, resumed_optimizer = make()
    for param, weight in zip(resumed, weights, strict=True):
        param.data.copy_(weight)
    resumed_optimizer.load_state_dict(state)
    go(resumed, resumed_optimizer, 3)
    for other in (copied, resumed):
        assert_near([p.detach() for p in params], [p.detach() for p in other], 0.0)


def test_state_is_only_what_the_method_needs():
    held = {
        "muon": {"momentum_buffer"},
        "teon": {"momentum_buffer"},
        "normuon": {"momentum_buffer", "second_moment"},
        "mars_m": {"momentum_buffer", "previous_gradient"},
    }
    for name, keys in held.items():
        params = params_of((8, 5), (7,))
        optimizer = build(name, params, lr=0.02)
        run(optimizer, params)
        assert set(optimizer.state[params[0]]) == keys
        assert set(optimizer.state[params[1]]) == {"step", "exp_avg", "exp_avg_sq"}
        if name == "normuon":
            assert optimizer.state[params[0]]["second_moment"].shape == (8, 1)


def test_mars_m_keeps_no_reference_to_the_gradient():
    """The official code does, and with zero_grad(set_to_none=False) its correction vanishes without a word."""
    results = []
    for in_place in (False, True):
        params = params_of((4, 4))
        optimizer = build("mars_m", params, lr=0.02)
        params[0].grad = torch.zeros(4, 4, dtype=F64)
        for step in range(3):
            optimizer.zero_grad(set_to_none=not in_place)
            gradient = 0.01 * matrix(4, 4, "gauss", step)
            params[0].grad = params[0].grad.add_(gradient) if in_place else gradient
            optimizer.step()
        results.append([p.detach() for p in params])
    assert_near(results[0], results[1], 0.0)


def test_the_plan_is_kept_while_nothing_changes():
    params = params_of((4, 4), (5, 4))
    optimizer = build("muon", params, lr=0.02)
    run(optimizer, params, steps=1)
    plan = optimizer._plan  # type: ignore[attr-defined]
    run(optimizer, params, steps=2)
    assert optimizer._plan is plan  # type: ignore[attr-defined]
    params[1].grad = None
    optimizer.step()
    assert optimizer._plan is not plan  # type: ignore[attr-defined]


# ---- numbers that are no numbers, and other edges


@pytest.mark.parametrize("name", METHODS)
def test_a_nan_stays_with_its_parameter(name: str):
    params = params_of((6, 4), (6, 4), (4,))
    clean = params_of((6, 4), (6, 4), (4,))
    optimizer, other = build(name, params, lr=0.02), build(name, clean, lr=0.02)
    run(other, clean, steps=1)
    for param, source in zip(params, clean, strict=True):
        param.grad = source.grad.clone()  # type: ignore[union-attr]
    params[0].grad[0, 0] = torch.nan  # type: ignore[index]
    optimizer.step()
    assert params[0].isnan().any()
    assert_near([p.detach() for p in params[1:]], [p.detach() for p in clean[1:]], 1e-15)


@pytest.mark.parametrize("name", METHODS)
def test_degenerate_shapes_and_gradients(name: str):
    params = params_of((1, 6), (6, 1), (1, 1), (0, 4), (3, 0), ())
    run(build(name, params, lr=0.02), params)
    assert all(torch.isfinite(param).all() for param in params)
    (rank_one,) = params_of((5, 4))
    rank_one.grad = matrix(5, 4, "rank_1")
    build(name, [rank_one], lr=0.02).step()
    assert torch.isfinite(rank_one).all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_weights_move_as_float32_ones(name: str, dtype: torch.dtype):
    moves = []
    for kind in (dtype, torch.float32):
        params = [Parameter(p.detach().to(dtype).to(kind)) for p in params_of((8, 5), (6, 3, 2, 2))]
        before = [p.detach().float().clone() for p in params]
        run(build(name, params, lr=0.5), params, steps=2)
        assert all(p.dtype == kind for p in params)
        moves.append(torch.cat([(p.detach().float() - b).flatten() for p, b in zip(params, before, strict=True)]))
    assert torch.nn.functional.cosine_similarity(moves[0], moves[1], dim=0) > 0.99


@pytest.mark.parametrize("name", METHODS)
def test_under_a_grad_scaler(name: str):
    model = nn.Linear(4, 4)
    optimizer = build(name, model.parameters(), lr=0.02)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = model.weight.detach().clone()
    scaler.scale(model(torch.eye(4)).square().sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(model.weight, before)
    kept, state = model.weight.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
    model.weight.grad.fill_(torch.inf)  # type: ignore[union-attr]
    scaler.step(optimizer)
    assert torch.equal(model.weight, kept)
    for index, held in optimizer.state_dict()["state"].items():
        assert all(torch.equal(held[key], state[index][key]) for key in held)


@pytest.mark.parametrize(
    ("name", "backend"),
    [("normuon", "eager"), *(pytest.param(name, "aot_eager", marks=pytest.mark.slow) for name in METHODS)],
)
def test_a_compiled_step_is_the_same(name: str, backend: str, monkeypatch: pytest.MonkeyPatch):
    """With rates as tensors, which a captured graph reads anew at each step, and that change between steps."""
    results = []
    for compiled in (False, True):
        params = params_of((8, 5), (8, 5), (6, 3, 2, 2), (7,))
        lr = torch.tensor(0.02, dtype=F64) if compiled else 0.02
        optimizer = build(name, params, lr=0.02, weight_decay=0.1)
        group = optimizer.param_groups[0]
        if compiled:
            group |= {"lr": lr, "weight_decay": torch.tensor(0.1, dtype=F64)}
            torch._dynamo.reset()
            monkeypatch.setattr(optimizer, "step", torch.compile(optimizer.step, backend=backend))
        for step in range(3):
            run(optimizer, params, steps=1)
            group["lr"] = lr.mul_(0.5) if compiled else 0.02 * 0.5 ** (step + 1)  # type: ignore[union-attr]
        results.append([p.detach() for p in params])
    assert_near(results[0], results[1], 1e-13)


@pytest.mark.parametrize("name", METHODS)
def test_rates_as_tensors_are_the_same(name: str):
    results = []
    for kind in (float, torch.tensor):
        params = params_of((8, 5), (6, 3, 2, 2), dtype=torch.float32)
        optimizer = build(name, params, lr=0.02)
        optimizer.param_groups[0] |= {"lr": kind(0.02), "weight_decay": kind(0.1)}
        run(optimizer, params)
        results.append([p.detach() for p in params])
    assert_near(results[0], results[1], 1e-6)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("keywords", [{}, {"num_heads": 2}, {"orthogonalize": "jordan"}], ids=str)
def test_the_device_is_never_waited_for(name: str, keywords: dict[str, Any]):
    """On "meta", where no number can be read, and which takes the same way as a GPU."""
    params = [Parameter(torch.empty(shape, device="meta")) for shape in ((8, 5), (8, 5), (6, 20), (6, 3, 2, 2))]
    optimizer = build(name, params, lr=0.02, **keywords)
    for _ in range(2):
        for param in params:
            param.grad = torch.empty_like(param)
        optimizer.step()
    with pytest.raises(RuntimeError):
        bool(params[0].sum())


# ---- memory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", METHODS)
def test_scratch_stays_within_the_limit(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch):
    """At most the limit, or one matrix on a CPU where that is more, whatever the number of matrices."""
    import lit_opt.optim.matrix.plan as plan

    limit = 2 * 2**20
    monkeypatch.setattr(plan, "_SCRATCH_BYTES", limit)
    shapes: list[tuple[int, ...]] = [*[(64, 128)] * 60, *[(128, 64)] * 20]
    params = params_of(*shapes, dtype=torch.float32)
    optimizer = build(name, params, lr=0.02, ns_dtype=dtype)
    run(optimizer, params, steps=1)
    assert extra_peak(optimizer.step) <= limit
    monkeypatch.setattr(plan, "_SCRATCH_BYTES", 100 * limit)
    optimizer._forget_plan()  # type: ignore[attr-defined]
    assert extra_peak(optimizer.step) > limit


def test_the_estimated_share_is_that_of_the_formula():
    """K n (4 + 2 / r) / (6 T), with r the ratio of the sides (K steps, T tokens)."""
    params = [Parameter(torch.zeros(64, 192)), Parameter(torch.zeros(192, 64)), Parameter(torch.zeros(7))]
    share = orthogonalization_share(build("muon", params, lr=0.02), tokens=1000)
    assert share / (1 - share) == pytest.approx(5 * 64 * (4 + 2 / 3) / 6000, rel=1e-3)
    groups = [{"params": params, "algorithm": "adamw"}]
    assert orthogonalization_share(build("muon", groups, lr=0.02), tokens=1000) == 0.0
