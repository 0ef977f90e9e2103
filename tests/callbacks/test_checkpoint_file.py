"""Checkpoints that are cut, damaged, hostile, of earlier versions, or of somebody else."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_opt import EMA, EMASpec, GroupRule, Recipe
from lit_opt.averaging import reconstruct
from lit_opt.callbacks.checkpoint_file import damage, last_whole
from lit_opt.callbacks.checkpoint_format import FORMAT, current
from lit_opt.callbacks.export import export_ema
from lit_opt.errors import RecipeError
from tests.callbacks.modules import Net, StatefulLoader, fit, snapshot, trainer

EARLIER = Path(__file__).parents[1] / "fixtures" / "earlier"
OLD: dict[str, Any] = {
    "lr": 1e-2, "warmup": 2, "total_steps": 8, "ema": EMASpec(decay=0.9),
    "groups": [GroupRule(match="net.0.*", lr_scale=0.5)],
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole.ckpt"
    fit(Net(), Recipe("llm", **OLD), data=StatefulLoader(noise=0.0)).save_checkpoint(path)
    return path


def resume(path: Any, recipe: Recipe | None = None, **kwargs: Any) -> Net:
    module = Net()
    recipe = recipe or Recipe("llm", **OLD)
    fit(module, recipe, data=StatefulLoader(noise=0.0), ckpt_path=path, **({"max_steps": 8} | kwargs))
    return module


# ---- cut and damaged


def test_a_file_that_is_cut_anywhere_is_seen(checkpoint: Path, tmp_path: Path) -> None:
    """Every byte of the last thousand, every 97th of the rest."""
    content = checkpoint.read_bytes()
    cut = tmp_path / "cut.ckpt"
    places = [*range(0, len(content) - 1000, 97), *range(len(content) - 1000, len(content))]
    for place in places:
        cut.write_bytes(content[:place])
        os.utime(cut, ns=(place, place))  # files of one size within one tick of the clock
        assert damage(cut), place
    assert damage(checkpoint) == ""


@pytest.mark.parametrize("share", [0, 1e-5, 0.001, 0.3, 0.9, 0.9999])
def test_a_cut_file_is_one_message_with_the_older_one(checkpoint: Path, tmp_path: Path, share: float) -> None:
    shutil.copy(checkpoint, tmp_path / "older.ckpt")
    content = checkpoint.read_bytes()
    (tmp_path / "newest.ckpt").write_bytes(content[: max(int(len(content) * share), int(share > 0) * 2)])
    module = Net()
    before = snapshot(module)
    t = trainer(Recipe("llm", **OLD), max_steps=8)
    with pytest.raises(RecipeError, match=r"newest\.ckpt: .*older\.ckpt'") as caught:
        t.fit(module, StatefulLoader(noise=0.0), ckpt_path=tmp_path / "newest.ckpt")
    assert len(caught.value.problems) == 1 and snapshot(module) == before
    assert "load_checkpoint" not in vars(t.strategy) and "save_checkpoint" not in vars(t.strategy.checkpoint_io)
    resume(tmp_path / "older.ckpt")


def test_a_changed_bit_of_a_weight_is_seen_where_torch_does_not(checkpoint: Path, tmp_path: Path) -> None:
    content = bytearray(checkpoint.read_bytes())
    weight = torch.load(checkpoint, weights_only=True)["state_dict"]["net.0.weight"].numpy().tobytes()
    content[bytes(content).index(weight) + 5] ^= 1
    (tmp_path / "changed.ckpt").write_bytes(content)
    torch.load(tmp_path / "changed.ckpt", weights_only=True)
    with pytest.raises(RecipeError, match=r"it is damaged \(checksum of .*There is no other checkpoint beside it"):
        resume(tmp_path / "changed.ckpt")


def test_the_last_whole_one(checkpoint: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("a/first.ckpt", "a/second.ckpt", "b/last.ckpt")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(checkpoint, path)
        os.utime(path, (number, number))
    (tmp_path / "b/last.ckpt").write_bytes(b"PK\x03\x04")
    (tmp_path / "b/link.ckpt").symlink_to("nowhere.ckpt")
    (tmp_path / "a/.second.ckpt.partial").write_bytes(b"")
    found, damaged = last_whole([tmp_path])
    assert found == tmp_path / "a/second.ckpt" and damaged == [(tmp_path / "b/last.ckpt", "it is cut short")]
    sharded = tmp_path / "c.ckpt"
    sharded.mkdir()
    shutil.copy(checkpoint, sharded / "meta.pt")
    assert damage(sharded) == "it has no .metadata, so it was not written to its end"
    (sharded / ".metadata").touch()
    assert last_whole([tmp_path])[0] == sharded


def test_a_write_that_dies_half_way_leaves_the_last_file_alone(tmp_path: Path, monkeypatch: Any) -> None:
    """As where $TMPDIR is on another disk: the move is a copy, and the copy stops."""
    last = tmp_path / "last.ckpt"
    recipe, module = Recipe("llm", **OLD), Net()
    saves: list[int] = []

    class Dies(ModelCheckpoint):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 3:
                monkeypatch.setattr(shutil, "move", half)
            trainer.save_checkpoint(last)
            saves.append(trainer.global_step)

    def half(source: Any, target: Any, *args: Any, **kwargs: Any) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:5000])
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fit(module, recipe, Dies(dirpath=tmp_path), data=StatefulLoader(noise=0.0), enable_checkpointing=True)
    assert saves == [1, 2] and damage(last) == ""
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


# ---- earlier versions


@pytest.mark.parametrize("name", ["format1_of_4a0d95c.pt", "format1_of_8dabfa8.pt"])
def test_a_checkpoint_of_an_earlier_version_goes_on(name: str, tmp_path: Path) -> None:
    """Written by commits of this repository at that time, after 4 of 8 steps of this very run."""
    shutil.copy(EARLIER / name, tmp_path / "old.ckpt")
    old, straight = resume(tmp_path / "old.ckpt"), Net()
    fit(straight, Recipe("llm", **OLD), data=StatefulLoader(noise=0.0), max_steps=8)
    assert old.seen == straight.seen[4:]
    for a, b in zip(old.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    resume(tmp_path / "old.ckpt", Recipe("llm", **(OLD | {"lr": 0.5}), on_resume="checkpoint"))
    with pytest.raises(RecipeError, match=r"lr: 0.01 in the checkpoint, 0.5 now"):
        resume(tmp_path / "old.ckpt", Recipe("llm", **(OLD | {"lr": 0.5})))


@pytest.mark.parametrize("part", [None, 3, {}, {"format": "x"}, {"format": True}, {"format": 0}])
def test_a_part_that_is_none_of_ours(part: Any) -> None:
    with pytest.raises(RecipeError, match="its lit-opt part was not written by lit-opt"):
        current(part)


@pytest.mark.parametrize("part", [{"format": 1}, {"format": 1, "recipe": 3, "groups": []}, {"format": FORMAT}])
def test_a_part_that_is_not_complete(part: Any) -> None:
    with pytest.raises(RecipeError, match="is not complete"):
        current(part)


def test_every_format_has_its_step() -> None:
    from lit_opt.callbacks import checkpoint_format

    assert sorted(checkpoint_format._FROM) == list(range(1, FORMAT))


# ---- nothing is run


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def evil(checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    content, ran = torch.load(checkpoint, weights_only=True), tmp_path / "ran"
    content["lit_opt"]["recipe"]["name"] = Evil(ran)
    content["ema_state_dict"]["evil"] = Evil(ran)
    torch.save(content, tmp_path / "evil.ckpt")
    return tmp_path / "evil.ckpt", ran


@pytest.mark.parametrize("how", ["resume", "load", "export", "weights", "posthoc", "raw pickle"])
def test_no_file_of_ours_runs_code(evil: tuple[Path, Path], tmp_path: Path, how: str) -> None:
    path, ran = evil
    message = "evil"
    if how == "raw pickle":
        path.write_bytes(pickle.dumps(Evil(ran)))
        how = "resume"
    if how == "posthoc":
        torch.save({"format": 1, "step": 1, "tracks": {0.1: {"w": Evil(ran)}}, "rest": {}}, tmp_path / "posthoc-01.pt")
        message = "posthoc-01"
    with pytest.raises(RecipeError, match=message):
        if how == "resume":
            resume(path)
        elif how == "load":
            EMA.load(Net(), path)
        elif how == "export":
            export_ema(path, tmp_path / "out.pt")
        elif how == "weights":
            from lit_opt.workloads import LanguageModel

            LanguageModel(layers=1, width=16, heads=2, mlp_width=32, weights=str(path))
        else:
            reconstruct(tmp_path, 0.1)
    assert not ran.exists()


def test_a_whole_file_with_classes_says_how_to_trust_it(evil: tuple[Path, Path]) -> None:
    with pytest.raises(RecipeError, match=r"more than tensors and plain data.*mkdir.*weights_only=False"):
        resume(evil[0])


def test_everything_a_run_writes_loads_without_running_anything(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    assert content["lit_opt"]["format"] == FORMAT and content["lit_opt"]["version"]
    assert {"ema_state_dict", "lit_opt_ema", "lit_opt"} <= set(content)
