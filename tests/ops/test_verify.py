"""A directory held against the store: each file is found to be what it is."""

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cachefs.core.errors import Denied, Fault, Unreachable
from cachefs.core.types import Key
from cachefs.local.hashed import HashMemory
from cachefs.ops.compare import Comparer, Patience
from cachefs.ops.events import Progress
from cachefs.ops.findings import FINE, Finding, State
from cachefs.ops.globs import chosen
from cachefs.ops.throttle import Throttle
from cachefs.ops.verify import DirectoryCheck
from tests.ops.telling import TellingStore

NOW_NS = 2 * 10**18
OLD_S = 10**9
NAMES = ("a", "a-b", "a.d/x", "z/ä", "z/\udcff\n", "sub/deep/er/file")


@pytest.fixture
def store() -> TellingStore:
    return TellingStore()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[HashMemory]:
    with HashMemory(tmp_path / "state" / "hashed.sqlite3") as memory:
        yield memory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


def write(root: Path, name: str, content: bytes, *, mtime_s: int = OLD_S) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (mtime_s, mtime_s))


def both(root: Path, store: TellingStore, names: tuple[str, ...] = NAMES) -> None:
    for name in names:
        write(root, name, name.encode("utf-8", "surrogateescape"))
        store.add(name, name.encode("utf-8", "surrogateescape"))


class Run:
    """One run, and what it has cost."""

    def __init__(
        self,
        root: Path,
        store: TellingStore,
        memory: HashMemory,
        *,
        patience: Patience | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        threads: int = 2,
        is_one_way: bool = False,
    ) -> None:
        self._store = store
        self._before = dict(store.requests)
        self.comparer = Comparer(
            store,
            throttle=Throttle(None),
            patience=patience or Patience(),
            now_ns=lambda: NOW_NS,
        )
        self.events = DirectoryCheck(
            str(root),
            store,
            memory,
            self.comparer,
            chosen=chosen(include, exclude),
            threads=threads,
            is_one_way=is_one_way,
            now_ns=lambda: NOW_NS,
        ).run()

    def findings(self) -> dict[str, Finding]:
        found = [event for event in self.events if isinstance(event, Finding)]
        by_path = {finding.path: finding for finding in found}
        assert len(by_path) == len(found)  # one for each file
        return by_path

    def states(self) -> dict[str, State]:
        """Of what is not the same on both sides."""
        found = self.findings()
        return {path: each.state for path, each in found.items() if each.state not in FINE}

    def asked(self) -> dict[str, int]:
        return {
            name: count - self._before.get(name, 0)
            for name, count in self._store.requests.items()
            if count != self._before.get(name, 0)
        }


def test_each_file_is_found_in_its_state(
    root: Path, store: TellingStore, memory: HashMemory
) -> None:
    both(root, store)
    write(root, "changed", b"here")
    store.add("changed", b"them")
    write(root, "longer", b"longer")
    store.add("longer", b"long")
    write(root, "only-here", b"x")
    store.add("only-there", b"there")
    store.add("markers/", b"")
    write(root, "silent", b"x")
    store.add("silent", b"x")
    store.tell("silent", "no-md5")
    os.mkfifo(root / "pipe")

    run = Run(root, store, memory)
    found = run.findings()

    assert {path: each.state for path, each in found.items() if path not in NAMES} == {
        "changed": State.DIFFERS,
        "longer": State.DIFFERS,
        "only-here": State.MISSING_REMOTE,
        "only-there": State.MISSING_LOCAL,
        "silent": State.UNVERIFIABLE,
    }
    assert {found[name].state for name in NAMES} == {State.SAME}
    differing = found["changed"]
    assert differing.local_md5 == hashlib.md5(b"here").hexdigest()
    assert differing.remote_md5 == hashlib.md5(b"them").hexdigest()
    assert (differing.size, differing.mtime_ns) == (4, OLD_S * 10**9)
    assert found["only-there"].size == 5


def test_what_is_the_same_costs_one_listing_and_one_hash_and_then_only_the_listing(
    root: Path, store: TellingStore, memory: HashMemory
) -> None:
    both(root, store)
    pages = len(NAMES) // 2

    first = Run(root, store, memory)
    assert first.states() == {}
    assert first.asked() == {"list": pages}
    assert first.comparer.counts.hashed_files == len(NAMES)

    second = Run(root, store, memory)
    assert second.states() == {}
    assert second.asked() == {"list": pages}
    assert second.comparer.counts.hashed_bytes == 0


def test_only_what_changed_is_hashed_again_and_all_of_it_with_full(
    root: Path, store: TellingStore, memory: HashMemory
) -> None:
    both(root, store)
    assert Run(root, store, memory).states() == {}
    write(root, "a", b"!", mtime_s=OLD_S + 1)

    again = Run(root, store, memory)
    assert again.states() == {"a": State.DIFFERS}
    assert again.comparer.counts.hashed_files == 1

    full = Run(root, store, memory, patience=Patience(is_full=True))
    assert full.states() == {"a": State.DIFFERS}
    assert full.comparer.counts.hashed_files == len(NAMES)


def test_another_version_at_the_store_is_noticed_although_nothing_changed_here(
    root: Path, store: TellingStore, memory: HashMemory
) -> None:
    both(root, store)
    assert Run(root, store, memory).states() == {}
    store.add("a", b"!")
    store.delete(Key("a-b"))

    again = Run(root, store, memory)

    assert again.states() == {"a": State.DIFFERS, "a-b": State.MISSING_REMOTE}
    assert again.comparer.counts.hashed_files == 0
    assert again.asked()["fingerprint"] == 2


def test_an_object_that_a_listing_does_not_show_yet_is_not_missing(
    root: Path, store: TellingStore, memory: HashMemory
) -> None:
    both(root, store)
    late = store.list(Key(""), deep=True)
    pages = list(late)
    write(root, "b", b"new")
    store.add("b", b"new")
    store.list = lambda *_, **__: iter(pages)  # type: ignore[method-assign]

    assert Run(root, store, memory).states() == {}


def test_one_way_passes_over_what_only_the_store_has(
    root: Path, store: TellingStore, memory: HashMemory
) -> None:
    both(root, store)
    store.add("only-there", b"x")

    assert Run(root, store, memory, is_one_way=True).states() == {}


def test_patterns_leave_out_files_on_both_sides(
    root: Path, store: TellingStore, memory: HashMemory
) -> None:
    both(root, store)
    write(root, "new.tmp", b"x")
    store.add("old.tmp", b"x")
    write(root, "z/changed", b"x")

    found = Run(root, store, memory, include=("z/", "*.tmp"), exclude=("*.tmp",)).findings()

    assert set(found) == {"z/changed", "z/\udcff\n", "z/ä"}


@pytest.mark.parametrize(
    ("include", "exclude", "told"),
    [((), (), ["sub/"]), (("file",), (), ["sub/"]), ((), ("sub/",), [])],
)
def test_below_a_directory_that_cannot_be_read_nothing_counts_as_missing(
    root: Path,
    store: TellingStore,
    memory: HashMemory,
    monkeypatch: pytest.MonkeyPatch,
    include: Sequence[str],
    exclude: Sequence[str],
    told: list[str],
) -> None:
    both(root, store)
    scandir = os.scandir

    def refuse(path: bytes) -> "os._ScandirIterator[bytes]":
        if path.endswith(b"/sub"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = Run(root, store, memory, include=include, exclude=exclude).findings()

    assert [path for path, each in found.items() if each.state is not State.SAME] == told
    for path in told:
        assert (found[path].state, found[path].reason) == (State.ERROR, "Permission denied")


def test_an_object_that_may_not_be_looked_at_is_one_error_among_findings(
    root: Path, store: TellingStore, memory: HashMemory
) -> None:
    both(root, store)
    write(root, "a", b"!")

    def deny(key: Key) -> None:
        raise Denied(f"no access to {key}")

    store.before_fingerprint = deny
    finding = Run(root, store, memory).findings()["a"]

    assert (finding.state, finding.reason) == (State.ERROR, "no access to a")


def test_a_name_that_no_object_can_have_is_an_error_and_one_that_is_escaped_is_its_object(
    root: Path, store: TellingStore, memory: HashMemory
) -> None:
    both(root, store)
    write(root, "~cachefs~no", b"x")
    write(root, "d/~cachefs~dot", b"y")
    store.add("d/.", b"y")
    store.add("e//f", b"z")

    assert Run(root, store, memory).states() == {
        "~cachefs~no": State.ERROR,
        "e/~cachefs~empty/f": State.MISSING_LOCAL,
    }


@pytest.mark.parametrize(("error", "borne"), [(Unreachable("gone"), 0), (Fault("500"), 2)])
def test_a_store_that_is_gone_ends_the_run_soon(
    root: Path, store: TellingStore, memory: HashMemory, error: Fault, borne: int
) -> None:
    asked: list[Key] = []
    for number in range(9):
        write(root, f"{number}", b"x")

    def fail(key: Key) -> None:
        asked.append(key)
        raise error

    store.before_fingerprint = fail
    with pytest.raises(type(error)):
        Run(root, store, memory, threads=1).findings()
    assert len(asked) == borne + 1


def test_a_listing_that_breaks_off_ends_the_run_and_nothing_counts_as_missing(
    root: Path, store: TellingStore, memory: HashMemory
) -> None:
    both(root, store)
    whole = list(store.list(Key(""), deep=True))

    def torn(*_: object, **__: object) -> Iterator[Any]:
        yield whole[0]
        raise Fault("cut")

    store.list = torn  # type: ignore[method-assign]
    run = Run(root, store, memory)
    found: list[object] = []
    with pytest.raises(Fault, match="cut"):
        found.extend(run.events)
    states = {event.state for event in found if isinstance(event, Finding)}
    assert State.MISSING_REMOTE not in states


def test_a_file_that_changes_under_our_eyes_is_looked_at_again(
    root: Path, store: TellingStore, memory: HashMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    both(root, store)
    write(root, "a", b"early")
    store.add("a", b"later")
    opened = os.open
    turns = iter([b"early", b"later"])

    def open_and_write(path: bytes, flags: int) -> int:
        descriptor = opened(path, flags)
        if path == os.fsencode(root / "a") and (content := next(turns, None)):
            with monkeypatch.context() as patch:
                patch.setattr(os, "open", opened)
                write(root, "a", content, mtime_s=OLD_S + content[0])
        return descriptor

    monkeypatch.setattr(os, "open", open_and_write)

    assert Run(root, store, memory).states() == {}


def test_a_file_is_not_said_to_differ_as_it_was_a_moment_ago(
    root: Path, store: TellingStore, memory: HashMemory
) -> None:
    both(root, store)
    store.add("a", b"later")
    store.delete(Key("a-b"))

    def write_both(key: Key) -> None:
        write(root, "a", b"later")
        (root / "a-b").unlink(missing_ok=True)

    store.before_fingerprint = write_both
    states = Run(root, store, memory).states()

    assert states == {"a-b": State.ERROR}


def test_a_run_that_is_cut_short_remembers_what_it_had_hashed(
    root: Path, store: TellingStore, memory: HashMemory
) -> None:
    for number in range(600):
        write(root, f"{number:03}", b"x" * number)
        store.add(f"{number:03}", b"x" * number)
    first = Run(root, store, memory, threads=2)
    with closing(first.events):
        for event in first.events:
            if isinstance(event, Progress):
                break
    hashed = first.comparer.counts.hashed_files
    assert 64 <= hashed < 600

    second = Run(root, store, memory)

    assert second.states() == {}
    assert second.comparer.counts.hashed_files <= 600 - 64


def test_files_that_are_gone_are_forgotten(
    root: Path, store: TellingStore, memory: HashMemory
) -> None:
    both(root, store)
    assert Run(root, store, memory).states() == {}
    for name in NAMES[:3]:
        (root / name).unlink()
        store.delete(Key(name))

    assert Run(root, store, memory).states() == {}

    assert sorted(row.path for row in memory.all()) == sorted(NAMES[3:])
