"""ARO against the formula, its properties, and its state."""

import copy

import pytest
import torch
from torch.nn import Parameter

from lit_opt.optim import build
from lit_opt.optim.matrix.aro import orthonormalised, rotated
from tests.optim.matrix.test_fixtures import DTYPES, distances, read, start, word

CASES = [case["name"] for case in read("aro_formula", "A_smaller_side_simultaneous_scqr")[0]["cases"]]


@pytest.mark.parametrize("dtype", DTYPES, ids=word)
@pytest.mark.parametrize("case", CASES)
def test_follows_the_formula(case: str, dtype: torch.dtype):
    """E (sign) follows rounding, and C's tall weight has a rotation that is partly arbitrary: neither is compared."""
    _, found = read("aro_formula", case)
    params = start("aro_formula", case, dtype)
    far = distances("aro_formula", case, params, build("aro", list(params.values()), **found["hyperparameters"]))
    for key, distance in far.items():
        limit = found["suggested_abs_tol"][key][word(dtype)]
        assert limit is None or distance <= limit, (key, distance)


def test_a_fixed_rotation_and_rows_of_equal_length_are_muon():
    """With the eigenvectors of M M' as the rotation, rows of R'M are singular values times singular vectors."""
    torch.manual_seed(0)
    m = torch.randn(3, 5, 8, dtype=torch.float64)
    rotation = torch.linalg.eigh(m @ m.mT)[1]
    update, again = rotated(m, rotation, {"base": "row", "qr_shift": 0.0})
    u, _, vh = torch.linalg.svd(m, full_matrices=False)
    assert torch.allclose(update, u @ vh, atol=1e-12)
    assert torch.allclose((again.mT @ rotation).abs(), torch.eye(5, dtype=torch.float64), atol=1e-12)


def test_rows_of_equal_length_find_that_rotation_by_themselves():
    """It is the power iteration."""
    torch.manual_seed(0)
    m = torch.randn(1, 4, 6, dtype=torch.float64)
    rotation = torch.eye(4, dtype=torch.float64)[None]
    for _ in range(2000):
        update, rotation = rotated(m, rotation, {"base": "row", "qr_shift": 0.0})
    u, _, vh = torch.linalg.svd(m, full_matrices=False)
    assert torch.allclose(update, u @ vh, atol=1e-9)


def test_the_cholesky_factor_gives_an_orthonormal_matrix():
    torch.manual_seed(0)
    a = torch.randn(4, 6, 6, dtype=torch.float64)
    q = orthonormalised(a, 1e-14)
    assert torch.allclose(q.mT @ q, torch.eye(6, dtype=torch.float64).expand(4, 6, 6), atol=1e-10)
    exact = orthonormalised(a, 0.0)
    assert torch.allclose((q * exact).sum(1).abs(), torch.ones(4, 6, dtype=torch.float64), atol=1e-10)


def test_where_it_fails_householders_takes_over():
    a = torch.ones(1, 3, 3) * 1e6  # the shift is lost in the rounding
    q = orthonormalised(torch.cat([a, torch.eye(3)[None]]), 1e-6)
    assert torch.allclose(q.mT @ q, torch.eye(3).expand(2, 3, 3), atol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", DTYPES, ids=word)
def test_gradients_of_any_size_give_the_same_update(size: float, dtype: torch.dtype):
    torch.manual_seed(0)
    grads = [torch.randn(6, 4, dtype=dtype) for _ in range(4)]
    ends = []
    for factor in (1.0, size):
        weight = Parameter(torch.zeros(6, 4, dtype=dtype))
        optimizer = build("aro", [weight], lr=0.01)
        for grad in grads:
            weight.grad = grad * factor
            optimizer.step()
        ends.append(weight.detach())
    assert torch.allclose(ends[0], ends[1], atol=1e-12 if dtype == torch.float64 else 2e-5)


def test_a_zero_gradient_moves_nothing_but_the_decay():
    weight = Parameter(torch.ones(3, 5))
    weight.grad = torch.zeros(3, 5)
    build("aro", [weight], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(weight, torch.full((3, 5), 0.95))


def low_rank_gradients(rank: int, shape: tuple[int, int], dtype: torch.dtype, change: float) -> list[torch.Tensor]:
    """Ten of one column space and one row space, with a relative change of their entries that has full rank."""
    generator = torch.Generator().manual_seed(0)
    left, right, *middle = (
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in ((shape[0], rank), (rank, shape[1]), *[(rank, rank)] * 10)
    )
    return [
        (left @ x @ right * (1 + change * torch.randn(shape, generator=generator, dtype=torch.float64))).to(dtype)
        for x in middle
    ]


@pytest.mark.parametrize(("dtype", "change"), [(torch.float64, 1e-15), (torch.float32, 1e-7)], ids=str)
@pytest.mark.parametrize("base", ["sinkhorn", "row"])
@pytest.mark.parametrize("rank", [2, 3, 6])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (12, 12), (32, 40)], ids=str)
def test_rounding_does_not_fill_the_directions_that_the_momentum_lacks(
    shape: tuple[int, int], rank: int, base: str, dtype: torch.dtype, change: float
):
    """With Householder's decomposition alone the weights end as far apart as they have moved.

    What is left comes from directions of the momentum that are little more than rounding: they are lengthened.
    """
    ends = []
    for amount in (0.0, change):
        weight = Parameter(torch.zeros(shape, dtype=dtype))
        optimizer = build("aro", [weight], lr=0.01, base=base)
        for weight.grad in low_rank_gradients(rank, shape, dtype, amount):
            optimizer.step()
        ends.append(weight.detach())
        turn = optimizer.state[weight]["rotation"][0]
        assert torch.allclose(turn.mT @ turn, torch.eye(len(turn), dtype=dtype), atol=1e-5)
    assert (ends[1] - ends[0]).norm() <= 0.05 * ends[0].norm()


def test_parts_of_a_fused_weight_have_rotations_of_their_own():
    torch.manual_seed(0)
    fused = Parameter(torch.zeros(9, 4))
    parts = [Parameter(torch.zeros(rows, 4)) for rows in (4, 4, 1)]
    together = build("aro", [fused], lr=0.1, split_sizes=[4, 4, 1])
    apart = build("aro", parts, lr=0.1)
    for _ in range(3):
        fused.grad = torch.randn(9, 4)
        for part, grad in zip(parts, fused.grad.split([4, 4, 1]), strict=True):
            part.grad = grad.clone()
        together.step()
        apart.step()
    assert torch.allclose(fused, torch.cat([part.detach() for part in parts]), atol=1e-6)


def test_the_state_goes_on_after_a_load():
    torch.manual_seed(0)
    weights = [Parameter(torch.zeros(6, 4)) for _ in range(2)]
    optimizers = [build("aro", [weight], lr=0.1) for weight in weights]
    for step in range(4):
        if step == 2:
            optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
            weights[1].data.copy_(weights[0].data)
        grad = torch.randn(6, 4)
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = grad
            if step >= 2 or weight is weights[0]:
                optimizer.step()
    assert torch.equal(weights[0], weights[1])
