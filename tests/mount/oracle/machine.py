"""What programs, the cache and other clients may do, as Hypothesis rules.

A rule stands for a group of steps, so that all that is done to the bytes of open files has its share. What a step
needs (a handle, a mapping) is made where there is none.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.mount.oracle.allowed import Where
from tests.mount.oracle.bench import WORKERS, Bench
from tests.mount.oracle.sides import NOREPLACE, PAGE, Failed

LONGEST: Final = 400_000
_MAX_HANDLES: Final = 8
_MAX_MAPS: Final = 4
_EDGES: Final = (0, 1, 511, 4095, 4096, 4097, 65_535, 65_536, 65_537, 131_072, 200_001, 262_144)
_NAMES: Final = ("a", "b", "c", "d e", "é")

places = st.sampled_from(_EDGES) | st.integers(0, LONGEST)
lengths = st.sampled_from((1, 17, 4096, 5000, 65_536, 70_001, 150_000)) | st.integers(1, 20_000)
seeds = st.integers(1, 99_999)
picks = st.integers(0, 63)
names = st.sampled_from(_NAMES)
workers = st.integers(0, WORKERS - 1)
modes = st.sampled_from((0o600, 0o644, 0o755, 0o444, 0o4755, 0o2755, 0o000, 0o666))
owners = st.sampled_from((0, 1, 1000, 65_534))
times_ns = st.integers(10**18, 15 * 10**17 - 1) | st.sampled_from((0, 1, 10**18 + 1))
attribute_names = st.sampled_from(("user.a", "user.comment", "user.Größe"))
attribute_values = st.sampled_from((b"", b"x", b"\x00\xff", b"a longer value " * 8))
accesses = st.sampled_from((os.O_RDWR, os.O_RDWR, os.O_RDWR, os.O_RDONLY, os.O_WRONLY))


def one_of(*choices: str) -> st.SearchStrategy[str]:
    """One word; those that are said twice come twice as often."""
    return st.sampled_from(choices)


@dataclass(eq=False)
class Handle:
    """One descriptor in one worker, on either side."""

    number: int
    worker: int
    flags: int
    ino: int
    """The file's inode number in the directory."""
    is_lost: bool = False
    """Another client has replaced or removed the object that it is of."""

    @property
    def may_read(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def may_write(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def is_direct(self) -> bool:
        return bool(self.flags & os.O_DIRECT)


@dataclass(eq=False)
class Mapping:
    """One mapping in one worker, on either side."""

    number: int
    handle: Handle
    kind: str
    offset: int
    size: int


class Steps(RuleBasedStateMachine):
    """What the rules are made of. A subclass says which bench."""

    bench: ClassVar[Bench]

    def __init__(self) -> None:
        super().__init__()
        self.bench.begin()
        self.handles: list[Handle] = []
        self.maps: list[Mapping] = []
        self.unsynced: set[int] = set()
        """Inode numbers, in the directory, of files with pages written through a mapping and not synced."""
        self._number = 0
        self._rare: dict[str, int] = {}

    def teardown(self) -> None:
        """Close what is open, and compare everything."""
        if self.bench.is_broken:
            return
        for mapping in list(self.maps):
            self._unmap(mapping)
        for handle in list(self.handles):
            self._close(handle)
        self.bench.end()

    # ---- what there is

    def _entries(self, *, dirs: bool = False, files: bool = False) -> list[str]:
        """The names that exist, relative to the mount: the kinds asked for; directories count the example's own."""
        found = [self.bench.here] if dirs else []
        for top, names_of_dirs, names_of_files in os.walk(self.bench.local / self.bench.here):
            at = os.path.relpath(top, self.bench.local)
            links = [n for n in names_of_dirs if os.path.islink(f"{top}/{n}")]
            if dirs:
                found += [f"{at}/{n}" for n in names_of_dirs if n not in links]
            if files:
                found += [f"{at}/{n}" for n in (*names_of_files, *links)]
        return sorted(found)

    def _file(self, pick: int) -> str:
        """A name that is no directory; one that does not exist where there is none."""
        found = self._entries(files=True)
        return found[pick % len(found)] if found else f"{self.bench.here}/a"

    def _dir(self, pick: int) -> str:
        found = self._entries(dirs=True)
        return found[pick % len(found)]

    def _any(self, pick: int) -> str:
        """Any name below the example's directory."""
        found = self._entries(dirs=True, files=True)[1:]
        return found[pick % len(found)] if found else f"{self.bench.here}/a"

    def _new(self, pick: int, name: str) -> str:
        """A name in a directory, taken or not; not deeper than a few levels."""
        found = [each for each in self._entries(dirs=True) if each.count("/") < 4]
        return f"{found[pick % len(found)]}/{name}"

    def _handle(self, pick: int, fits: Callable[[Handle], bool] = lambda _: True) -> Handle | None:
        """An open handle that fits; where there is none, one that is opened now, if that can be."""
        fitting = [each for each in self.handles if fits(each) and not each.is_lost]
        if fitting:
            return fitting[pick % len(fitting)]
        if len(self.handles) >= _MAX_HANDLES:
            self._close(self.handles[0])
        opened = self._open(pick % WORKERS, self._file(pick), os.O_RDWR)
        return opened if opened is not None and fits(opened) else None

    def _mapping(self, pick: int, size: int, kind: str) -> Mapping | None:
        """A mapping; a new one where there is none."""
        fitting = [each for each in self.maps if kind == "any" or each.kind == kind]
        return fitting[pick % len(fitting)] if fitting else self._map(pick, kind, 0, size)

    def _do(self, worker: int, step: str, *arguments: Any) -> Any:  # noqa: ANN401
        return self.bench.do(worker, step, *arguments, where=self._where()).mount

    def _where(self, *, is_lost: bool = False) -> Where:
        return Where(frozenset(self.unsynced), is_lost)

    def _on(self, handle: Handle | None, step: str, *arguments: Any) -> None:  # noqa: ANN401
        if handle is not None:
            where = self._where(is_lost=handle.is_lost)
            self.bench.do(handle.worker, step, handle.number, *arguments, where=where)

    def _is_rare(self, what: str, most: int) -> bool:
        """Whether something that takes long may be done again in this example."""
        self._rare[what] = self._rare.get(what, 0) + 1
        return self._rare[what] <= most

    # ---- handles

    def _open(self, worker: int, path: str, flags: int, mode: int = 0o644) -> Handle | None:
        local = self.bench.local / path
        if local.exists() and not local.is_file():
            return None  # REMOVED_NODE
        self._number += 1
        if isinstance(self._do(worker, "open", self._number, path, flags, mode), Failed):
            return None
        ino = os.stat(self.bench.local / path).st_ino
        self.handles.append(Handle(self._number, worker, flags, ino))
        return self.handles[-1]

    def _close(self, handle: Handle) -> None:
        self.handles.remove(handle)
        self._on(handle, "close")

    def _pread(self, handle: Handle | None, offset: int, size: int) -> None:
        if handle is not None and handle.is_direct:
            self._on(handle, "pread_direct", offset & -PAGE, -(-size // PAGE) * PAGE)
        else:
            self._on(handle, "pread", offset, size)

    def _pwrite(self, handle: Handle | None, offset: int, seed: int, size: int) -> None:
        if handle is not None and handle.is_direct:
            self._on(handle, "pwrite_direct", offset & -PAGE, seed, -(-size // PAGE) * PAGE)
        else:
            self._on(handle, "pwrite", offset, seed, size)

    # ---- mappings

    def _map(self, pick: int, kind: str, offset: int, size: int) -> Mapping | None:
        handle = self._handle(pick, lambda each: each.may_read)
        if handle is None:
            return None
        length = self.bench.local_size(handle.worker, handle.number)
        if not length:
            return None
        kind = "read" if kind == "any" or (kind == "shared" and not handle.may_write) else kind
        offset = min(offset & -PAGE, (length - 1) & -PAGE)
        size = min(size, length - offset)
        if len(self.maps) >= _MAX_MAPS:
            self._unmap(self.maps[0])
        self._number += 1
        number, its = self._number, handle.number
        answer = self._do(handle.worker, "map_file", number, its, kind, offset, size)
        if isinstance(answer, Failed):
            return None
        self.maps.append(Mapping(number, handle, kind, offset, size))
        return self.maps[-1]

    def _map_read(self, mapping: Mapping | None, start: int, size: int) -> None:
        inside = self._inside(mapping, start, size)
        if mapping is not None and inside is not None:
            self._through(mapping, "map_read", *inside)

    def _map_write(self, mapping: Mapping | None, start: int, seed: int, size: int) -> None:
        inside = self._inside(mapping, start, size)
        if mapping is None or inside is None or mapping.kind == "read":
            return
        self._through(mapping, "map_write", inside[0], seed, inside[1])
        if mapping.kind == "shared":
            self.unsynced.add(mapping.handle.ino)

    def _inside(self, mapping: Mapping | None, start: int, size: int) -> tuple[int, int] | None:
        """The part of the wish that is inside the mapping and the file: beyond its end there is only SIGBUS."""
        if mapping is None:
            return None
        size_now = self.bench.local_size(mapping.handle.worker, mapping.number, mapped=True)
        end = min(mapping.size, size_now - mapping.offset)
        if end <= 0:
            return None
        start %= end
        return start, min(size, end - start)

    def _through(self, mapping: Mapping, step: str, *arguments: Any) -> None:  # noqa: ANN401
        self._do(mapping.handle.worker, step, mapping.number, *arguments)

    def _sync_maps(self) -> None:
        """Sync every page: a time that is set before they are written would be moved by them (MAPPED_MTIME)."""
        for mapping in self.maps:
            if mapping.kind == "shared":
                self._through(mapping, "map_sync")
        self.unsynced.clear()

    def _unmap(self, mapping: Mapping) -> None:
        self.maps.remove(mapping)
        self._through(mapping, "unmap")
        if mapping.handle.ino not in {each.handle.ino for each in self.maps}:
            self.unsynced.discard(mapping.handle.ino)


class Bytes(Steps):
    """What is done to the bytes of files."""

    @rule(
        how=one_of("open", "open", "open", "append", "direct", "truncate", "nofollow"),
        worker=workers,
        pick=picks,
        access=accesses,
    )
    def open(self, how: str, worker: int, pick: int, access: int) -> None:
        extra = {
            "append": os.O_APPEND,
            "direct": os.O_DIRECT,
            "truncate": 0 if access == os.O_RDONLY else os.O_TRUNC,  # POSIX leaves that open
            "nofollow": os.O_NOFOLLOW,
        }.get(how, 0)
        if len(self.handles) < _MAX_HANDLES:
            self._open(worker, self._file(pick), access | extra)

    @rule(pick=picks)
    def close(self, pick: int) -> None:
        if self.handles:
            self._close(self.handles[pick % len(self.handles)])

    @rule(
        how=one_of("pread", "pread", "on", "map", "map", "whole"),
        pick=picks,
        offset=places,
        size=lengths,
    )
    def read(self, how: str, pick: int, offset: int, size: int) -> None:
        if how == "pread":
            lost = [each for each in self.handles if each.is_lost]
            self._pread(lost[0] if lost and pick % 2 else self._handle(pick), offset, size)
        elif how == "on":
            self._on(self._handle(pick, lambda each: not each.is_direct), "read_on", size)
        elif how == "map":
            self._map_read(self._mapping(pick, size, "any"), offset, size)
        else:
            self._do(pick % WORKERS, "read_file", self._file(pick))

    @rule(
        how=one_of(
            "pwrite", "pwrite", "pwrite", "on", "map", "map", "map", "private", "whole", "save"
        ),
        pick=picks,
        offset=places,
        size=lengths,
        seed=seeds,
    )
    def write(self, how: str, pick: int, offset: int, size: int, seed: int) -> None:
        if how == "pwrite":
            self._pwrite(self._handle(pick, lambda each: each.may_write), offset, seed, size)
        elif how == "on":
            handle = self._handle(pick, lambda each: each.may_write and not each.is_direct)
            self._on(handle, "write_on", seed, size)
        elif how == "map":
            self._map_write(self._mapping(pick, LONGEST, "shared"), offset, seed, size)
        elif how == "private":
            self._map_write(self._mapping(pick, size, "private"), offset, seed, size)
        else:
            step = "write_file" if how == "whole" else "save_file"
            self._do(pick % WORKERS, step, self._file(pick), seed, offset)

    @rule(
        how=one_of("handle", "handle", "name", "allocate"), pick=picks, offset=places, size=lengths
    )
    def resize(self, how: str, pick: int, offset: int, size: int) -> None:
        if how == "handle":
            self._on(self._handle(pick), "ftruncate", offset)
        elif how == "name":
            self._do(pick % WORKERS, "truncate", self._file(pick), offset)
        else:  # EMULATED_FALLOCATE
            kinds = os.O_ACCMODE | os.O_APPEND | os.O_DIRECT
            handle = self._handle(pick, lambda each: each.flags & kinds == os.O_RDWR)
            self._on(handle, "allocate", offset, min(size, 60_000))

    @rule(
        how=one_of("fsync", "msync", "msync", "pages", "pages", "seek"), pick=picks, offset=places
    )
    def sync(self, how: str, pick: int, offset: int) -> None:
        handle = self._handle(pick)
        if how == "fsync" and handle is not None:
            self._on(handle, "fsync")
            self.unsynced.discard(handle.ino)
        elif how == "msync":
            self._sync_maps()
        elif how == "pages":
            self._on(handle, "forget_pages")
        elif pick % 2:
            self._on(handle, "seek", offset, os.SEEK_SET)
        else:
            self._on(handle, "seek", -min(offset, 3), os.SEEK_END)

    @rule(
        kind=one_of("shared", "shared", "private", "read"),
        pick=picks,
        offset=places,
        size=lengths,
        more=st.booleans(),
    )
    def map(self, kind: str, pick: int, offset: int, size: int, more: bool) -> None:
        if more:
            self._map(pick, kind, offset, LONGEST if pick % 2 else size)
        elif self.maps:
            self._unmap(self.maps[pick % len(self.maps)])

    @rule(pick=picks, onto=picks, at=places, to=places, size=lengths)
    def copy_range(self, pick: int, onto: int, at: int, to: int, size: int) -> None:
        one = self._handle(pick, lambda each: not each.is_direct)
        if one is None:
            return
        other = self._handle(onto, lambda each: each.worker == one.worker and not each.is_direct)
        if other is not None and other.worker == one.worker:
            self._do(one.worker, "copy_range", one.number, other.number, at, to, size)

    @rule(
        how=one_of("fstat", "fstat", "fchmod", "futimens"),
        pick=picks,
        mode=modes,
        time_ns=times_ns,
    )
    def attributes_of_handle(self, how: str, pick: int, mode: int, time_ns: int) -> None:
        handle = self._handle(pick)
        if how == "fstat":
            self._on(handle, "fstat")
        elif how == "fchmod":
            self._on(handle, "fchmod", mode)
        else:
            self._sync_maps()
            self._on(handle, "futimens", time_ns, time_ns // 3)

    @rule(how=one_of("everything", "contents", "stat", "names"), worker=workers, pick=picks)
    def look(self, how: str, worker: int, pick: int) -> None:
        if how == "stat":
            path = self._any(pick)
            for step in ("lstat", "stat", "same_file"):
                self._do(worker, step, path)
        elif how == "names":
            self._do(worker, "names", self._dir(pick))
        else:
            self._do(worker, "tree", self.bench.here, how == "contents")

    @rule(
        how=one_of("stripes", "append"),
        pick=picks,
        name=names,
        piece=st.sampled_from((100, 4096, 5000)),
    )
    def together(self, how: str, pick: int, name: str, piece: int) -> None:
        """Two processes write one file at the same time."""
        path = self._new(pick, name)
        local = self.bench.local / path
        if os.path.lexists(local) and not stat.S_ISREG(os.lstat(local).st_mode):
            return
        self._do(0, "write_file", path, 3, piece)
        if how == "stripes":
            parts = ((path, mine, WORKERS, piece, 12) for mine in range(WORKERS))
            self.bench.at_once("write_stripes", *parts)
        else:
            self.bench.at_once("append_lines", *((path, b"the same line\n", 8),) * WORKERS)
        self._do(1, "read_file", path)


class Disturbances(Steps):
    """What happens to a mount and to processes."""

    @rule(
        what=one_of("settle", "settle", "evict", "remount", "kill", "other mount"), worker=workers
    )
    def disturb(self, what: str, worker: int) -> None:
        if what == "settle":
            self.bench.settle()
        elif what == "other mount" and self._is_rare(what, 3):
            # Close to open: what is being written need not be seen yet.
            if not self.maps and not any(each.may_write for each in self.handles):
                self.bench.compare_other_mount()
        elif what == "evict" and self._is_rare(what, 3):
            self.bench.evict()
        elif what == "remount" and self._is_rare(what, 1):
            self.handles.clear()
            self.maps.clear()
            self.unsynced.clear()
            self.bench.remount()
        elif what == "kill" and self._is_rare(what, 1):
            self.maps = [each for each in self.maps if each.handle.worker != worker]
            self.handles = [each for each in self.handles if each.worker != worker]
            self.unsynced &= {each.handle.ino for each in self.maps}
            self.bench.kill_worker(worker)


class Tree(Bytes, Disturbances):
    """A tree of files, directories and links, in two processes, with other clients at the store."""

    @initialize(seed=seeds, sizes=st.lists(places, min_size=2, max_size=4))
    def fill(self, seed: int, sizes: list[int]) -> None:
        """Begin with some files that the mount has never read."""
        self._do(0, "mkdir", f"{self.bench.here}/b", 0o755)
        for name, size in zip(("a", "b/a", "c", "b/c"), sizes, strict=False):
            self._put_cold(f"{self.bench.here}/{name}", seed, size)

    def _put_cold(self, path: str, seed: int, size: int) -> None:
        if self.bench.settings.sees_others:
            self.bench.put_behind(path, seed, size)
        else:
            self._do(0, "write_file", path, seed, size)

    @rule(
        worker=workers,
        pick=picks,
        name=names,
        access=st.sampled_from((os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND)),
        extra=st.sampled_from((0, 0, os.O_EXCL, os.O_TRUNC)),
        mode=modes,
    )
    def create(
        self, worker: int, pick: int, name: str, access: int, extra: int, mode: int
    ) -> None:
        if len(self.handles) < _MAX_HANDLES:
            self._open(worker, self._new(pick, name), access | os.O_CREAT | extra, mode)

    @rule(
        what=one_of("dir", "dir", "dir", "link", "link", "file", "fifo", "socket"),
        worker=workers,
        pick=picks,
        name=names,
        leads=st.sampled_from((*_NAMES, "../a", "a/b", ".", "nowhere", "/nowhere/at/all")),
        mode=modes,
    )
    def make(self, what: str, worker: int, pick: int, name: str, leads: str, mode: int) -> None:
        path = self._new(pick, name)
        if what == "dir":
            self._do(worker, "mkdir", path, mode)
        elif what == "link":
            self._do(worker, "symlink", leads, path)
        elif what in ("fifo", "socket"):
            self._do(worker, "make_node", path, what, mode)
        else:
            self._do(worker, "write_file", path, mode, pick * 1000)

    @rule(what=one_of("unlink", "unlink", "rmdir"), worker=workers, pick=picks)
    def remove(self, what: str, worker: int, pick: int) -> None:
        self._do(worker, what, self._any(pick))

    @rule(how=one_of("move", "onto", "free"), worker=workers, pick=picks, to=picks, name=names)
    def rename(self, how: str, worker: int, pick: int, to: int, name: str) -> None:
        if how == "onto":
            self._do(worker, "rename", self._file(pick), self._file(to), 0)
        else:
            flags = NOREPLACE if how == "free" else 0
            self._do(worker, "rename", self._any(pick), self._new(to, name), flags)

    @rule(
        what=one_of("chmod", "chown", "utime", "utime", "touch"),
        worker=workers,
        pick=picks,
        mode=modes,
        owner=owners,
        time_ns=times_ns,
    )
    def attributes(
        self, what: str, worker: int, pick: int, mode: int, owner: int, time_ns: int
    ) -> None:
        path = self._any(pick)
        if what == "chmod":
            self._do(worker, "chmod", path, mode)
        elif what == "chown":
            self._do(worker, "chown", path, owner, 1000 if mode & 1 else owner)
        elif what == "utime":
            self._sync_maps()
            self._do(worker, "utime", path, time_ns // 2, time_ns)
        else:
            self._do(worker, "touch", path)

    @rule(
        worker=workers,
        pick=picks,
        name=attribute_names,
        value=attribute_values | st.none(),
        flags=st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)),
    )
    def extended_attribute(
        self, worker: int, pick: int, name: str, value: bytes | None, flags: int
    ) -> None:
        if value is None:
            self._do(worker, "remove_attribute", self._any(pick), name)
        else:
            self._do(worker, "set_attribute", self._any(pick), name, value, flags)

    @precondition(lambda self: self.bench.settings.sees_others)
    @rule(
        what=one_of("change", "add", "deep", "delete"),
        pick=picks,
        name=names,
        seed=seeds,
        size=places,
    )
    def others(self, what: str, pick: int, name: str, seed: int, size: int) -> None:
        """Another client stores or removes an object."""
        if what in ("add", "deep"):
            path = self._new(pick, name)
            if not os.path.lexists(self.bench.local / path):
                self.bench.put_behind(path + "/new/deep" * (what == "deep"), seed, size)
            return
        path = self._file(pick)
        if not self._may_change(path):
            return
        self._lose(path)
        if what == "change":
            self.bench.put_behind(path, seed, size)
        else:
            self.bench.delete_behind(path)

    def _may_change(self, path: str) -> bool:
        """Whether others may change the object: a regular file that nobody here writes or has mapped."""
        local = self.bench.local / path
        if not os.path.lexists(local) or not stat.S_ISREG(os.lstat(local).st_mode):
            return False
        ino = os.lstat(local).st_ino
        writers = [each for each in self.handles if each.ino == ino and each.may_write]
        return not writers and all(each.handle.ino != ino for each in self.maps)

    def _lose(self, path: str) -> None:
        ino = os.lstat(self.bench.local / path).st_ino
        for handle in self.handles:
            handle.is_lost = handle.is_lost or handle.ino == ino


class OneFile(Bytes, Disturbances):
    """One file of several parts, cold at the beginning, through many handles and mappings."""

    @initialize(seed=seeds, size=st.sampled_from((LONGEST, 65_536 * 4, 200_001)))
    def fill(self, seed: int, size: int) -> None:
        path = f"{self.bench.here}/a"
        if self.bench.settings.sees_others:
            self.bench.put_behind(path, seed, size)
        else:
            self._do(0, "write_file", path, seed, size)
            self.bench.evict()

    def _new(self, pick: int, name: str) -> str:
        """Every name is that of the one file."""
        return f"{self.bench.here}/a"
