"""What the pool's clients see of leased files: ``data/BUCKET/KEY``, ``KEY__meta__`` beside, and ``__list__``.

A view is a further name of a file that is lent, so it costs no second copy. When the lease is over it is left to the
cache, which removes it when it gives the file up; what is no file of the cache's goes before its lease does. Where a
key cannot be a path of its own (``a`` beside ``a/b``, parts that no name can be, ``__meta__``), its view lies below
``data/BUCKET/~cachefs~odd``.
"""

import contextlib
import fcntl
import logging
import os
import secrets
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

from cachefs.core.errors import InUse, UsageError, disk_error
from cachefs.core.keys import MARK, NAME_MAX, path_shown
from cachefs.core.types import Key

_log = logging.getLogger(__name__)

LIST_NAME: Final = "__list__"
META_SUFFIX: Final = "__meta__"
_MARKER: Final = ".cachefs-pool"
_ODD: Final = f"{MARK}odd"
_TAIL: Final = 100
_NOTE: Final = "shown"
"""In a cache directory: the home in which its files are shown."""


class Views:
    """The tree below ``data/`` in a pool's home. Nothing in it outlives the daemon."""

    def __init__(self, home: Path, *, umask: int) -> None:
        """Make the tree, and sweep what an earlier daemon has left. Those that *umask* leaves out may not read it.

        Raise ``UsageError`` if it is somebody else's, ``InUse`` if another pool shows its files there.
        """
        self.data = home / "data"
        self._home = home
        self._readers = 0o777 & ~umask
        self._lock = -1
        try:
            self._claim()
        except OSError as error:
            self.close()
            raise UsageError(
                f"cannot use {self.data}: {error.strerror} — name another directory"
            ) from error
        except BaseException:
            self.close()
            raise

    def _claim(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        self.data.chmod(0o700 | self._readers)
        marker = self.data / _MARKER
        if not marker.exists() and any(self.data.iterdir()):
            raise UsageError(
                f"{self.data} holds files that are not a pool's of cachefs — empty it, or name another directory"
            )
        self._lock = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"another pool shows its files in {self.data}") from None
        self.sweep()

    def note_in(self, cache_dir: Path) -> None:
        """Have who opens *cache_dir* next sweep what we leave there, should we be killed. See :func:`sweep_left`."""
        try:
            (cache_dir / _NOTE).write_bytes(os.fsencode(self._home))
        except OSError as error:
            raise disk_error(error) from error

    def close(self) -> None:
        """Let the tree go, for another pool. Safe to call twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def sweep(self) -> None:
        """Remove every view. Blocks."""
        for place, directories, files in os.walk(self.data, topdown=False):
            for name in files:
                if (place, name) != (str(self.data), _MARKER):
                    os.unlink(os.path.join(place, name))
            for name in directories:
                path = os.path.join(place, name)
                os.unlink(path) if os.path.islink(path) else os.rmdir(path)

    def place(self, bucket: str, key: str, source: Path, meta: bytes) -> Path:
        """Show the lent file *source* as *key*, and *meta* beside it. Return where; what was there is replaced."""
        try:
            for path in (self._natural(bucket, key), self._odd(bucket, key)):
                if path is not None and self._linked(source, path):
                    self._write(path.with_name(path.name + META_SUFFIX), [meta])
                    return path
        except OSError as error:
            raise disk_error(error) from error
        raise AssertionError("the place for odd keys is free")

    @staticmethod
    def names(path: Path) -> tuple[Path, Path]:
        """Return all names that belong to a view."""
        return path, path.with_name(path.name + META_SUFFIX)

    def remove(self, path: Path) -> None:
        """Remove a view, and directories that are empty without it. Whoever has it open can read on."""
        for each in self.names(path):
            with contextlib.suppress(OSError):
                os.unlink(each)
        for parent in path.parents:
            if parent.parent == self.data:  # the bucket's own stays
                return
            try:
                os.rmdir(parent)
            except OSError:
                return

    def list_path(self, bucket: str) -> Path:
        """Return where the keys of *bucket* are listed."""
        return self._bucket(bucket) / LIST_NAME

    def open_list(self, bucket: str) -> BinaryIO:
        """Open the list of *bucket* for reading. Whatever is written or removed meanwhile, it stays as it is."""
        try:
            return self.list_path(bucket).open("rb")
        except OSError as error:
            raise disk_error(error) from error

    def write_list(self, bucket: str, lines: Iterable[bytes]) -> None:
        """Write the list of *bucket* anew, all of it or nothing. Blocks; any thread."""
        try:
            self._make_parent(self.list_path(bucket))
            self._write(self.list_path(bucket), lines)
        except OSError as error:
            raise disk_error(error) from error

    def _bucket(self, bucket: str) -> Path:
        return self.data / os.fsdecode(path_shown(Key(bucket)))

    def _natural(self, bucket: str, key: str) -> Path | None:
        """Return the path that *key* is, if it is one."""
        spelled = key.encode("utf-8", "surrogateescape")
        parts = key.split("/")
        is_plain = path_shown(Key(key)) == spelled and "\n" not in key and key != LIST_NAME
        if not is_plain or any(part.endswith(META_SUFFIX) for part in parts):
            return None
        if len(os.fsencode(parts[-1])) + len(META_SUFFIX) > NAME_MAX:
            return None
        return self._bucket(bucket) / os.fsdecode(spelled)

    def _odd(self, bucket: str, key: str) -> Path:
        spelled = key.encode("utf-8", "surrogateescape")
        tail = spelled.rpartition(b"/")[2].replace(b"\n", b"?").replace(b"\0", b"?")[-_TAIL:]
        name = sha256(spelled).hexdigest()[:32].encode() + b"-" + tail
        return self._bucket(bucket) / _ODD / os.fsdecode(name)

    def _linked(self, source: Path, path: Path) -> bool:
        """Make *path* a name of *source*; return False if another key's view is in the way."""
        temporary = self._temporary()
        try:
            self._make_parent(path)
            os.link(source, temporary)
            os.rename(temporary, path)
        except (FileExistsError, IsADirectoryError, NotADirectoryError):
            return False
        finally:
            with contextlib.suppress(OSError):  # a rename onto the same file leaves it
                os.unlink(temporary)
        return True

    def _make_parent(self, path: Path) -> None:
        """Make the directory of *path*, with its mode, whatever the process's umask is."""
        absent = []
        place = path.parent
        while not place.is_dir():
            absent.append(place)
            place = place.parent
        for each in reversed(absent):
            each.mkdir(exist_ok=True)
            each.chmod(0o700 | self._readers)

    def _write(self, path: Path, chunks: Iterable[bytes]) -> None:
        temporary = self._temporary()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(temporary, flags, 0o600), "wb") as file:
                os.fchmod(file.fileno(), 0o600 | (self._readers & 0o444))
                file.writelines(chunks)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _temporary(self) -> Path:
        return self.data / f".new-{secrets.token_hex(8)}"


def sweep_left(cache_dir: Path) -> None:
    """Remove what a pool that was killed shows of *cache_dir*, so that no name keeps what the cache gives up. Blocks.

    What another pool shows by now in its place stays: that one has swept. The caller has the cache directory locked.
    """
    note = cache_dir / _NOTE
    try:
        home = Path(os.fsdecode(note.read_bytes()))
        if (home / "data" / _MARKER).exists():
            with contextlib.suppress(InUse), contextlib.closing(Views(home, umask=0o077)):
                pass
        os.unlink(note)
    except FileNotFoundError:
        return
    except (OSError, UsageError) as error:
        _log.warning("what an earlier pool shows cannot be removed: %s", error)
