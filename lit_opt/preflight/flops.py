"""What the optimizer's step costs beside the model's forward and backward, in floating-point operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from lit_opt.optim import get_row
from lit_opt.optim.matrix.cost import step_flops, work_of
from lit_opt.optim.matrix.preconditioned import PreconditionedOptimizer
from lit_opt.optim.matrix.traffic import ddp_traffic, sharded_traffic
from lit_opt.preflight.placement import Placement
from lit_opt.preflight.shares import SHARDS_STATE

# An element-wise step, by AdamW's formula: moments 7, root, quotient and epsilon 3, decay and update 3.
_ELEMENTWISE = 13
# Where the batch is unknown, what the share would be.
_EXAMPLES = (2**14, 2**18, 2**22)


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations of one device in one optimizer step.

    Args:
        optimizer: Of the optimizer's step.
        model: Of forward and backward; None where it is unknown.
        share: The optimizer's part of the sum; None where the model's is unknown.
        how: How it was counted, or what is missing, in sentences.
        examples: Tokens of a step -> share, where the batch is unknown.
        sent: Bytes that a device sends to others for whole matrices, beside what the strategy sends; of the device that
            sends most. None where nothing is divided, or where it is not known.

    Example:
        >>> Flops(optimizer=1, model=None, share=None, how=(), examples={}).examples
        {}
    """

    optimizer: int
    model: int | None
    share: float | None
    how: tuple[str, ...]
    examples: Mapping[int, float]
    sent: int | None = None


def count_flops(
    module: nn.Module,
    optimizer: Optimizer,
    *,
    setting: str,
    tokens: int | None,
    samples: int | None,
    placement: Placement | None = None,
    example: Any = None,
    cuda: bool = True,
) -> Flops:
    """The share of the optimizer in the operations of a training step of one device.

    A language model takes about 6 operations for each parameter and token. Any other model is run once on the meta
    device, where an example of its input is known, and its backward is counted as two forwards. The batch is divided
    among the devices, and so are orthogonalisations under DDP and FSDP2. What keeps statistics of both sides of a matrix
    is computed by each device, and so is an element-wise step under DDP.

    Args:
        module: The model.
        optimizer: Over its trainable parameters or stand-ins of their shapes.
        setting: The recipe's; "llm" and "vlm" count tokens.
        tokens: Of all processes in one step.
        samples: Of all processes in one step.
        placement: Where it runs; one device if unset.
        example: A batch as the model's forward takes it; its first dimension is counted as samples.
        cuda: The run is on CUDA devices.

    Example:
        >>> from lit_opt.optim import build
        >>> layer = nn.Linear(64, 64, device="meta")
        >>> made = build("muon", [layer.weight], lr=0.02)
        >>> flops = count_flops(layer, made, setting="cnn", tokens=None, samples=256, example=torch.zeros(2, 64))
        >>> f"{flops.model:,}", f"{flops.share:.0%}"
        ('6,291,456', '56%')
    """
    devices = placement.devices if placement is not None else 1
    optimizer = getattr(optimizer, "base", optimizer)  # SAM and Lookahead: the one inside takes the step
    matrix = get_row(optimizer.defaults["algorithm"]).matrix
    numbers = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    own = step_flops(optimizer) if matrix else _ELEMENTWISE * numbers
    # XLA's strategy shares no work.
    xla = placement is not None and placement.strategy in ("xla", "XLAStrategy")
    kind = placement.kind if placement is not None and not xla else "single"
    decomposes = isinstance(optimizer, PreconditionedOptimizer)
    divided = kind in ("ddp", "fsdp2") and not decomposes if matrix else kind in SHARDS_STATE
    if divided:
        own //= devices
    how = [f"optimizer: the {work_of(optimizer)}" if matrix else f"optimizer: {_ELEMENTWISE} operations a number"]
    if matrix and devices > 1:
        how[0] += f", {_where(divided, decomposes and kind == 'ddp')} the {devices:,} devices"
    sent = _sent(optimizer, placement, cuda) if matrix and divided and placement is not None else None
    if setting in ("llm", "vlm"):
        return replace(_by_tokens(module, optimizer, own, tokens, devices, how), sent=sent)
    measured, why = _forward_flops(module, example)
    if measured is None or samples is None:
        how.append(why or "the global batch is unknown; give batch_size= (--batch-size)")
        return Flops(optimizer=own, model=None, share=None, how=tuple(how), examples={}, sent=sent)
    flops, batch = measured
    model = round(3 * flops * samples / batch / devices)
    how.append(f"model: forward counted on the meta device with a batch of {batch}, backward as two forwards")
    return Flops(optimizer=own, model=model, share=own / (own + model), how=tuple(how), examples={}, sent=sent)


def _where(divided: bool, decompositions: bool) -> str:
    if divided:
        return "divided among"
    return "before the decompositions are divided among" if decompositions else "all of them on each of"


def _sent(optimizer: Optimizer, placement: Placement, cuda: bool) -> int | None:
    """Counted on gloo in tests/optim/matrix/test_sharded.py; how a user's plan cuts tensors is not known here."""
    if placement.devices == 1 or placement.tensor_parallel > 1:
        return None
    if placement.kind == "ddp":
        return max(one.sent for one in ddp_traffic(optimizer, placement.devices, cuda=cuda))
    return max(one.sent for one in sharded_traffic(optimizer, (placement.devices,), cuda=cuda))


def _by_tokens(
    module: nn.Module, optimizer: Optimizer, own: int, tokens: int | None, devices: int, how: list[str]
) -> Flops:
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    each = 6 * trained + 4 * frozen
    how.append(
        "model: 6 operations for each parameter and token"
        + (", 4 for frozen ones" if frozen else "")
        + "; attention's products are not counted, all experts of a mixture are"
    )

    def share(tokens: int) -> float:
        return own / (own + tokens * each / devices)

    if tokens is None:
        how.append("the tokens of a step are unknown; give tokens_per_batch= (--batch-tokens)")
        known = {count: share(count) for count in _EXAMPLES}
        return Flops(optimizer=own, model=None, share=None, how=tuple(how), examples=known)
    return Flops(optimizer=own, model=tokens * each // devices, share=share(tokens), how=tuple(how), examples={})


def _forward_flops(module: nn.Module, example: Any) -> tuple[tuple[int, int] | None, str]:
    """(operations, samples) of a forward, or why there are none."""
    if example is None:
        return None, "model: unknown; set example_input_array on the module, or give example="
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example, Mapping):
        kwargs = {key: _on_meta(value) for key, value in example.items()}
    else:
        args = tuple(map(_on_meta, example)) if isinstance(example, tuple | list) else (_on_meta(example),)
    first = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim), None)
    state = {name: _on_meta(t) for name, t in (*module.named_parameters(), *module.named_buffers())}
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            torch.func.functional_call(module, state, args, kwargs)
    except Exception as error:  # somebody else's forward: whatever fails on the meta device leaves the share unknown
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        return None, f"the model's forward could not be counted on the meta device ({reason})"
    return (counter.get_total_flops(), first.shape[0] if first is not None else 1), ""


def _on_meta(value: Any) -> Any:
    return value.detach().to("meta") if isinstance(value, Tensor) else value
