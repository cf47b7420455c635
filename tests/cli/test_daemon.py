"""Hearing from a daemon how it went, and noticing when it says nothing."""

import json
import os
from pathlib import Path

from cachefs.cli.daemon import Announcer, launch
from cachefs.cli.failures import Failure
from cachefs.config import current


def test_a_daemon_that_ends_without_a_word_is_told_with_its_last_line(tmp_path: Path) -> None:
    failure = launch(["--help"], current(), log_file=tmp_path / "none", doing="cannot mount x")

    assert failure is not None
    assert failure.code == 1
    assert failure.line.startswith(
        "cannot mount x: the daemon ended with exit code 0; its last words: "
    )


def test_what_the_daemon_says_is_handed_on(tmp_path: Path) -> None:
    words = [f"file://{tmp_path}", str(tmp_path / "none")]

    failure = launch(words, current(), log_file=tmp_path / "none", doing="cannot mount x")

    assert failure == Failure(
        f"cannot mount file://{tmp_path}: the mountpoint {tmp_path}/none does not exist — "
        f"create it: mkdir -p {tmp_path}/none",
        2,
    )


def test_the_announcer_speaks_once_even_if_its_descriptor_is_another_files_by_then(
    tmp_path: Path,
) -> None:
    hear, say = os.pipe()
    announcer = Announcer(say)
    announcer.ready()
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    assert other == say

    announcer.failed(Failure("too late", 1))

    assert (tmp_path / "other").read_bytes() == b""
    os.close(other)
    with os.fdopen(hear) as pipe:
        assert json.loads(pipe.read()) == {"ready": os.getpid()}


def test_a_parent_that_is_gone_is_no_problem() -> None:
    hear, say = os.pipe()
    os.close(hear)

    Announcer(say).failed(Failure("nobody hears it", 1))
