"""What a store keeps about an object beside its bytes: an extended attribute, or a file where none can be set."""

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

from cachefs.core.foreign import parse_time
from cachefs.core.metadata import TOKEN, format_time
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.remote.file_names import HIDDEN, order
from cachefs.remote.file_tree import Tree, is_absent
from cachefs.remote.headers import is_text

_ATTRIBUTE = "user.cachefs.record"
_META = (HIDDEN, b"meta")
_NO_ATTRIBUTE = {errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.EACCES}
_WILL_NOT_FIT = {
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.E2BIG,
    errno.ENOSPC,
    errno.ERANGE,
    errno.EINVAL,
    errno.EBADF,
}

Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """What was said of an object when it was stored here."""

    meta: Mapping[str, str]
    content_type: str | None
    stamps: tuple[Stamp, ...]
    """What ``stat`` may say while this holds; anything else means that another program changed the file."""
    version: str = ""
    """A directory's: its times change with what is in it, so that its ETag cannot come from them."""
    is_implicit: bool = False
    """A directory that exists only because something was stored below it."""

    def encode(self) -> bytes:
        """Return the form in which it is kept."""
        return json.dumps(
            {
                "meta": dict(self.meta),
                "type": self.content_type,
                "stamps": self.stamps,
                "version": self.version,
                "implicit": self.is_implicit,
            },
            separators=(",", ":"),
        ).encode("ascii")


def _decode(kept: bytes) -> Record | None:
    try:
        raw = json.loads(kept)
        return Record(
            meta={_text(name): _text(value) for name, value in raw["meta"].items()},
            content_type=None if raw["type"] is None else _text(raw["type"]),
            stamps=tuple(tuple(map(int, stamp)) for stamp in raw["stamps"]),
            version=_text(raw["version"]),
            is_implicit=raw["implicit"] is True,
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None  # garbage on the disk: the file counts as another program's


def _text(value: object) -> str:
    if not isinstance(value, str) or not is_text(value):
        raise ValueError("not a text")
    return value


def stamp_of(found: os.stat_result) -> Stamp:
    """Return what identifies a state of a file; times and sizes of directories are not their own."""
    access = (found.st_mode, found.st_uid, found.st_gid)
    return access if stat.S_ISDIR(found.st_mode) else (*access, found.st_size, found.st_mtime_ns)


def etag_of(found: os.stat_result, record: Record | None = None) -> ETag:
    """Return the version of what was *found*: any change by anybody makes another."""
    if not stat.S_ISDIR(found.st_mode):
        numbers: Stamp = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    else:
        numbers = (found.st_ino, *stamp_of(found))
    own = record.version if record else ""
    return ETag(
        "-".join(
            [*(f"{number & 0xFFFFFFFFFFFFFFFF:x}" for number in numbers), *filter(None, [own])]
        )
    )


def changed_ns(info: ObjectInfo) -> int | None:
    """Return when a file was last changed, by the disk's own clock; None: of directories nothing tells.

    Its mtime is what whoever stored it said, and may be long ago. *info* is what :func:`describe` says of it.
    """
    if info.key.endswith("/"):
        return None
    _, _, _, changed, *_ = info.etag.split("-")
    return int(changed, 16)


def describe(key: Key, found: os.stat_result, record: Record | None) -> ObjectInfo:
    """Return what a HEAD says: what was stored with the object, or else what the file itself shows."""
    meta: dict[str, str] = dict(record.meta) if record else {}
    if record is None or stamp_of(found) not in record.stamps:
        meta.pop(TOKEN, None)  # these bytes are not that promise's any more
        meta |= {
            "mode": str(found.st_mode),
            "uid": str(found.st_uid),
            "gid": str(found.st_gid),
            "mtime": format_time(found.st_mtime_ns),
        }
    return ObjectInfo(
        key=key,
        size=0 if stat.S_ISDIR(found.st_mode) else found.st_size,
        etag=etag_of(found, record),
        mtime_ns=found.st_mtime_ns,
        content_type=record.content_type if record else None,
        meta=meta,
    )


def apply_attributes(fd: int, meta: Mapping[str, str]) -> None:
    """Show ordinary tools the mode, owner and time that *meta* tells, as far as we may."""
    found = os.fstat(fd)
    mode, uid, gid, when_ns = _shown(found, meta)
    with suppress(OSError):
        if (uid, gid) != (found.st_uid, found.st_gid):
            os.fchown(fd, uid, gid)
    with suppress(OSError):
        if mode != found.st_mode:
            os.fchmod(fd, stat.S_IMODE(mode))
    with suppress(OSError, OverflowError):
        if when_ns != found.st_mtime_ns:
            os.utime(fd, ns=(found.st_atime_ns, when_ns))


def _shown(found: os.stat_result, meta: Mapping[str, str]) -> tuple[int, int, int, int]:
    """Return the mode, owner, group and time to give to a file.

    Never setuid, and never so that we lose access ourselves: the exact values stay in the record. Owners are
    root's to give.
    """
    is_dir = stat.S_ISDIR(found.st_mode)
    mode, uid, gid = (_number(meta.get(name)) for name in ("mode", "uid", "gid"))
    when_ns = parse_time(meta.get("mtime"))
    may_give = os.geteuid() == 0
    return (
        found.st_mode
        if mode is None
        else stat.S_IFMT(found.st_mode) | mode & 0o777 | (0o700 if is_dir else 0o600),
        uid if may_give and uid is not None else found.st_uid,
        gid if may_give and gid is not None else found.st_gid,
        found.st_mtime_ns if when_ns is None or is_dir else when_ns,
    )


def _stages(found: os.stat_result, meta: Mapping[str, str]) -> tuple[Stamp, ...]:
    """Return what ``stat`` may say before, while and after :func:`apply_attributes` runs."""
    mode, uid, gid, when_ns = _shown(found, meta)
    rest = () if stat.S_ISDIR(found.st_mode) else (found.st_size,)
    stages = [
        (found.st_mode, found.st_uid, found.st_gid, *rest, found.st_mtime_ns),
        (found.st_mode, uid, gid, *rest, found.st_mtime_ns),
        (mode, uid, gid, *rest, found.st_mtime_ns),
        (mode, uid, gid, *rest, when_ns),
    ]
    return tuple(dict.fromkeys(stage if rest else stage[:3] for stage in stages))


def _number(value: str | None) -> int | None:
    return (
        int(value)
        if value and value.isascii() and value.isdecimal() and int(value) < 2**32 - 1
        else None
    )


class Records:
    """The records of one tree. One belongs to a key and an inode, so that a replaced file takes its own along."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def read(self, fd: int, key: Key) -> Record | None:
        """Return the record of the open file *fd*, which is *key*'s; None if another program made it."""
        try:
            return _decode(os.getxattr(fd, _ATTRIBUTE))
        except OSError as error:
            if error.errno not in _NO_ATTRIBUTE:
                raise
        try:
            with self._tree.directory(_META) as directory:
                beside = os.open(_file_of(fd, key), os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        except OSError as error:
            if is_absent(error):
                return None
            raise
        with open(beside, "rb") as file:
            return _decode(file.read())

    @contextmanager
    def beside(self) -> Iterator[int | None]:
        """Lend the directory of the records that are kept beside their files; None: there are none."""
        with ExitStack() as stack:
            try:
                directory = stack.enter_context(self._tree.directory(_META))
            except OSError as error:
                if not is_absent(error):
                    raise
                directory = None
            yield directory

    def glance(
        self, directory: int, name: bytes, inode: int, key: Key, beside: int | None
    ) -> Record | None:
        """As :meth:`read`, of a file that is not opened: *name* in *directory*, with that *inode*.

        Raise ``OSError`` if that cannot be told. Whether it was this file is for the caller to see to.
        """
        try:
            path = b"/proc/self/fd/%d/%b" % (directory, name)  # the call knows no directories
            return _decode(os.getxattr(path, _ATTRIBUTE, follow_symlinks=False))
        except OSError as error:
            if error.errno not in _NO_ATTRIBUTE:
                raise
        if beside is None:
            return None
        try:
            kept = os.open(_name_of(inode, key), os.O_RDONLY | os.O_CLOEXEC, dir_fd=beside)
        except FileNotFoundError:
            return None
        with open(kept, "rb") as file:
            return _decode(file.read())

    def write(self, fd: int, key: Key, record: Record) -> None:
        """Set the record of the open file *fd* in one step."""
        try:
            os.setxattr(fd, _ATTRIBUTE, record.encode())
        except OSError as error:
            if error.errno not in _WILL_NOT_FIT:
                raise
            self._write_beside(fd, key, record)
            with suppress(OSError):
                os.removexattr(fd, _ATTRIBUTE)
        else:
            self.forget(fd, key)

    def stamp(
        self,
        fd: int,
        key: Key,
        meta: Mapping[str, str],
        content_type: str | None,
        *,
        implicit: bool = False,
    ) -> None:
        """Set *meta* as the record of the open file *fd*, and show it to ordinary tools.

        Whoever looks meanwhile sees the old metadata or the new, never a mix.
        """
        found = os.fstat(fd)
        version = secrets.token_hex(8) if stat.S_ISDIR(found.st_mode) else ""
        record = Record(meta, content_type, _stages(found, meta), version, implicit)
        self.write(fd, key, record)
        apply_attributes(fd, meta)
        settled = (stamp_of(os.fstat(fd)),)
        if record.stamps != settled:
            self.write(fd, key, replace(record, stamps=settled))

    def forget(self, fd: int, key: Key) -> None:
        """Remove the record that is kept beside the open file *fd*, if there is one."""
        with suppress(OSError), self._tree.directory(_META) as directory:
            os.unlink(_file_of(fd, key), dir_fd=directory)

    def _write_beside(self, fd: int, key: Key, record: Record) -> None:
        with self._tree.unfinished() as (new, tmp, name):
            os.write(new, record.encode())
            os.fsync(new)
            with self._tree.own(*_META) as directory:
                os.rename(name, _file_of(fd, key), src_dir_fd=tmp, dst_dir_fd=directory)
                os.fsync(directory)


def _file_of(fd: int, key: Key) -> bytes:
    return _name_of(os.fstat(fd).st_ino, key)


def _name_of(inode: int, key: Key) -> bytes:
    digest = hashlib.sha256(order(key)).hexdigest()
    return f"{digest}-{inode:x}".encode()
