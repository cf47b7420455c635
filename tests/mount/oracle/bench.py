"""A mount and a local directory side by side, and the store behind the mount: what every example works on.

One mount serves many examples, each in a directory of its own; it is mounted anew now and then, and a second
mount, which only reads, is asked at the end of each example what another machine would see.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from cachefs.client import ControlClient
from tests.mount.harness import Hands, Mount, wait_until
from tests.mount.oracle import allowed, sides, stored
from tests.mount.oracle.allowed import Where
from tests.mount.oracle.sides import Answer, Failed
from tests.mount.stores import LiveStore

WORKERS: Final = 2
CACHE_SIZE: Final = 12 << 20
_FILLERS: Final = tuple(f".fill/{i}" for i in range(12))
_PART: Final = "64KiB"
"""Small, so that a file of a few hundred kilobytes is fetched in several pieces."""


class Differs(AssertionError):
    """The mount and the directory do not show the same."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the mount under test works."""

    upload: str = "close"
    fetch: str = "ahead"
    metadata_ttl: str = "0"
    upload_delay: str = "20ms"

    @property
    def options(self) -> tuple[str, ...]:
        """As on the command line."""
        return (
            *("--upload", self.upload, "--upload-delay", self.upload_delay),
            *("--fetch", self.fetch, "--metadata-ttl", self.metadata_ttl),
            *("--cache-size", f"{CACHE_SIZE}", "--part-size", _PART),
        )

    @property
    def sees_others(self) -> bool:
        """Whether what others change at the store must be seen at the next open."""
        return self.metadata_ttl == "0"


@dataclass(eq=False)
class Bench:
    """The mount, the directory and the store. A context manager; counts what it did."""

    store: LiveStore
    base: Path
    settings: Settings
    watchdog_s: float = 120
    steps: Counter[str] = field(default_factory=Counter)
    examples: int = 0
    evicted: int = 0
    slowest: tuple[float, str] = (0.0, "")
    errors: int = 0
    trace: list[str] = field(default_factory=list)
    here: str = ""
    _mount: Mount = field(init=False)
    _other: Mount = field(init=False)
    _workers: list[Hands] = field(init=False, default_factory=list)
    _reader: Hands = field(init=False)
    _is_broken: bool = False

    def __post_init__(self) -> None:
        self.local = self.base / "local"
        self.local.mkdir(parents=True)
        self.aside = self.base / "aside"
        self.aside.mkdir()
        for name in _FILLERS:
            self.store.put(name, sides.made_of(7, 1 << 20))
        self._make_mounts(0)

    def _make_mounts(self, number: int) -> None:
        target = self.store.target()
        options = self.settings.options
        self._mount = Mount(target, self.base / f"m{number}", options, self.watchdog_s)
        only_reads = ("--read-only", "--metadata-ttl", "0")
        self._other = Mount(target, self.base / f"o{number}", only_reads, self.watchdog_s)

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self._begin()
        return self

    def _begin(self) -> None:
        self._stack.enter_context(self._mount)
        self._stack.enter_context(self._other)
        self._man()

    def _man(self) -> None:
        self._workers = [self._mount.hands() for _ in range(WORKERS)]
        for one in self._workers:
            one.do(sides.begin, self._mount.mountpoint, self.local)
        self._reader = self._other.hands()
        self._reader.do(sides.begin, self._other.mountpoint, self.local)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_broken and error is None:
            self._mend()  # what failed has been told; what follows must not hide it
        self._stack.__exit__(kind, error, trace)

    def _mend(self) -> None:
        """Start again with a new mount: the last one may hang, or show anything."""
        with contextlib.suppress(BaseException):
            self._stack.__exit__(Differs, Differs(), None)
        self._stack = contextlib.ExitStack()
        self._make_mounts(self.examples)
        self._begin()
        self._is_broken = False

    # ---- what it did

    @property
    def count(self) -> int:
        """How many steps were taken."""
        return self.steps.total()

    def summary(self) -> str:
        """What was done, in a few lines."""
        kinds = ", ".join(f"{name} {count}" for name, count in self.steps.most_common())
        return (
            f"{self.count} steps in {self.examples} examples, {self.errors} of them errors on both sides,"
            f" {self.evicted} entries evicted; the slowest took {self.slowest[0]:.1f} s\n  {kinds}"
        )

    # ---- examples

    def begin(self) -> None:
        """Make the directory of the next example."""
        if self._is_broken:
            self._mend()
        self.examples += 1
        self.here = f"x{self.examples}"
        self.trace = []
        self.do(0, "mkdir", self.here, 0o755)

    @property
    def is_broken(self) -> bool:
        """Whether something was wrong already, so that nothing that follows says anything."""
        return self._is_broken

    def end(self) -> None:
        """Compare all that an example has left: in the mount, in the store, in another mount; then remove it."""
        self.do(0, "tree", self.here, True)
        self.compare_other_mount()
        tree = self.do(0, "tree", self.here, True).local
        found = stored.objects_below(self.store, f"{self.here}/")
        self._must_be_empty(stored.differences(found, tree), "the store")
        self.do(1, "remove_tree", self.here)
        self.settle(is_all=True)
        left = self.store.all_keys(f"{self.here}/")
        self._must_be_empty(", ".join(left), "the store, after all was removed,")
        wait_until(self._is_at_rest, "nothing is held any more")

    def compare_other_mount(self) -> None:
        """Ask a mount that only reads: it must show what the directory holds, and the same times as the first."""
        self.settle(is_all=True)
        self.note("other mount: tree")
        self.steps["tree of another mount"] += 1
        answer = self._reader.do(sides.do, "tree", self.here, True)
        wrong = allowed.differences(answer, Where(is_other_mount=True))
        self._must_be_empty(wrong, "another mount")
        mine = self._workers[0].do(sides.do, "tree", self.here, False).mount
        for name, one in mine.items():
            times = (one.seen.mtime_ns, answer.mount[name].seen.mtime_ns)
            if one.seen.kind == "dir" or times[0] == times[1]:
                continue
            if "mtime" in self.store.meta(self.here + name):  # else: MOVED_MTIME
                self._fail(f"{name!r}: mtime {times[0]} here, {times[1]} in another mount")

    def _is_at_rest(self) -> bool:
        """Whether all is given back, but for what the kernel has not told yet. Fails at once where it never will."""
        status = self.ask("status")
        for name in ("conflicts", "unfinished_renames", "failed_tasks", "dirty"):
            if status[name]:
                self._fail(f"status shows {name}: {status[name]}")
        cache = status["cache"]
        if cache["used"] > cache["limit"]:
            self._fail(f"the cache uses {cache['used']} of {cache['limit']} bytes")
        return not (status["open_handles"] or cache["pinned"] or cache["reserved"])

    # ---- steps

    def do(
        self,
        worker: int,
        step: str,
        *arguments: Any,  # noqa: ANN401
        where: Where = Where(),  # noqa: B008  (frozen)
    ) -> Answer:
        """Take a step in the mount and in the directory, which must come to the same."""
        self.note(f"{worker}: {step}{arguments}")
        self.steps[step] += 1
        began = time.monotonic()
        try:
            answer = self._workers[worker].do(sides.do, step, *arguments)
        except BaseException as error:
            self.note(f"   broke: {error!r}")
            self._is_broken = True
            raise
        took_s = time.monotonic() - began
        if took_s > self.slowest[0]:
            self.slowest = took_s, self.trace[-1]
        if isinstance(answer.mount, Failed):
            self.errors += 1
            self.note(f"   {answer.mount.name}")
        self._must_be_empty(allowed.differences(answer, where), f"{step}{arguments}")
        return answer

    def at_once(self, step: str, *arguments: Sequence[Any]) -> None:
        """Take a step in each worker at the same time, with arguments of its own."""
        self.note(f"at once: {step}{arguments}")
        self.steps[step] += 1
        for worker, own in zip(self._workers, arguments, strict=True):
            worker.begin(sides.do, step, *own)
        for worker in self._workers:
            answer = worker.finish(60)
            self._must_be_empty(allowed.differences(answer, Where()), step)

    def note(self, line: str) -> None:
        """Keep a line of what was done, to be told when something is wrong."""
        self.trace.append(line)

    def _must_be_empty(self, wrong: str, where: str) -> None:
        if wrong:
            self._fail(f"{where}: {wrong}")

    def _fail(self, wrong: str) -> None:
        self._is_broken = True
        steps = "\n  ".join(self.trace)
        raise Differs(f"{wrong}\nafter these steps in {self.here}:\n  {steps}")

    def local_size(self, worker: int, number: int, *, mapped: bool = False) -> int:
        """How long the file behind a descriptor or a mapping is in the directory; no step."""
        return self._workers[worker].do(sides.local_size, number, mapped)

    # ---- what happens to a mount

    def ask(self, verb: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401
        """A question to the daemon's control socket."""
        with ControlClient(self._mount.cache_dir / "control.sock") as client:
            answer = client.ask(verb, timeout_s=60, **arguments)
        assert isinstance(answer, dict)
        return answer

    def settle(self, *, is_all: bool = False) -> None:
        """Have everything uploaded that is complete, and wait for it; *is_all*: nobody is writing anything."""

        def is_settled() -> bool:
            self.ask("flush", paths=[], wait=True)
            dirty = self.ask("status")["dirty"]
            return not any(is_all or each["state"] != "open" for each in dirty)

        wait_until(is_settled, "everything that is complete is uploaded", 30)

    def evict(self) -> None:
        """Have the cache drop whatever it may, by reading more than it can hold."""
        before = self.ask("status")["cache"]["evicted"]
        self.do(0, "read_past", _FILLERS)
        self.evicted += self.ask("status")["cache"]["evicted"] - before

    def remount(self) -> None:
        """End the workers and the mount, and start again; every file keeps its inode number."""
        self.note("remount")
        self.steps["remount"] += 1
        before = self._inodes()
        try:
            code = self._mount.stop()
            if code:
                self._fail(f"the daemon ended with {code}")
            self._mount.start()
            self._reader.kill()
            self._man()
        except BaseException:
            self._is_broken = True
            raise
        after = self._inodes()
        if before != after:
            self._fail(f"inode numbers were {before} and are {after}")

    def _inodes(self) -> dict[str, int]:
        tree = self._workers[0].do(sides.do, "tree", self.here, False).mount
        return {name: one.seen.ino for name, one in tree.items()}

    def kill_worker(self, worker: int) -> None:
        """End a process with everything that it has open, and start another in its place."""
        self.note(f"kill worker {worker}")
        self.steps["kill worker"] += 1
        self._workers[worker].kill()
        self._workers[worker] = self._mount.hands()
        self._workers[worker].do(sides.begin, self._mount.mountpoint, self.local)

    # ---- what others do at the store

    def put_behind(self, path: str, seed: int, size: int) -> None:
        """Store an object past the mount, and put a file in its place in the directory."""
        self.note(f"another client: put({path}, {seed}, {size})")
        self.steps["remote put"] += 1
        self.settle()
        content = sides.made_of(seed, size)
        self.store.put(path, content)
        new = self.aside / "new"
        new.write_bytes(content)
        new.chmod(0o644)
        with self._times_kept(path):
            (self.local / path).parent.mkdir(parents=True, exist_ok=True)
            new.rename(self.local / path)

    def delete_behind(self, path: str) -> None:
        """Delete an object past the mount; a directory that only it made goes with it."""
        self.note(f"another client: delete({path})")
        self.steps["remote delete"] += 1
        self.settle()
        self.store.delete(path)
        with self._times_kept(path):
            (self.local / path).unlink()
        parent = path.rpartition("/")[0]
        while parent != self.here and not self.store.all_keys(f"{parent}/"):
            with self._times_kept(parent):
                (self.local / parent).rmdir()
            parent = parent.rpartition("/")[0]

    @contextlib.contextmanager
    def _times_kept(self, path: str) -> Any:  # noqa: ANN401
        """Leave the time of the directory as it was: another client's change of its content does not move ours."""
        parent = (self.local / path).parent
        while not parent.exists():
            parent = parent.parent
        before = os.stat(parent)
        yield
        os.utime(parent, ns=(before.st_atime_ns, before.st_mtime_ns))
