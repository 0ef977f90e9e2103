import copy

import pytest
import torch
from torch import nn

from lit_opt.errors import RecipeError
from lit_opt.optim import build, get_row
from lit_opt.optim.rows import first_order, large_batch
from lit_opt.optim.rows import matrix as matrix_rows
from tests.rows import ALONE


def matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(*shape or (2, 3)))


@pytest.mark.parametrize(
    ("tensors", "fused"),
    [
        ([torch.ones(2, 2)], True),
        ([torch.ones(2, 2), torch.ones(2, dtype=torch.float64)], True),
        ([torch.ones(2, 2, dtype=torch.bfloat16)], True),
        ([torch.ones(2, 2, dtype=torch.float16)], True),
        ([torch.ones(2, 2, dtype=torch.complex64)], False),
        ([torch.ones(2, 2, device="meta")], False),
        ([torch.ones(2, 2, device="meta"), torch.ones(2)], False),
        ([torch.ones(2, 2), torch.ones(2, 3).t()], False),
        ([torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)], False),
    ],
    ids=["float32", "mixed", "bfloat16", "float16", "complex", "meta", "two devices", "transposed", "channels_last"],
)
def test_fused_where_it_is_correct(tensors: list[torch.Tensor], fused: bool):
    for name in (row.name for row in (*first_order.ROWS, *large_batch.ROWS, *matrix_rows.ROWS)):
        params = [nn.Parameter(t.clone()) for t in tensors]
        if get_row(name).matrix and params[0].is_complex():
            with pytest.raises(RecipeError, match="complex64"):
                build(name, params, lr=0.01)
            continue
        optimizer = build(name, params, lr=0.01)
        assert bool(optimizer.param_groups[0].get("fused")) == (fused and get_row(name).fused)
        if params[0].device.type == "meta":
            continue
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        assert all(torch.isfinite(param.abs()).all() for param in params)


def test_fused_optimizers_do_not_unscale_by_themselves():
    """Lightning refuses to clip for optimizers with this flag, under bf16-mixed as well (lightning#21435)."""
    for name in ALONE:
        assert not getattr(build(name, [matrix()], lr=0.1), "_step_supports_amp_scaling", False)


@pytest.mark.parametrize("name", ["sgd", "nesterov"])
@pytest.mark.parametrize("in_group", [False, True])
def test_nesterov_never_takes_the_form_that_writes_to_gradients(name: str, in_group: bool):
    own: dict[str, bool] = {"nesterov": True} if name == "sgd" else {}
    group = {"params": [matrix()], **(own if in_group else {})}
    optimizer = build(name, [group], lr=0.1, **({} if in_group else own))
    assert optimizer.param_groups[0]["foreach"] is False
    assert not optimizer.param_groups[0]["fused"]
    # Plain momentum keeps the library's choice, which is foreach on a GPU.
    assert build("sgd", [matrix()], lr=0.1).param_groups[0]["foreach"] is None


def test_a_nesterov_group_that_is_added_later_follows():
    optimizer = build("nesterov", [matrix()], lr=0.1)
    optimizer.add_param_group({"params": [matrix(4)]})
    assert (optimizer.param_groups[1]["foreach"], optimizer.param_groups[1]["nesterov"]) == (False, True)


def stepped(name: str, weight: torch.Tensor, steps: int = 2) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    param = nn.Parameter(weight.clone())
    optimizer = build(name, [param], lr=0.1, weight_decay=0.0)
    for step in range(steps):
        param.grad = torch.arange(param.numel(), dtype=param.dtype).reshape(param.shape).to(param) - step
        param.grad = torch.empty_like(param).copy_(param.grad)
        optimizer.step(lambda: 0.0)
    return param, optimizer


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("to_channels_last", [False, True])
def test_a_resume_in_another_memory_format_is_exact(name: str, to_channels_last: bool):
    """torch would take fused=True from the checkpoint, and strides of the state that do not fit the parameter."""
    plain = torch.linspace(1, 2, 2 * 3 * 2 * 2, dtype=torch.float64).reshape(2, 3, 2, 2)
    strided = plain.to(memory_format=torch.channels_last)
    before, after = (plain, strided) if to_channels_last else (strided, plain)
    reference, reference_optimizer = stepped(name, before)
    saved = copy.deepcopy(reference_optimizer.state_dict())

    resumed = nn.Parameter(torch.empty_like(after).copy_(reference.detach()))
    resumed_optimizer = build(name, [resumed], lr=0.1, weight_decay=0.0)
    own = {k: resumed_optimizer.param_groups[0].get(k) for k in ("fused", "foreach")}
    resumed_optimizer.load_state_dict(saved)
    assert {k: resumed_optimizer.param_groups[0].get(k) for k in own} == own
    for param, optimizer in ((reference, reference_optimizer), (resumed, resumed_optimizer)):
        gradient = torch.arange(24, dtype=torch.float64).reshape(2, 3, 2, 2).cos()
        param.grad = torch.empty_like(param).copy_(gradient)
        optimizer.step(lambda: 0.0)
    assert (reference - resumed).abs().max() < 1e-12


def test_a_checkpoint_with_other_groups_keeps_torchs_message():
    saved = build("adamw", [{"params": [matrix()]}, {"params": [matrix()]}], lr=0.1).state_dict()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        build("adamw", [matrix()], lr=0.1).load_state_dict(saved)
