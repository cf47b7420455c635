"""What of one bucket another lacks: found by their listings, kept in a file, told as lists.

The rule is the operators' own: a source that was modified later than the target is copied again. A target that the
source no longer has is a *duplicate*.
"""

import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import IO, Final, Self

from cachefs.core.errors import UsageError
from cachefs.core.keys import path_shown
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.remote.file_records import changed_ns

_SECOND_NS: Final = 10**9


class Kind(StrEnum):
    """Which list a difference belongs to; the value is the name of its file."""

    NEW = "new.txt"
    """The target has nothing under the key."""
    MODIFIED = "modified.txt"
    """It has another version."""
    DUPLICATE = "duplicate_stores.txt"
    """Only the target has it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One key of which the two sides do not have the same."""

    kind: Kind
    key: Key
    size: int
    """Bytes that are to be copied; of a duplicate those that are to go."""
    source: ETag | None
    """The version that the source listed."""
    target: ETag | None
    """The version that the target listed."""
    reason: str
    """Why, in a word or two: ``newer``, ``size``, ``content``, …"""


UNSURE: Final = "unsure"
"""What a rule says where the listings do not tell: the stores have to be asked."""

Rule = Callable[[ObjectInfo, ObjectInfo], str | None]
"""Says why a source has to be copied over a target; None: it has not."""


def by_time(source: ObjectInfo, target: ObjectInfo) -> str | None:
    """Say whether *source* was modified later than *target*, or is not as long.

    S3 tells whole seconds. A source of the same second as its copy may have been changed after it was read: unless
    the ETags agree it is copied once more, after which the target is the later one.
    """
    if source.size != target.size:
        return "size"
    ours, theirs = source.mtime_ns, target.mtime_ns
    if not (ours % _SECOND_NS and theirs % _SECOND_NS):
        ours, theirs = ours // _SECOND_NS, theirs // _SECOND_NS
    if ours > theirs:
        return "newer"
    return "same second" if ours == theirs and source.etag != target.etag else None


def unless_cut_off(rule: Rule, begun: Collection[Key]) -> Rule:
    """Return *rule*, but for the keys in *begun*, whose copies nobody has seen through.

    The source may have changed after it was read, and before the copy was stored: the copy is the later one then.
    """

    def judged(source: ObjectInfo, target: ObjectInfo) -> str | None:
        if source.key in begun and source.etag != target.etag:
            return "cut off"
        return rule(source, target)

    return judged


def by_listed_content(source: ObjectInfo, target: ObjectInfo) -> str | None:
    """Say whether the content differs, as far as sizes and ETags tell; :data:`UNSURE` where they do not.

    Only equal ETags tell: different ones may be of the same bytes, in other parts or under another key.
    """
    if source.size != target.size:
        return "size"
    return None if source.etag == target.etag else UNSURE


@dataclass(frozen=True, slots=True)
class Near:
    """Dates the objects of a directory by when they were changed, as other stores do, and not by their mtimes.

    *undated_ns* is the time of those of which nothing tells it.
    """

    undated_ns: int

    @classmethod
    def source(cls) -> Self:
        """Return one for what is copied from: of what nothing tells, it is not later."""
        return cls(0)

    @classmethod
    def target(cls) -> Self:
        """Return one for what is copied to: of what nothing tells, it is not earlier."""
        return cls(2**63 - 1)

    def __call__(self, info: ObjectInfo) -> ObjectInfo:
        """Return *info* with that date."""
        when_ns = changed_ns(info)
        return replace(info, mtime_ns=self.undated_ns if when_ns is None else when_ns)


def new(source: ObjectInfo) -> Difference:
    """Return that the target has nothing of *source*."""
    return Difference(Kind.NEW, source.key, source.size, source.etag, None, "new")


def modified(source: ObjectInfo, target: ObjectInfo, reason: str) -> Difference:
    """Return that *target* has to be replaced by *source*."""
    return Difference(Kind.MODIFIED, source.key, source.size, source.etag, target.etag, reason)


def duplicate(target: ObjectInfo) -> Difference:
    """Return that the source has nothing of *target*."""
    return Difference(Kind.DUPLICATE, target.key, target.size, None, target.etag, "gone")


class Plan:
    """The differences, in the order of their keys: on the disk of *directory*, for they may be millions.

    The file has no name, and goes with the process.
    """

    def __init__(self, directory: Path) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - see close()
        self._odd: set[Kind] = set()
        """Lists that one path a line would not bear."""
        self.listed = 0
        """Objects of the source that were compared."""
        self.files = dict.fromkeys(Kind, 0)
        self.bytes = dict.fromkeys(Kind, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def add(self, found: Difference) -> None:
        """Take a difference down."""
        row = (
            found.kind.name, found.key, found.size, found.source, found.target, found.reason,
        )  # fmt: skip
        self._file.write(json.dumps(row).encode() + b"\n")
        self.files[found.kind] += 1
        self.bytes[found.kind] += found.size
        if _is_odd(found.key):
            self._odd.add(found.kind)

    def differences(self, *kinds: Kind) -> Iterator[Difference]:
        """Yield what was taken down, of *kinds*. Not to be mixed with :meth:`add`, nor with another reader."""
        self._file.flush()
        self._file.seek(0)
        wanted = {kind.name for kind in kinds}
        for line in self._file:
            name, key, size, source, target, reason = json.loads(line)
            if name in wanted:
                yield Difference(Kind[name], Key(key), size, source, target, reason)

    def write_lists(self, directory: Path) -> None:
        """Write the list of each kind into *directory*, in place of those of the run before.

        One key a line, as a mount shows it: what no path can hold (an empty part, ``..``) is escaped. Where a line
        would not bear a key (it holds a newline, say) each key of that list ends in a NUL instead. ``--manifest``
        reads both.
        """
        for kind in Kind:
            end = b"\0" if kind in self._odd else b"\n"
            with replacing(directory / kind.value) as file:
                for found in self.differences(kind):
                    file.write(_shown(found.key) + end)

    def close(self) -> None:
        """Forget everything."""
        self._file.close()


class replacing:
    """Lends a file that takes the place of *path* when the block ends well: always the old one, or the new one whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")

    def __enter__(self) -> IO[bytes]:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = open(os.open(self._part, flags, 0o666), "wb")
        except OSError as error:
            raise UsageError(
                f"cannot write {self._path}: {error.strerror} — choose another --out", exit_code=1
            ) from None
        return self._file

    def __exit__(self, kind: object, *raised: object) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        if kind is None:
            os.replace(self._part, self._path)


def _shown(key: Key) -> bytes:
    """Return *key* as a path that does not leave the tree; a directory's marker still ends in a slash."""
    name = key.removesuffix("/")
    return path_shown(Key(name)) + key[len(name) :].encode()


def _is_odd(key: str) -> bool:
    """Whether a list with a path on each line would be read otherwise than it was written."""
    return "\n" in key or key.endswith("\r") or key.lstrip()[:1] == "{"
