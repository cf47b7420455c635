"""A local directory as an object store: the embedded default, and a slow disk behind a fast one.

The object ``a/b`` is the file ``b`` in the directory ``a``, so that ordinary tools read and write the store too;
what they change counts as another version. A marker ``a/`` is the directory itself. Directories that a put
made on its way go away with their last object; those that a marker or another program made stay. A symlink is
an object whose bytes are its target and whose metadata says so: it is shown, never followed. Keys that cannot
be paths, or whose path is taken (``a`` beside ``a/b``), lie below ``.cachefs-store/odd``.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event

from cachefs.core.errors import Changed, Fault, NoBucket, Refused, Unsupported
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.remote.file_listing import Lister
from cachefs.remote.file_names import Place, Spot, place_of
from cachefs.remote.file_records import Record, Records, describe, etag_of
from cachefs.remote.file_spots import Spots
from cachefs.remote.file_tree import Tree, missing, translating
from cachefs.remote.pages import Pages
from cachefs.remote.store import Body, Capabilities, Ledger, Sink, Support

_CHUNK = 2**20
_TICKS = 20
"""How often to wait a millisecond for the file system's clock to move; its ticks last up to ten."""


@dataclass(frozen=True, slots=True)
class _Found:
    """An object, open: the descriptor is of the version that the rest describes, whatever happens to the name."""

    spot: Spot
    fd: int
    stat: os.stat_result
    record: Record | None

    @property
    def is_marker(self) -> bool:
        return stat.S_ISDIR(self.stat.st_mode)

    @property
    def etag(self) -> ETag:
        return etag_of(self.stat, self.record)


class FileStore:
    """The objects below the directory *root*. Conditions are atomic among all daemons on it."""

    def __init__(self, root: str) -> None:
        self._root = os.path.abspath(root)
        self._tree = Tree(self._root)
        self._records = Records(self._tree)
        self._spots = Spots(self._tree, self._records)
        self._lister = Lister(self._tree, self._records)
        self._capabilities = Capabilities()

    @property
    def capabilities(self) -> Capabilities:
        """All unknown until :meth:`probe` ran."""
        return self._capabilities

    @property
    def description(self) -> str:
        """``file:///srv/photos``."""
        return f"file://{self._root}"

    def check(self) -> None:
        """Raise ``NoBucket`` unless the root is a directory, ``Denied`` unless it may be read."""
        with translating(self.description), self._tree.directory() as fd, os.scandir(fd):
            pass

    def check_key(self, key: Key) -> None:
        """Raise ``BadKey`` for what is empty or too long."""
        place_of(key)

    def probe(self) -> Capabilities:
        """Try to write, sweep away what killed processes left unfinished, and say what is honoured."""
        yes = Support.ENFORCED
        writable, notes = True, tuple[str, ...]()
        try:
            with translating(self.description):
                self._tree.sweep()
                notes = self._notes()
        except NoBucket:
            raise
        except Refused:
            writable = False
        self._capabilities = Capabilities(yes, yes, yes, yes, yes, yes, writable, notes=notes)
        return self._capabilities

    def head(self, key: Key) -> ObjectInfo:
        """Return what is at *key*."""
        with translating(f"looking up {key!r}"), self._existing(key) as found:
            return describe(key, found.stat, found.record)

    def fingerprint(self, key: Key) -> Fingerprint:
        """Return what is at *key*. A file system keeps no MD5: only the metadata may tell one."""
        return Fingerprint(self.head(key))

    def list(self, prefix: Key, *, deep: bool = False) -> Pages:
        """Yield pages of a thousand, in the order of the keys' bytes."""
        return self._lister.pages(prefix, deep=deep)

    def overview(self, prefix: Key) -> Pages:
        """As :meth:`list`: it tells all."""
        return self.list(prefix, deep=True)

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        """Write the bytes of *extent* into *into*; one descriptor reads them all."""
        with self._existing(key) as found:
            _require(key, found, if_match)
            info = describe(key, found.stat, found.record)
            if not 0 <= extent.start <= extent.stop <= info.size:
                raise Fault(f"{key!r} does not reach so far")
            buffer = memoryview(bytearray(min(_CHUNK, extent.length)))
            position = extent.start
            while position < extent.stop:
                wanted = buffer[: min(_CHUNK, extent.stop - position)]
                with translating(f"reading {key!r}"):
                    count = _read(found, wanted, position)
                if not count:
                    raise Fault(f"{key!r} became shorter while it was read")
                into.write(wanted[:count])
                position += count
            with translating(f"reading {key!r}"):
                if etag_of(os.fstat(found.fd), found.record) != if_match:
                    raise Changed(f"{key!r} changed while it was read")
        return info

    def put(
        self,
        key: Key,
        body: Body,
        *,
        meta: Mapping[str, str],
        content_type: str | None = None,
        if_match: ETag | None,
    ) -> ObjectInfo:
        """Write a file of its own, make it durable, and rename it into its place."""
        place = place_of(key)
        with translating(f"storing {key!r}"), self._current(key) as found:
            _require(key, found, if_match)
            if (spot := self._directory_for(place, body.size, found)) is not None:
                return self._put_marker(place, spot, meta, content_type, if_match)
        with self._unfinished(key) as (fd, directory, name):
            reader = body.reader(Extent(0, body.size))
            written = 0
            while chunk := reader.read(_CHUNK):
                with translating(f"storing {key!r}"):
                    _write(fd, chunk)
                written += len(chunk)
            if written != body.size:
                raise Fault(f"the body has {written} bytes and not {body.size}")
            with translating(f"storing {key!r}"):
                self._records.stamp(fd, key, meta, content_type)
                return self._install(place, fd, directory, name, if_match)

    def copy(
        self,
        source: Key,
        target: Key,
        *,
        if_match: ETag,
        replaces: ETag | None,
        content_type: str | None = None,
    ) -> ObjectInfo:
        """Copy inside of the file system, sharing blocks where it can."""
        place = place_of(target)
        with translating(f"copying {source!r} to {target!r}"), self._existing(source) as found:
            _require(source, found, if_match)
            info = describe(source, found.stat, found.record)
            meta, kind = info.meta or {}, content_type or info.content_type
            with self._current(target) as other:
                _require(target, other, replaces)
                if (spot := self._directory_for(place, info.size, other)) is not None:
                    return self._put_marker(place, spot, meta, kind, replaces)
            with self._tree.unfinished() as (fd, directory, name):
                _copy(found, fd)
                if etag_of(os.fstat(found.fd), found.record) != if_match:
                    raise Changed(f"{source!r} changed while it was copied")
                self._records.stamp(fd, target, meta, kind)
                return self._install(place, fd, directory, name, replaces)

    def set_meta(
        self, key: Key, meta: Mapping[str, str], *, content_type: str | None, if_match: ETag
    ) -> ObjectInfo:
        """Replace the metadata. The version is another afterwards: see the returned ETag."""
        with (
            translating(f"setting the metadata of {key!r}"),
            self._tree.locked(),
            self._existing(key) as found,
        ):
            _require(key, found, if_match)
            if stat.S_ISLNK(found.stat.st_mode):
                raise Unsupported(f"{key!r} is a symlink of the file system: it bears no metadata")
            kept = content_type or (found.record.content_type if found.record else None)
            self._records.stamp(found.fd, key, meta, kept)
            tick(found.fd, found.stat)
            os.fsync(found.fd)
            return describe(key, os.fstat(found.fd), self._records.read(found.fd, key))

    def delete(self, key: Key, *, if_match: ETag | None = None) -> None:
        """Remove the object, and the directories that only it made; a marker's stays if more lies in it."""
        with translating(f"deleting {key!r}"), self._tree.locked(), self._existing(key) as found:
            if if_match is not None:
                _require(key, found, if_match)
            if found.is_marker:
                self._delete_marker(key, found)
            else:
                with self._tree.directory(found.spot.parents) as parent:
                    os.unlink(found.spot.name, dir_fd=parent)
                    os.fsync(parent)
                self._records.forget(found.fd, key)
            self._spots.prune(found.spot.parents)

    def keep_ledger(self, ledger: Ledger) -> None:
        """Do nothing: a put that ends early leaves a temporary file, which the next daemon sweeps."""

    def abandon(self, key: Key, work: str) -> None:
        """Do nothing: there are no works."""

    def close(self) -> None:
        """Do nothing: no descriptor is kept between calls."""

    @contextmanager
    def _current(self, key: Key) -> Iterator[_Found | None]:
        """Lend what is at *key* now, open, or None."""
        place = place_of(key)
        for spot in (place.plain, place.odd):
            if spot is None:
                continue
            with translating(f"looking up {key!r}"):
                fd = self._spots.open(spot)
            if fd is None:
                continue
            try:
                with translating(f"looking up {key!r}"):
                    found = _Found(spot, fd, os.fstat(fd), self._records.read(fd, key))
                if _is_object(found, place):
                    yield found
                    return
            finally:
                os.close(fd)
        yield None

    @contextmanager
    def _existing(self, key: Key) -> Iterator[_Found]:
        with self._current(key) as found:
            if found is None:
                raise missing(key)
            yield found

    @contextmanager
    def _unfinished(self, key: Key) -> Iterator[tuple[int, int, bytes]]:
        """Lend an unfinished file, without taking the block's own errors for the store's."""
        lend = self._tree.unfinished()
        with translating(f"storing {key!r}"):
            lent = lend.__enter__()
        try:
            yield lent
        finally:
            with translating(f"storing {key!r}"):
                lend.__exit__(None, None, None)

    def _directory_for(self, place: Place, size: int, found: _Found | None) -> Spot | None:
        """Return where to make a directory of the marker *place*; None if it must be a file at an odd spot."""
        if not place.is_marker or place.plain is None or size or (found and not found.is_marker):
            return None
        return place.plain if self._spots.is_free_for_directory(place.plain) else None

    def _notes(self) -> tuple[str, ...]:
        with self._tree.unfinished() as (fd, _, _):
            try:
                os.setxattr(fd, "user.cachefs.probe", b"")
            except OSError:
                return ("no extended attributes here: metadata lies in .cachefs-store/meta",)
        return ()

    def _install(
        self, place: Place, fd: int, directory: int, name: bytes, if_match: ETag | None
    ) -> ObjectInfo:
        """Rename the finished file at *fd* to where *place* says, if *if_match* is what it replaces."""
        os.fsync(fd)
        written = os.fstat(fd)
        with self._tree.locked(), self._current(place.key) as found:
            _require(place.key, found, if_match)
            spot = found.spot if found else self._spots.free(place)
            with self._spots.parent(spot) as parent:
                os.rename(name, spot.name, src_dir_fd=directory, dst_dir_fd=parent)
                if found:
                    tick(fd, found.stat)
                    self._records.forget(found.fd, place.key)
                os.fsync(parent)
            now = os.fstat(fd)
            if (now.st_size, now.st_mtime_ns) != (written.st_size, written.st_mtime_ns):
                raise Changed(
                    f"{place.key!r} was changed by another program just as it was stored"
                )
            return describe(place.key, now, self._records.read(fd, place.key))

    def _put_marker(
        self,
        place: Place,
        spot: Spot,
        meta: Mapping[str, str],
        content_type: str | None,
        if_match: ETag | None,
    ) -> ObjectInfo:
        with self._tree.locked(), self._current(place.key) as found:
            _require(place.key, found, if_match)

            def stamp(fd: int) -> None:
                self._records.stamp(fd, place.key, meta, content_type)

            with self._spots.parent(spot) as parent:
                made = self._tree.make_directory(parent, spot.name, stamp)
            with self._tree.directory((*spot.parents, spot.name)) as fd:
                if not made:
                    stamp(fd)
                    os.fsync(fd)
                return describe(place.key, os.fstat(fd), self._records.read(fd, place.key))

    def _delete_marker(self, key: Key, found: _Found) -> None:
        if os.listdir(found.fd):
            self._records.stamp(found.fd, key, {}, None, implicit=True)
            os.fsync(found.fd)
            return
        with self._tree.directory(found.spot.parents) as parent:
            os.rmdir(found.spot.name, dir_fd=parent)
            os.fsync(parent)
        self._records.forget(found.fd, key)


def _is_object(found: _Found, place: Place) -> bool:
    """Whether what was found is what the key stands for."""
    mode = found.stat.st_mode
    if found.spot == place.odd:
        return stat.S_ISREG(mode)
    if place.is_marker:
        return stat.S_ISDIR(mode) and not (found.record and found.record.is_implicit)
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def _require(key: Key, found: _Found | None, etag: ETag | None) -> None:
    if (found.etag if found else None) != etag:
        raise Changed(f"{key!r} is another version" if found else f"{key!r} is not there any more")


def _read(found: _Found, into: memoryview, position: int) -> int:
    if stat.S_ISLNK(found.stat.st_mode):
        rest = os.readlink(b"", dir_fd=found.fd)[position:][: len(into)]
        into[: len(rest)] = rest
        return len(rest)
    return os.preadv(found.fd, [into], position)


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _copy(found: _Found, fd: int) -> None:
    if found.is_marker:
        return
    if stat.S_ISLNK(found.stat.st_mode):
        _write(fd, os.readlink(b"", dir_fd=found.fd))
        return
    position = 0
    with suppress(OSError):  # not every file system can; what is missing then is read and written
        while count := os.copy_file_range(found.fd, fd, 2**30, position, position):
            position += count
    os.lseek(fd, position, os.SEEK_SET)
    while chunk := os.pread(found.fd, _CHUNK, position):
        _write(fd, chunk)
        position += len(chunk)


def tick(fd: int, before: os.stat_result) -> None:
    """Wait until the version at *fd* differs from *before* in its time of change.

    Inode numbers are used again at once, so that two replacements within one tick of the file system's clock
    could otherwise come back to the first version's ETag.
    """
    pause = Event()
    for _ in range(_TICKS):
        now = os.fstat(fd)
        if now.st_ctime_ns != before.st_ctime_ns:
            return
        pause.wait(0.001)
        os.utime(fd, ns=(now.st_atime_ns, now.st_mtime_ns))
