"""How a long job is shown while it runs: a bar on a terminal, nothing in a pipe."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from cachefs.config.quantities import parse_size
from cachefs.core.errors import UsageError
from cachefs.ops.events import Progress


class Bar:
    """A line on the terminal that follows a job."""

    def __init__(self, update: Callable[[Progress], None] | None) -> None:
        self._update = update

    @property
    def is_shown(self) -> bool:
        """Whether anybody watches."""
        return self._update is not None

    def show(self, progress: Progress) -> None:
        """Show how far the job is."""
        if self._update is not None:
            self._update(progress)


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


@contextlib.contextmanager
def bar(doing: str, *, quiet: bool) -> Iterator[Bar]:
    """Show a bar for what is done in the block, called *doing*, unless nobody watches."""
    if quiet or not sys.stderr.isatty():
        yield Bar(None)
        return
    from cachefs.cli.bars import (
        drawn,
    )  # rich: a fifth of the start of a command that nobody watches

    with drawn(doing) as update:
        yield Bar(update)
