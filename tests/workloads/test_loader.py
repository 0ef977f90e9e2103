from __future__ import annotations

from itertools import chain

import pytest
import torch

from lit_opt.errors import RecipeError
from lit_opt.workloads import EvaluationLoader, ResumableDataModule, ResumableLoader
from tests.workloads.runs import Augmented


def batches(loader):
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_give_the_global_batch(world_size):
    alone = ResumableLoader(Augmented(), batch_size=8, seed=5)
    ranks = [
        batches(ResumableLoader(Augmented(), batch_size=8 // world_size, seed=5, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == batches(alone)


def test_each_epoch_is_another_permutation_without_repeats():
    loader = ResumableLoader(range(40), batch_size=10, seed=0)
    first, second = (list(chain(*batches(loader))) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert list(chain(*batches(ResumableLoader(range(40), batch_size=10, seed=1)))) != first


def test_augmentation_changes_between_epochs_and_repeats_with_the_seed():
    def noise_of_sample(loader, sample):
        return [noise for batch in loader for index, noise in batch.tolist() if index == sample]

    loader = ResumableLoader(Augmented(), batch_size=46, seed=5)
    epochs = [noise_of_sample(loader, 7), noise_of_sample(loader, 7)]
    again = ResumableLoader(Augmented(), batch_size=46, seed=5)
    assert epochs[0] != epochs[1]
    assert epochs == [noise_of_sample(again, 7), noise_of_sample(again, 7)]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generator_neither_matters_nor_moves(workers):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    seen = batches(ResumableLoader(Augmented(), batch_size=8, num_workers=workers))
    evaluated = batches(EvaluationLoader(Augmented(), batch_size=8, num_workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert batches(ResumableLoader(Augmented(), batch_size=8)) == seen
    assert batches(EvaluationLoader(Augmented(), batch_size=8)) == evaluated


def test_the_position_counts_what_was_handed_out_not_what_workers_fetched():
    loader = ResumableLoader(Augmented(), batch_size=8, num_workers=2)
    stream = iter(loader)
    next(stream)
    next(stream)
    assert loader.state_dict()["position"] == 2
    resumed = ResumableLoader(Augmented(), batch_size=8)
    resumed.load_state_dict(loader.state_dict())
    assert next(iter(resumed)).tolist() == next(stream).tolist()


def test_a_state_that_means_other_batches_is_refused():
    state = ResumableLoader(range(40), batch_size=10, seed=1).state_dict()
    with pytest.raises(RecipeError) as error:
        ResumableLoader(range(41), batch_size=5, seed=2).load_state_dict(state)
    assert len(error.value.problems) == 3
    for received in ("seed=1", "global_batch_size=10", "samples=40"):
        assert received in str(error.value)
    ResumableLoader(range(40), batch_size=5, seed=1, rank=1, world_size=2).load_state_dict(state)


@pytest.mark.parametrize(
    ("samples", "batch_size", "world_size"),
    [(5, 2, 1), (46, 8, 2), (3, 1, 2), (17, 4, 4), (8, 4, 2), (4, 9, 4)],
)
def test_evaluation_takes_each_sample_once_in_equally_many_batches(samples, batch_size, world_size):
    ranks = [
        EvaluationLoader(range(samples), batch_size=batch_size, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    assert len({len(loader) for loader in ranks}) == 1
    seen = [batches(loader) for loader in ranks]
    assert sorted(sample for rank in seen for batch in rank for sample in batch) == list(range(samples))
    assert all(0 < len(batch) <= batch_size + (world_size > 1) for rank in seen for batch in rank)


def test_a_second_fit_with_the_same_data_module_starts_at_the_first_batch():
    class Numbers(ResumableDataModule):
        def datasets(self):
            return range(20), range(4)

    data = Numbers(batch_size=4)
    first = []
    for _ in range(2):
        data.setup("fit")
        first.append(next(iter(data.train_dataloader())).tolist())
    assert first[0] == first[1]
    assert next(iter(data.train_dataloader())).tolist() != first[0]  # asked again within a fit: goes on


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 21}, "batch_size=20 or less"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank=2"),
        ({"batch_size": 4, "seed": -1}, "seed=-1"),
        ({"batch_size": True}, "batch_size=True"),
    ],
)
def test_arguments_are_checked(arguments, words):
    with pytest.raises(RecipeError, match=words):
        ResumableLoader(range(20), **arguments)


def test_all_problems_come_at_once():
    with pytest.raises(RecipeError) as error:
        ResumableDataModule(batch_size=0, seed=-1)
    assert len(error.value.problems) == 2
