"""What a large-batch recipe says about the batch of the run: the arithmetic, and whether the batch is large at all."""

from __future__ import annotations

from lit_opt.recipes.schema import RecipeSpec
from lit_opt.resolve.resolved import RunFacts


def batch_notes(spec: RecipeSpec, facts: RunFacts, lr_note: str, *, own_optimizer: bool) -> tuple[str, ...]:
    """Sentences for the log; none where the recipe does not depend on a large batch.

    Args:
        spec: The recipe.
        facts: What is known of the run.
        lr_note: How the learning rate came about.
        own_optimizer: The recipe's own optimizer is used, so that its published batches count.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> facts = RunFacts(global_batch=2048, loader_batch=256, accumulation=8, data_parallel_size=1)
        >>> for note in batch_notes(get_recipe("large_batch/lars"), facts, "10", own_optimizer=True):
        ...     print(note)
        global batch 2,048 = loader 256 x accumulation 8 x data-parallel 1; lr: 10
        2,048 is below 4,096, the least that lars's rates were published for.
        2,048 is a moderate batch (up to 8,192 images): run large_batch/control or cnn first; nothing is gained by lars.
    """
    if spec.moderate_batch is None:
        return ()
    moderate = int(spec.moderate_batch.number)  # type: ignore[arg-type]
    least = int(spec.lr.scaling.reference_batch.number)  # type: ignore[arg-type]
    method = str(spec.optimizer.number)
    is_control = spec.name.endswith("/control")
    first = "cnn" if is_control else "large_batch/control or cnn"
    batch = facts.global_batch
    if batch is None:
        return (
            f"the global batch is unknown; up to {moderate:,} images it is moderate, and {first} is the better choice.",
        )
    notes = [f"{_arithmetic(facts)}; lr: {lr_note or 'as given'}"]
    if own_optimizer and not is_control and batch < least:
        notes.append(f"{batch:,} is below {least:,}, the least that {method}'s rates were published for.")
    if batch <= moderate and is_control:
        notes.append(
            f"{batch:,} is a moderate batch (up to {moderate:,} images): cnn has the same rate and a shorter warmup."
        )
    elif batch <= moderate:
        notes.append(
            f"{batch:,} is a moderate batch (up to {moderate:,} images): run {first} first; nothing is gained by {method}."
        )
    elif is_control:
        notes.append(f"the linear rule was shown up to {moderate:,} images (arXiv:1706.02677): tune lr at {batch:,}.")
    else:
        notes.append(
            f"{batch:,} is beyond {moderate:,} images, where {method} saves tuning; a tuned large_batch/control matched "
            "it at 32,768 (arXiv:2102.06356), so run that beside it."
        )
    return tuple(notes)


def _arithmetic(facts: RunFacts) -> str:
    counted = (facts.loader_batch, facts.accumulation, facts.data_parallel_size)
    if None in counted:
        return f"global batch {facts.global_batch:,}"
    loader, accumulation, size = (int(x) for x in counted if x is not None)
    sum_ = f"loader {loader:,} x accumulation {accumulation:,} x data-parallel {size:,}"
    if loader * accumulation * size == facts.global_batch:
        return f"global batch {facts.global_batch:,} = {sum_}"
    return f"global batch {facts.global_batch:,} as given with batch_size= ({sum_} would be {loader * accumulation * size:,})"
