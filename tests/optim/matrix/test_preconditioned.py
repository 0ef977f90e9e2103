"""What must hold for SOAP, SPlus and Shampoo whatever the official codes do."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lit_opt.errors import RecipeError
from lit_opt.optim import build
from lit_opt.optim.matrix.eigenbasis import eigenbasis, inverse_root, power_step
from lit_opt.optim.matrix.orthogonalize import orthogonalize

F64 = torch.float64
METHODS = ("soap", "splus", "shampoo")
SHAPES = ((8, 5), (5, 8), (24, 7), (7, 24), (20, 16), (6, 6), (32, 3), (4, 3, 2, 2))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def params_of(*shapes: tuple[int, ...], dtype: torch.dtype = F64) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=generator, dtype=F64).to(dtype)) for shape in shapes]


def run(
    optimizer: Optimizer,
    params: list[Parameter],
    steps: int = 10,
    first: int = 0,
    change: float = 0.0,
    dead: int = 0,
    scale: float = 1.0,
) -> list[Tensor]:
    """Steps on given gradients, changed by a relative amount, with some inputs that never have any."""
    for step in range(first, first + steps):
        generator, noise = (torch.Generator().manual_seed(1000 * seed + step) for seed in (1, 2))
        for param in params:
            grad = torch.randn(param.shape, generator=generator, dtype=F64) * scale
            grad = grad * (1 + change * torch.randn(param.shape, generator=noise, dtype=F64))
            if dead:
                grad[:, :dead] = 0.0
            param.grad = grad.to(param.dtype)
        optimizer.step()
    return [param.detach().clone() for param in params]


def distance(left: list[Tensor], right: list[Tensor]) -> float:
    return max((a.double() - b.double()).abs().max().item() for a, b in zip(left, right, strict=True))


# ---- a start that rounding does not decide

WELL_POSED: list[tuple[str, dict[str, Any]]] = [
    *[("soap", {"precondition_frequency": every}) for every in (1, 3, 10)],
    *[("splus", {"precondition_frequency": every}) for every in (1, 3, 100)],
    ("shampoo", {}),
    ("shampoo", {"grafting": "adam", "precondition_frequency": 3}),
    ("shampoo", {"grafting": "adam", "precondition_frequency": 3, "start_preconditioning_step": 1}),
    ("shampoo", {"kl": True}),
    ("shampoo", {"kl": True, "exponent": 0.5, "grafting": "adam", "eps": 1e-6}),
]
RATES = {"soap": 3e-3, "splus": 0.1, "shampoo": 1e-2}


@pytest.mark.parametrize(("name", "keywords"), WELL_POSED, ids=str)
@pytest.mark.parametrize("dead", [0, 2])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_rounding_in_the_gradients_stays_rounding(name: str, keywords: dict[str, Any], dead: int, scale: float):
    """1e-12 in the gradients; the official codes move rectangular weights by 1e-2 to 1e-1 (their fixtures say so)."""
    reached = []
    for change in (0.0, 1e-12):
        params = params_of(*SHAPES)
        optimizer = build(name, params, lr=RATES[name], **keywords)
        reached.append(run(optimizer, params, change=change, dead=dead, scale=scale))
    assert distance(*reached) < 1e-8


@pytest.mark.parametrize("name", METHODS)
def test_float32_follows_float64(name: str):
    """Shampoo with an eps that float32 can see."""
    reached = []
    keywords = {"eps": 1e-2} if name == "shampoo" else {}
    for dtype in (torch.float32, F64):
        params = params_of(*SHAPES[:4], dtype=dtype)
        reached.append(run(build(name, params, lr=RATES[name], precondition_frequency=3, **keywords), params))
    assert distance(*reached) < 1e-5


def test_the_bases_of_a_null_space_do_not_depend_on_the_way_there():
    torch.manual_seed(0)
    low = torch.randn(1, 12, 4, dtype=F64)
    factor = low @ low.mT
    basis = eigenbasis(factor)
    turned = torch.linalg.qr(torch.randn(12, 12, dtype=F64)).Q
    turned[:, :4] = basis[0, :, :4]
    turned = torch.linalg.qr(turned).Q[None]
    other = power_step(factor @ turned, factor)
    projectors = [x.mT.unsqueeze(-1) * x.mT.unsqueeze(-2) for x in (basis, other)]
    assert (projectors[0] - projectors[1]).abs().max() < 1e-10
    for x in (basis, other):
        assert (x.mT @ x - torch.eye(12, dtype=F64)).abs().max() < 1e-13


def test_an_inverse_root_does_not_divide_by_rounding():
    low = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(0))
    root = inverse_root(low @ low.mT, 0.25, 1e-12)
    assert root.isfinite().all() and torch.linalg.matrix_norm(root, ord=2) < 50


# ---- what the methods become in special cases


def test_soap_without_bases_is_adam():
    mine, theirs = params_of((8, 5), (6, 6)), params_of((8, 5), (6, 6))
    betas = (0.9, 0.95)
    ours = build("soap", mine, lr=1e-2, betas=betas, eps=1e-15, weight_decay=0.0, max_preconditioner_dim=1)
    adam = torch.optim.Adam(theirs, lr=1e-2, betas=betas, eps=1e-15)
    run(ours, mine, steps=1, first=100)  # its first step only makes statistics
    assert distance(run(ours, mine), run(adam, theirs)) < 1e-12


def test_soap_decays_after_the_update():
    [param] = params_of((4, 4))
    optimizer = build("soap", [param], lr=0.1, weight_decay=0.5)
    kept = param.detach().clone()
    run(optimizer, [param], steps=1)
    assert torch.equal(param.detach(), kept)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert torch.allclose(param.detach(), kept * 0.95, rtol=1e-12)


def test_the_first_step_of_splus_is_the_sign():
    [param] = params_of((6, 4))
    before = param.detach().clone()
    run(build("splus", [param], lr=0.5, weight_decay=0.0), [param], steps=1)
    assert param.grad is not None
    assert torch.allclose(param.detach(), before - 0.1 * param.grad.sign(), rtol=1e-12)


def test_shampoo_with_one_step_of_history_is_the_polar_factor():
    params = params_of((8, 5), (5, 8), (6, 6))
    optimizer = build("shampoo", params, lr=1.0, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0)
    for step in range(3):
        before = [param.detach().clone() for param in params]
        run(optimizer, params, steps=1, first=step)
        for param, old in zip(params, before, strict=True):
            assert param.grad is not None
            polar = orthogonalize(param.grad[None], "svd", 5, "float64")[0]
            assert (old - param.detach() - polar).abs().max() < 1e-10


def test_shampoos_grafting_gives_each_block_adams_length():
    mine, theirs = params_of((8, 5)), params_of((8, 5))
    options: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0}
    ours = build("shampoo", mine, grafting="adam", max_preconditioner_dim=5, **options)
    adam = torch.optim.Adam(theirs, **options)
    for step in range(3):
        before = mine[0].detach().clone(), theirs[0].detach().clone()
        run(ours, mine, steps=1, first=step)
        run(adam, theirs, steps=1, first=step)
        for rows in (slice(0, 5), slice(5, 8)):
            lengths = [(new.detach() - old)[rows].norm() for new, old in zip((mine[0], theirs[0]), before, strict=True)]
            assert lengths[0] == pytest.approx(lengths[1].item(), rel=1e-9)


# ---- how matrices are read, batched and refreshed


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_is_the_same_as_one_by_one(name: str):
    together = params_of(*[(9, 6)] * 5)
    alone = [copy.deepcopy(param) for param in together]
    keywords = {"lr": RATES[name], "precondition_frequency": 3}
    run(build(name, together, **keywords), together)
    singles = [build(name, [param], **keywords) for param in alone]

    class All:
        def step(self) -> None:
            for optimizer in singles:
                optimizer.step()

    run(All(), alone)  # type: ignore[arg-type]
    assert distance(together, alone) < 1e-12  # type: ignore[arg-type]


@pytest.mark.parametrize("name", METHODS)
def test_parameters_that_miss_steps_have_their_own_count(name: str):
    late, other = params_of((6, 4), (6, 4))
    optimizer = build(name, [late, other], lr=RATES[name], precondition_frequency=3)
    for step in range(4):
        late.grad, other.grad = None, torch.randn(6, 4, dtype=F64, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    first = copy.deepcopy(late)
    alone = build(name, [first], lr=RATES[name], precondition_frequency=3)
    for step in range(5):
        grad = torch.randn(6, 4, dtype=F64, generator=torch.Generator().manual_seed(step))
        late.grad, other.grad, first.grad = grad, grad, grad
        optimizer.step()
        alone.step()
    assert distance([late], [first]) < 1e-13


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("shape", "options", "parts"),
    [
        ((8, 5), {"split_sizes": [5, 3]}, [(5, 5), (3, 5)]),
        ((8, 5), {"num_heads": 2}, [(4, 5), (4, 5)]),
        ((3, 4, 5), {"layout": "experts"}, [(4, 5)] * 3),
    ],
)
def test_parts_of_a_weight_are_matrices_of_their_own(
    name: str, shape: tuple[int, ...], options: dict[str, Any], parts: list[tuple[int, int]]
):
    [whole] = params_of(shape)
    pieces = [Parameter(part.detach().clone()) for part in _cut(whole, parts)]
    keywords = {"lr": RATES[name], "precondition_frequency": 3, "weight_decay": 0.0}
    ours = build(name, [whole], **options, **keywords)
    theirs = build(name, pieces, **keywords)
    for step in range(6):
        whole.grad = torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(step))
        for piece, grad in zip(pieces, _cut(whole.grad, parts), strict=True):
            piece.grad = grad.clone()
        ours.step()
        theirs.step()
    assert distance(_cut(whole, parts), pieces) < 1e-12  # type: ignore[arg-type]


def _cut(tensor: Tensor, parts: list[tuple[int, int]]) -> list[Tensor]:
    return list(tensor.detach().reshape(-1, parts[0][1]).split([rows for rows, _ in parts]))


def test_shampoos_blocks_are_matrices_of_their_own():
    [whole] = params_of((7, 10))
    corners = [(slice(0, 4), slice(0, 4)), (slice(0, 4), slice(4, 8)), (slice(0, 4), slice(8, 10))]
    corners += [(slice(4, 7), cols) for _, cols in corners]
    pieces = [Parameter(whole.detach()[corner].clone()) for corner in corners]
    keywords: dict[str, Any] = {"lr": 1e-2, "grafting": "adam", "precondition_frequency": 2}
    ours, theirs = build("shampoo", [whole], max_preconditioner_dim=4, **keywords), build("shampoo", pieces, **keywords)
    for step in range(6):
        whole.grad = torch.randn(7, 10, dtype=F64, generator=torch.Generator().manual_seed(step))
        for piece, corner in zip(pieces, corners, strict=True):
            piece.grad = whole.grad[corner].clone()
        ours.step()
        theirs.step()
    assert distance([whole.detach()[corner] for corner in corners], pieces) < 1e-12  # type: ignore[arg-type]


@pytest.mark.parametrize("channels_last", [False, True])
def test_shampoos_blocks_of_a_convolution_are_whole_kernels(channels_last: bool):
    [param] = params_of((6, 5, 2, 2))
    if channels_last:
        param = Parameter(param.detach().to(memory_format=torch.channels_last))
    optimizer = build("shampoo", [param], lr=1e-2, max_preconditioner_dim=9)
    run(optimizer, [param], steps=3)
    shapes = [optimizer.state[param][f"right_factor{end}"].shape for end in ("", "_1", "_2")]
    assert shapes == [(1, 8, 8), (1, 8, 8), (1, 4, 4)]


def test_refreshes_are_spread_by_work_and_small_models_stay_together():
    small = build("soap", params_of((8, 5), (5, 8)), lr=1e-3)
    run(small, list(small.param_groups[0]["params"]), steps=1)
    assert set(small._offsets.values()) == {0}  # type: ignore[attr-defined]
    params = [Parameter(torch.zeros(512, 8)) for _ in range(20)]
    for refresh, offsets in (("spread", [i // 2 for i in range(20)]), ("together", [0] * 20)):
        optimizer = build("soap", params, lr=1e-3, refresh=refresh)
        found = optimizer._offsets_of_all()  # type: ignore[attr-defined]
        assert [found[id(param)] for param in params] == offsets
        due = [[p for p in params if optimizer.due(optimizer.defaults, t, found[id(p)])] for t in range(1, 11)]  # type: ignore[attr-defined]
        assert max(map(len, due)) == (2 if refresh == "spread" else 20)


def test_splus_validates_on_averages_and_refuses_to_train_on_them():
    params = params_of((4, 3), (3,))
    optimizer = build("splus", params, lr=0.1, ema_rate=0.5)
    seen = [run(optimizer, params, steps=1, first=step) for step in range(2)]
    optimizer.eval()  # type: ignore[attr-defined]
    optimizer.eval()  # type: ignore[attr-defined]
    weighted = (0.25 * seen[0][1] + 0.5 * seen[1][1]) / 0.75
    assert torch.allclose(params[1].detach(), weighted, rtol=1e-12)
    with pytest.raises(RecipeError, match=r"call optimizer.train\(\)|Call optimizer.train\(\)"):
        optimizer.step()
    optimizer.train()  # type: ignore[attr-defined]
    assert torch.equal(params[1].detach(), seen[1][1])


# ---- precision, state, messages


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_weights_have_a_float32_state_that_a_checkpoint_keeps(name: str):
    params = params_of((8, 5), (4, 3, 2, 2), (7,), dtype=torch.bfloat16)
    optimizer = build(name, params, lr=RATES[name], precondition_frequency=2)
    run(optimizer, params, steps=3)
    state = optimizer.state[params[0]]
    assert {value.dtype for value in state.values()} == {torch.float32}
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), params], file)
    file.seek(0)
    with torch.serialization.safe_globals([Parameter]):
        saved, weights = torch.load(file, weights_only=True)
    copies = [Parameter(weight.detach()) for weight in weights]
    other = build(name, copies, lr=RATES[name], precondition_frequency=2)
    other.load_state_dict(saved)
    assert {value.dtype for value in other.state[copies[0]].values()} == {torch.float32}
    assert distance(run(optimizer, params, first=3), run(other, copies, first=3)) == 0.0


@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_zero_leave_the_weights_alone(name: str):
    [param] = params_of((6, 4))
    optimizer = build(name, [param], lr=RATES[name], weight_decay=0.0)
    before = param.detach().clone()
    for _ in range(3):
        param.grad = torch.zeros_like(param)
        optimizer.step()
    assert torch.equal(param.detach(), before)
    run(optimizer, [param])
    assert param.isfinite().all() and not torch.equal(param.detach(), before)


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("soap", {"refresh": "sometimes"}, "refresh: 'sometimes' is unknown"),
        ("soap", {"precondition_frequency": 0}, "precondition_frequency: 0 is out of bounds"),
        ("splus", {"betas": (0.9, 1.0)}, "betas: 1 is out of bounds"),
        ("shampoo", {"grafting": "sgd"}, "grafting: 'sgd' is unknown"),
        ("shampoo", {"grafting": "adam", "betas": (0.9, 1.0)}, "betas: sums"),
        ("shampoo", {"start_preconditioning_step": 2.5}, "start_preconditioning_step: 2.5 is not a whole number"),
        ("shampoo", {"orthogonalize": "svd"}, "orthogonalize: shampoo has no such keyword"),
    ],
)
def test_bad_options_are_refused(name: str, keywords: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message):
        build(name, params_of((4, 3)), lr=1e-3, **keywords)


@pytest.mark.parametrize(("name", "more"), [("soap", {}), ("splus", {}), ("shampoo", {"kl": True, "eps": 1e-2})])
def test_half_of_the_statistics_is_enough(name: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """Of long sides only the lower triangle is computed."""
    reached = []
    for strips_from in (8, 256):
        monkeypatch.setattr("lit_opt.optim.matrix.soap._STRIPS_FROM", strips_from)
        params = params_of((13, 9), (13, 9), (9, 13))
        optimizer = build(name, params, lr=RATES[name], precondition_frequency=2, **more)
        reached.append(run(optimizer, params, steps=7))
    assert distance(*reached) < 1e-11
