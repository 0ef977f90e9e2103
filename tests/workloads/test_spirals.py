"""Two spirals: data, network, training of any optimizer, and the scene that is drawn."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lit_opt.callbacks.plane import kept, put_weights, take_weights
from lit_opt.errors import RecipeError
from lit_opt.optim import get_row, list_optimizers
from lit_opt.workloads.spirals import START, Start, network, start_of, train, two_spirals
from lit_opt.workloads.spirals_picture import spirals_scene

RUNS_HERE = [
    name for name in list_optimizers() if not (get_row(name).exchanges or get_row(name).compiles or get_row(name).extra)
]


def test_spirals_interleave():
    points, labels = two_spirals(100, noise=0.0)
    assert torch.allclose(points[labels == 0], -points[labels == 1])
    assert float(points.norm(dim=1).max()) == pytest.approx(1)
    assert torch.equal(two_spirals(seed=3)[0], two_spirals(seed=3)[0])
    assert not torch.equal(two_spirals(seed=3)[0], two_spirals(seed=4)[0])
    # No straight line divides them: the best linear classifier is near to guessing.
    fit = torch.linalg.lstsq(torch.cat([points, torch.ones(200, 1)], 1), labels.float()[:, None] - 0.5).solution
    right = ((torch.cat([points, torch.ones(200, 1)], 1) @ fit > 0).flatten() == labels.bool()).float().mean()
    assert right < 0.75


def test_the_network_is_the_one_that_is_stated():
    assert [tuple(p.shape) for p in network().parameters()] == [(64, 2), (64,), (64, 64), (64,), (2, 64), (2,)]
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    network(3)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("name", RUNS_HERE)
def test_every_optimizer_takes_steps(name):
    points, labels = two_spirals(20)
    done = train(name, Start({"lr": 1e-3}, "typed"), points, labels, steps=3)
    assert done.history.shape == (4, 4482) and bool(done.history.isfinite().all())
    assert torch.equal(done.history[0], nn.utils.parameters_to_vector(network().parameters()))
    assert not torch.equal(done.history[3], done.history[0])
    model = network()
    put_weights(list(model.parameters()), done.history[3])
    with torch.no_grad():
        expected = float(functional.cross_entropy(model(points), labels))
    assert float(done.losses[3]) == pytest.approx(expected, rel=1e-5)


def test_matrices_go_to_muon_and_the_rest_to_adamw():
    points, labels = two_spirals(20)
    muon = train("muon", Start({"lr": 1e-9}, "typed"), points, labels, steps=2).history
    moved = (muon[2] - muon[0]).abs().split([p.numel() for p in network().parameters()])
    own = [float(part.max()) for part in moved]
    assert own[0] < 1e-6 and own[2] < 1e-6  # the two hidden matrices, at Muon's tiny rate
    assert min(own[1], own[3], own[4], own[5]) > 1e-3


def test_divergence_ends_a_run():
    points, labels = two_spirals(20)
    done = train("sgd", Start({"lr": 1e12}, "typed"), points, labels, steps=50)
    assert len(done.losses) < 51 and not done.losses[-1].isfinite()
    with pytest.raises(RecipeError, match="sgd diverged at once"):
        spirals_scene([done], points, labels, size=3)


def test_where_rates_come_from():
    assert start_of("adamw").values == {"lr": START["adamw"]} and start_of("adamw").source == "table"
    published = start_of("normuon")
    assert published.values["lr"] == get_row("normuon").settings["llm"].lr.number
    assert published.source.startswith("llm: ")
    for name, lr, message in (
        ("muonn", None, "Did you mean 'muon'"),
        ("adagrad", None, "Type --lr adagrad="),
        ("adamw", -1.0, "not a positive number"),
        ("onebit_adam", 0.1, "several processes"),
    ):
        with pytest.raises(RecipeError, match=message):
            start_of(name, lr)


def test_the_scene_is_made_of_losses():
    points, labels = two_spirals(20)
    runs = [train(name, start_of(name, 0.01), points, labels, steps=12) for name in ("sgd", "adamw")]
    scene = spirals_scene(runs, points, labels, size=5, frames=3, detail=4)
    model = network()
    parameters = list(model.parameters())
    for i, j in ((0, 0), (2, 4)):
        with kept(parameters):
            put_weights(parameters, scene.plane.weights(float(scene.xs[j]), float(scene.ys[i])))
            expected = float(functional.cross_entropy(model(points), labels).detach())
        assert float(scene.heights[i, j]) == pytest.approx(expected, rel=1e-5)
    for run, way in zip(runs, scene.ways, strict=True):
        assert torch.allclose(way.places, scene.plane.coordinates(run.history))
        assert torch.equal(way.losses, run.losses) and set(way.classes) == {0, 4, 12}
        assert bool(((way.places[:, 0] >= scene.xs[0]) & (way.places[:, 0] <= scene.xs[-1])).all())
    put_weights(parameters, runs[1].history[12])
    corner = model(torch.tensor([[-1.15, -1.15]])).softmax(1)[0, 1].detach()
    assert float(scene.ways[1].classes[12][0, 0]) == pytest.approx(float(corner), abs=1e-5)
    assert take_weights(parameters).shape == (4482,)
