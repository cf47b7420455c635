"""The bar of a long job: on a terminal, and nowhere else."""

import contextlib
import pty
import sys
from io import StringIO

import pytest

from cachefs.cli.jobs import bar
from cachefs.ops.events import Progress


def all_of(terminal: int) -> str:
    """Read what was written to a terminal that nobody has open any more."""
    said = b""
    with open(terminal, "rb", buffering=0) as reader, contextlib.suppress(OSError):
        while part := reader.read(4096):
            said += part
    return said.decode()


def test_on_a_terminal_a_bar_tells_how_far_the_job_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with open(theirs, "w", buffering=1) as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with bar("pushing", quiet=False) as shown:
            shown.show(Progress(3, 5 << 20, 7, 10 << 20))
    text = all_of(ours)
    assert "pushing" in text
    assert "3/7 files" in text


@pytest.mark.parametrize("quiet", [True, False])
def test_in_a_pipe_nothing_is_shown(monkeypatch: pytest.MonkeyPatch, *, quiet: bool) -> None:
    said = StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    with bar("pushing", quiet=quiet) as shown:
        shown.show(Progress(1))
    assert said.getvalue() == ""
