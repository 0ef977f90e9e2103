"""SAM, ASAM and Lookahead against formulas, and what SAM promises beside them."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_opt.errors import RecipeError
from lit_opt.optim import ASAM, SAM, Lookahead, build, get_row
from lit_opt.optim.sam import frozen_statistics

FOLDER = Path(__file__).parents[1] / "fixtures" / "classic"
SAM_FIXTURE = json.loads((FOLDER / "sam.json").read_text())
LOOKAHEAD_FIXTURE = json.loads((FOLDER / "lookahead.json").read_text())
KEYWORDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sam": ("sam", {}),
    "asam_eta0_all": ("asam", {"adaptive": "all", "eta": 0.0}),
    "asam_eta0.01_weights_only": ("asam", {"adaptive": "weights", "eta": 0.01}),
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def start(fixture: dict[str, Any]) -> dict[str, nn.Parameter]:
    return {k: nn.Parameter(torch.tensor(v, dtype=torch.float64)) for k, v in fixture["problem"]["params"].items()}


def distance(params: dict[str, nn.Parameter], expected: dict[str, Any]) -> float:
    return max(
        (params[key].detach() - torch.tensor(value, dtype=torch.float64)).abs().max().item()
        for key, value in expected.items()
    )


@pytest.mark.parametrize("case", SAM_FIXTURE["cases"], ids=lambda case: case["name"])
def test_sam_equals_the_formula(case: dict[str, Any]):
    params, function = start(SAM_FIXTURE), SAM_FIXTURE["function"]
    matrices = {k: torch.tensor(v, dtype=torch.float64) for k, v in function["A"].items()}
    centres = {k: torch.tensor(v, dtype=torch.float64) for k, v in function["c"].items()}
    name, more = KEYWORDS[case["name"]]
    hyper = case["hyper"]
    optimizer: Any = build(
        name, params.values(), base="sgd", lr=hyper["lr"], momentum=hyper["momentum"], rho=hyper["rho"], **more
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        off = {k: p.flatten() - centres[k] for k, p in params.items()}
        loss = sum(0.5 * (off[k] @ matrices[k] @ off[k]) for k in params)
        assert isinstance(loss, Tensor)
        loss.backward()
        return loss.detach()

    for step in range(1, 11):
        before = closure()
        assert torch.equal(optimizer.step(closure), before)
        if str(step) in case["params_after"]:
            assert distance(params, case["params_after"][str(step)]) < 1e-12


@pytest.mark.parametrize(
    ("case", "base", "keywords"),
    [
        ("sgd_k5", "sgd", {"lr": 0.1, "momentum": 0.9}),
        ("adamw_k2", "adamw", {"lr": 0.01, "weight_decay": 0.1}),
        ("timm_lazy_k5", "sgd", {"lr": 0.1, "momentum": 0.9}),
    ],
)
def test_lookahead_equals_the_formula_and_not_timms(case: str, base: str, keywords: dict[str, Any]):
    found = next(c for c in LOOKAHEAD_FIXTURE["cases"] if c["name"] == case)
    params = start(LOOKAHEAD_FIXTURE)
    optimizer = build(
        "lookahead", params.values(), base=base, k=found["hyper"]["k"], alpha=found["hyper"]["alpha"], **keywords
    )
    worst = 0.0
    for step, grads in enumerate(LOOKAHEAD_FIXTURE["problem"]["grads"], start=1):
        for key, param in params.items():
            param.grad = torch.tensor(grads[key], dtype=torch.float64)
        optimizer.step()
        if str(step) in found["params_after"]:
            worst = max(worst, distance(params, found["params_after"][str(step)]))
    assert worst > 0.1 if case == "timm_lazy_k5" else worst < 1e-13


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.dropout(self.norm(self.first(x)).relu(), 0.5))


def closure_of(module: nn.Module, optimizer: Any, x: Tensor) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = module(x).square().mean()
        loss.backward()
        return loss.detach()

    return closure


def made(**keywords: Any) -> tuple[Net, Any, Tensor]:
    torch.manual_seed(0)
    module = Net()
    optimizer = build("sam", module.parameters(), lr=0.1, **{"base": "sgd", **keywords})
    return module, optimizer, torch.randn(16, 6)


def test_both_passes_have_one_dropout_mask_and_the_random_stream_goes_on():
    module, optimizer, x = made(rho=0.0)
    losses: list[Tensor] = []

    def closure() -> Tensor:
        losses.append(closure_of(module, optimizer, x)())
        return losses[-1]

    module.norm.eval()
    optimizer.step(closure)
    assert torch.equal(losses[0], losses[1])  # rho = 0: the same weights and the same mask
    after = torch.rand(1)
    torch.manual_seed(0)
    Net()
    torch.randn(16, 6)
    module.norm.eval()
    nn.functional.dropout(torch.ones(16, 8), 0.5)
    assert torch.equal(torch.rand(1), after)  # as after one pass


def test_statistics_of_the_second_pass_are_left_out():
    module, optimizer, x = made()
    optimizer.second_pass = lambda closure: frozen_statistics(module)
    other = copy.deepcopy(module)
    other.train()
    torch.manual_seed(1)
    other(x)
    torch.manual_seed(1)
    optimizer.step(closure_of(module, optimizer, x))
    assert int(module.state_dict()["norm.num_batches_tracked"]) == 1 and module.norm.track_running_stats
    assert torch.equal(module.state_dict()["norm.running_mean"], other.state_dict()["norm.running_mean"])


def test_weights_are_put_back_after_an_exception():
    module, optimizer, x = made(rho=1.0)
    before = [p.detach().clone() for p in module.parameters()]
    calls: list[int] = []

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return closure_of(module, optimizer, x)()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert all(torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))


def test_a_missing_closure_is_refused():
    module, optimizer, x = made()
    module(x).sum().backward()
    with pytest.raises(RecipeError, match="needs a closure"):
        optimizer.step()


def test_a_zero_gradient_is_a_plain_step():
    weight = nn.Parameter(torch.ones(3))
    optimizer = build("sam", [weight], base="sgd", lr=0.1, momentum=0.0)
    weight.grad = torch.zeros(3)
    optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type, return-value]
    assert torch.equal(weight.detach(), torch.ones(3))


@pytest.mark.parametrize("base", ["adamw", "muon", "lars", "lion"])
@pytest.mark.parametrize("name", ["sam", "lookahead"])
def test_any_base_resumes_copies_and_takes_groups(name: str, base: str):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    x = torch.randn(16, 6)
    optimizer: Any = build(name, module[0].parameters(), base=base, lr=0.02)
    optimizer.add_param_group({"params": list(module[1].parameters())})
    assert [group["algorithm"] for group in optimizer.param_groups] == [name, name]
    for _ in range(3):
        optimizer.step(closure_of(module, optimizer, x))
    other_module, other = pickle.loads(pickle.dumps((module, optimizer)))
    assert other.base.state is other.state and other.base.param_groups is other.param_groups
    resumed_module = copy.deepcopy(module)
    resumed: Any = build(name, resumed_module[0].parameters(), base=base, lr=0.02)
    resumed.add_param_group({"params": list(resumed_module[1].parameters())})
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.base.state is resumed.state
    for m, o in ((module, optimizer), (other_module, other), (resumed_module, resumed)):
        for _ in range(7):
            o.step(closure_of(m, o, x))
    for a, b, c in zip(module.parameters(), other_module.parameters(), resumed_module.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_the_row_has_what_its_base_has():
    assert get_row("sam", "adamw").hyperparameters["betas"] == (0.9, 0.999)
    assert get_row("sam", setting="vit").settings["vit"].lr == get_row("adamw").settings["vit"].lr
    with pytest.raises(RecipeError, match="betas: sam has no such keyword"):
        build("sam", [nn.Parameter(torch.ones(2))], base="sgd", lr=0.1, betas=(0.9, 0.9))
    for wrong in ("sam", "schedule_free_adamw", "adadelta"):  # a wrapper, own averages, a rho of its own
        with pytest.raises(RecipeError, match=r"base: .* is unknown"):
            build("sam", [nn.Parameter(torch.ones(2))], base=wrong, lr=0.1)


def test_classes_take_any_optimizer():
    weight = nn.Parameter(torch.ones(2, 2))
    inner = torch.optim.Adam([weight], lr=0.1)
    for made_ in (SAM(inner), ASAM(inner), Lookahead(inner)):
        made_.step(closure_of(lambda x: (weight * x).sum(), made_, torch.ones(2, 2)))  # type: ignore[arg-type]
    assert "slow" in inner.state[weight]
