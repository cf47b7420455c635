"""Every error of ours, and the one table that turns an error into an errno.

CachefsError
├── StoreError          the far side answered, or did not
│   ├── NotFound        it said, with authority, that the object is not there
│   ├── Changed         a condition did not hold: another version is there (or one is, where none should be)
│   ├── Refused         it will not get better by asking again
│   │   ├── Denied      credentials or permissions; others may be given
│   │   ├── NoBucket    the bucket itself is not there
│   │   ├── Unsupported this store cannot do that
│   │   ├── BadKey      this store cannot bear such a key
│   │   ├── TooMuchMetadata  nor so much metadata on one object
│   │   ├── ObjectTooLarge   nor so large an object
│   │   └── StoreFull   all that can be stored there is
│   │       └── OverQuota  all that may be
│   └── Fault           it may get better: 5xx, cut, slow, garbled
│       ├── Unreachable no connection at all
│       │   └── Untrusted   the store's certificate does not prove who it is; another may be had
│       └── TimedOut    the deadline of the operation has passed
├── TreeError           names and their rules
│   └── Exists, NoEntry, NotEmpty, IsDirectory, NotDirectory, InvalidName, NameTooLong, NotPermitted, ReadOnly,
│       CrossDevice, NoAttribute, NoSpace, TooLarge, Overtaken
├── CacheError          this machine's disk
│   ├── NoRoom          of the cache's own limit
│   │   └── DiskFull    of the disk, whatever the limit
│   └── NoHandles, NoMemory, DiskFailed, BytesLost, Stale, InUse, Damaged
└── UsageError          the operator's mistake: one line and an exit code, never a traceback
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class CachefsError(Exception):
    """The root of all errors raised on purpose."""


class StoreError(CachefsError):
    """Something the object store said, or failed to say."""


class NotFound(StoreError):
    """The store said that there is no such object. Never raised for a fault."""


class Changed(StoreError):
    """The store holds another version than the condition named."""


class Refused(StoreError):
    """The store will not do this, now or later."""


class Denied(Refused):
    """The credentials are wrong, expired, or not allowed to do this."""


class NoBucket(Refused):
    """There is no such bucket or container."""


class Unsupported(Refused):
    """The store does not know this operation."""


class BadKey(Refused):
    """The store cannot hold an object under such a key."""


class TooMuchMetadata(Refused):
    """The store cannot bear so much metadata on one object."""


class ObjectTooLarge(Refused):
    """The store takes no object of that size."""


class StoreFull(Refused):
    """The store has no space left."""


class OverQuota(StoreFull):
    """Nothing more may be stored in the bucket, or by its owner."""


class Fault(StoreError):
    """A passing failure; asking again may help.

    ``retry_after_s`` is what the store asked for (Retry-After), in seconds, if it did.
    """

    def __init__(self, reason: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Unreachable(Fault):
    """No connection could be made."""


class Untrusted(Unreachable):
    """The store has not proved by a certificate that it is the one that is meant."""


class TimedOut(Fault):
    """The deadline of the operation passed before the store answered."""


class TreeError(CachefsError):
    """A name, or what is behind it, does not allow the operation."""


class Exists(TreeError):
    """The name is taken."""


class NoEntry(TreeError):
    """There is no such name."""


class NotEmpty(TreeError):
    """The directory has entries."""


class IsDirectory(TreeError):
    """A file was wanted and a directory is there."""


class NotDirectory(TreeError):
    """A directory was wanted and a file is there."""


class InvalidName(TreeError):
    """No object can have this name."""


class NameTooLong(TreeError):
    """The name, or the key that it would make, is too long."""


class NotPermitted(TreeError):
    """An object store cannot bear this operation."""


class ReadOnly(TreeError):
    """The mount or the remote takes no writes."""


class CrossDevice(TreeError):
    """The two names lie in different buckets."""


class NoAttribute(TreeError):
    """There is no such extended attribute."""


class NoSpace(TreeError):
    """What the object would have to carry besides its bytes is more than a store takes."""


class TooLarge(TreeError):
    """The file would be larger than any object."""


class Overtaken(TreeError):
    """Another version is there than the one that was seen, and ``--conflict`` says that it stays."""


class CacheError(CachefsError):
    """Something on this machine's disk."""


class NoRoom(CacheError):
    """The cache is full of bytes that may not be evicted, or its disk is."""


class DiskFull(NoRoom):
    """The cache's disk is full, whatever the cache may hold."""


class NoHandles(CacheError):
    """The daemon, or the machine, has as many files open as it may have."""


class NoMemory(CacheError):
    """The daemon can get no more memory, or no more threads."""


class DiskFailed(CacheError):
    """This machine's disk did not do what it was asked to."""


class BytesLost(CacheError):
    """Bytes that were promised to the store are not on the disk any more."""


class Stale(CacheError):
    """The version that this handle or inode stands for is gone."""


class InUse(CacheError):
    """Another daemon holds the cache directory."""


class Damaged(CacheError):
    """The database of the cache directory makes no sense any more."""


class UsageError(CachefsError):
    """The operator's mistake. ``exit_code`` is the command's (2 unless said otherwise)."""

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


_ERRNO: dict[type[CachefsError], int] = {
    CachefsError: errno.EIO,
    StoreError: errno.EIO,
    NotFound: errno.ENOENT,
    Changed: errno.ESTALE,
    Refused: errno.EIO,
    Denied: errno.EACCES,
    NoBucket: errno.ENODEV,  # not ENOENT: a bucket that vanished must not look like an empty tree
    Unsupported: errno.ENOTSUP,
    BadKey: errno.EILSEQ,
    TooMuchMetadata: errno.ENOSPC,
    ObjectTooLarge: errno.EFBIG,
    StoreFull: errno.ENOSPC,
    OverQuota: errno.EDQUOT,
    Fault: errno.EIO,
    Unreachable: errno.EHOSTUNREACH,
    Untrusted: errno.EHOSTUNREACH,
    TimedOut: errno.EIO,
    TreeError: errno.EINVAL,
    Exists: errno.EEXIST,
    NoEntry: errno.ENOENT,
    NotEmpty: errno.ENOTEMPTY,
    IsDirectory: errno.EISDIR,
    NotDirectory: errno.ENOTDIR,
    InvalidName: errno.EINVAL,
    NameTooLong: errno.ENAMETOOLONG,
    NotPermitted: errno.EPERM,
    ReadOnly: errno.EROFS,
    CrossDevice: errno.EXDEV,
    NoAttribute: errno.ENODATA,
    NoSpace: errno.ENOSPC,
    TooLarge: errno.EFBIG,
    Overtaken: errno.EBUSY,  # not ESTALE: the kernel would look again, and then do it unasked
    CacheError: errno.EIO,
    NoRoom: errno.ENOSPC,
    DiskFull: errno.ENOSPC,
    NoHandles: errno.EMFILE,
    NoMemory: errno.ENOMEM,
    DiskFailed: errno.EIO,
    BytesLost: errno.EIO,
    Stale: errno.ESTALE,
    InUse: errno.EBUSY,
    Damaged: errno.EIO,
    UsageError: errno.EINVAL,
}


_SHORTAGES: dict[int, type[CacheError]] = {
    errno.ENOSPC: DiskFull,
    errno.EDQUOT: DiskFull,
    errno.EMFILE: NoHandles,
    errno.ENFILE: NoHandles,
    errno.ENOMEM: NoMemory,
}


def shortage(error: OSError) -> CacheError | None:
    """Return what this machine lacks, where that is what *error* says of the cache directory."""
    kind = _SHORTAGES.get(error.errno or 0)
    return None if kind is None else kind(f"the cache directory: {error.strerror}")


def disk_error(error: OSError) -> CacheError:
    """Return what *error* says of the cache directory."""
    return shortage(error) or DiskFailed(f"the cache directory: {error.strerror}")


@contextmanager
def naming_shortages() -> Iterator[None]:
    """Turn an ``OSError`` of the block into what this machine lacks, where it says so."""
    try:
        yield
    except OSError as error:
        lack = shortage(error)
        if lack is None:
            raise
        raise lack from error


def errno_of(error: CachefsError) -> int:
    """Return the errno that a program gets for *error*."""
    return next(_ERRNO[kind] for kind in type(error).__mro__ if kind in _ERRNO)
