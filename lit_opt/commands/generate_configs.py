"""Write `lit_opt/configs` anew from the recipes: `python -m lit_opt.commands.generate_configs` (`make configs`).

One YAML a recipe: the workload it is shown on, and every value of the recipe as a comment with its reason.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_opt.explain.recipe_yaml import flow, recipe_section
from lit_opt.explain.shipped_configs import CONFIGS
from lit_opt.recipes import get_recipe
from lit_opt.resolve import RunFacts


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a recipe's config trains, sized for about two minutes on two CPU cores.

    Args:
        about: First comment of the file.
        model: Class, and its arguments.
        data: Class, and its arguments.
        trainer: Length of the run and how often to validate.
        monitor: Metric that the checkpoint is chosen by.
        mode: "min" or "max".
        facts: What is known of the run; a test compares them with a real one. They decide which learning rate
            the config shows.
        labelled: Recipe field -> (value, reason): values that differ from the recipe for this workload.
        base: Config whose checkpoint a fine-tuning starts from.
    """

    about: str
    model: str
    data: str
    trainer: Mapping[str, Any]
    monitor: str
    mode: str
    facts: RunFacts
    model_args: Mapping[str, Any] = field(default_factory=dict)
    data_args: Mapping[str, Any] = field(default_factory=dict)
    labelled: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    base: str = ""


_TEXT = Workload(
    about="A small Llama over bytes, on the source of Python's standard library.",
    model="lit_opt.workloads.LanguageModel",
    data="lit_opt.workloads.ByteText",
    trainer={"max_steps": 450, "val_check_interval": 150, "log_every_n_steps": 10},
    monitor="val_bpb",
    mode="min",
    # Trainable parameters without the embeddings; tokens are bytes here, and the batch is far below the reference.
    facts=RunFacts(total_steps=450, parameter_count=836_736),
    labelled={
        "lr": (
            2e-3,
            "outside the range, for a tiny model: 1.95 bits per byte against 2.29, mean of 3 seeds (benchmarks/results)",
        ),
        "warmup": (0.22, "100 steps; the recipe's 2 % are 9, too few for this rate (benchmarks/results)"),
    },
)

_DIGITS = Workload(
    about="A narrow ResNet-18 on the 1,797 handwritten digits of scikit-learn.",
    model="lit_opt.workloads.ImageClassifier",
    data="lit_opt.workloads.Digits",
    trainer={"max_epochs": 15, "log_every_n_steps": 5},
    monitor="val_acc",
    mode="max",
    # 1,437 training images make 22 batches of 64.
    facts=RunFacts(total_steps=15 * 22, global_batch=64),
    labelled={
        "lr": (
            0.05,
            "twice the scaled rate: in 330 steps 98.6 % against 96.0 %, mean of 3 seeds (benchmarks/results)",
        )
    },
)

_DIFFUSION = Workload(
    about="A small UNet that learns to draw the digits by flow matching; see the pictures in the run's folder.",
    model="lit_opt.workloads.DiffusionModel",
    data="lit_opt.workloads.Digits",
    model_args={"objective": "flow"},
    # validated by steps, since an epoch has only 22
    trainer={"max_steps": 900, "val_check_interval": 150, "check_val_every_n_epoch": None, "log_every_n_steps": 10},
    monitor="val_loss",
    mode="min",
    facts=RunFacts(total_steps=900, global_batch=64),
    labelled={
        "lr": (
            1e-3,
            "for a tiny model: validation loss 0.196 against 0.261, Frechet distance 0.87 against 2.32 (seed 0, averages)",
        )
    },
)

_VIT = Workload(
    about="A small vision transformer on the handwritten digits, at a batch of 256.",
    model="lit_opt.workloads.ImageClassifier",
    data="lit_opt.workloads.Digits",
    model_args={
        "model": "vit_tiny_patch16_224",
        "small_images": False,
        "width": 1.0,
        "model_kwargs": {"img_size": 16, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3},
        "label_smoothing": 0.1,
    },
    data_args={"batch_size": 256},
    trainer={"max_steps": 400, "val_check_interval": 100, "check_val_every_n_epoch": None, "log_every_n_steps": 5},
    monitor="val_acc",
    mode="max",
    # validated by steps, since an epoch has only 5
    facts=RunFacts(total_steps=400, global_batch=256),
    labelled={
        "lr": (3e-3, "far above the range, for a tiny model in 400 steps: 93.9 % against 72.0 %, mean of 3 seeds")
    },
)

_CAPTIONS = Workload(
    about="A small vision-language model that captions drawn letters, from scratch.",
    model="lit_opt.workloads.VisionLanguageModel",
    data="lit_opt.workloads.Glyphs",
    data_args={"captions": True, "batch_size": 128, "val_samples": 512},
    trainer={
        "max_steps": 500,
        "val_check_interval": 250,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 10,
    },
    monitor="val_loss",
    mode="min",
    facts=RunFacts(total_steps=500, global_batch=128),
    labelled={
        "lr": (6e-3, "from scratch: 49 % of the words against 21 %, mean of 3 seeds; 1e-4 is for pretrained parts"),
        "parts": ({"projector": {"lr_scale": 1.0}}, "from scratch no part is ahead of the others"),
    },
)

_LARGE = Workload(
    about="The narrow ResNet-18 on drawn letters at a batch of 4,096, as 16 of 256.",
    model="lit_opt.workloads.ImageClassifier",
    data="lit_opt.workloads.Glyphs",
    model_args={"num_classes": 47, "small_images": False, "label_smoothing": 0.1},
    data_args={"channels": 3, "batch_size": 256, "train_samples": 400_000},
    trainer={
        "max_steps": 50,
        "accumulate_grad_batches": 16,
        "val_check_interval": 400,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 1,
    },
    monitor="val_acc",
    mode="max",
    facts=RunFacts(total_steps=50, global_batch=4096, loader_batch=256, accumulation=16, data_parallel_size=1),
)


def _unlabelled(work: Workload) -> Workload:
    """The workload of another recipe, whose own values are kept."""
    return replace(work, labelled={})


def _finetune(work: Workload, base: str, **model_args: Any) -> Workload:
    """The workload of the base, from its checkpoint; without one from scratch, which shows that it runs."""
    about = (
        f"{work.about} Starts from a checkpoint of {base}; without --model.weights from random weights, to try it out."
    )
    facts = replace(work.facts, parameter_count=None)  # what is trained is another number, and no rate depends on it
    return replace(work, labelled={}, about=about, base=base, facts=facts, model_args={**work.model_args, **model_args})


# Config -> (recipe, workload). A new recipe adds a row.
TABLE: dict[str, tuple[str, Workload]] = {
    "llm": ("llm", _TEXT),
    "llm/muon": ("llm/muon", _unlabelled(_TEXT)),
    "llm/muon_rms": ("llm/muon_rms", _unlabelled(_TEXT)),
    "llm/normuon": ("llm/normuon", _unlabelled(_TEXT)),
    "llm/scion": ("llm/scion", _unlabelled(_TEXT)),
    "llm/aro": ("llm/aro", _unlabelled(_TEXT)),
    "llm/soap": ("llm/soap", _unlabelled(_TEXT)),
    "llm/shampoo": ("llm/shampoo", _unlabelled(_TEXT)),
    "llm/splus": ("llm/splus", _unlabelled(_TEXT)),
    "cnn": ("cnn", _DIGITS),
    "diffusion": ("diffusion", _DIFFUSION),
    "vit": ("vit", _VIT),
    "vit/muon": ("vit/muon", _unlabelled(_VIT)),
    "vlm": ("vlm", _CAPTIONS),
    "llm/finetune": ("llm/finetune", _finetune(_TEXT, "llm")),
    "llm/lora": ("llm/lora", _finetune(_TEXT, "llm", lora_rank=8)),
    "vit/finetune": ("vit/finetune", _finetune(_VIT, "vit")),
    "diffusion/finetune": ("diffusion/finetune", _finetune(_DIFFUSION, "diffusion")),
    "large_batch/lars": ("large_batch/lars", _LARGE),
    "large_batch/lamb": ("large_batch/lamb", _LARGE),
    "large_batch/control": ("large_batch/control", _LARGE),
    "cnn/muon": ("cnn/muon", _unlabelled(_DIGITS)),
    "cnn/sam": ("cnn/sam", _unlabelled(_DIGITS)),
    "cnn/adamw": ("cnn/adamw", _unlabelled(_DIGITS)),
    "vit/sam": ("vit/sam", _unlabelled(_VIT)),
    "vit/lamb": ("vit/lamb", _unlabelled(_VIT)),
    "llm/adafactor": ("llm/adafactor", _unlabelled(_TEXT)),
    "llm/adamw_8bit": ("llm/adamw_8bit", _unlabelled(_TEXT)),
    "diffusion/adafactor": ("diffusion/adafactor", _unlabelled(_DIFFUSION)),
    "diffusion/adamw_8bit": ("diffusion/adamw_8bit", _unlabelled(_DIFFUSION)),
}


def config_text(name: str) -> str:
    """The YAML of one config.

    Example:
        >>> "  name: llm" in config_text("llm").splitlines()
        True
    """
    recipe, work = TABLE[name]
    written = "Written by `python -m lit_opt.commands.generate_configs`; copy it to change it."
    return workload_config(recipe, work, about=[*textwrap.wrap(work.about, 115), written], config=name, run=name)


def workload_config(recipe: str, work: Workload, *, about: Sequence[str], config: str, run: str) -> str:
    """The YAML of a recipe on a workload, with every value of the recipe as a comment.

    Args:
        recipe: Its name.
        work: What it trains.
        about: Comments of the head, below the recipe's own line.
        config: What a user gives to `--config`.
        run: Folder below `runs` that the logs go to.
    """
    spec = get_recipe(recipe)
    lines = [
        f"# {spec.summary}.",
        *(f"# {line}" for text in about for line in textwrap.wrap(text, 115)),
        "#",
        f"#   lit-opt fit --config {config}",
        f"#   lit-opt fit --config {config} --recipe.lr=1e-3 --trainer.max_steps=100",
        *([f"#   lit-opt fit --config {config} --model.weights=PATH/last.ckpt"] if work.base else []),
        "",
        "seed_everything: 0",
        "",
        "trainer:",
        "  accelerator: auto",
        "  devices: 1",
        *_precision(spec.hints.get("precision")),
        *(f"  {key}: {flow(value)}" for key, value in work.trainer.items()),
        "  logger:",
        "    class_path: lightning.pytorch.loggers.CSVLogger",
        f"    init_args: {{save_dir: runs, name: {run}}}",
        "  callbacks:",
        "    - class_path: lightning.pytorch.callbacks.LearningRateMonitor",
        "      init_args: {logging_interval: step}",
        "    - class_path: lightning.pytorch.callbacks.ModelCheckpoint",
        f"      init_args: {{monitor: {work.monitor}, mode: {work.mode}, save_last: true}}",
        "",
        *_section("model", work.model, work.model_args),
        "",
        *_section("data", work.data, work.data_args),
        "",
        "# Each value of the recipe stands below as a comment. Remove the `# ` before it to set it yourself;",
        f"# `lit-opt explain {recipe}` shows the same as a table.",
        *recipe_section(spec, {key: value for key, (value, _) in work.labelled.items()}, work.facts),
    ]
    for key, (value, reason) in work.labelled.items():
        lines = [f"{line}  # {reason}" if line == f"  {key}: {flow(value)}" else line for line in lines]
    return "\n".join(lines) + "\n"


def _precision(hint: Any) -> list[str]:
    if hint is None:
        return []
    return [f"  # precision: {hint.number}  # on a GPU; {hint.common_practice}"]


def _section(name: str, class_path: str, args: Mapping[str, Any]) -> list[str]:
    init = [f"  init_args: {flow(args)}"] if args else []
    return [f"{name}:", f"  class_path: {class_path}", *init]


def main(folder: Path = CONFIGS) -> int:
    """Write all configs, and remove those that no recipe stands behind any more."""
    files = {folder / f"{name}.yaml": config_text(name) for name in TABLE}
    for stale in set(folder.rglob("*.yaml")) - set(files):
        stale.unlink()
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
