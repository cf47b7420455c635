"""Daemons and commands that are ready sooner: forks of a process that has loaded all of cachefs, and done nothing.

Loading takes most of what the start of a mount costs. What is forked then runs as ``python -m`` would have run
it, with the arguments, the environment and the files of its own; only its name in the process table is another's.
``CACHEFS_TEST_FRESH=1`` has every process started as users start theirs; so do the soak runs.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import os
import pickle
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_LOADED: Final = (
    *(
        f"cachefs.cli.{verb}"
        for verb in ("mount", "serve", "umount", "status", "flush", "recover")
    ),
    *(f"cachefs.remote.{name}" for name in ("open", "file", "s3", "swift")),
)
_READ_AT_THE_START: Final = re.compile(r"PYTHON|LD_|LC_|LANG|TZ$|MALLOC_|SSL_|OPENSSL_|COVERAGE_")
"""Variables that the interpreter or a library looks at before it does anything."""
_MOST: Final = 2**17
"""Bytes of a request; a packet cannot be much larger."""
_WIDTH: Final = 16
"""Bytes of a number that is told: of the process, then of its end."""
_PR_SET_PDEATHSIG: Final = 1


class Forked:
    """A process, as :class:`subprocess.Popen` has it."""

    def __init__(self, told: int) -> None:
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._told = told
        self.pid = int(os.read(told, _WIDTH))
        try:
            self._itself: int | None = os.pidfd_open(self.pid)
        except ProcessLookupError:  # it has ended already, and its end is told
            self._itself = None
        weakref.finalize(self, _close, self._told, self._itself)

    def poll(self) -> int | None:
        """The exit status; None: it runs."""
        return self._result(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit status."""
        code = self._result(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self._itself is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._itself, number)

    def kill(self) -> None:
        """End it, at once."""
        self.send_signal(signal.SIGKILL)

    def _result(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], timeout)[0]:
            with self._lock:  # a watchdog may look at the same moment
                if self.returncode is None:
                    self.returncode = int(os.read(self._told, _WIDTH))
        return self.returncode


def _close(*fds: int | None) -> None:
    for fd in fds:
        if fd is not None:
            os.close(fd)


def can_fork(argv: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether *argv* is a module of Python's to run, and *env* would have made no other Python of it."""
    return (
        tuple(argv[:2]) == (sys.executable, "-m")
        and not os.environ.get("CACHEFS_TEST_FRESH")
        and _read_at_the_start(env) == _read_at_the_start(_environment())
    )


def fork(argv: Sequence[str], env: Mapping[str, str], *, stdout: int, stderr: int) -> Forked:
    """Run ``python -m …`` in a session of its own; it is told to end when this process has ended."""
    assert can_fork(argv, env)
    told, tell = os.pipe()
    try:
        request = pickle.dumps((argv[2:], dict(env), os.getcwd()))
        assert len(request) < _MOST, "the arguments and variables are too long"
        socket.send_fds(_door(), [request], [stdout, stderr, tell])
    finally:
        os.close(tell)
    return Forked(told)


def run(
    argv: Sequence[str], env: Mapping[str, str], *, timeout_s: float
) -> "subprocess.CompletedProcess[str]":
    """Run ``python -m …`` to its end."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = fork(argv, env, stdout=out.fileno(), stderr=err.fileno())
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
            process.wait()
        said = [os.pread(one.fileno(), one.seek(0, os.SEEK_END), 0).decode() for one in (out, err)]
    return subprocess.CompletedProcess(argv, code, *said)


def _read_at_the_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if _READ_AT_THE_START.match(name)}


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@functools.cache
def _door() -> socket.socket:
    """The socket of the process that is forked, which ends when this one has."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        # The directory has it found, with all that it forked, by who clears up after a run that was killed.
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.mount.forks", f"{tempfile.gettempdir()}/"],
            cwd=ROOT,
            env=_environment(),
            stdin=theirs.fileno(),
            start_new_session=True,
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


# ---- in the process that is forked


@dataclass(frozen=True)
class _Job:
    """What a fork is to become."""

    words: Sequence[str]
    env: Mapping[str, str]
    directory: str
    stdout: int
    stderr: int

    def become(self) -> None:
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        null = os.open(os.devnull, os.O_RDONLY)
        for number, file in enumerate((null, self.stdout, self.stderr)):
            os.dup2(file, number)
            os.close(file)
        os.chdir(self.directory)
        os.environ.clear()
        os.environ.update(self.env)
        sys.argv = list(self.words)


def _serve(door: socket.socket) -> _Job | None:
    """Fork for each request, and tell the end of each fork. Returns in a fork: its job; else None, at the end."""
    running: dict[int, tuple[int, int]] = {}  # by pidfd: the pid, and where its end is told
    while True:
        ready, _, _ = select.select([door.fileno(), *running], [], [])
        for one in running.keys() & set(ready):
            pid, tell = running.pop(one)
            _, status = os.waitpid(pid, 0)
            with contextlib.suppress(BrokenPipeError):
                os.write(tell, b"%*d" % (_WIDTH, os.waitstatus_to_exitcode(status)))
            os.close(tell)
            os.close(one)
        if door.fileno() not in ready:
            continue
        request, fds, _, _ = socket.recv_fds(door, _MOST, 3)
        if not request:
            return None
        stdout, stderr, tell = fds
        pid = os.fork()
        if pid == 0:
            # Closed as what they are: a number that is closed twice may be another file's by then.
            door.close()
            for one, (_, other) in running.items():
                os.close(one)
                os.close(other)
            os.close(tell)
            words, env, directory = pickle.loads(request)
            return _Job(words, env, directory, stdout, stderr)
        os.write(tell, b"%*d" % (_WIDTH, pid))
        running[os.pidfd_open(pid)] = pid, tell
        os.close(stdout)
        os.close(stderr)


def _main() -> None:
    for name in _LOADED:
        importlib.import_module(name)
    gc.freeze()  # what is shared is not looked through, page by page, in each fork
    job = _serve(socket.socket(fileno=os.dup(0)))
    if job is not None:
        job.become()
        runpy.run_module(job.words[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
