"""K-FAC: the formula in float64, what is recorded and when, hooks, resume, and what is refused."""

from __future__ import annotations

import copy
import gc
import io
import json
import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_opt.errors import RecipeError
from lit_opt.optim import KFAC, build

FIXTURE = json.loads((Path(__file__).parents[2] / "fixtures" / "classic" / "kfac.json").read_text())
CASES = [case["name"] for case in FIXTURE["cases"]]


def tensor(x: Any) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def from_fixture(name: str, **more: Any) -> tuple[nn.Linear, Any, dict[str, Any]]:
    case = next(case for case in FIXTURE["cases"] if case["name"] == name)
    hyper = case["hyper"]
    layer = nn.Linear(4, 3, dtype=torch.float64)
    start = tensor(FIXTURE["problem"]["W_init_out_by_in_plus_bias"])
    with torch.no_grad():
        layer.weight.copy_(start[:, :4])
        layer.bias.copy_(start[:, 4])
    optimizer = build(
        "kfac",
        layer.parameters(),
        module=layer,
        lr=hyper["lr"],
        momentum=0.0,
        damping=hyper["damping"],
        factor_decay=hyper["decay"],
        kl_clip=hyper["kl_clip"] or 0.0,
        damping_mode=hyper["damping_mode"],
        **more,
    )
    return layer, optimizer, case


def fixture_step(layer: nn.Linear, optimizer: Any, case: dict[str, Any], step: int) -> None:
    problem = FIXTURE["problem"]
    x, y = tensor(problem["X"][step]), torch.tensor(problem["Y"][step])
    optimizer.zero_grad()
    if case["hyper"]["fisher"] == "mc":
        probabilities = layer(x).softmax(dim=1)
        drawn = (probabilities.cumsum(dim=1) < tensor(problem["mc_uniforms"][step])[:, None]).sum(dim=1)
        F.cross_entropy(layer(x), drawn).backward()
        layer.zero_grad()
        optimizer.recording = False
    F.cross_entropy(layer(x), y).backward()
    optimizer.step()
    optimizer.recording = True


@pytest.mark.parametrize("name", CASES)
def test_equals_the_formula_in_float64(name: str) -> None:
    layer, optimizer, case = from_fixture(name)
    for step in range(10):
        fixture_step(layer, optimizer, case, step)
        if step == 0:
            state = optimizer.state[layer.weight]
            torch.testing.assert_close(state["A"], tensor(case["step1"]["A"]), rtol=0, atol=1e-13)
            torch.testing.assert_close(state["G"], tensor(case["step1"]["G"]), rtol=0, atol=1e-13)
        if str(step + 1) in case["params_after"]:
            now = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
            torch.testing.assert_close(now, tensor(case["params_after"][str(step + 1)]), rtol=0, atol=1e-9)


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 3, 3, groups=3, padding="same"),
        nn.Flatten(),
        nn.Linear(12, 4),
    ).double()


def images(seed: int = 0, n: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 4, 4, generator=g, dtype=torch.float64), torch.randint(0, 4, (n,), generator=g)


def steps(model: nn.Module, optimizer: Any, count: int, first: int = 0) -> None:
    for step in range(first, first + count):
        x, y = images(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=2),
        nn.Conv2d(2, 3, (3, 4), padding="same", padding_mode="circular"),
        nn.Conv2d(2, 3, 2, padding=(1, 0), padding_mode="reflect", bias=False),
        nn.Conv2d(2, 3, 1, padding="valid"),
    ],
    ids=["strided", "circular", "reflect", "valid"],
)
def test_factors_of_a_convolution_are_those_of_its_patches(conv: nn.Conv2d) -> None:
    """E sum_t g g^T and mean a a^T, from the convolution written as a linear map of patches."""
    conv = copy.deepcopy(conv).double()
    optimizer = build("kfac", conv.parameters(), module=conv, lr=0.1)
    x = torch.randn(5, 2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = conv(x)
    weight = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (out * weight).flatten(1).sum(dim=1).mean().backward()
    grads = [p.grad.clone() for p in conv.parameters() if p.grad is not None]
    optimizer.step()
    A, G = (optimizer.state[conv.weight][key] for key in "AG")
    g = weight.flatten(2).transpose(1, 2)  # of one sample's loss: out_n enters with weight_n
    torch.testing.assert_close(G, torch.einsum("nto,ntp->op", g, g) / 5)
    # The patches by autograd: d out[n, 0, t] / d weight[0] is the patch.
    positions = out.shape[2] * out.shape[3]
    total = torch.zeros_like(A)
    for n in range(5):
        flat = conv(x[n : n + 1])[0, 0].flatten()
        for t in range(positions):
            rows = torch.autograd.grad(flat[t], list(conv.parameters()), retain_graph=True)
            row = torch.cat([part[0].flatten() for part in rows])
            total += torch.outer(row, row)
    torch.testing.assert_close(A, total / (5 * positions))
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, conv.parameters(), strict=True) if p.grad is not None)


def test_what_is_no_plain_layer_takes_sgds_step() -> None:
    model, other = conv_net(), conv_net()
    kfac = build("kfac", model.parameters(), module=model, lr=0.05, weight_decay=0.01)
    sgd = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for step in range(3):
        x, y = images(step)
        kfac.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            q.grad = p.grad.clone()  # type: ignore[union-attr]
        kfac.step()
        sgd.step()
    watched = {"0.weight", "0.bias", "5.weight", "5.bias"}
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-12, atol=1e-14) == (name not in watched), name
    assert {n for n, p in model.named_parameters() if "A" in kfac.state[p]} == {"0.weight", "5.weight"}


def test_a_longer_loss_factor_of_tokens_is_a_factor_of_damping() -> None:
    """Mean over T tokens a sample: with lr, damping and kl_clip divided by T the step is that of flat tokens."""
    results = []
    for flat in (True, False):
        torch.manual_seed(0)
        layer = nn.Linear(4, 3).double()
        x = torch.randn(5, 6, 4, dtype=torch.float64)
        scale = 1 if flat else 6
        options = {"lr": 0.6 / scale, "damping": 0.06 / scale, "kl_clip": 0.006 / scale}
        optimizer = build("kfac", layer.parameters(), module=layer, momentum=0.0, damping_mode="factored", **options)
        layer(x.flatten(0, 1) if flat else x).square().sum(-1).mean().backward()
        optimizer.step()
        results.append(layer.weight.detach())
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


def test_only_training_with_gradients_is_recorded() -> None:
    model = conv_net()
    optimizer = build("kfac", model.parameters(), module=model, lr=0.05)
    assert isinstance(optimizer, KFAC)
    x, y = images()
    with torch.no_grad():
        model(x)
    with torch.inference_mode():
        model(x)
    model.eval()
    F.cross_entropy(model(x), y).backward()
    model.train()
    F.cross_entropy(model(x), y)  # no backward pass
    assert optimizer._records == {}
    with pytest.raises(RecipeError, match=r"none of the 2 layers it watches was seen.*training mode.*torch.compile"):
        optimizer.step()
    F.cross_entropy(model(x), y).backward()
    assert len(optimizer._records) == 2
    optimizer.zero_grad()
    assert optimizer._records == {}


def test_a_discarded_backward_pass_does_not_count() -> None:
    model, other = conv_net(), conv_net()
    for net in (model, other):
        optimizer = build("kfac", net.parameters(), module=net, lr=0.05)
        if net is other:
            x, y = images(7)
            net[1].eval()  # the running statistics stay
            F.cross_entropy(net(x), y).backward()
            net[1].train()
        steps(net, optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_layer_used_twice_sees_its_samples_once() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4).double()
    optimizer = build("kfac", layer.parameters(), module=layer, lr=0.1)
    x = torch.randn(6, 4, dtype=torch.float64)
    layer(layer(x)).sum(dim=1).mean().backward()
    record = optimizer._records[layer]  # type: ignore[attr-defined]
    assert (record.samples, record.positions) == (6, 12)


def test_checkpointed_activations_count_once() -> None:
    from torch.utils.checkpoint import checkpoint

    results = []
    for again in (None, True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        optimizer = build("kfac", model.parameters(), module=model, lr=0.1)
        x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
        out = model(x) if again is None else checkpoint(model, x, use_reentrant=again)
        out.square().mean().backward()
        optimizer.step()
        results.append(model.get_parameter("0.weight").detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(results[0], results[2], rtol=1e-12, atol=1e-14)


def test_inverses_are_kept_between_their_steps_and_across_a_resume() -> None:
    model = conv_net()
    make = lambda net: build("kfac", net.parameters(), module=net, lr=0.05, inverse_every=3)  # noqa: E731
    optimizer = make(model)
    steps(model, optimizer, 4)
    weight = model.get_parameter("0.weight")
    held = optimizer.state[weight]["Q_A"].clone()
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    steps(model, optimizer, 2, first=4)
    assert torch.equal(optimizer.state[weight]["Q_A"], held)
    steps(model, optimizer, 1, first=6)
    assert not torch.equal(optimizer.state[weight]["Q_A"], held)

    file.seek(0)
    resumed = conv_net()
    again = make(resumed)
    states = torch.load(file, weights_only=True)
    resumed.load_state_dict(states[0])
    again.load_state_dict(states[1])
    steps(resumed, again, 3, first=4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_factors_of_half_precision_weights_stay_float32_across_a_resume() -> None:
    model = nn.Linear(4, 3).bfloat16()
    optimizer = build("kfac", model.parameters(), module=model, lr=0.05)
    model(torch.randn(8, 4).bfloat16()).float().square().mean().backward()
    optimizer.step()
    before = optimizer.state[model.weight]["A"].clone()
    assert before.dtype == torch.float32
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(optimizer.state[model.weight]["A"], before)


def test_hooks_go_with_remove_and_copies_have_none() -> None:
    model = conv_net()
    optimizer = build("kfac", model.parameters(), module=model, lr=0.05)
    assert isinstance(optimizer, KFAC)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        F.cross_entropy(twin(images()[0]), images()[1]).backward()
        assert optimizer._records == {}
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        other.param_groups[0]["params"][0].grad = torch.ones_like(other.param_groups[0]["params"][0])
        with pytest.raises(RecipeError, match=r"no hooks on a module.*optimizer.attach\(module\)"):
            other.step()
    optimizer.attach(model)
    assert sum(len(part._forward_hooks) for part in model.modules()) == 2
    optimizer.remove_hooks()
    optimizer.remove_hooks()
    assert sum(len(part._forward_hooks) for part in model.modules()) == 0
    optimizer.attach(model)
    del optimizer, other
    gc.collect()
    F.cross_entropy(model(images()[0]), images()[1]).backward()  # the hooks do nothing without their optimizer


def test_an_exception_in_the_middle_leaves_nothing_behind() -> None:
    model, other = conv_net(), conv_net()
    for net in (model, other):
        optimizer = build("kfac", net.parameters(), module=net, lr=0.05)
        if net is other:
            with pytest.raises(ValueError, match="boom"):
                optimizer.step(partial(failing, net))
            net[1].reset_running_stats()  # type: ignore[operator]
        steps(net, optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def failing(net: nn.Module) -> float:
    x, y = images(9)
    F.cross_entropy(net(x), y).backward()
    raise ValueError("boom")


def test_attention_tied_and_compiled() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.mlp = nn.Linear(4, 4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x)
            h = h + self.attention(h, h, h)[0]
            return self.head(self.mlp(h))

    model = Tied()
    optimizer = build("kfac", model.parameters(), module=model, lr=0.05)
    model(torch.tensor([[1, 2, 3]])).logsumexp(-1).mean().backward()
    optimizer.step()
    assert {n for n, p in model.named_parameters() if "A" in optimizer.state[p]} == {"mlp.weight"}

    model.mlp.compile()
    with pytest.raises(RecipeError, match=r"compiled, and torch.compile drops the hooks"):
        build("kfac", model.parameters(), module=model, lr=0.05)


def test_a_layer_that_is_not_called_and_one_that_is_too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    class Uncalled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.wide = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 9)

        def forward(self, x: Tensor) -> Tensor:
            return self.wide(F.linear(self.first(x), self.second.weight))

    monkeypatch.setattr("lit_opt.optim.curvature.kfac.LARGEST", 8)
    model = Uncalled()
    optimizer = build("kfac", model.parameters(), module=model, lr=0.05)
    for expected in (["'second' has a gradient, but the layer was not called"], []):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().mean().backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        assert all(text in str(w.message) for text, w in zip(expected, caught, strict=True))
    assert {n for n, p in model.named_parameters() if "A" in optimizer.state[p]} == {"first.weight"}


def test_refusals() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(RecipeError, match=r"module: missing. kfac watches the layers of the model; type module=model"):
        build("kfac", model.parameters(), lr=0.1)
    with pytest.raises(RecipeError, match="has no Linear or Conv2d layer"):
        build("kfac", model.parameters(), module=nn.LayerNorm(3), lr=0.1)
    with pytest.raises(RecipeError, match=r"damping: 0.0 has to be above 0"):
        build("kfac", model.parameters(), module=model, lr=0.1, damping=0)
    with pytest.raises(RecipeError, match=r"damping_mode: 'eigne' is unknown. Did you mean 'eigen'"):
        build("kfac", model.parameters(), module=model, lr=0.1, damping_mode="eigne")
    with pytest.raises(RecipeError, match="inverse_every"):
        build("kfac", model.parameters(), module=model, lr=0.1, inverse_every=0)
    model.weight.ds_shape = (2, 2)  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=r"sharded \(FSDP or ZeRO\)"):
        build("kfac", model.parameters(), module=model, lr=0.1)
    other = nn.Linear(2, 2)
    optimizer = build("kfac", other.parameters(), module=other, lr=0.1)
    other(torch.full((1, 2), float("nan"))).sum().backward()
    with pytest.raises(RecipeError, match=r"factors of the layer '' are not finite"):
        optimizer.step()
