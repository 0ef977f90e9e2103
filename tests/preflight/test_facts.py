"""The facts of a run without a Trainer, side by side with those that a live Trainer gives."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, WeightedRandomSampler

from lit_opt.callbacks.facts import data_parallel_size, run_facts
from lit_opt.errors import RecipeError
from lit_opt.preflight.facts import foresee, input_of_a_sample, tokens_of_a_sample
from lit_opt.preflight.placement import read_placement
from tests.callbacks.modules import QUIET, Endless, Net, tensors

torch.set_num_threads(1)


class Data(LightningDataModule):
    """A loader that is made when it is asked for."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make
        self.prepared = False

    def prepare_data(self) -> None:
        self.prepared = True

    def train_dataloader(self) -> Any:
        return self.make()


class Stop(Exception):
    """The facts are known; nothing needs to be trained."""


class Peek(Net):
    """Notes what `run_facts` says where the recipe asks."""

    def configure_optimizers(self) -> Any:
        self.facts = run_facts(self.trainer, 5)
        raise Stop


def plain() -> Any:
    return DataLoader(tensors(33), 4)


def dropped() -> Any:
    return DataLoader(tensors(33), 4, drop_last=True, shuffle=True)


def endless() -> Any:
    return DataLoader(Endless(), 4)


def two() -> Any:
    return [DataLoader(tensors(32), 4), DataLoader(tensors(12), 2)]


def shortest() -> Any:
    return CombinedLoader({"a": DataLoader(tensors(32), 4), "b": DataLoader(tensors(12), 2)}, "min_size")


SETTINGS: list[tuple[Any, dict[str, Any]]] = [
    (plain, {"max_steps": 7}),
    (plain, {"max_epochs": 3}),
    (plain, {}),
    (plain, {"max_epochs": 2, "max_steps": 5}),
    (plain, {"max_epochs": 2, "accumulate_grad_batches": 4}),
    (plain, {"max_epochs": 2, "limit_train_batches": 5, "accumulate_grad_batches": 2}),
    (plain, {"max_epochs": 2, "limit_train_batches": 0.5}),
    (plain, {"max_epochs": 2, "overfit_batches": 2}),
    (plain, {"max_epochs": -1}),
    (plain, {"max_epochs": -1, "max_steps": 9}),
    (plain, {"max_time": {"minutes": 1}}),
    (plain, {"fast_dev_run": True}),
    (plain, {"fast_dev_run": 3}),
    (dropped, {"max_epochs": 2}),
    (endless, {"max_epochs": 2}),
    (endless, {"max_steps": 9}),
    (endless, {"max_epochs": 2, "limit_train_batches": 3}),
    (two, {"max_epochs": 2}),
    (two, {"max_epochs": 2, "limit_train_batches": 4}),
    (shortest, {"max_epochs": 2}),
]


@pytest.mark.parametrize("make, settings", SETTINGS, ids=[f"{m.__name__}-{s}" for m, s in SETTINGS])
def test_as_a_live_trainer_says(make: Any, settings: dict[str, Any], tmp_path: Any) -> None:
    module = Peek()
    with pytest.raises(Stop):
        Trainer(default_root_dir=tmp_path, **(QUIET | settings)).fit(module, datamodule=Data(make))
    foreseen = foresee({"accelerator": "cpu", "devices": 1} | settings, Net(), Data(make), parameter_count=5)
    assert foreseen.run == module.facts


@pytest.mark.parametrize("scheduling", [{0: 1, 1: 2}, {1: 4}, {0: 4, 2: 3}])
@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_epochs": 3, "max_steps": 6}])
def test_accumulation_that_changes(scheduling: dict[int, int], limits: dict[str, Any]) -> None:
    module = Peek()
    with pytest.raises(Stop):
        Trainer(callbacks=[GradientAccumulationScheduler(scheduling)], **(QUIET | limits)).fit(
            module, datamodule=Data(plain)
        )
    callback = {
        "class_path": "lightning.pytorch.callbacks.GradientAccumulationScheduler",
        "init_args": {"scheduling": scheduling},
    }
    section = {"accelerator": "cpu", "devices": 1, "callbacks": [callback], **limits}
    assert foresee(section, Net(), Data(plain), parameter_count=5).run == module.facts


@pytest.mark.parametrize("devices, nodes", [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("strategy", ["auto", "ddp", "ddp_spawn", "ddp_find_unused_parameters_true"])
def test_data_parallel_size_of_a_trainer(strategy: str, devices: int, nodes: int) -> None:
    section = {"accelerator": "cpu", "devices": devices, "num_nodes": nodes, "strategy": strategy}
    live = data_parallel_size(Trainer(**(QUIET | section)))
    place = read_placement(section)
    # One process on one device needs no strategy.
    assert place.data_parallel == live == devices * nodes
    assert place.devices == devices * nodes
    assert place.kind == ("single" if strategy == "auto" and devices * nodes == 1 else "ddp")


@pytest.mark.parametrize(
    "make",
    [
        plain,
        dropped,
        lambda: DataLoader(tensors(33), 4, sampler=WeightedRandomSampler([1.0] * 33, 21)),
    ],
)
def test_batches_of_several_processes(make: Any) -> None:
    """What Lightning makes of a loader under DDP, by torch's own classes."""
    loader = make()
    sampler: Any = DistributedSampler(tensors(len(loader.sampler)), num_replicas=3, rank=0)
    live = len(DataLoader(tensors(33), loader.batch_size, sampler=sampler, drop_last=loader.drop_last))
    section = {"accelerator": "gpu", "devices": 3, "max_epochs": 2, "accumulate_grad_batches": 2}
    run = foresee(section, Net(), Data(make)).run
    assert run.steps_per_epoch == math.ceil(live / 2)
    assert run.total_steps == 2 * math.ceil(live / 2)
    assert run.global_batch == 4 * 2 * 3
    # Without Lightning's sampler each process has the whole loader.
    whole = foresee(section | {"use_distributed_sampler": False}, Net(), Data(make)).run
    assert whole.steps_per_epoch == math.ceil(len(loader) / 2)


def test_a_batch_sampler_of_ones_own() -> None:
    class Own(BatchSampler):
        pass

    def make() -> Any:
        return DataLoader(tensors(32), batch_sampler=Own(RandomSampler(tensors(32)), 4, False))

    assert foresee({"devices": 1, "max_epochs": 1}, Net(), Data(make)).run.total_steps == 8
    several = foresee({"devices": 2, "max_epochs": 1}, Net(), Data(make))
    assert several.run.total_steps is None and several.run.global_batch == 8
    assert "batch sampler of its own" in several.notes[-1]


def test_the_package_s_own_data_know_their_share() -> None:
    from lit_opt.workloads import Glyphs

    one = Glyphs(batch_size=8)
    alone = foresee({"devices": 1, "max_epochs": 1}, Net(), one)
    assert one.trainer is None, "the stand-in is taken off again"
    four = foresee({"devices": 4, "max_epochs": 1, "accelerator": "gpu"}, Net(), Glyphs(batch_size=8))
    assert alone.run.total_steps is not None
    assert four.run.total_steps == alone.run.total_steps // 4
    assert four.run.global_batch == 32


def test_the_package_s_own_data_in_a_live_trainer() -> None:
    from lit_opt.workloads import Glyphs

    module, settings = Peek(), {"max_epochs": 3, "accumulate_grad_batches": 4}
    with pytest.raises(Stop):
        Trainer(**(QUIET | settings)).fit(module, datamodule=Glyphs(batch_size=8, train_samples=100))
    data = Glyphs(batch_size=8, train_samples=100)
    assert foresee(QUIET | settings, Net(), data, parameter_count=5).run == module.facts


@pytest.mark.parametrize(
    "sample, tokens, shape",
    [
        ({"input_ids": torch.arange(9), "labels": 1}, 9, None),
        (torch.arange(5), 5, None),
        ((torch.arange(5), torch.arange(4)), 5, None),
        ((torch.zeros(3, 4, 4), 1), None, (2, 3, 4, 4)),
        (torch.zeros(6), None, (2, 6)),
        ("text", None, None),
        ({"pixels": torch.zeros(2)}, None, None),
        (torch.tensor(3), None, None),
    ],
)
def test_what_one_sample_tells(sample: Any, tokens: int | None, shape: tuple[int, ...] | None) -> None:
    loader: Any = DataLoader([sample])  # type: ignore[arg-type]
    assert tokens_of_a_sample(loader) == tokens
    example = input_of_a_sample(loader)
    assert (None if example is None else tuple(example.shape)) == shape


def test_a_stream_tells_nothing() -> None:
    assert tokens_of_a_sample(endless()) is None and input_of_a_sample(None) is None


def test_data_that_cannot_be_set_up() -> None:
    class NeedsDownload(Data):
        def setup(self, stage: str) -> None:
            raise FileNotFoundError("no such folder: imagenet")

    data = NeedsDownload(plain)
    data.batch_size = 64  # type: ignore[attr-defined]
    foreseen = foresee({"devices": 2, "accelerator": "gpu", "max_steps": 100}, Net(), data)
    assert foreseen.run.global_batch == 128 and foreseen.run.total_steps == 100
    assert foreseen.run.steps_per_epoch is None
    assert "no such folder: imagenet" in foreseen.notes[0] and "prepare_data was not called" in foreseen.notes[0]
    assert not data.prepared
    unknown = foresee({"devices": 1, "max_epochs": 100}, Net(), NeedsDownload(plain)).run
    assert unknown.total_steps is None and unknown.global_batch is None


def test_a_run_without_limits_says_so() -> None:
    assert "1,000 epochs" in foresee({"devices": 1}, Net(), Data(plain)).notes[-1]
    assert foresee({"devices": 1, "max_epochs": 1}, Net(), Data(plain)).notes == ()


def test_no_batch_is_an_error() -> None:
    with pytest.raises(RecipeError, match="it has no batch"):
        foresee({"devices": 1, "limit_train_batches": 0}, Net(), Data(plain))
    with pytest.raises(RecipeError, match="it has no batch"):
        foresee({"devices": 1}, Net(), Data(lambda: DataLoader(tensors(3), 4, drop_last=True)))


STRATEGIES = "lightning.pytorch.strategies."


@pytest.mark.parametrize(
    "strategy, kind, sizes",
    [
        ("fsdp", "fsdp", (8, 1)),
        ("fsdp2", "fsdp2", (8, 1)),
        ("deepspeed", "zero2", (8, 1)),
        ("deepspeed_stage_1", "zero1", (8, 1)),
        ("deepspeed_stage_3_offload", "zero3", (8, 1)),
        ({"class_path": STRATEGIES + "DDPStrategy"}, "ddp", (8, 1)),
        ({"class_path": STRATEGIES + "FSDPStrategy"}, "fsdp", (8, 1)),
        (
            {"class_path": STRATEGIES + "FSDPStrategy", "init_args": {"sharding_strategy": "SHARD_GRAD_OP"}},
            "fsdp_grad_op",
            (8, 1),
        ),
        ({"class_path": STRATEGIES + "ModelParallelStrategy"}, "fsdp2", (2, 4)),
        (
            {
                "class_path": STRATEGIES + "ModelParallelStrategy",
                "init_args": {"data_parallel_size": 8, "tensor_parallel_size": 1},
            },
            "fsdp2",
            (8, 1),
        ),
        ({"class_path": STRATEGIES + "DeepSpeedStrategy", "init_args": {"stage": 3}}, "zero3", (8, 1)),
        ({"class_path": "my_package.MyStrategy"}, "other", (8, 1)),
    ],
)
def test_strategies(strategy: Any, kind: str, sizes: tuple[int, int]) -> None:
    place = read_placement({"strategy": strategy, "devices": 4, "num_nodes": 2, "accelerator": "gpu"})
    assert (place.kind, (place.data_parallel, place.tensor_parallel)) == (kind, sizes)
    assert place.offload == ("all" if "offload" in str(strategy) else "")
    assert bool(place.notes) == (kind == "other")


@pytest.mark.parametrize(
    "strategy, offload",
    [
        ("fsdp_cpu_offload", "all"),
        ("deepspeed_stage_2_offload", "state"),
        ({"class_path": "DeepSpeedStrategy", "init_args": {"stage": 2, "offload_optimizer": True}}, "state"),
        ({"class_path": "FSDPStrategy", "init_args": {"cpu_offload": True}}, "all"),
    ],
)
def test_offloading(strategy: Any, offload: str) -> None:
    assert read_placement({"strategy": strategy, "devices": 2}).offload == offload


@pytest.mark.parametrize(
    "devices, count",
    [(4, 4), ("4", 4), ([0, 2], 2), ("0,2", 2), ("1,", 1), ("auto", 1), (-1, 1), (None, 1)],
)
def test_devices(devices: Any, count: int) -> None:
    place = read_placement({"devices": devices, "accelerator": "gpu"})
    assert place.devices == count
    assert bool(place.notes) == (devices in ("auto", -1, None))


@pytest.mark.parametrize("given, word", [(None, "32-true"), (16, "16-mixed"), ("bf16", "bf16-mixed"), (64, "64-true")])
def test_precision(given: Any, word: str) -> None:
    assert read_placement({"precision": given}).precision == word


@pytest.mark.parametrize(
    "section, words",
    [
        ({"devices": 0}, "devices: 0 is not allowed"),
        ({"devices": "many"}, "devices: 'many' is not allowed"),
        ({"num_nodes": -2}, "num_nodes: -2"),
        ({"strategy": "fdsp"}, "Did you mean 'fsdp'"),
        ({"strategy": object()}, "cannot be read before a run"),
        ({"precision": "b16-mixed"}, "Did you mean 'bf16-mixed'"),
        (
            {
                "devices": 4,
                "strategy": {"class_path": "ModelParallelStrategy", "init_args": {"data_parallel_size": 3}},
            },
            "is not the number of devices",
        ),
    ],
)
def test_what_no_trainer_takes(section: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        read_placement(section)
