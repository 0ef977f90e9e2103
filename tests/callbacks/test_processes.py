"""Two processes on the CPU (gloo) are one process with the same global batch: DDP, FSDP2, FSDP1.

The runs are in processes.py, because Lightning starts the second process by running the script again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.callbacks.modules import Net, SaveAt, trainer
from tests.callbacks.processes import KINDS, STEPS, Share, recipe
from tests.processes import launch as launch_processes


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    result = launch_processes("tests.callbacks.processes", folder)
    assert result.returncode == 0, result.stderr[-6000:]
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process with batches of 8."""
    path = tmp_path_factory.mktemp("single") / "end.ckpt"
    module, ours = Net(), recipe()
    trainer(ours, SaveAt(path, STEPS), max_steps=STEPS).fit(module, Share(0, 1))
    assert ours.run is not None
    return {
        "checkpoint": torch.load(path, weights_only=True),
        "seen": module.seen,
        "groups": ours.run.group_names,
        "lr": ours.run.resolved.lr,
    }


def results(folder: Path, kind: str) -> list[dict[str, Any]]:
    both = [torch.load(folder / f"{kind}.{rank}.pt", weights_only=False) for rank in (0, 1)]
    for result in both:
        assert "error" not in result, result["error"]
    return both


@pytest.mark.parametrize("kind", KINDS)
def test_groups_rates_and_facts_are_those_of_one_process(launched: Path, single: dict[str, Any], kind: str) -> None:
    for result in results(launched, kind):
        assert result["straight"]["seen"] == single["seen"]
        assert result["straight"]["groups"] == single["groups"]
        facts = result["straight"]["facts"]
        assert (facts.global_batch, facts.data_parallel_size, facts.total_steps) == (8, 2, STEPS)
        assert facts.parameter_count == 244
        assert result["straight"]["left"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_one_process(launched: Path, single: dict[str, Any], kind: str) -> None:
    end = torch.load(launched / f"{kind}.end.ckpt", weights_only=True)
    assert end["global_step"] == STEPS
    assert end["state_dict"].keys() == single["checkpoint"]["state_dict"].keys()
    torch.testing.assert_close(end["state_dict"], single["checkpoint"]["state_dict"], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_is_the_uninterrupted_run(launched: Path, kind: str) -> None:
    end = torch.load(launched / f"{kind}.end.ckpt", weights_only=True)
    again = torch.load(launched / f"{kind}.again.ckpt", weights_only=True)
    if kind != "fsdp1":
        # FSDP1 on a CPU writes one tensor for both moments, also with a plain AdamW and no recipe (torch 2.15).
        torch.testing.assert_close(end["state_dict"], again["state_dict"], rtol=0, atol=0)
    first, second = results(launched, kind)
    for result in (first, second):
        assert result["resumed"]["seen"] == result["straight"]["seen"][3:]
        assert result["resumed"]["drawn"] == result["straight"]["drawn"][3:]
        assert result["theirs"]["seen"] == result["straight"]["seen"][3:]
        assert result["theirs"]["clip"].limit == 0.05
        assert "lr: 0.01 in the checkpoint, 0.5 now" in result["refused"]
    assert first["straight"]["drawn"] != second["straight"]["drawn"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_first_process_logs(launched: Path, kind: str) -> None:
    first, second = results(launched, kind)
    assert (first["straight"]["recipes_logged"], second["straight"]["recipes_logged"]) == (1, 0)


def test_clipping_of_plain_tensors_beside_dtensors(launched: Path) -> None:
    for result in results(launched, "ddp"):
        norm, value = result["mixed"]["norm"], result["mixed"]["value"]
        expected = torch.nn.utils.get_total_norm(norm["full"])
        torch.testing.assert_close(norm["norm"], expected)
        factor = 0.5 / (expected + 1e-6)
        for grad, full in zip(norm["grads"], norm["full"], strict=True):
            torch.testing.assert_close(grad, full * factor)
        for grad, full in zip(value["grads"], value["full"], strict=True):
            torch.testing.assert_close(grad, full.clamp(-0.5, 0.5))


def sam_by_hand(*, per_device: bool) -> list[torch.Tensor]:
    """SAM on two halves of each batch: each goes up by its own gradient, or both by their mean."""
    module = Net()
    halves = [Share(0, 2).batches, Share(1, 2).batches]
    params = list(module.parameters())
    for step in range(STEPS):
        local = [torch.autograd.grad(module.loss(half[step]), params) for half in halves]
        mean = [torch.stack(pair).mean(0) for pair in zip(*local, strict=True)]
        total = [torch.zeros_like(p) for p in params]
        for half, own in zip(halves, local, strict=True):
            ascent = own if per_device else mean
            norm = torch.stack([g.norm() for g in ascent]).norm()
            saved = [p.detach().clone() for p in params]
            with torch.no_grad():
                for p, g in zip(params, ascent, strict=True):
                    p.add_(0.5 * g / norm)
            for t, g in zip(total, torch.autograd.grad(module.loss(half[step]), params), strict=True):
                t.add_(g / 2)
            with torch.no_grad():
                for p, old in zip(params, saved, strict=True):
                    p.copy_(old)
        with torch.no_grad():
            for p, g in zip(params, total, strict=True):
                p.sub_(0.1 * g)
    return [p.detach() for p in params]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_sam_equals_a_loop_by_hand(kind: str, launched: Path):
    first, second = (result["sam"] for result in results(launched, kind))
    expected = sam_by_hand(per_device=kind == "ddp")
    for a, b, c in zip(first["weights"], second["weights"], expected, strict=True):
        assert torch.equal(a, b)
        assert (a - c).abs().max() < 1e-6
    assert first["step"] == STEPS
    if kind == "ddp":  # none for the first pass; the network fits into one bucket
        assert first["reductions"] == STEPS
