"""How a long job is shown while it runs: a bar on a terminal, nothing in a pipe."""

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import (
    Progress as Bars,
)

from cachefs.config.quantities import parse_size
from cachefs.core.errors import UsageError
from cachefs.ops.events import Progress


class Bar:
    """A line on the terminal that follows a job."""

    def __init__(self, bars: Bars | None, doing: str) -> None:
        self._bars = bars
        self._task = None if bars is None else bars.add_task(doing, total=None, files="0")

    @property
    def is_shown(self) -> bool:
        """Whether anybody watches."""
        return self._bars is not None

    def show(self, progress: Progress) -> None:
        """Show how far the job is."""
        if self._bars is None or self._task is None:
            return
        self._bars.update(
            self._task,
            completed=progress.bytes,
            total=progress.total_bytes,
            files=_of(progress.files, progress.total_files),
        )


def byte_rate(text: str | None) -> int | None:
    """Return what ``--limit-rate`` says, in bytes a second; None: nothing. Raise ``UsageError`` for what is no rate."""
    if text is None:
        return None
    try:
        rate = parse_size(text.removesuffix("/s"))
    except ValueError as error:
        raise UsageError(f"--limit-rate {text} {error} — for example --limit-rate 10MiB") from None
    if not rate:
        raise UsageError("--limit-rate 0 would send nothing — leave it out for no limit")
    return rate


def _of(done: int, total: int | None) -> str:
    return f"{done}" if total is None else f"{done}/{total}"


@contextlib.contextmanager
def bar(doing: str, *, quiet: bool) -> Iterator[Bar]:
    """Show a bar for what is done in the block, called *doing*, unless nobody watches."""
    if quiet or not sys.stderr.isatty():
        yield Bar(None, doing)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[files]} files"),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    # What is written to stdout goes above the bar, but only where both are on the terminal: in a pipe it is the result.
    with Bars(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ) as bars:
        yield Bar(bars, doing)
