"""A line on the terminal that tells how an upload goes on. In a pipe there is none."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from cachefs.cli.output import counted, human_size
from cachefs.client import ControlClient, ControlError

_EVERY_S = 0.5
_CLEAR_LINE = "\r\x1b[K"


@contextlib.contextmanager
def uploads_shown(socket: Path, *, quiet: bool) -> Iterator[None]:
    """Show what still waits in the daemon behind *socket* while the block runs."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    end = threading.Event()
    teller = threading.Thread(target=_tell, args=(socket, end), daemon=True)
    teller.start()
    try:
        yield
    finally:
        end.set()
        teller.join()
        print(_CLEAR_LINE, end="", file=sys.stderr, flush=True)


def _tell(socket: Path, end: threading.Event) -> None:
    # A connection of its own: the other one is busy with the question that all this is about.
    with contextlib.suppress(ControlError), ControlClient(socket) as client:
        while not end.wait(_EVERY_S):
            files = client.ask("dirty")
            if isinstance(files, list):
                print(_CLEAR_LINE + line_of(files), end="", file=sys.stderr, flush=True)


def line_of(files: list[dict[str, object]]) -> str:
    """Return what is shown while *files* wait."""
    sizes = [size for file in files if isinstance(size := file.get("size"), int)]
    under_way = sum(file.get("state") == "uploading" for file in files)
    return f"{counted(len(files), 'file')}, {human_size(sum(sizes))} to go; {under_way} under way"
