"""Whether two objects have the same bytes, asked of the stores: by MD5s, by those of parts, by other checksums.

One request to each side, and no bytes; but of a store that is a directory of this machine, which tells no sums, the bytes are
read.
"""

import threading
from dataclasses import dataclass
from typing import Final

from cachefs.core.errors import NotFound
from cachefs.core.fingerprint import Fingerprint
from cachefs.core.types import ObjectInfo
from cachefs.ops.sync_body import RemoteBody
from cachefs.ops.sync_copy import hashed
from cachefs.ops.sync_plan import by_time
from cachefs.ops.throttle import Throttle
from cachefs.remote.store import ObjectStore

_CONTENT: Final = "content"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two stores; *is_near*: it is read where it tells nothing."""

    store: ObjectStore
    is_near: bool


class Contents:
    """Compares objects of *source* and *target* by content; may be used from several threads."""

    def __init__(self, source: Side, target: Side) -> None:
        self.source = source
        self.target = target

    def differs(self, source: ObjectInfo, target: ObjectInfo) -> str | None:
        """Say whether the content differs; where nothing tells, whether *source* was modified later.

        What is not there any more does not differ: whoever copies or deletes it finds out.
        """
        try:
            ours = self.source.store.fingerprint(source.key)
            theirs = self.target.store.fingerprint(target.key)
        except NotFound:
            return None
        is_same = _agree(ours, theirs)
        if is_same is None:
            one, other = _md5(self.source, ours), _md5(self.target, theirs)
            is_same = one == other if one and other else None
        if is_same is None:
            return by_time(source, target)
        return None if is_same else _CONTENT


def _agree(ours: Fingerprint, theirs: Fingerprint) -> bool | None:
    """Return whether two fingerprints are of the same bytes; None: they have nothing in common."""
    if (one := ours.md5 or ours.stored_md5) and (other := theirs.md5 or theirs.stored_md5):
        return one == other
    if ours.parts and theirs.parts and _sizes(ours) == _sizes(theirs):
        return ours.parts == theirs.parts
    for name, checksum in ours.checksums.items():
        if name in theirs.checksums:
            return checksum == theirs.checksums[name]
    return None


def _sizes(told: Fingerprint) -> list[int]:
    return [part.size for part in told.parts]


def _md5(side: Side, told: Fingerprint) -> str | None:
    """Return the MD5 that is told, or that of the bytes, where they are near."""
    if found := told.md5 or told.stored_md5:
        return found
    if not side.is_near:
        return None
    return hashed(RemoteBody(side.store, told, throttle=Throttle(None), ended=threading.Event()))
