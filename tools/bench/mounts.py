"""One mount of one tool, under a watchdog: nothing here ever touches the mount from this process."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tools.bench import usage
from tools.bench.bucket import Bucket
from tools.bench.peers import Place, Tool

ROOT: Final = Path(__file__).parents[2]
WORK: Final = Path(__file__).with_name("work.py")
CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
START_LIMIT_S: Final = 60
STOP_LIMIT_S: Final = 120


class Failed(Exception):
    """A row that has no figure, and why."""


def environment(home: Path, extra: dict[str, str]) -> dict[str, str]:
    """Variables without anybody's own credentials and configuration."""
    foreign = re.compile(r"(AWS|OS|ST|CACHEFS|RCLONE|XDG)_")
    kept = {k: v for k, v in os.environ.items() if not foreign.match(k)}
    return {
        **kept,
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "AWS_EC2_METADATA_DISABLED": "true",
        "no_proxy": "*",
        **extra,
    }


def minor_of(mountpoint: Path) -> int | None:
    """The minor device number of the FUSE mount that stands there; asks nothing of the mount."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if fields[4] == str(mountpoint) and right.startswith("fuse"):
            found = int(fields[2].split(":")[1])
    return found


@dataclass(eq=False)
class Mount:
    """A mount from start to end. As a context manager it leaves no process, mount or file behind."""

    tool: Tool
    store: Bucket
    base: Path
    wrap: Callable[[list[str]], list[str]] = lambda argv: argv
    place: Place = field(init=False)
    begun: float = field(init=False, default=0.0)
    answered: float = field(init=False, default=0.0)
    _process: "subprocess.Popen[bytes] | None" = field(init=False, default=None)
    _minor: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.place = Place(self.base / "mnt", self.base / "cache", self.base / "home")
        for each in (self.base, self.place.mountpoint, self.place.home):
            each.mkdir()
        self.place.cache_dir.mkdir(mode=0o700)

    def __enter__(self) -> Self:
        try:
            self._start()
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
            if error is None:
                self._stop()
        finally:
            self._clear()

    def remount(self) -> None:
        """End the daemon, and mount again with the cache that it left."""
        self._stop()
        self._minor = None
        self._start()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that the daemon has."""
        return environment(self.place.home, self.tool.environment(self.store))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def use(self) -> usage.Usage:
        """What the daemon has used so far."""
        return usage.of(self.pid)

    def work(self, do: str, limit_s: float, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401
        """Do something in the mount, in a child; a child that does not come back costs the mount its life."""
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", str(WORK), json.dumps({"do": do, **arguments})],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = child.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.abort()
            child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.communicate(timeout=20)
            raise Failed(f"no answer within {limit_s:.0f} s") from None
        except BaseException:
            child.kill()
            raise
        if child.returncode == 0:
            result: dict[str, Any] = json.loads(out)
            return result
        raise Failed(_last_line(out or err))

    def abort(self) -> None:
        """Cut the kernel's connection to the daemon, so that nobody waits for it any more."""
        # The number may be another's by now if the mount is gone: only what is mounted here is ours.
        if self._minor is None or minor_of(self.place.mountpoint) != self._minor:
            return
        if os.geteuid() == 0 and not any(CONNECTIONS.iterdir()):
            _run("mount", "-t", "fusectl", "fusectl", str(CONNECTIONS))
        with contextlib.suppress(OSError):
            (CONNECTIONS / str(self._minor) / "abort").write_text("1")

    def last_words(self) -> str:
        """The end of what the daemon said."""
        try:
            return _last_line((self.base / "log").read_bytes())
        except OSError:
            return ""

    def _start(self) -> None:
        argv = self.wrap(self.tool.argv(self.store, self.place))
        self.begun = time.monotonic()
        with (self.base / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv],
                env=environment(self.place.home, self.tool.environment(self.store)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.place.home,
                start_new_session=True,
            )
        self._wait_mounted()
        self.answered = self.work("answer", START_LIMIT_S, path=str(self.place.mountpoint))["end"]

    def _wait_mounted(self) -> None:
        assert self._process is not None
        pause = threading.Event()
        end = time.monotonic() + START_LIMIT_S
        while self._minor is None:
            if self._process.poll() is not None:
                raise Failed(f"exit {self._process.returncode}: {self.last_words()}")
            if time.monotonic() > end:
                raise Failed(f"not mounted within {START_LIMIT_S} s: {self.last_words()}")
            pause.wait(0.005)
            self._minor = minor_of(self.place.mountpoint)

    def _stop(self) -> None:
        assert self._process is not None
        _run("fusermount3", "-u", str(self.place.mountpoint))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_LIMIT_S)

    def _clear(self) -> None:
        self.abort()
        for _ in range(4):
            if minor_of(self.place.mountpoint) is None:
                break
            _run("fusermount3", "-uz", str(self.place.mountpoint))
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        remove(self.base)


def remove(directory: Path) -> None:
    """Delete a directory of ours, and never a file system that is still mounted in it."""
    _run("rm", "-rf", "--one-file-system", "--", str(directory))


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1][-500:] if lines else "no word"


def _run(*argv: str) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
