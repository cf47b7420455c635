"""``cachefs status --watch``: in place on a terminal, block after block in a pipe, a line each in JSON."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.cli.running import surroundings

MOMENT = rb"^[\d-]{10} [\d:]{8}$"
ARGV = [sys.executable, "-m", "cachefs", "status", "--watch", "--interval", "20ms"]


def watched(home: Path, take: Callable[[int], bytes], out: int, inner: int, *words: str) -> bytes:
    """What is written to *out* until *take* has enough; then Ctrl-C."""
    with subprocess.Popen(
        [*ARGV, *words], env=surroundings(home), stdout=inner, stderr=subprocess.PIPE
    ) as process:
        os.close(inner)
        shown = take(out)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""
    os.close(out)
    return shown


def until(count: int, mark: bytes) -> Callable[[int], bytes]:
    def take(out: int) -> bytes:
        shown = b""
        while len(re.findall(mark, shown, re.MULTILINE)) < count:
            data = os.read(out, 4096)
            assert data
            shown += data
        return shown

    return take


def test_a_terminal_shows_the_present_in_place(tmp_path: Path) -> None:
    shown = watched(tmp_path, until(3, rb"\x1b\[J"), *pty.openpty())

    frames = shown.split(b"\x1b[J")[:3]
    assert all(re.match(rb"\x1b\[H[\d-]{10} [\d:]{8}\x1b\[K\r\n", frame) for frame in frames)
    assert all(line.endswith(b"\x1b[K") for frame in frames for line in frame.split(b"\r\n")[:-1])
    assert b"\x1b[2J" not in shown


def test_a_pipe_gets_one_block_after_the_other(tmp_path: Path) -> None:
    shown = watched(tmp_path, until(3, MOMENT), *os.pipe()).decode()

    blocks = re.split(r"\n\n(?=[\d-]{10} [\d:]{8}\n)", shown)
    assert len(blocks) >= 3
    assert all(len(re.findall(MOMENT.decode(), each, re.MULTILINE)) == 1 for each in blocks)
    assert "\x1b" not in shown


def test_json_is_one_line_each_time_with_the_moment(tmp_path: Path) -> None:
    shown = watched(tmp_path, until(3, b"\n"), *os.pipe(), "--json").decode()

    told = [json.loads(line) for line in shown.splitlines()[:3]]
    times = [each["time"] for each in told]
    assert times == sorted(set(times))
    assert all(isinstance(each["mounts"], list) for each in told)
