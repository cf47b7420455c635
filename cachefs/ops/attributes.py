"""Mode, owner, times and attributes of what is in a tree, as the metadata by which a mount shows the same."""

import errno
import hashlib
import os

from cachefs.core import mediatypes, metadata, xattrs
from cachefs.core.types import Attrs, Kind, ObjectInfo
from cachefs.engine.objects import attrs_of_file
from cachefs.ops.tree import Found, Tree

_COMPARED = ("kind", "mode", "uid", "gid", "mtime_ns")


class Attributes:
    """Reads those of one tree. *with_xattrs*: the ``user.*`` attributes as well."""

    def __init__(self, tree: Tree, *, with_xattrs: bool) -> None:
        self._tree = tree
        self._with_xattrs = with_xattrs

    def text(self, found: Found) -> str:
        """Return all that is compared, in short: equal where a mount shows the same."""
        status, told = found.status, sorted(self.xattrs(found).items())
        digest = hashlib.sha256(repr(told).encode()).hexdigest()[:16] if told else ""
        return f"{status.st_mode:o} {status.st_uid} {status.st_gid} {status.st_mtime_ns} {digest}"

    def target(self, found: Found) -> bytes:
        """Return what a symbolic link says; nothing if it is gone."""
        try:
            return os.readlink(self._tree.full(found.path))
        except OSError:
            return b""

    def others(self, found: Found, now: ObjectInfo | None) -> dict[str, str]:
        """Return the metadata beside mode, owner and times: what others put on the object *now*, and our attributes.

        Raise ``NoSpace`` if not all of it fits on an object.
        """
        meta = dict(now.meta or {}) if now is not None else {}
        for name in (xattrs.KEY, metadata.TARGET):
            meta.pop(name, None)
        if found.kind is Kind.SYMLINK:
            meta |= metadata.pointing_to(self.target(found))
        attributes = self.xattrs(found)
        for attribute, value in attributes.items():
            meta = xattrs.changed(meta, attribute, value)
        if attributes:
            metadata.require_room(attrs_of(found), meta)
        return meta

    def xattrs(self, found: Found) -> dict[bytes, bytes]:
        """Return the ``user.*`` attributes, but for those by which a mount tells of its cache."""
        if not self._with_xattrs or found.kind is Kind.SYMLINK:
            return {}
        path = self._tree.full(found.path)
        try:
            names = {os.fsencode(name): name for name in os.listxattr(path)}
            return {
                raw: os.getxattr(path, name)
                for raw, name in names.items()
                if raw.startswith(xattrs.PREFIX) and not raw.startswith(xattrs.OWN)
            }
        except OSError as error:
            if error.errno in (errno.ENOTSUP, errno.ENODATA, errno.ENOENT):
                return {}
            raise


def attrs_of(found: Found) -> Attrs:
    """Return what ``stat`` says."""
    return attrs_of_file(found.status, found.kind or Kind.FILE)


def type_of(found: Found) -> str:
    """Return the content type of a new object."""
    if found.kind is Kind.DIR:
        return metadata.DIRECTORY_TYPE
    if found.kind is Kind.SYMLINK:
        return mediatypes.BYTES
    return mediatypes.guessed(found.key.rpartition("/")[2])


def type_kept(found: Found, now: ObjectInfo) -> str | None:
    """Return the type that somebody gave the object; None where it was of another kind of thing."""
    was = metadata.decode(now.meta or {}, now.content_type).kind
    return now.content_type if (was is Kind.SYMLINK) == (found.kind is Kind.SYMLINK) else None


def tells_otherwise(meta: dict[str, str], now: ObjectInfo) -> bool:
    """Whether *meta* means other attributes than the store tells."""
    wanted, told = metadata.decode(meta), metadata.decode(now.meta or {}, now.content_type)
    if any(getattr(wanted, name) != getattr(told, name) for name in _COMPARED):
        return True
    return xattrs.decode(meta) != xattrs.decode(now.meta or {})
