"""Configs and checkpoints changed byte by byte: read as what they say, or refused with our message."""

from __future__ import annotations

import logging
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_opt import EMASpec, Recipe
from lit_opt.callbacks.checkpoint_file import damage
from lit_opt.cli import main
from lit_opt.errors import RecipeError
from lit_opt.explain.shipped_configs import shipped_configs
from tests.callbacks.modules import Net, StatefulLoader, fit

torch.set_num_threads(1)
quiet: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
SLOW = int(os.environ.get("LIT_OPT_FUZZ_FILES", "2000"))
CONFIGS = {name: path.read_text() for name, path in shipped_configs().items()}
FULL = """\
trainer: {max_steps: 2, accelerator: cpu, logger: false, enable_checkpointing: false}
model: {class_path: lightning.pytorch.demos.boring_classes.BoringModel}
recipe:
  name: llm
  lr: 1.0e-3
  betas: [0.9, 0.95]
  warmup: 2
  decay: {kind: linear, final: 0.1}
  clip: {limit: 1.0, kind: norm}
  ema: {decay: 0.9, warmup: true}
  groups: [{match: "*.bias", lr_scale: 0.5}]
  optimizer_kwargs: {eps: 1.0e-8}
  total_steps: 4
  on_nonfinite: skip
"""
edits = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(["change", "insert", "delete", "line", "twice"]), st.integers(0, 255)),
    min_size=1,
    max_size=3,
)  # fmt: skip


def edited(content: bytes, how: list[tuple[float, str, int]]) -> bytes:
    for place, kind, byte in how:
        at = int(place * len(content))
        if kind == "change":
            content = content[:at] + bytes([byte]) + content[at + 1 :]
        elif kind == "insert":
            content = content[:at] + bytes([byte]) + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + 1 + byte % 8 :]
        else:
            lines = content.splitlines(keepends=True)
            row = int(place * len(lines))
            lines[row : row + 1] = [] if kind == "line" else [lines[row]] * 2
            content = b"".join(lines) or b" "
    return content


def recipe_of(content: bytes) -> None:
    """As `lit-opt` makes one of a config's section."""
    try:
        read = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError):
        return  # `expand_configs` says so; see the test of the command line
    section = read.get("recipe") if isinstance(read, dict) else None
    if not isinstance(section, dict) or not all(isinstance(key, str) for key in section):
        return
    import inspect

    known = set(inspect.signature(Recipe).parameters)
    if "name" not in section or set(section) - known:
        return  # the parser names them
    try:
        Recipe(**section)
    except RecipeError as error:
        assert all(len(problem) > 20 for problem in error.problems)


@settings(max_examples=300, derandomize=True, **quiet)
@given(edits)
def test_recipe_sections(how: list[tuple[float, str, int]]) -> None:
    recipe_of(edited(FULL.encode(), how))


@pytest.mark.slow
@settings(max_examples=10 * SLOW, **quiet)
@given(edits)
def test_many_recipe_sections(how: list[tuple[float, str, int]]) -> None:
    recipe_of(edited(FULL.encode(), how))


def on_the_command_line(content: bytes, folder: Path, capsys: Any) -> int:
    """Parsed, and shown or refused with one message; nothing else is raised."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    (folder / "edited.yaml").write_bytes(content)
    capsys.readouterr()
    code = main(["fit", "--config", str(folder / "edited.yaml"), "--print_config"])
    text = capsys.readouterr()
    assert code == 0 or (code == 2 and text.err.count("lit-opt: ") == 1 and "Traceback" not in text.err), text.err
    return code


@pytest.mark.parametrize("seed", range(8))
def test_configs_on_the_command_line(seed: int, tmp_path: Path, capsys: Any) -> None:
    rng = random.Random(seed)
    content = FULL if seed % 2 else CONFIGS[rng.choice(sorted(CONFIGS))]
    how = [
        (rng.random(), rng.choice(["change", "insert", "delete", "line", "twice"]), rng.randrange(256))
        for _ in range(2)
    ]
    on_the_command_line(edited(content.encode(), how), tmp_path, capsys)


@pytest.mark.slow
@settings(max_examples=SLOW // 4, **quiet)
@given(how=edits, name=st.sampled_from(["", *sorted(CONFIGS)]))
def test_many_configs_on_the_command_line(
    how: list[tuple[float, str, int]], name: str, tmp_path_factory: pytest.TempPathFactory, capsys: Any
) -> None:
    on_the_command_line(edited(CONFIGS.get(name, FULL).encode(), how), tmp_path_factory.mktemp("edited"), capsys)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole.ckpt"
    recipe = Recipe("llm", lr=1e-2, total_steps=8, ema=EMASpec(decay=0.9))
    fit(Net(), recipe, data=StatefulLoader(noise=0.0)).save_checkpoint(path)
    return path


def edited_checkpoint(content: bytes, whole: str, path: Path) -> bool:
    """Whether it passes; what passes is what was written."""
    path.write_bytes(content)
    if damage(path):
        return False
    assert str(torch.load(path, weights_only=True)) == whole
    return True


def test_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    content, whole, rng = checkpoint.read_bytes(), str(torch.load(checkpoint, weights_only=True)), random.Random(0)
    outcomes = [
        edited_checkpoint(
            edited(content, [(rng.random(), rng.choice(["change", "change", "insert", "delete"]), rng.randrange(256))]),
            whole,
            tmp_path / f"{number}.ckpt",
        )
        for number in range(100)
    ]
    assert sum(outcomes) < 50


def test_a_record_marked_as_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    """torch.load would leave the tensor's memory as it was before."""
    content, path = bytearray(checkpoint.read_bytes()), tmp_path / "edited.ckpt"
    last = content.rindex(b"archive/data/") - 46  # the record's entry in the table of contents
    assert content[last : last + 4] == b"PK\x01\x02"
    content[last + 38] |= 0x10
    path.write_bytes(content)
    assert "marked as a folder" in damage(path)


@pytest.mark.slow
def test_many_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    content, whole, rng = checkpoint.read_bytes(), str(torch.load(checkpoint, weights_only=True)), random.Random()
    for number in range(2 * SLOW):
        kinds = [rng.choice(["change", "change", "insert", "delete"]) for _ in range(rng.choice((1, 1, 2)))]
        how = [(rng.random(), kind, rng.randrange(256)) for kind in kinds]
        path = tmp_path / f"{number}.ckpt"
        edited_checkpoint(edited(content, how), whole, path)
        path.unlink()
