"""Drawing the curves of a simulation."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from cachefs.core.errors import UsageError
from cachefs.ops.simulate import BOUND, Outcome, wants_library

_GIB: Final = 2.0**30


def require_library() -> None:
    """Raise ``UsageError`` unless curves can be drawn."""
    _figure_class()


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw hit ratio, byte hit ratio and waiting time over the size of the cache into *path* (.png or .svg)."""
    figure: Any = _figure_class()(figsize=(15, 5), layout="constrained")
    panels = figure.subplots(1, 3)
    measures: tuple[tuple[str, Callable[[Outcome], float]], ...] = (
        ("hit ratio, %", lambda each: 100 * each.hit_ratio),
        ("byte hit ratio, %", lambda each: 100 * each.byte_hit_ratio),
        ("waiting time, s", lambda each: each.waited_s),
    )
    for panel, (title, measure) in zip(panels, measures, strict=True):
        for policy in dict.fromkeys(each.policy for each in outcomes):
            curve = sorted((each for each in outcomes if each.policy == policy), key=_limit)
            panel.plot(
                [each.limit / _GIB for each in curve],
                [measure(each) for each in curve],
                marker="o",
                markersize=3,
                linestyle="--" if wants_library(policy) or policy == BOUND else "-",
                label=policy,
            )
        panel.set_title(title)
        panel.set_xlabel("size of the cache, GiB")
        panel.set_xscale("log")
        panel.grid(visible=True, alpha=0.3)
    panels[0].legend(fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UsageError(f"--plot {path} cannot be written: {error.strerror}") from None


def _limit(outcome: Outcome) -> int:
    return outcome.limit


def _figure_class() -> Any:  # noqa: ANN401 - untyped, and not always there
    try:
        from matplotlib.figure import Figure  # the figure alone: no window, no state of a process
    except ImportError:
        raise UsageError(
            "--plot needs matplotlib — install it by pip install 'cachefs-mount[simulate]'"
        ) from None
    return Figure
