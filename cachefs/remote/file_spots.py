"""Opening, making room at, and clearing away the spots where objects lie."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from cachefs.core.types import Key
from cachefs.remote.file_names import ODD, Place, Spot, text
from cachefs.remote.file_records import Records
from cachefs.remote.file_tree import Tree, is_absent


class Spots:
    """The spots of one tree. Changes are made under the tree's lock, which the caller holds."""

    def __init__(self, tree: Tree, records: Records) -> None:
        self._tree = tree
        self._records = records

    def open(self, spot: Spot) -> int | None:
        """Open what lies at *spot*: a symlink as itself, a pipe without waiting for its other end."""
        flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            with self._tree.directory(spot.parents) as parent:
                found = os.stat(spot.name, dir_fd=parent, follow_symlinks=False)
                has_data = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
                return os.open(
                    spot.name, flags | (os.O_RDONLY if has_data else os.O_PATH), dir_fd=parent
                )
        except OSError as error:
            if is_absent(error):
                return None
            raise

    def free(self, place: Place) -> Spot:
        """Return the spot for a new object: the plain one unless something else is in its way."""
        if place.plain is None or place.is_marker or not self._is_free(place.plain):
            return place.odd
        return place.plain

    def is_free_for_directory(self, spot: Spot) -> bool:
        """Whether a directory lies at *spot*, or could."""
        try:
            with self._tree.directory((*spot.parents, spot.name)):
                return True
        except OSError as error:
            if not is_absent(error):
                raise
        return self._is_free(spot)

    @contextmanager
    def parent(self, spot: Spot) -> Iterator[int]:
        """Lend the directory of *spot*; those missing on the way are made, and known to be only that."""
        if spot.parents[: len(ODD)] == ODD:
            with self._tree.own(*spot.parents) as fd:
                yield fd
            return
        with ExitStack() as stack:
            fd = stack.enter_context(self._tree.directory())
            for depth in range(len(spot.parents)):
                self._make_implicit(fd, spot.parents[: depth + 1])
                fd = stack.enter_context(self._tree.directory(spot.parents[: depth + 1]))
            yield fd

    def prune(self, parents: tuple[bytes, ...]) -> None:
        """Remove the directories of *parents*, inmost first, that are empty and were made by :meth:`parent`."""
        is_odd = parents[: len(ODD)] == ODD
        with suppress(OSError):  # not empty, as a rule: then it stays, and so do those around it
            while len(parents) > (len(ODD) if is_odd else 0):
                with self._tree.directory(parents) as fd:
                    key = Key("".join(text(part) + "/" for part in parents))
                    record = self._records.read(fd, key)
                    if not is_odd and not (record and record.is_implicit):
                        return
                    with self._tree.directory(parents[:-1]) as outer:
                        os.rmdir(parents[-1], dir_fd=outer)
                    self._records.forget(fd, key)
                parents = parents[:-1]

    def _is_free(self, spot: Spot) -> bool:
        """Whether nothing lies at *spot*, and every directory on the way is one or can be made."""
        for depth in range(len(spot.parents) + 1):
            name = (*spot.parents, spot.name)[depth]
            try:
                with self._tree.directory(spot.parents[:depth]) as fd:
                    os.stat(name, dir_fd=fd, follow_symlinks=False)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return True
                if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EILSEQ):
                    return False
                raise
        return False

    def _make_implicit(self, outer: int, parts: tuple[bytes, ...]) -> None:
        """Make the directory *parts* in the open directory *outer*, unless it is there."""

        def prepare(fd: int) -> None:
            # Open to whom its parent is: the daemon's umask is not meant for what it stores.
            os.fchmod(fd, os.fstat(outer).st_mode & 0o777 | 0o700)
            key = Key("".join(text(part) + "/" for part in parts))
            self._records.stamp(fd, key, {}, None, implicit=True)

        self._tree.make_directory(outer, parts[-1], prepare)
