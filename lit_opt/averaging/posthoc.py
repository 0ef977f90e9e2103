"""Post-hoc EMA: two power-function averages are kept in snapshots, and any other length is put together afterwards.

The average of length sigma_rel at step t weighs the weights of step s by (s / t)^gamma, so it grows with the run:

    sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))),  shadow <- b_t shadow + (1 - b_t) weights,
    b_t = (1 - 1 / t)^(gamma + 1)

Source: https://arxiv.org/abs/2312.02696, section 3 and appendix C.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_opt.errors import RecipeError

PATTERN = "posthoc-*.pt"
FORMAT = 1


def power_gamma(sigma_rel: float) -> float:
    """The exponent of an average whose standard deviation is `sigma_rel` times the length of the run so far.

    Raises:
        RecipeError: `sigma_rel` is not between 0 and 0.2886 (gamma 0, the plain mean).

    Example:
        >>> round(power_gamma(0.05), 2), round(power_gamma(0.10), 2)
        (16.97, 6.94)
    """
    if isinstance(sigma_rel, bool) or not isinstance(sigma_rel, int | float) or not 0 < sigma_rel < 12**-0.5:
        raise RecipeError(
            [f"sigma_rel: {sigma_rel!r} is not between 0 and {12**-0.5:.4f} (the plain mean). Usual is 0.05 to 0.20."]
        )
    low, high = 0.0, sigma_rel**-2  # sigma_rel falls with gamma and is below gamma^-1/2
    while low < (middle := (low + high) / 2) < high:
        longer = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > sigma_rel**2
        low, high = (middle, high) if longer else (low, middle)
    return low


def power_decay(step: int, gamma: float) -> float:
    """The factor b of the update at `step`, which counts from 1; the first takes over the weights.

    Example:
        >>> power_decay(1, 6.94), round(power_decay(1000, 6.94), 5)
        (0.0, 0.99209)
    """
    return float((1 - 1 / step) ** (gamma + 1))


def combination(steps: Sequence[int], gammas: Sequence[float], step: int, gamma: float) -> list[float]:
    """How much of each snapshot goes into an average that was not kept, by least squares over their profiles.

    Args:
        steps: Step of each snapshot.
        gammas: Its exponent.
        step: Of the average that is wanted, at least the last of `steps`.
        gamma: Its exponent.

    Returns:
        One factor for each snapshot.

    Example:
        >>> [abs(round(x, 6)) for x in combination([50, 100, 100], [6.94, 6.94, 16.97], 100, 16.97)]
        [0.0, 0.0, 1.0]
    """
    t, g = torch.tensor([*steps, step], dtype=torch.float64), torch.tensor([*gammas, gamma], dtype=torch.float64)
    # The integral of the product of two profiles p(s) = (gamma + 1) s^gamma / t^(gamma + 1) up to the earlier end.
    earlier, later = torch.minimum(t[:, None], t), torch.maximum(t[:, None], t)
    of_later = torch.where(t[:, None] <= t, g, g[:, None])
    products = (g[:, None] + 1) * (g + 1) / (g[:, None] + g + 1) * (earlier / later) ** of_later / later
    # Unit profiles: else the first snapshots, which are tall, decide what counts as zero.
    size = products.diagonal().sqrt()
    products = products / torch.outer(size, size)
    found = torch.linalg.lstsq(products[:-1, :-1], products[:-1, -1:], rcond=1e-14, driver="gelsd").solution[:, 0]
    return [float(x) for x in found * size[-1] / size[:-1]]


def write_snapshot(folder: Path, step: int, tracks: dict[float, dict[str, Tensor]], rest: dict[str, Tensor]) -> Path:
    """Write the averages of one step; the file appears whole or not at all.

    Args:
        folder: Is made where it does not exist.
        step: Step of the averages.
        tracks: sigma_rel -> averages by name.
        rest: What is not averaged (buffers, frozen weights), by name.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_snapshot(folder, 100, {0.05: {"w": torch.ones(1)}}, {}).name
        'posthoc-000000100.pt'
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"posthoc-{step:09d}.pt"
    partial = path.with_suffix(".partial")
    torch.save({"format": FORMAT, "step": step, "tracks": tracks, "rest": rest}, partial)
    partial.replace(path)
    return path


def reconstruct(
    snapshots: str | Path | Sequence[str | Path], sigma_rel: float, step: int | None = None
) -> dict[str, Any]:
    """Averaged weights of any length, from the snapshots of `lit_opt.PostHocEMA`.

    Args:
        snapshots: Their folder, or files of it.
        sigma_rel: Length as a fraction of the run up to `step`, between 0 and 0.2886. It is close to what a run with
            that length would have kept where it lies near or above the lengths that were kept (0.05 and 0.10).
        step: A step that has a snapshot; None for the last.

    Returns:
        Name -> tensor on the CPU: averaged weights in their averages' dtype; buffers and frozen weights of that step.
        `module.load_state_dict(...)` takes it; with strict=False where weights are tied.

    Raises:
        RecipeError: No snapshots, files of something else or of different models, a step without one, or a sigma_rel out
            of bounds.

    Source: https://arxiv.org/abs/2312.02696, appendix C.2.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for step in (50, 100):
        ...     tracks = {0.05: {"w": torch.tensor([1.0])}, 0.10: {"w": torch.tensor([1.0])}}
        ...     _ = write_snapshot(folder, step, tracks, {})
        >>> reconstruct(folder, sigma_rel=0.05)["w"]
        tensor([1.])
    """
    gamma = power_gamma(sigma_rel)
    files = _files(snapshots)
    # Tensors stay in their files until they are added.
    loaded = {path: _read(path) for path in files}
    found = {file["step"]: file for file in loaded.values()}
    wanted = max(found) if step is None else step
    if wanted not in found:
        near = min(found, key=lambda at: (abs(at - wanted), at))
        raise RecipeError(
            [f"step: {wanted!r} has no snapshot; the nearest is {near}. Snapshots: {_listed(sorted(found))}."]
        )
    used = [(at, kept) for at in sorted(found) if at <= wanted for kept in found[at]["tracks"]]
    factors = combination([at for at, _ in used], [power_gamma(kept) for _, kept in used], wanted, gamma)
    result: dict[str, Any] = {}
    last = found[wanted]
    names = next(iter(last["tracks"].values())).keys()
    sums: dict[str, Tensor] = {}
    for (at, kept), factor in zip(used, factors, strict=True):
        averages = found[at]["tracks"][kept]
        if averages.keys() != names:
            raise RecipeError(
                [
                    f"snapshots: those of steps {at} and {wanted} hold different weights (a model that changed, or two runs "
                    "in one folder). Give the files of one run."
                ]
            )
        for name, average in averages.items():
            # float64: factors of large size and opposite sign cancel.
            sums.setdefault(name, torch.zeros(average.shape, dtype=torch.float64)).add_(average, alpha=factor)
    for name, total in sums.items():
        result[name] = total.to(next(iter(last["tracks"].values()))[name].dtype)
    return result | dict(last["rest"])


def _files(snapshots: str | Path | Sequence[str | Path]) -> list[Path]:
    if isinstance(snapshots, str | Path):
        folder = Path(snapshots)
        files = sorted(folder.glob(PATTERN)) if folder.is_dir() else [folder]
        if not files:
            raise RecipeError(
                [f"snapshots: the folder {str(folder)!r} has no {PATTERN}. lit_opt.PostHocEMA writes them."]
            )
    else:
        files = [Path(path) for path in snapshots]
    missing = [str(path) for path in files if not path.is_file()]
    if missing or not files:
        raise RecipeError(
            [f"snapshots: {_listed(missing) or 'none given'}: no such file. Give the folder or its files."]
        )
    return files


def _read(path: Path) -> dict[str, Any]:
    try:
        file = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise RecipeError([f"snapshots: {str(path)!r} cannot be read: {str(error).splitlines()[0]}"]) from error
    if not isinstance(file, dict) or file.get("format") != FORMAT or not file.get("tracks"):
        raise RecipeError([f"snapshots: {str(path)!r} is no snapshot of lit_opt.PostHocEMA (format {FORMAT})."])
    return file


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:8])) + (", ..." if len(items) > 8 else "")
