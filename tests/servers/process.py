"""Child processes that end with the test run, however it ends, and waiting without sleeping."""

import json
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def running(
    command: Sequence[str],
    *,
    log: IO[bytes] | int = subprocess.DEVNULL,
    stdout: IO[bytes] | int | None = None,
    env: Mapping[str, str] | None = None,
    stop_with: signal.Signals = signal.SIGKILL,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run *command* until the block ends."""
    process = subprocess.Popen(
        [*_DIES_WITH_US, *command],
        stdin=subprocess.DEVNULL,
        stdout=log if stdout is None else stdout,
        stderr=log,
        env=env,
    )
    try:
        yield process
    finally:
        process.send_signal(stop_with)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def first_line(process: subprocess.Popen[bytes], *, within_s: float = 30) -> dict[str, object]:
    """The JSON document that *process* prints first."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], within_s)
    assert ready, f"{process.args!r} said nothing within {within_s} s"
    line = process.stdout.readline()
    assert line, f"{process.args!r} ended without a word"
    document: dict[str, object] = json.loads(line)
    return document


def wait_until_listening(
    port: int, process: subprocess.Popen[bytes], *, within_s: float = 30
) -> None:
    """Return once something accepts connections on *port*."""
    deadline = time.monotonic() + within_s
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"nothing listens on {port} after {within_s} s"
        select.select([], [], [], 0.02)
