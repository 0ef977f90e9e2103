"""Every row of the registry through the same cases. A new optimizer joins by being in the registry.

All steps go through a closure, as Lightning's automatic optimization does, so that methods that evaluate the model
themselves can take part.
"""

import copy
import io
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_opt.errors import RecipeError
from lit_opt.optim import build, get_row, list_optimizers
from tests import tables
from tests.rows import HERE
from tests.tables import capability

# A rate that trains the small problems below. What is not listed gets the last entry.
LR = {
    "splus": 0.2,
    "lars": 5.0,
    "lamb": 0.02,
    "sgd": 0.05,
    "nesterov": 0.05,
    "mars_m": 0.1,
    "aro": 0.1,
    "adadelta": 10.0,
    "adagrad": 0.3,
    "radam": 0.05,
    "schedule_free_sgd": 1.0,
}
DEFAULT_LR = 0.02

# Keywords without a default. 1-bit Adam is here in its warm-up, where it does not compress: what it does from
# freeze_step on depends on the number of processes by design, see tests/optim/test_onebit_adam.py.
KEYWORDS: dict[str, dict[str, Any]] = {"onebit_adam": {"freeze_step": 1000}}
# SOAP's first step makes its statistics alone, as in the official code.
IDLE_STEPS = {"soap": 1}
# They need layers with their inputs, or whole tensors, and say so on shards; 8 bits are torchao's there, see tests/rows.py.
REFUSED_ON_SHARDS = {"kfac", "natural_gradient", "onebit_adam"}
NOT_ON_SHARDS = {*REFUSED_ON_SHARDS, "adamw_8bit"}

# Their rows say it: L2, or a decay that the trust ratio, the momentum or the preconditioner sees.
DECAY_IN_THE_STEP = {
    *(
        "adadelta",
        "adagrad",
        "adam",
        "amsgrad",
        "asam",
        "kfac",
        "lamb",
        "lars",
        "lookahead",
        "nesterov",
        "rmsprop",
        "sam",
    ),
    "sgd",
}
FORMS = ("fused", "foreach")

every_optimizer = pytest.mark.parametrize("name", HERE)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lr_of(name: str) -> float:
    return LR.get(name, DEFAULT_LR)


def network(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batch(dtype: torch.dtype = torch.float64, size: int = 16, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 6, generator=generator, dtype=torch.float64)
    y = torch.sin(x @ torch.randn(6, 3, generator=generator, dtype=torch.float64))
    return x.to(dtype), y.to(dtype)


def two_groups(module: nn.Module, lr: float, weight_decay: float = 0.01) -> list[dict[str, Any]]:
    """As a recipe passes them: weights are decayed, biases are not and have half the learning rate."""
    weights = [p for p in module.parameters() if p.ndim > 1]
    biases = [p for p in module.parameters() if p.ndim < 2]
    return [
        {"params": weights, "name": "decay", "weight_decay": weight_decay},
        {"params": biases, "name": "no_decay", "weight_decay": 0.0, "lr": lr / 2},
    ]


def bound(name: str) -> float:
    """For differences that are rounding; bitsandbytes steps in float32."""
    return 1e-12 if get_row(name).exact else 1e-5


def keywords_of(name: str, module: nn.Module) -> dict[str, Any]:
    return KEYWORDS.get(name, {}) | ({"module": module} if get_row(name).needs_module else {})


def build_for(name: str, module: nn.Module, weight_decay: float = 0.01) -> Optimizer:
    groups = two_groups(module, lr_of(name), weight_decay)
    return build(name, groups, lr=lr_of(name), **keywords_of(name, module))


def closure_of(module: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, chunks: int = 1) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for part_x, part_y in zip(x.chunk(chunks), y.chunk(chunks), strict=True):
            loss = (module(part_x) - part_y).square().mean() / chunks
            loss.backward()
            total += loss.detach().double()
        return total

    return closure


@every_optimizer
def test_nothing_is_drawn_from_python_and_numpy_before_the_model_is_evaluated(name):
    """A comparison relies on it: there a step's noise in the module must be the same under every optimizer."""
    module = network()
    optimizer, seen = build_for(name, module), []
    inside = closure_of(module, optimizer, *batch())

    def closure() -> Tensor:
        seen.append((random.getstate(), np.random.get_state(legacy=False)["state"]["pos"]))
        return inside()

    for _ in range(12):
        np.random.rand()
        before = (random.getstate(), np.random.get_state(legacy=False)["state"]["pos"])
        optimizer.step(cast(Any, closure))
        assert seen[0] == before
        seen.clear()


def train(module: nn.Module, optimizer: Optimizer, steps: int, first: int = 0, scheduler: Any = None) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        x, y = batch(next(module.parameters()).dtype, seed=step)
        losses.append(float(optimizer.step(closure_of(module, optimizer, x, y))))  # type: ignore[arg-type]
        if scheduler is not None:
            scheduler.step()
    return losses


def weights_of(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def assert_equal(a: list[Tensor], b: list[Tensor]) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert torch.equal(left, right)


def largest_difference(a: list[Tensor], b: list[Tensor]) -> float:
    return max((left - right).abs().max().item() for left, right in zip(a, b, strict=True))


@capability("learns")
@every_optimizer
def test_descends_on_a_quadratic(name: str):
    torch.manual_seed(0)
    target, layer = torch.randn(6, 4), nn.Linear(4, 6, bias=False)
    nn.init.normal_(layer.weight)
    optimizer = build(name, [layer.weight], lr=lr_of(name), weight_decay=0.0, **keywords_of(name, layer))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (layer(torch.eye(4)).T - target).square().mean()  # the weight itself, through its layer
        loss.backward()
        return loss.detach()

    first = float(optimizer.step(closure))  # type: ignore[arg-type]
    for _ in range(300):
        last = float(optimizer.step(closure))  # type: ignore[arg-type]
    assert last < 0.05 * first


@every_optimizer
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, marks=capability("learns")),
        pytest.param(torch.bfloat16, marks=capability("bf16")),
    ],
    ids=str,
)
def test_descends_on_a_network(name: str, dtype: torch.dtype):
    module = network(dtype)
    optimizer = build_for(name, module)
    x, y = batch(dtype)
    losses = [float(optimizer.step(closure_of(module, optimizer, x, y))) for _ in range(150)]  # type: ignore[arg-type]
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.dtype == dtype and torch.isfinite(p).all() for p in module.parameters())


@capability("closure")
@every_optimizer
def test_closure_is_called_and_its_loss_returned(name: str):
    module = network()
    optimizer = build_for(name, module)
    x, y = batch()
    expected = (module(x) - y).square().mean().item()
    assert float(optimizer.step(closure_of(module, optimizer, x, y))) == pytest.approx(expected)  # type: ignore[arg-type]


@capability("resume")
@every_optimizer
def test_state_dict_resumes_bit_for_bit(name: str):
    def setup() -> tuple[nn.Module, Optimizer, LambdaLR]:
        module = network()
        optimizer = build_for(name, module)
        return module, optimizer, LambdaLR(optimizer, [lambda t: 0.9**t, lambda t: 0.8**t])

    module, optimizer, scheduler = setup()
    train(module, optimizer, 5, scheduler=scheduler)
    file = io.BytesIO()
    torch.save([module.state_dict(), optimizer.state_dict(), scheduler.state_dict()], file)
    train(module, optimizer, 5, first=5, scheduler=scheduler)

    resumed, resumed_optimizer, resumed_scheduler = setup()
    file.seek(0)
    # weights_only is what a careful user loads with: the state has to be tensors and plain Python.
    states = torch.load(file, weights_only=True)
    resumed.load_state_dict(states[0])
    resumed_optimizer.load_state_dict(states[1])
    resumed_scheduler.load_state_dict(states[2])
    train(resumed, resumed_optimizer, 5, first=5, scheduler=resumed_scheduler)

    assert_equal(weights_of(module), weights_of(resumed))
    for group, other in zip(optimizer.param_groups, resumed_optimizer.param_groups, strict=True):
        assert group.keys() == other.keys()
        assert (group["name"], group["algorithm"], group["lr"]) == (other["name"], other["algorithm"], other["lr"])
        assert group["algorithm"] == name


# bitsandbytes' classes lose their attributes in copies and pickles; a state_dict keeps everything.
@capability("copies")
@pytest.mark.parametrize("name", [name for name in HERE if name != "adamw_8bit"])
@pytest.mark.parametrize(
    "copy_of", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_copies_continue_bit_for_bit(name: str, copy_of: Callable[[Any], Any]):
    module = network()
    optimizer = build_for(name, module)
    train(module, optimizer, 3)
    other, other_optimizer = copy_of((module, optimizer))
    if get_row(name).needs_module:
        other_optimizer.attach(other)
    train(module, optimizer, 3, first=3)
    train(other, other_optimizer, 3, first=3)
    assert_equal(weights_of(module), weights_of(other))
    assert [g["name"] for g in other_optimizer.param_groups] == ["decay", "no_decay"]
    assert [g["algorithm"] for g in other_optimizer.param_groups] == [name, name]


@capability("groups")
@every_optimizer
def test_add_param_group(name: str):
    module = network()
    weights, late = list(module.parameters())[:2], list(module.parameters())[2:]
    optimizer = build(name, [{"params": weights, "name": "first"}], lr=lr_of(name), **keywords_of(name, module))
    before = [p.detach().clone() for p in late]
    train(module, optimizer, 2)
    assert_equal([p.detach() for p in late], before)
    optimizer.add_param_group({"params": late, "name": "late"})
    train(module, optimizer, 2, first=2)
    assert all(not torch.equal(p.detach(), old) for p, old in zip(late, before, strict=True))
    group = optimizer.param_groups[1]
    assert (group["name"], group["algorithm"], group["lr"]) == ("late", name, lr_of(name))


@capability("no gradient")
@every_optimizer
def test_a_parameter_without_gradient_is_untouched_and_can_join_later(name: str):
    module = network()
    late = module.get_parameter("2.bias")
    late.requires_grad_(False)
    before = late.detach().clone()
    optimizer = build_for(name, module)
    train(module, optimizer, 3)
    assert torch.equal(late.detach(), before)
    # torch's Adagrad makes its zeros at once
    assert not any(torch.as_tensor(value).any() for value in optimizer.state.get(late, {}).values())
    late.requires_grad_(True)
    train(module, optimizer, 3, first=3)
    assert not torch.equal(late.detach(), before)
    assert torch.isfinite(late).all()


def step_as_it_is(optimizer: Optimizer) -> None:
    """A step with the gradients that are there."""
    optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type, return-value]


@capability("no gradient")
@every_optimizer
def test_a_step_without_any_gradient_changes_nothing(name: str):
    module = network()
    optimizer = build_for(name, module)
    before = weights_of(module)
    step_as_it_is(optimizer)
    assert_equal(weights_of(module), before)


@every_optimizer
def test_zero_gradients_without_decay_change_nothing(name: str):
    module = network()
    module.get_parameter("0.bias").data.zero_()
    optimizer = build_for(name, module, weight_decay=0.0)
    before = weights_of(module)
    for _ in range(3):
        for param in module.parameters():
            param.grad = torch.zeros_like(param)
        step_as_it_is(optimizer)
    assert_equal(weights_of(module), before)


@capability("groups")
@every_optimizer
def test_zero_gradients_with_decay_shrink_only_the_decayed_group(name: str):
    module = network()
    optimizer = build_for(name, module, weight_decay=0.1)
    before = weights_of(module)
    for param in module.parameters():
        param.grad = torch.zeros_like(param)
    for _ in range(IDLE_STEPS.get(name, 0) + 1):
        step_as_it_is(optimizer)
    for param, old in zip(module.parameters(), before, strict=True):
        assert torch.isfinite(param).all()
        assert param.norm() < old.norm() if param.ndim > 1 else torch.equal(param.detach(), old)


@capability("groups")
@every_optimizer
def test_a_group_has_its_own_rate(name: str):
    module = network()
    optimizer = build_for(name, module)
    optimizer.param_groups[1]["lr"] = 0.0  # as a schedule does; schedule-free methods average, so from the start
    before = weights_of(module)
    train(module, optimizer, 2)
    for param, old in zip(module.parameters(), before, strict=True):
        assert torch.equal(param.detach(), old) == (param.ndim < 2)


@capability("decay")
@every_optimizer
def test_decay_is_decoupled_unless_the_row_says_otherwise(name: str, request: pytest.FixtureRequest):
    """What decay changes in two steps is -2 lr decay w, if neither momentum nor a preconditioner sees it.

    SOAP's first step changes nothing, and SPlus's decay is of lr 2 / (rows + cols).
    """
    times = {"soap": 1.0, "splus": 2 * 2 / (8 + 6)}.get(name, 2.0)
    moved, lr, decay = [], lr_of(name) / 10, 0.1
    for each in (0.0, decay):
        module = network()
        groups = [{"params": [p]} | ({"weight_decay": each} if p.ndim > 1 else {}) for p in module.parameters()]
        optimizer = build(name, groups, lr=lr, weight_decay=0.0, **keywords_of(name, module))
        train(module, optimizer, 2)
        weight = module.get_parameter("0.weight")
        # Schedule-free methods step on z, and the weights are between it and its average.
        moved.append(optimizer.state[weight].get("z", weight).detach())
    by_decay, start = moved[1] - moved[0], network().get_parameter("0.weight").detach()
    decoupled = bool((by_decay + times * lr * decay * start).norm() < 0.1 * by_decay.norm())
    assert decoupled != (name in DECAY_IN_THE_STEP), name
    tables.say(request, "decoupled" if decoupled else "in the step")


@capability("gradients kept")
@every_optimizer
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_gradients_are_not_written_to(name: str, weight_decay: float):
    module = network()
    optimizer = build_for(name, module, weight_decay)
    x, y = batch()
    for _ in range(3):
        seen: list[Tensor] = []
        closure = closure_of(module, optimizer, x, y)

        def recording(closure: Callable[[], Tensor] = closure, seen: list[Tensor] = seen) -> Tensor:
            loss = closure()
            seen[:] = [p.grad.clone() for p in module.parameters() if p.grad is not None]
            return loss

        optimizer.step(recording)  # type: ignore[arg-type]
        assert_equal([p.grad for p in module.parameters() if p.grad is not None], seen)


@capability("accumulation")
@every_optimizer
def test_accumulated_gradients_equal_one_batch(name: str):
    results = []
    for chunks in (1, 4):
        module = network()
        optimizer = build_for(name, module)
        for step in range(5):
            optimizer.step(closure_of(module, optimizer, *batch(seed=step), chunks=chunks))  # type: ignore[arg-type]
        results.append(weights_of(module))
    assert largest_difference(*results) < bound(name)


@capability("loop")
@every_optimizer
def test_the_implementation_that_was_chosen_equals_the_simple_loop(name: str, request: pytest.FixtureRequest):
    results = []
    for loop in (False, True):
        module = network()
        optimizer = build_for(name, module)
        if not any(group.get(key) is not False for group in optimizer.param_groups for key in FORMS if key in group):
            tables.say(request, "one form")
        if get_row(name).fused and not loop:
            assert all(group["fused"] for group in optimizer.param_groups)
        for group in optimizer.param_groups if loop else []:
            group.update({key: False for key in FORMS if key in group})
        train(module, optimizer, 10)
        results.append(weights_of(module))
    assert largest_difference(*results) < 1e-12


def _train_in_one_process_or_two(rank: int, world: int, folder: str) -> None:
    """Train every optimizer on this rank's part of the batches and save what it reaches, "how/name" -> weights."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    reached = {}
    for how in ("ddp", "fsdp2") if world > 1 else ("alone",):
        for name in HERE:
            if how == "fsdp2" and name in NOT_ON_SHARDS:
                continue
            module = network()
            wrapped: nn.Module = module
            if how == "ddp":
                wrapped = nn.parallel.DistributedDataParallel(module)
            if how == "fsdp2":
                fully_shard(module, mesh=init_device_mesh("cpu", (world,)))
            optimizer = build_for(name, module)
            for step in range(5):
                x, y = batch(seed=step)
                part = (x.chunk(world)[rank], y.chunk(world)[rank])
                optimizer.step(closure_of(wrapped, optimizer, *part))  # type: ignore[arg-type]
            reached[f"{how}/{name}"] = [p.full_tensor() if isinstance(p, DTensor) else p for p in weights_of(module)]
    torch.save(reached, f"{folder}/rank{rank}_of_{world}.pt")
    if world > 1:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    """Weights that both ranks of a two-process run reached, and those of a run in one process."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(_train_in_one_process_or_two, args=(2, str(folder)), nprocs=2)
    _train_in_one_process_or_two(0, 1, str(folder))
    return [torch.load(folder / file) for file in ("rank0_of_2.pt", "rank1_of_2.pt", "rank0_of_1.pt")]


@pytest.mark.parametrize(
    ("how", "name"),
    [
        pytest.param(how, name, marks=capability({"ddp": "DDP", "fsdp2": "FSDP2"}[how]))
        for how in ("ddp", "fsdp2")
        for name in HERE
        if how == "ddp" or name not in NOT_ON_SHARDS
    ],
)
def test_two_processes_equal_one(how: str, name: str, ranks: list[dict[str, list[Tensor]]]):
    first, second, alone = ranks[0][f"{how}/{name}"], ranks[1][f"{how}/{name}"], ranks[2][f"alone/{name}"]
    assert_equal(first, second)
    assert largest_difference(first, alone) < bound(name)


@pytest.mark.parametrize("name", sorted(REFUSED_ON_SHARDS))
def test_shards_are_refused(name: str, tmp_path: Path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        module = network()
        fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(RecipeError, match=r"they are sharded .*DDP"):
            build_for(name, module)
    finally:
        dist.destroy_process_group()


COLUMNS = ("learns", "closure", "resume", "copies", "groups", "decay", "no gradient", "gradients kept", "loop", "bf16", "accumulation", "DDP", "FSDP2")  # fmt: skip


def claims() -> dict[tuple[str, str], tuple[str, str]]:
    """Cells that no test stands for, and why."""
    whole = "It needs layers with their inputs, or whole tensors: a run on shards is refused, with what to use instead."
    copies = "bitsandbytes' classes lose their attributes in copies and pickles; a state_dict keeps everything."
    shards = "On shards it is torchao's, which compiles its step: not run by default (tests/optim/test_low_bit.py)."
    compiled = "torchao compiles a step for each shape: not run by default; three cases are slow tests (tests/optim/test_low_bit.py)."
    found = {(name, "FSDP2"): ("no", whole) for name in REFUSED_ON_SHARDS}
    found |= {("adamw_8bit", "FSDP2"): ("not run", shards), ("adamw_8bit", "copies"): ("no", copies)}
    return found | {(n, c): ("not run", compiled) for n in list_optimizers() if get_row(n).compiles for c in COLUMNS}


def test_the_table_in_the_docs_is_what_was_seen(request: pytest.FixtureRequest):
    """docs/methods.md beside the registry and the tests above; `make tables` writes it."""
    facts = {name: (name, get_row(name).provider, get_row(name).extra or "-") for name in list_optimizers()}
    columns = ("method", "from", "extra", *COLUMNS)
    page = tables.DOCS / "methods.md"
    problems = tables.settle(request.config, page, table="methods", facts=facts, columns=columns, claims=claims())
    assert problems == [], "\n".join(["`make tables` writes docs/methods.md anew.", *problems])
