"""The files of a starter project, as text."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_opt.commands.generate_configs import workload_config
from lit_opt.commands.starter.fine_tuning import DIFFUSION_FINETUNE, LLM_FINETUNE, LLM_LORA, VIT_FINETUNE
from lit_opt.commands.starter.project import Project
from lit_opt.commands.starter.scratch import CNN, DIFFUSION, FLOW, LARGE, LLM, VIT, VLM
from lit_opt.commands.starter.source import starter_file

WIDTH = 120

PROJECTS: dict[str, Project] = {
    "llm": LLM,
    "vlm": VLM,
    "vit": VIT,
    "cnn": CNN,
    "diffusion": DIFFUSION,
    "flow": FLOW,
    "large_batch": LARGE,
    "llm/finetune": LLM_FINETUNE,
    "llm/lora": LLM_LORA,
    "vit/finetune": VIT_FINETUNE,
    "diffusion/finetune": DIFFUSION_FINETUNE,
}


def project_files(name: str) -> dict[str, str]:
    """File name -> text of one project.

    Args:
        name: A key of `PROJECTS`.
    """
    p = PROJECTS[name]
    work = replace(p.work, model=f"model.{p.model_class}", data=f"data.{p.data_class}")
    about = [
        *textwrap.wrap(p.work.about, 115),
        f"Written by `lit-opt new {name}`; the classes are in model.py and data.py beside it.",
    ]
    return {
        "model.py": starter_file(
            "The model and its loss; the recipe brings the optimizer and the schedule.", [p.model]
        ),
        "data.py": starter_file("The data; put your own in their place.", p.data),
        "config.yaml": workload_config(p.recipe, work, about=about, config="config.yaml", run=name),
        "train.py": _train(p),
        "test_project.py": _test(p),
        "README.md": _readme(name, p),
        ".gitignore": "__pycache__/\n.pytest_cache/\nruns/\nlightning_logs/\n*.ckpt\n",
    }


def _train(p: Project) -> str:
    recipe = call("Recipe", [p.recipe], {key: value for key, (value, _) in p.work.labelled.items()}, 0)
    arguments = {**p.work.trainer, "callbacks": _Code(f"[{recipe}]")}
    return f'''"""The same run in Python: `python train.py`. Keep this or config.yaml, whichever you like better."""

from lightning.pytorch import Trainer, seed_everything
from lit_opt import Recipe

from data import {p.data_class}
from model import {p.model_class}

if __name__ == "__main__":
    seed_everything(0)
    model = {call(p.model_class, [], p.work.model_args, 4, room=len("model = "))}
    data = {call(p.data_class, [], p.work.data_args, 4, room=len("data = "))}
    {call("Trainer", [], arguments, 4, room=len(".fit(model, data)"))}.fit(model, data)
'''


def _test(p: Project) -> str:
    recipe = call("Recipe", [p.recipe], p.test_recipe, 0)
    run = {"max_steps": p.steps, **p.test_trainer, "callbacks": _Code(f"[{recipe}]"), "**": _Code("QUIET")}
    shapes = "\n    ".join(p.shapes)
    begin = _begin(p) if p.pretrain else ""
    torch = "import torch\n" if "torch." in shapes + begin else ""
    path = "from pathlib import Path\n" if p.pretrain else ""
    start = "fine_tuned(tmp_path)" if p.pretrain else "small_model()"
    fixture = "tmp_path: Path" if p.pretrain else ""
    small = literal(p.small_model)
    if len(small) + len("SMALL: dict[str, Any] = ") > WIDTH:
        small = _exploded(p.small_model, 0)
    return f'''"""The project's own test: `python -m pytest`. It trains a small model for {p.steps} steps."""

{path}from typing import Any

{torch}from lightning.pytorch import Trainer, seed_everything
from lit_opt import Recipe

from data import {p.data_class}
from model import {p.model_class}

SMALL: dict[str, Any] = {small}
QUIET: dict[str, Any] = {{
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}}


def small_model(**changes: Any) -> {p.model_class}:
    seed_everything(0)
    return {p.model_class}(**{{**SMALL, **changes}})


def small_data() -> {p.data_class}:
    return {call(p.data_class, [], p.small_data, 4, room=len("return "))}

{begin}
def test_shapes() -> None:
    model, data = small_model(), small_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    {shapes}


def test_the_loss_falls({fixture}) -> None:
    model, data = {start}, small_data()
    trainer = {call("Trainer", [], run, 4, room=len("trainer = "))}
    [before] = trainer.validate(model, data, verbose=False)
    trainer.fit(model, data)
    [after] = trainer.validate(model, data, verbose=False)
    assert trainer.global_step == {p.steps}
    assert after["val_loss"] < {p.falls_to:g} * before["val_loss"]
'''


def _begin(p: Project) -> str:
    """How the test of a fine-tuning project makes and loads a pretrained model."""
    b = p.pretrain
    assert b is not None
    run = {"max_steps": 30, "callbacks": _Code(f"[{call('Recipe', [b.recipe], b.arguments, 0)}]"), "**": _Code("QUIET")}
    loaded = "tuned.model.state_dict()"
    if b.renamed:
        name = "".join(f".replace({literal(new)}, {literal(old)})" for new, old in b.renamed)
        loaded = f"{{\n        name{name}: value\n        for name, value in {loaded}.items()\n    }}"
    return f'''
def fine_tuned(tmp_path: Path) -> {p.model_class}:
    """A model that begins with the weights of a file, as a pretrained one does."""
    model, folder = {call("small_model", [], b.model, 4)}, tmp_path / "pretrained"
    {call("Trainer", [], run, 4, room=len(".fit(model, small_data())"))}.fit(model, small_data())
    {b.save}
    tuned = {b.load}
    loaded = {loaded}
    assert all(torch.equal(loaded[name], value) for name, value in model.model.state_dict().items())
    return tuned

'''


def _readme(name: str, p: Project) -> str:
    second = {
        "llm": "`lit-opt explain llm/muon` is the same with Muon on the hidden matrices: `--recipe.name=llm/muon`.",
        "vit": "`lit-opt explain vit/muon` is the same with Muon on the hidden matrices: `--recipe.name=vit/muon`.",
    }.get(name, f"`lit-opt explain {p.recipe}` says where each value comes from.")
    return f"""# {name}: {p.line}

## Type

```
lit-opt fit --config config.yaml                         # train; the logs go to runs/{name}
lit-opt fit --config config.yaml --recipe.lr=1e-3 --trainer.max_steps=100
python train.py                                          # the same in Python
python -m pytest                                         # the project's own test, some seconds
```

They need `pip install "lit-opt[workloads]" pytest`.

## Your own data, first

{p.own_data}

## Then the model

{p.own_model}

## Then the recipe

The optimizer, its groups, the schedule, clipping and averages come from the recipe `{p.recipe}`. Every value stands in
`config.yaml` as a comment with its range and source: uncomment it to change it. Values that are set there already differ
from the recipe for this small example; go back to the recipe's own when your model is larger.
{second}

## Files

| file | what |
|---|---|
| `model.py` | the LightningModule: network, loss, validation |
| `data.py` | the LightningDataModule; its training stream continues exactly after a resume |
| `config.yaml` | the run, and every value of the recipe |
| `train.py` | the same run in Python |
| `test_project.py` | that shapes fit and the loss falls |
"""


class _Code(str):
    """Text that is code, not a string."""


def literal(value: Any) -> str:
    """A value as Python that ruff would leave as it is.

    Example:
        >>> literal({"kind": "cosine", "betas": (0.9, 0.95)})
        '{"kind": "cosine", "betas": (0.9, 0.95)}'
    """
    if isinstance(value, _Code):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)}: {literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        inner = ", ".join(map(literal, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    return repr(value)


def call(function: str, positional: list[Any], arguments: Mapping[str, Any], indent: int, room: int = 0) -> str:
    """A call as ruff formats it, in one line where it fits.

    Args:
        function: What is called.
        positional: Arguments without a name.
        arguments: Those with a name; "**" is a dictionary to spread.
        indent: Spaces before the line.
        room: For what else stands in it.

    Example:
        >>> call("Recipe", ["llm"], {"lr": 0.002}, 0)
        'Recipe("llm", lr=0.002)'
    """
    parts = [literal(value) for value in positional]
    parts += [f"**{v}" if k == "**" else f"{k}={literal(v)}" for k, v in arguments.items()]
    line = f"{function}({', '.join(parts)})"
    if indent + len(line) + room <= WIDTH or not parts:
        return line
    inner = " " * (indent + 4)
    for i, (key, value) in enumerate(arguments.items(), start=len(positional)):
        if isinstance(value, Mapping) and len(inner) + len(parts[i]) >= WIDTH:
            parts[i] = f"{key}={_exploded(value, indent + 4)}"
    return f"{function}(\n" + "".join(f"{inner}{part},\n" for part in parts) + " " * indent + ")"


def _exploded(value: Mapping[str, Any], indent: int) -> str:
    """A dictionary, one entry a line."""
    inner = " " * (indent + 4)
    return "{\n" + "".join(f"{inner}{json.dumps(k)}: {literal(v)},\n" for k, v in value.items()) + " " * indent + "}"
