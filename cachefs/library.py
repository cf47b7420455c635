"""Files in a cache for programs that go through no mount: ``cachefs.connect``.

::

    import cachefs

    with cachefs.connect("s3://photos") as photos:
        with photos.open("2024/a.jpg", "rb") as file:      # a real file, of the cache
            ...
        photos.put("/tmp/b.jpg", "2024/b.jpg")       # whole or not at all

Where a mount's daemon has the cache, or another program, it is asked; where nobody has it, this process does from then on.
"""

import base64
import fcntl
import io
import os
import posixpath
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from errno import EEXIST, EIO, EISDIR, ETIMEDOUT
from pathlib import Path
from typing import IO, Any, Final, Self

from cachefs.answers import Info, StrPath, info_of, parsed_mode, relative, row_of, rows_of, telling
from cachefs.client import ControlClient, ControlError, LeasedFile
from cachefs.config import current
from cachefs.meant import meant
from cachefs.spool import LeasedReader, PiecewiseReader, SpooledText, SpooledWriter, copied
from cachefs.wire import Wire

__all__ = ["Client", "Info", "Lease", "connect"]


_LEASE_S: Final = 60.0
"""How long a lease lasts before it is held by this process."""
_PIECE: Final = 2**18
"""Bytes that are asked for at least of a file that is read in pieces."""
_SMALL: Final = 8 * 2**20
"""Bytes that are handed over in memory rather than in a file."""


class Lease:
    """A local file with the bytes of one version, to be read only, at ``path`` until the lease ends.

    It ends by :meth:`release`, at the end of a ``with`` block, with the client, and with this process. Whoever has the file open
    then can read on.
    """

    def __init__(self, wire: Wire, leased: LeasedFile) -> None:
        self._wire = wire
        self._leased = leased
        self.path: Final = leased.path
        self.size: Final = leased.size
        self.etag: Final = leased.etag
        """None: the store does not have these bytes yet."""
        self.mtime_ns: Final = leased.mtime_ns

    def release(self) -> None:
        """End the lease. Safe to call twice."""
        self._wire.let_go(self._leased.lease)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.release()

    def __fspath__(self) -> str:
        return str(self.path)

    def __del__(self) -> None:
        self.release()


def connect(where: StrPath, **options: object) -> "Client":
    """Return a client of *where*; see :class:`Client`."""
    return Client(where, **options)


class Client:
    """The files of a bucket, or of a part of it, in its cache.

    *where*: a source (``s3://BUCKET[/PREFIX]``, ``swift://CONTAINER``, ``file:///DIRECTORY``, ``REMOTE:BUCKET``), the name of a
    mount in the configuration file, a path in a running mount, or a cache directory. *options* are those of ``cachefs
    mount`` with underscores (``cache_dir="/fast/cache"``, ``cache_size="50GiB"``, ``upload="background"``, ``endpoint_url=…``). They count
    where this process has the cache; a mount goes by its own. ``source=`` tells what an unknown cache directory caches, and
    ``spool_dir=`` where files are written before they are stored (as ``tempfile`` chooses).

    Paths are relative to *where*. Thread-safe; a forked child may go on using it. Raise, in the beginning,
    ``cachefs.core.errors.CachefsError`` for what cannot be used; all methods raise ``OSError`` with the errno, and of the
    class, that a program in a mount would get: ``FileNotFoundError``, ``FileExistsError``, ``IsADirectoryError`` and so on.
    """

    def __init__(self, where: StrPath, **options: object) -> None:
        spool_dir = options.pop("spool_dir", None)
        self._spool_dir = None if spool_dir is None else str(spool_dir)
        environment = current()
        named = os.fspath(where)
        self._wire = Wire(lambda: meant(named, options, environment), environment)
        # A program that ends without closing it leaves a cache in order all the same.
        self._end = weakref.finalize(self, Wire.close, self._wire)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def cache_dir(self) -> Path:
        """The cache directory."""
        return self._wire.cache_dir

    @property
    def is_in_process(self) -> bool:
        """Whether it is this object that has the cache: no daemon had it, nor another program."""
        return self._wire.is_within

    def close(self) -> None:
        """End every lease, and the service if it is in this process, once it has had a little time to upload what waits.

        What is not uploaded by then stays in the cache directory, and is uploaded when it is next in use.
        """
        if self._end.alive and self.is_in_process:
            with suppress(OSError):
                self.wait()
        self._end()

    # ---- looking ----------------------------------------------------------------------------

    def stat(self, path: StrPath = "") -> Info:
        """Tell what *path* stands for, as the store has it now."""
        found = self._ask("stat", path)
        return info_of(found, relative(path))

    def exists(self, path: StrPath) -> bool:
        """Whether there is anything at *path*. What cannot be found out raises."""
        try:
            self.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def list(self, path: StrPath = "", *, deep: bool = False) -> Iterator[Info]:
        """Yield what is in a directory as it is listed, in no order; *deep*: and in all directories below."""
        waiting = [relative(path)]
        while waiting:
            directory = waiting.pop()
            for info in self._children(directory):
                yield info
                if deep and info.is_dir:
                    waiting.append(info.path)

    def _children(self, directory: str) -> Iterator[Info]:
        after = 0
        while page := rows_of(self._ask("list", directory, after=after)):
            for row in page:
                after = max(after, int(row["ino"]))
                yield info_of(row, posixpath.join(directory, str(row["name"])))

    # ---- reading ----------------------------------------------------------------------------

    def lease(self, path: StrPath) -> Lease:
        """Return the whole file as a local file, fetched if need be: of the version that the store has now, or ours."""
        with telling(path):
            leased = self._wire.ask(lambda client: client.lease(self._at(path), seconds=_LEASE_S))
            self._wire.hold(leased.lease)
        return Lease(self._wire, leased)

    def open(
        self,
        path: StrPath,
        mode: str = "r",
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        whole: bool = True,
    ) -> IO[Any]:
        """Open a file as the built-in ``open`` does.

        To be read it is a file of the cache, on a lease that ends when it is closed. To be written it is a file beside the
        cache, which is stored when it is closed, as :meth:`put` does; nothing is stored where the ``with`` block raises. One
        that is changed (``r+``, ``a``) is stored only if it still is, by then, what it was: else ``ESTALE``.

        Not *whole*: what is read is fetched piece by piece, through the cache, of one version (or else ``ESTALE``). For a
        little of a very large file, or one that is larger than the cache; it is no real file, then.
        """
        kind, is_updated, is_text = parsed_mode(mode)
        if kind == "r" and not is_updated:
            reader = self._reader(path) if whole else self._pieces(path)
            if not is_text:
                return reader
            return io.TextIOWrapper(reader, encoding=encoding, errors=errors, newline=newline)
        writer = self._writer(path, kind)
        if not is_text:
            return writer
        return SpooledText(writer, encoding=encoding, errors=errors, newline=newline)

    def read(self, path: StrPath) -> bytes:
        """Return all bytes of a file."""
        with self._reader(path) as file:
            return file.read()

    def get(self, path: StrPath, local: StrPath) -> None:
        """Copy a file to the local path *local*, over whatever file is there: it has all bytes from the first moment on."""
        target = os.path.abspath(local)
        with (
            self._reader(path) as file,
            suppress(FileNotFoundError),  # its first name is gone
            tempfile.NamedTemporaryFile(dir=os.path.dirname(target)) as made,
        ):
            copied(file.fileno(), made.fileno())
            os.fchmod(made.fileno(), 0o666 & ~_umask())
            os.replace(made.name, target)

    def _pieces(self, path: StrPath) -> io.BufferedReader:
        found = self.stat(path)
        if found.is_dir:
            raise IsADirectoryError(EISDIR, "is a directory", found.path)
        version = {"etag": found.etag, "size": found.size, "mtime_ns": found.mtime_ns}

        def read(offset: int, size: int) -> bytes:
            told = self._ask("read", path, offset=offset, size=size, version=version)
            return base64.b64decode(str(told))

        return io.BufferedReader(PiecewiseReader(found.path, found.size, read), _PIECE)

    def _reader(self, path: StrPath) -> LeasedReader:
        with telling(path):
            leased = self._wire.ask(self._opened(path))
        return LeasedReader(*leased)

    def _opened(
        self, path: StrPath
    ) -> Callable[[ControlClient], tuple[int, str, Callable[[], None]]]:
        def work(client: ControlClient) -> tuple[int, str, Callable[[], None]]:
            leased = client.lease(self._at(path), seconds=_LEASE_S)
            descriptor = os.open(leased.path, os.O_RDONLY | os.O_CLOEXEC)
            with suppress(ControlError):  # what is open can be read, whatever becomes of the lease
                self._wire.hold(leased.lease)
            return descriptor, relative(path), lambda: self._wire.let_go(leased.lease)

        return work

    # ---- writing ----------------------------------------------------------------------------

    def put(self, local: StrPath, path: StrPath, *, replace: bool = True) -> Info:
        """Store the local file *local*, and what is missing of the directories that lead to *path*.

        Whole or not at all: whoever opens it meanwhile gets what was there. When this returns the store has it; or, with
        ``upload="background"``, this machine's disk, from where it is uploaded whatever happens.
        """
        with open(local, "rb") as file:
            return self._put(file.fileno(), path, {} if replace else {"replace": False})

    def write(self, path: StrPath, data: bytes | bytearray | memoryview | str) -> Info:
        """Store *data*, text as UTF-8, as :meth:`put` does a file."""
        content = memoryview(data.encode() if isinstance(data, str) else data).cast("B")
        descriptor = os.memfd_create("cachefs") if len(content) <= _SMALL else self._spooled()
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            return self._put(file.fileno(), path)

    def copy(self, path: StrPath, target: StrPath) -> Info:
        """Store a file under another path as well."""
        with self._reader(path) as file:
            return self._put(file.fileno(), target)

    def _put(
        self, source: int, path: StrPath, conditions: Mapping[str, object] | None = None
    ) -> Info:
        with telling(path):
            found = self._wire.ask(
                lambda client: client.put(self._at(path), source, conditions),
                may_repeat=not conditions,
            )
        # Beside its own, where another version is there that nobody here had seen.
        directory = posixpath.dirname(relative(path))
        return info_of(found, posixpath.join(directory, str(row_of(found)["name"])))

    def _spooled(self) -> int:
        """Return a file without a name, open to be written."""
        with tempfile.TemporaryFile(dir=self._spool_dir) as made:
            return os.dup(made.fileno())

    def _writer(self, path: StrPath, kind: str) -> SpooledWriter:
        conditions: dict[str, object] = {}
        descriptor = self._spooled()
        try:
            if kind in "ra":
                conditions = self._copied_into(descriptor, path, may_be_new=kind == "a")
            elif kind == "x":
                conditions = self._absent(path)
            if kind == "a":
                fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
            elif kind == "r":
                os.lseek(descriptor, 0, os.SEEK_SET)
            return SpooledWriter(
                descriptor, relative(path), lambda source: self._store(source, path, conditions)
            )
        except BaseException:
            os.close(descriptor)
            raise

    def _absent(self, path: StrPath) -> dict[str, object]:
        """Return the condition that nothing is there. Raise if there is something already."""
        if self.exists(path):
            raise FileExistsError(EEXIST, "file exists", relative(path))
        return {"replace": False}

    def _store(self, source: int, path: StrPath, conditions: dict[str, object]) -> None:
        self._put(source, path, conditions)

    def _copied_into(
        self, descriptor: int, path: StrPath, *, may_be_new: bool
    ) -> dict[str, object]:
        """Copy what is there. Return on what condition the file may be stored again."""
        try:
            lease = self.lease(path)
        except FileNotFoundError:
            if not may_be_new:
                raise
            return {"replace": False}
        with lease, open(lease, "rb") as file:
            copied(file.fileno(), descriptor)
        version = {"etag": lease.etag, "size": lease.size, "mtime_ns": lease.mtime_ns}
        return {"grown_from": version}

    # ---- names ------------------------------------------------------------------------------

    def mkdir(self, path: StrPath, *, parents: bool = False) -> None:
        """Make a directory; with *parents* those above it, too, and it may be there already."""
        self._ask("mkdir", path, parents=parents)

    def delete(self, path: StrPath, *, recursive: bool = False) -> None:
        """Remove a file or an empty directory; *recursive*: whatever is in it as well."""
        if recursive and self.stat(path).is_dir:
            below = [relative(path), *(i.path for i in self.list(path, deep=True) if i.is_dir)]
            for directory in sorted(below, key=lambda each: -each.count("/") - bool(each)):
                for info in list(self._children(directory)):
                    self._delete(info.path)
        if relative(path):
            self._delete(path)

    def _delete(self, path: StrPath) -> None:
        self._ask("delete", path, may_repeat=False)

    def rename(self, path: StrPath, target: StrPath, *, replace: bool = True) -> None:
        """Give a file or a directory another path, in the place of what is there."""
        with telling(path, target):
            self._wire.ask(
                lambda client: client.ask(
                    "rename", path=self._at(path), target=self._at(target), replace=replace
                ),
                may_repeat=False,
            )

    # ---- the cache --------------------------------------------------------------------------

    def pin(self, path: StrPath = "", *, wait: bool = True) -> None:
        """Keep a file, or all files below a directory, in the cache; *wait* until all are here. Raise if one cannot be."""
        turn = int(str(row_of(self._ask("pin", path)).get("turn")))
        with telling(path):
            while wait:
                told = row_of(self._wire.ask(lambda client: client.ask("pins", turn=turn)))
                if int(str(told["turn"])) >= turn:
                    failed = told.get("failed")
                    if isinstance(failed, dict) and failed:
                        name, reason = next(iter(failed.items()))
                        raise OSError(EIO, str(reason), str(name))
                    return

    def unpin(self, path: StrPath = "") -> None:
        """Let a file, or all files below a directory, go like any other."""
        self._ask("unpin", path)

    def wait(self, *paths: StrPath) -> None:
        """Return when the store has what was written at or below *paths*, or everything. Raise why it has not."""
        at = [self._at(path) for path in paths]
        with telling(*paths):
            told = row_of(self._wire.ask(lambda client: client.ask("flush", paths=at, wait=True)))
        for failure in rows_of(told.get("failed")):
            raise OSError(EIO, str(failure["error"]), str(failure["path"]))
        waiting = told.get("waiting")
        if isinstance(waiting, list) and waiting:
            raise TimeoutError(ETIMEDOUT, "still waits for upload", str(waiting[0]))

    def refresh(self, path: StrPath = "") -> None:
        """Have the store asked anew about *path* and what is below."""
        self._ask("refresh", path)

    # ---- asking -----------------------------------------------------------------------------

    def _ask(
        self,
        verb: str,
        path: StrPath,
        *,
        may_repeat: bool = True,
        **words: Any,  # noqa: ANN401 - what JSON can hold
    ) -> object:
        with telling(path):
            return self._wire.ask(
                lambda client: client.ask(verb, path=self._at(path), **words),
                may_repeat=may_repeat,
            )

    def _at(self, path: StrPath) -> str:
        """Return *path* relative to the root of whoever has the cache."""
        return posixpath.join(self._wire.base, relative(path))


def _umask() -> int:
    """Return which permissions new files of this process do not have; asking by umask(2) would change it for a moment."""
    status = Path("/proc/self/status").read_text("ascii", "replace")
    return next(
        int(line.split()[1], 8) for line in status.splitlines() if line.startswith("Umask:")
    )
