"""Directories below one root, opened component by component so that no symlink is ever followed."""

import errno
import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cachefs.core.errors import (
    BadKey,
    Denied,
    Fault,
    NoBucket,
    NotFound,
    ObjectTooLarge,
    OverQuota,
    Refused,
    StoreError,
    StoreFull,
    Unsupported,
)
from cachefs.remote.file_names import HIDDEN

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TMP = (HIDDEN, b"tmp")

_KINDS: dict[int, type[StoreError]] = {
    errno.EACCES: Denied,
    errno.EPERM: Denied,
    errno.EROFS: Denied,
    errno.ENOSPC: StoreFull,
    errno.EDQUOT: OverQuota,
    errno.EFBIG: ObjectTooLarge,
    errno.EXDEV: Refused,
    errno.EMLINK: Refused,
    errno.EOPNOTSUPP: Unsupported,
    errno.ENOSYS: Unsupported,
    errno.ENAMETOOLONG: BadKey,
    errno.EILSEQ: BadKey,
}


@contextmanager
def translating(what: str) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``StoreError`` that says *what* and why.

    Never into ``NotFound``: only code that looked for one object and for nothing else can say that.
    """
    try:
        yield
    except OSError as error:
        raise _KINDS.get(error.errno or 0, Fault)(f"{what}: {error.strerror}") from error


def is_absent(error: OSError) -> bool:
    """Whether *error* means that a path has nothing at its end, as opposed to any other trouble."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def missing(key: str) -> NotFound:
    """Return the error for a *key* that nothing is stored under."""
    return NotFound(f"{key!r} is not there")


class Tree:
    """The directories of one store, its lock and its unfinished files."""

    def __init__(self, root: str) -> None:
        self._root = os.fsencode(root)
        self._lock = threading.Lock()
        self._inode: int | None = None

    @contextmanager
    def directory(self, parts: tuple[bytes, ...] = ()) -> Iterator[int]:
        """Lend a descriptor of the directory *parts*. Raise ``OSError`` if there is none.

        ``NoBucket`` if the root is gone, or is another directory than before: the mount point of a share
        that is not mounted any more must not look like an empty store.
        """
        fd = self._open_root()
        try:
            for part in parts:
                inner = os.open(part, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other writer out, of this process and of others, for the length of the block."""
        with self._lock:
            with self.own(HIDDEN) as fd:
                lock = os.open(b"lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=fd)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)

    @contextmanager
    def own(self, *parts: bytes) -> Iterator[int]:
        """Lend a descriptor of one of our own directories, made if need be."""
        for depth in range(1, len(parts) + 1):
            with self.directory(parts[: depth - 1]) as fd, suppress(FileExistsError):
                os.mkdir(parts[depth - 1], 0o700 if depth == 1 else 0o777, dir_fd=fd)
        with self.directory(parts) as fd:
            yield fd

    @contextmanager
    def unfinished(self) -> Iterator[tuple[int, int, bytes]]:
        """Lend a new file: its descriptor, that of its directory, and its name there.

        What still has that name at the end of the block is removed. While it is in use it is locked, so
        that :meth:`sweep` can tell it from one that a killed process left.
        """
        name = secrets.token_hex(16).encode()
        with self.own(*_TMP) as directory:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = os.open(name, flags, 0o666, dir_fd=directory)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield fd, directory, name
            finally:
                os.close(fd)
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)

    def make_directory(self, parent: int, name: bytes, prepare: Callable[[int], None]) -> bool:
        """Make a directory that appears as *prepare* has left it, which gets its descriptor.

        Return False where something has the name. The caller holds the lock.
        """
        with suppress(FileNotFoundError):
            os.stat(name, dir_fd=parent, follow_symlinks=False)
            return False
        aside = secrets.token_hex(16).encode()
        with self.own(*_TMP) as tmp:
            os.mkdir(aside, dir_fd=tmp)
            try:
                with self.directory((*_TMP, aside)) as fd:
                    prepare(fd)
                    os.fsync(fd)
                os.rename(aside, name, src_dir_fd=tmp, dst_dir_fd=parent)
            except BaseException:
                with suppress(OSError):
                    os.rmdir(aside, dir_fd=tmp)
                raise
        os.fsync(parent)
        return True

    def sweep(self) -> None:
        """Remove the unfinished files and directories of processes that are gone."""
        with (
            self.locked(),
            self.own(*_TMP) as directory,
        ):  # whoever makes a directory holds the lock
            for entry in os.listdir(directory):
                with suppress(FileNotFoundError, BlockingIOError):
                    self._sweep(directory, entry)

    def _sweep(self, directory: int, entry: str) -> None:
        try:
            fd = os.open(entry, os.O_RDWR | os.O_CLOEXEC, dir_fd=directory)
        except IsADirectoryError:
            os.rmdir(entry, dir_fd=directory)
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(entry, dir_fd=directory)
        finally:
            os.close(fd)

    def _open_root(self) -> int:
        try:
            fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoBucket(f"{os.fsdecode(self._root)}: {error.strerror}") from None
        inode = os.fstat(fd).st_ino
        if self._inode is None:
            self._inode = inode
        elif self._inode != inode:
            os.close(fd)
            raise NoBucket(f"{os.fsdecode(self._root)} is another directory than it was before")
        return fd
