"""A directory tree as the objects that it stands for: each file, link and directory with its key, in their order."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from cachefs.core.errors import CachefsError, InvalidName, NotDirectory
from cachefs.core.keys import child_key, component_of, name_of
from cachefs.core.types import Key, Kind, Name
from cachefs.ops.merge import byte_order

_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIR,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}
_ROOT: Final = Key("")


@dataclass(frozen=True, slots=True)
class Found:
    """Something in the tree that has a key."""

    key: Key
    path: str
    """Relative to the root, a directory's with a slash behind; bytes that are no UTF-8 as surrogates."""
    status: os.stat_result

    @property
    def kind(self) -> Kind | None:
        """What it is; None: a device."""
        return _KINDS.get(stat.S_IFMT(self.status.st_mode))


@dataclass(frozen=True, slots=True)
class Unusable:
    """Something in the tree that cannot be read, or that no object can stand for; nothing is known of what is below."""

    path: str
    """As of what is :class:`Found`."""
    error: Exception


class Tree:
    """The tree below *root*. *follow*: what symbolic links lead to stands in their place."""

    def __init__(self, root: str, *, follow: bool = False) -> None:
        self._root = os.fsencode(root)
        self.follow = follow

    def full(self, path: str) -> bytes:
        """Return the path of something in the tree, for the system."""
        return os.path.join(self._root, os.fsencode(path.removesuffix("/")))

    def walk(self, enter: Callable[[str], bool] = lambda _: True) -> Iterator[Found | Unusable]:
        """Yield what is in the tree, in the order of the keys, a directory before what is in it.

        Directories that *enter* does not want, by their path with a slash behind, are left out with all that is in them.
        Holds one sorted list of names for each directory on the way down. Raise ``OSError`` if the root itself cannot be
        read.
        """
        status = os.stat(self._root)
        # A stack and no recursion: a key bears more levels than Python has frames.
        levels = [_Level("", (status.st_dev, status.st_ino), self._listed(_ROOT, ""))]
        while levels:
            inside = levels[-1].inside
            key, entry = next(levels[-1].entries, (None, None))
            if entry is None or key is None:
                levels.pop()
                continue
            path = f"{inside}{os.fsdecode(entry.name)}"
            if isinstance(key, Exception):
                yield Unusable(f"{path}/" if self._is_dir(entry) else path, key)
            elif key.endswith("/"):
                if enter(f"{path}/"):
                    yield from self._entered(key, f"{path}/", entry, levels)
            elif (told := self._told(key, path, entry)) is not None:
                yield told

    def look(self, path: str) -> Found | Unusable:
        """Return what is at *path*, given relative to the root. Raise ``FileNotFoundError`` if nothing is."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        key, at = _ROOT, ""
        try:
            for number, part in enumerate(parts, 1):
                status = os.stat(self.full(at + part), follow_symlinks=self.follow)
                is_dir = stat.S_ISDIR(status.st_mode)
                if number < len(parts) and not is_dir:
                    raise NotDirectory(f"{at + part!r} is no directory of this tree")
                key = self._key(key, at, part, is_dir=is_dir)
                at += f"{part}/" if is_dir else part
                if number == len(parts):
                    return Found(key, at, status)
        except FileNotFoundError:
            raise
        except (OSError, CachefsError) as error:
            return Unusable(path, error)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def _key(self, directory: Key, inside: str, name: str, *, is_dir: bool) -> Key:
        component, shadowed = component_of(Name(os.fsencode(name)))
        if shadowed:
            beside = os.path.join(self.full(inside), name_of(component))
            if is_dir or not os.path.isdir(beside):
                raise InvalidName(
                    f"the name {name!r} is reserved for an object beside a directory"
                )
        if not component and not is_dir:
            raise InvalidName(f"the name {name!r} is reserved for what a directory's marker holds")
        return child_key(directory, component, is_dir=is_dir)

    def _entered(
        self, key: Key, path: str, entry: "os.DirEntry[bytes]", levels: list["_Level"]
    ) -> Iterator[Found | Unusable]:
        """Yield a directory, and put what is in it on *levels*, where it is known if the link leads back to one of them."""
        told = self._told(key, path, entry)
        if not isinstance(told, Found):
            if told is not None:
                yield told
            return
        own = told.status.st_dev, told.status.st_ino
        if any(own == level.own for level in levels):
            yield Unusable(
                path, OSError(errno.ELOOP, "the link leads back to where it lies", path)
            )
            return
        yield told
        try:
            levels.append(_Level(path, own, self._listed(key, path)))
        except OSError as error:
            yield Unusable(path, error)

    def _listed(
        self, directory: Key, inside: str
    ) -> Iterator[tuple[Key | Exception, "os.DirEntry[bytes]"]]:
        """Return what is directly in a directory, in the order of the keys. Raise ``OSError`` if it cannot be read."""
        with os.scandir(self.full(inside)) as entries:
            return iter(sorted(self._keyed(directory, inside, entries), key=_order))

    def _keyed(
        self, directory: Key, inside: str, entries: Iterator["os.DirEntry[bytes]"]
    ) -> Iterator[tuple[Key | Exception, "os.DirEntry[bytes]"]]:
        for entry in entries:
            name = os.fsdecode(entry.name)
            try:
                yield self._key(directory, inside, name, is_dir=self._is_dir(entry)), entry
            except CachefsError as error:
                yield error, entry

    def _is_dir(self, entry: "os.DirEntry[bytes]") -> bool:
        try:
            return entry.is_dir(follow_symlinks=self.follow)
        except OSError:
            return False  # what it is cannot be told, and its status will say why

    def _told(self, key: Key, path: str, entry: "os.DirEntry[bytes]") -> Found | Unusable | None:
        """Return what *entry* is; None if it has vanished."""
        try:
            return Found(key, path, entry.stat(follow_symlinks=self.follow))
        except FileNotFoundError as error:
            return Unusable(path, error) if entry.is_symlink() else None
        except OSError as error:
            return Unusable(path, error)


@dataclass(frozen=True, slots=True)
class _Level:
    """A directory on the way down."""

    inside: str
    """Its path, with a slash behind."""
    own: tuple[int, int]
    """Device and inode, by which a link that leads back to it is known."""
    entries: Iterator[tuple[Key | Exception, "os.DirEntry[bytes]"]]
    """What of it is still to come."""


def _order(keyed: tuple[Key | Exception, "os.DirEntry[bytes]"]) -> tuple[bytes, bytes]:
    key, entry = keyed
    return b"" if isinstance(key, Exception) else byte_order(key), entry.name
