"""A line on the terminal that follows a job: what is done, how fast, and how long it still takes."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from cachefs.cli.output import human_size
from cachefs.ops.events import Progress


@contextlib.contextmanager
def drawn(doing: str) -> Iterator[Callable[[Progress], None]]:
    """Draw a bar while the block runs, and yield what moves it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[files]} files"),
        _Bytes(),
        _Rate(),
        TimeRemainingColumn(),
    )
    # What is written to stdout goes above the bar, but only where both are on the terminal: in a pipe it is the result.
    with Bars(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ) as bars:
        task = bars.add_task(doing, total=None, files="0")

        def update(progress: Progress) -> None:
            bars.update(
                task,
                completed=progress.bytes,
                total=progress.total_bytes,
                files=_of(progress.files, progress.total_files),
            )

        yield update


class _Bytes(ProgressColumn):
    """``144.0 MiB``, ``144.0 MiB of 2.0 GiB``: in the units of the summary."""

    def render(self, task: Task) -> Text:
        total = "" if task.total is None else f" of {human_size(int(task.total))}"
        return Text(human_size(int(task.completed)) + total)


class _Rate(ProgressColumn):
    """``5.0 MiB/s``; nothing before there is any."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{human_size(int(speed))}/s")


def _of(done: int, total: int | None) -> str:
    return f"{done}" if total is None else f"{done}/{total}"
