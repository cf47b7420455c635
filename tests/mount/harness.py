"""A mount under test: the daemon as a process of its own, and a watchdog over it.

Nothing here touches what is mounted from the process that runs the tests: a program that hangs on a mount
cannot be killed, and would take the test run with it. Programs run in children with a time limit, and a
mount that does not answer is aborted through its own connection, never through another's.
"""

import contextlib
import json
import os
import pickle
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, ParamSpec, Self, TypeVar

from tests.mount import forks
from tests.mount.stores import Target

P = ParamSpec("P")
T = TypeVar("T")

ROOT: Final = Path(__file__).parents[2]
CONNECTIONS: Final = Path("/sys/fs/fuse/connections")


class MountFailed(Exception):
    """The daemon ended, or did not mount in time."""

    def __init__(self, returncode: int | None, stderr: str) -> None:
        super().__init__(f"exit {returncode}: {stderr}")
        self.returncode = returncode
        self.stderr = stderr


class Stuck(Exception):
    """A program in the mount did not come back in time."""


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 20) -> None:
    """Return as soon as *condition* holds; fail when it does not within the time.

    What takes long to look at is not looked at all the time: what is waited for wants the processor, too.
    """
    pause = threading.Event()
    end = time.monotonic() + timeout_s
    while True:
        begin = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        assert now < end, f"not within {timeout_s} s: {what}"
        pause.wait(min(max(0.02, 2 * (now - begin)), 1))


def environment(home: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """The variables of a process that sees no configuration or credentials but those of the test."""
    foreign = re.compile(r"(AWS|OS|ST|CACHEFS|XDG)_")
    kept = {k: v for k, v in os.environ.items() if not foreign.match(k)}
    return {
        **kept,
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),  # root's would be the machine's
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "CACHEFS_MIN_FREE": "0",  # a machine whose disk is nearly full runs the suite too
        "no_proxy": "*",
        **extra,
    }


def cachefs(
    *argv: str | Path, env: Mapping[str, str], timeout_s: float = 60, fresh: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end; if not *fresh*, forked from what is loaded already."""
    words = [sys.executable, "-m", "cachefs", *map(str, argv)]
    if not fresh and forks.can_fork(words, env):
        return forks.run(words, env, timeout_s=timeout_s)
    return subprocess.run(
        words,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def mounted(mountpoint: Path) -> tuple[int, str] | None:
    """The minor device number and the type of what is mounted there last; asks nothing of the mount."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        name = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4])
        if name == str(mountpoint):
            found = int(fields[2].split(":")[1]), right.split()[0]
    return found


class Hands:
    """A process that does in the mount what it is told, one call after the other."""

    def __init__(self, on_stuck: Callable[[], None]) -> None:
        self._on_stuck = on_stuck
        self._answers: queue.SimpleQueue[tuple[bool, Any] | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mount.child"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._listen, name="hands", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def do(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call *function* over there; its result or its error is ours. Bounded."""
        self.begin(function, *args, **kwargs)
        answer: T = self.finish(60)
        return answer

    def begin(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        """Start a call, and do not wait for it."""
        assert self._process.stdin is not None
        pickle.dump((function, args, kwargs), self._process.stdin)
        self._process.stdin.flush()

    def finish(self, timeout_s: float) -> Any:  # noqa: ANN401
        """The result of the call that was begun."""
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self._on_stuck()
            self.kill()
            raise Stuck(f"no answer within {timeout_s} s") from None
        if answer is None:
            raise Stuck("the process in the mount has ended")
        good, value = answer
        if not good:
            raise value
        return value

    def busy(self) -> bool:
        """Whether a call that was begun has not been answered yet."""
        return self._answers.empty()

    def wait_ended(self, timeout_s: float) -> None:
        """Wait for the end of the process, at most so long; what it does goes on."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def kill(self) -> None:
        """End the process and everything that it holds open."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._thread.join(10)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            while True:
                self._answers.put(pickle.load(self._process.stdout))
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            self._answers.put(None)


@dataclass(eq=False)
class Mount:
    """One mount of *target*, with its own mountpoint, cache directory and log below *base*.

    As a context manager it mounts at the start, and at the end takes everything away again, whatever the
    test did. It may be stopped and started in between: the cache directory stays.
    """

    target: Target
    base: Path
    options: Sequence[str] = ()
    watchdog_s: float = 120
    tracebacks_expected: bool = False
    fresh: bool = False
    """Whether the daemon is started as users start it, not forked from what is loaded already."""
    mountpoint: Path = field(init=False)
    cache_dir: Path = field(init=False)
    log: Path = field(init=False)
    env: dict[str, str] = field(init=False)
    process: "subprocess.Popen[bytes] | forks.Forked | None" = field(init=False, default=None)
    _minor: int | None = field(init=False, default=None)
    _hands: list[Hands] = field(init=False, default_factory=list)
    _own: Hands | None = field(init=False, default=None)
    _timer: threading.Timer | None = field(init=False, default=None)
    _barked: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.base.mkdir(parents=True, exist_ok=True)
        self.mountpoint = self.base / "mnt"
        self.mountpoint.mkdir()
        self.cache_dir = self.base / "cache"
        self.log = self.base / "daemon.log"
        home = self.base / "home"
        home.mkdir()
        self.env = environment(home, self.target.environment)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None and self.process is not None and not self._barked:
                self.stop()
        except BaseException:
            self._say_log()
            raise
        finally:
            self._clear()
        if error is not None or self._barked:
            self._say_log()
        assert not self._barked, f"the watchdog ended the mount after {self.watchdog_s} s"
        if error is None and not self.tracebacks_expected:
            assert "Traceback" not in self.log_text(), self.log_text()[-20_000:]

    def __truediv__(self, name: str) -> Path:
        return self.mountpoint / name

    # ---- the life of the daemon

    def argv(self) -> list[str]:
        """The command that mounts."""
        return [
            *(sys.executable, "-m", "cachefs", "mount", self.target.source, str(self.mountpoint)),
            *("--cache-dir", str(self.cache_dir), "-f", *self.target.options, *self.options),
        ]

    def start(self, *, timeout_s: float = 30) -> None:
        """Mount; returns when the daemon says that it is ready. What is stale there is its to clean up."""
        assert self.process is None
        with (
            self.log.open("ab") as log,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        ):
            begin = log.tell()
            manager.bind("")  # the kernel finds a name that is not a path
            address = manager.getsockname()[1:].decode()
            self.process = self._launched({**self.env, "NOTIFY_SOCKET": f"@{address}"}, log)
            self._timer = threading.Timer(self.watchdog_s, self._bark)
            self._timer.daemon = True
            self._timer.start()
            ready = _told_ready(manager, self.process, timeout_s)
        found = mounted(self.mountpoint)
        if not ready or found is None:
            code = self.process.poll()
            self._end_process()
            raise MountFailed(code, self.log.read_bytes()[begin:].decode(errors="replace"))
        self._minor = found[0]

    def _launched(
        self, env: Mapping[str, str], log: IO[bytes]
    ) -> "subprocess.Popen[bytes] | forks.Forked":
        """Start the daemon. Where the test run is killed, it unmounts by itself."""
        argv = self.argv()
        if not self.fresh and forks.can_fork(argv, env):
            return forks.fork(argv, env, stdout=log.fileno(), stderr=log.fileno())
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *argv],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def stop(self, *, timeout_s: float = 45) -> int:
        """End by SIGTERM, as a service manager does; returns the exit status."""
        return self.signalled(signal.SIGTERM, timeout_s=timeout_s)

    def signalled(self, number: signal.Signals, *, timeout_s: float = 45) -> int:
        """Send the signal and wait for the end; returns the exit status."""
        self._release_hands()
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait_ended(timeout_s=timeout_s)

    def wait_ended(self, *, timeout_s: float = 45) -> int:
        """Wait until the daemon ends by itself; returns its exit status."""
        assert self.process is not None
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.abort()
            raise Stuck(f"the daemon did not end within {timeout_s} s") from None
        self._end_process()
        assert mounted(self.mountpoint) is None, (
            "the daemon has ended and the mount is still there"
        )
        return code

    def umount(self, *options: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """``cachefs umount``; where it succeeds, waits for the daemon's end too."""
        self._release_hands()
        words: list[str | Path] = ["umount", self.mountpoint, *options]
        done = cachefs(*words, env=self.env, timeout_s=timeout_s, fresh=False)
        if done.returncode == 0:
            self.wait_ended(timeout_s=timeout_s)
        return done

    def kill(self, *, leave_stale: bool = False) -> None:
        """``kill -9``: nothing of the daemon gets a chance to end well."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)
        self._release_hands()
        self._end_process()
        if not leave_stale:
            self.unmount_lazily()

    def remount(self) -> None:
        """Stop and start again, on the same cache directory."""
        self.stop()
        self.start()

    def abort(self) -> None:
        """Cut the connection between the kernel and the daemon, so that nobody waits for it any more."""
        found = mounted(self.mountpoint)
        # The number may be another's by now if the mount is gone: only what is mounted here is ours.
        if found is not None and found[0] == self._minor:
            _need_fusectl()
            with contextlib.suppress(OSError):
                (CONNECTIONS / str(self._minor) / "abort").write_text("1")
        self.unmount_lazily()

    def unmount_lazily(self) -> None:
        """Take the mount out of the tree, whoever still uses it."""
        for _ in range(8):
            if mounted(self.mountpoint) is None:
                return
            subprocess.run(
                ["umount", "-l", str(self.mountpoint)],
                check=False,
                capture_output=True,
                timeout=20,
            )

    # ---- programs in the mount

    def hands(self) -> Hands:
        """One more process that works in the mount."""
        one = Hands(self.abort)
        self._hands.append(one)
        return one

    def do(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call *function* in a process that is kept for that."""
        if self._own is None:
            self._own = self.hands()
        return self._own.do(function, *args, **kwargs)

    def run(
        self, *argv: str | Path, timeout_s: float = 60, check: bool = True, below: str = "."
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in directory *below* of the mount.

        The directory is entered by ``env``, not by the fork: the test's process would stand still with it.
        """
        words = ["env", f"--chdir={self.mountpoint / below}", "LC_ALL=C", *map(str, argv)]
        with subprocess.Popen(
            words,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                self.abort()
                os.killpg(process.pid, signal.SIGKILL)
                raise Stuck(f"{argv} did not end within {timeout_s} s") from None
        assert not check or process.returncode == 0, f"{argv}: {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    # ---- what it says of itself

    def status(self) -> dict[str, Any]:
        """The mount's part of ``cachefs status --json``."""
        done = cachefs("status", self.mountpoint, "--json", env=self.env, fresh=False)
        # 1 says that something is wrong, and the report says what.
        assert done.returncode in {0, 1}, done.stderr
        document = json.loads(done.stdout)
        if isinstance(document, dict) and "mounts" in document:
            document = document["mounts"]
        if isinstance(document, list):
            document = document[0]
        assert isinstance(document, dict)
        return document

    def flush(self) -> None:
        """``cachefs flush``: upload now, whatever waits."""
        done = cachefs("flush", self.mountpoint, env=self.env, fresh=False)
        assert done.returncode in {0, 5}, done.stderr

    def kernel_setting(self, name: str) -> Path:
        """The file in which the kernel keeps a setting of this mount's backing device."""
        return Path(f"/sys/class/bdi/0:{self._minor}/{name}")

    def wait_clean(self, timeout_s: float = 40, *, but_parked: bool = False) -> None:
        """Return when nothing waits for upload any more (but for what waits for the operator)."""

        def is_clean() -> bool:
            status = self.status()
            dirty: list[Any] = status["dirty"]
            waiting = [one for one in dirty if not (but_parked and one["state"] == "parked")]
            return not waiting and not status["unfinished_renames"]

        wait_until(is_clean, "everything is uploaded, and every rename over", timeout_s)

    def log_text(self) -> str:
        """What the daemon has said since the first start."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    # ---- the rest

    def _bark(self) -> None:
        self._barked = True
        self.abort()
        if self.process is not None:
            self.process.kill()

    def _release_hands(self) -> None:
        self._own = None
        while self._hands:
            self._hands.pop().kill()

    def _end_process(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
        self.process = None

    def _clear(self) -> None:
        if self.process is not None:
            self.abort()
        self._release_hands()
        self._end_process()
        self.unmount_lazily()

    def _say_log(self) -> None:
        print(f"---- log of the daemon at {self.mountpoint}\n{self.log_text()[-20_000:]}\n----")


def _told_ready(
    manager: socket.socket,
    process: "subprocess.Popen[bytes] | forks.Forked",
    timeout_s: float,
) -> bool:
    """Wait for what a service manager waits for, but not beyond the end of the process."""
    end = time.monotonic() + timeout_s
    pid = os.pidfd_open(process.pid)
    try:
        while (left := end - time.monotonic()) > 0 and process.poll() is None:
            heard, _, _ = select.select([manager.fileno(), pid], [], [], left)
            if manager.fileno() in heard and b"READY=1" in manager.recv(65_536):
                return True
    finally:
        os.close(pid)
    return False


def _need_fusectl() -> None:
    if not any(CONNECTIONS.iterdir()):
        subprocess.run(
            ["mount", "-t", "fusectl", "fusectl", str(CONNECTIONS)],
            check=False,
            capture_output=True,
            timeout=20,
        )
