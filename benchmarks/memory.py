"""Memory that a call needs for its own time."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def extra_peak(step: Callable[[], object]) -> int:
    """Bytes that a step holds at most beyond what was there before it, as torch's allocator saw it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = seen.profiler.kineto_results.events()
    live = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
