"""What becomes of a write whose base is no longer what the store holds: nothing is lost silently."""

import base64
import logging
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cachefs.core import metadata
from cachefs.core.errors import Changed, Fault, NotFound, Overtaken
from cachefs.core.intent import Intent
from cachefs.core.keys import child_key, conflict_name, name_of
from cachefs.core.types import ConflictPolicy, ETag, Key, Name, ObjectInfo
from cachefs.engine.names import Names
from cachefs.engine.threads import Threads
from cachefs.local.inodes import Inode, InodeTable
from cachefs.local.journal import Journal
from cachefs.remote.store import Body, ObjectStore

_log = logging.getLogger(__name__)

_TURNS = 100


@dataclass(frozen=True, slots=True)
class Rebased:
    """Try again, on this base (None: there must be no object)."""

    base: ETag | None


@dataclass(frozen=True, slots=True)
class Stored:
    """It is ours, and whole: only the answer was lost."""

    info: ObjectInfo


@dataclass(frozen=True, slots=True)
class KeptBeside:
    """Ours was stored under another name in the same directory."""

    name: Name
    component: str
    info: ObjectInfo
    theirs: ObjectInfo


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The policy says that ours yields."""


@dataclass(frozen=True, slots=True)
class Parked:
    """The policy says that the operator decides."""

    reason: str


Verdict = Rebased | Stored | KeptBeside | GivenUp | Parked

_OVERWRITTEN: Final = "stored, and then overwritten by another writer who had not seen it"

_AS_POLICY_SAYS: Final = {
    ConflictPolicy.KEEP_BOTH: "the version of this mount was stored anew",
    ConflictPolicy.OURS: "the version of this mount was stored anew, as --conflict ours says",
    ConflictPolicy.THEIRS: "ours was given up, as --conflict theirs says",
    ConflictPolicy.FAIL: "--conflict fail says that you decide",
}
"""What becomes of bytes whose object was deleted."""


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()) or "localhost"


class Conflicts:
    """Looks at what stands in the way of an upload, and carries out ``--conflict``."""

    def __init__(
        self,
        store: ObjectStore,
        inodes: InodeTable,
        journal: Journal,
        names: Names,
        threads: Threads,
        policy: ConflictPolicy,
    ) -> None:
        self._store = store
        self._inodes = inodes
        self._journal = journal
        self._names = names
        self._threads = threads
        self._policy = policy
        self.noticed: Callable[[Key, str], None] = lambda key, outcome: None
        """Called with each conflict, and what came of it."""

    async def resolve(
        self,
        inode: Inode,
        intent: Intent,
        base: ETag | None,
        key: Key,
        body: Body,
        meta: Mapping[str, str],
    ) -> Verdict:
        """Return what to do with an upload that the store refused because something else is at *key*."""
        try:
            theirs = await self._threads.ask(self._store.head, key)
        except NotFound:
            if base is None:
                raise Fault(
                    "the store says both that there is such an object and that there is none"
                ) from None
            return self._resolve_deleted(intent, key)
        if metadata.token_of(theirs) == intent.token:
            # Our own write, whose answer was lost; of what was written since, only the token is the same.
            return Stored(theirs) if _is_whole(theirs, body, meta) else Rebased(theirs.etag)
        if theirs.etag == base:
            raise Fault("the store refuses the upload although nothing has changed there")
        if self._policy is ConflictPolicy.OURS:
            self.note(key, "changed at the store meanwhile; overwritten, as --conflict ours says")
            return Rebased(theirs.etag)
        if self._policy is ConflictPolicy.THEIRS:
            self.note(
                key, "changed at the store meanwhile; ours was given up, as --conflict theirs says"
            )
            return GivenUp()
        if self._policy is ConflictPolicy.FAIL:
            return self._park(
                intent,
                key,
                "changed at the store meanwhile, and --conflict fail says that you decide",
            )
        return await self._keep_both(inode, key, body, meta, theirs)

    def _resolve_deleted(self, intent: Intent, key: Key) -> Verdict:
        outcome = f"deleted at the store meanwhile; {_AS_POLICY_SAYS[self._policy]}"
        if self._policy is ConflictPolicy.FAIL:
            return self._park(intent, key, outcome)
        self.note(key, outcome)
        return GivenUp() if self._policy is ConflictPolicy.THEIRS else Rebased(None)

    def _park(self, intent: Intent, key: Key, reason: str) -> Parked:
        """Leave it to the operator. What is tried again and meets the same is told but once."""
        if intent.error != reason or not self._journal.has_conflict(key, reason):
            self.note(key, reason)
        return Parked(reason)

    async def _keep_both(
        self, inode: Inode, key: Key, body: Body, meta: Mapping[str, str], theirs: ObjectInfo
    ) -> Verdict:
        stored = await self._store_beside(inode.component, key, body, meta, inode.content_type)
        if stored is None:
            return Parked("changed at the store meanwhile, and no name beside it is free")
        name, component, info = stored
        self.note(key, f"changed at the store meanwhile; the version of this mount is {component}")
        return KeptBeside(name, component, info, theirs)

    async def _store_beside(
        self,
        component: str,
        key: Key,
        body: Body,
        meta: Mapping[str, str],
        content_type: str | None,
    ) -> tuple[Name, str, ObjectInfo] | None:
        """Store *body* under a conflict name. Return name, component and version; None if no name is free."""
        directory = Key(key[: len(key) - len(component)])
        for turn in range(_TURNS):
            name, aside = beside(component, turn)
            target = child_key(directory, aside)
            try:
                info = await self._threads.transfer(
                    self._store.put,
                    target,
                    body,
                    meta=meta,
                    content_type=content_type,
                    if_match=None,
                )
            except Changed:
                if not await self._is_ours(target, meta):
                    continue
                info = await self._threads.ask(self._store.head, target)
            return name, aside, info
        return None

    async def save_overwritten(
        self,
        component: str,
        key: Key,
        body: Body,
        meta: Mapping[str, str],
        content_type: str | None,
    ) -> None:
        """Store bytes anew, beside *key*, that somebody overwrote there who had never seen them."""
        if self._policy is ConflictPolicy.THEIRS:
            self.note(key, f"{_OVERWRITTEN}; ours was given up, as --conflict theirs says")
            return
        stored = await self._store_beside(component, key, body, meta, content_type)
        if stored is None:
            self.note_gone(key)
            return
        name, aside, info = stored
        self._show(Key(key[: len(key) - len(component)]), name, aside, info)
        self.note(key, f"{_OVERWRITTEN}; the version of this mount is {aside}")

    def note_gone(self, key: Key) -> None:
        """Say that a version was overwritten of which the cache has no bytes any more."""
        self.note(key, f"{_OVERWRITTEN}; the version of this mount is gone, here as well")

    async def _is_ours(self, target: Key, meta: Mapping[str, str]) -> bool:
        """Whether *target* is our own copy, whose answer was lost."""
        try:
            info = await self._threads.ask(self._store.head, target)
        except NotFound:
            return False
        is_true = metadata.token_of(info) is not None
        return is_true and (info.meta or {}).get(metadata.TOKEN) == meta.get(metadata.TOKEN)

    async def make_way(self, component: str, key: Key, found: ObjectInfo, deed: str) -> None:
        """Do as the policy says with a version at *key* that this mount had not seen, before it is *deed*.

        *component*: the last of *key*, after which a copy is called. Raise ``Overtaken`` where the version must
        stay where it is.
        """
        if self._policy is ConflictPolicy.OURS:
            self.note(
                key, f"changed at the store before it was {deed}; gone, as --conflict ours says"
            )
        elif self._policy is ConflictPolicy.KEEP_BOTH:
            await self._keep_aside(component, key, found, deed)
        else:
            outcome = (
                f"changed at the store meanwhile; not {deed}, as --conflict {self._policy} says"
            )
            self.note(key, outcome)
            raise Overtaken(outcome)

    async def _keep_aside(self, component: str, key: Key, found: ObjectInfo, deed: str) -> None:
        """Copy what somebody else put at *key* to a name beside it."""
        directory = Key(key[: len(key) - len(component)])
        for turn in range(_TURNS):
            name, aside = beside(component, turn)
            try:
                info = await self._threads.transfer(
                    self._store.copy,
                    key,
                    child_key(directory, aside),
                    if_match=found.etag,
                    replaces=None,
                )
            except Changed:
                continue
            self._show(directory, name, aside, info)
            self.note(
                key, f"changed at the store before it was {deed}; that version is now {aside}"
            )
            return
        raise Changed("changed at the store meanwhile, and no name beside it is free")

    def _show(self, directory: Key, name: Name, component: str, info: ObjectInfo) -> None:
        """Let a copy that was made beside a file be seen at once."""
        parent = self._inodes.find(directory)
        if parent is not None and self._inodes.child(parent.ino, name) is None:
            kind = metadata.decode(info.meta or {}, info.content_type).kind
            now_ns = self._names.now_ns()
            self._inodes.insert_seen(parent.ino, name, component, kind, info, now_ns)
            self._names.forget_absent(parent.ino, name)
            self._names.tell_kernel(parent.ino, name)

    def note(self, key: Key, outcome: str) -> None:
        """Say what was met at *key*, in the log and in ``status``."""
        _log.warning("conflict: %s: %s", ascii(key), outcome)
        self._journal.note_conflict(key, outcome, self._names.wall_ns())
        self.noticed(key, outcome)


def beside(component: str, turn: int) -> tuple[Name, str]:
    """Return a name for a conflict copy of what is called *component*, and the copy's component."""
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    plain = Name(component.encode("utf-8", "surrogateescape") or b"empty")
    aside = bytes(conflict_name(plain, host=_host(), when=when, turn=turn)).decode(
        "utf-8", "surrogateescape"
    )
    return name_of(aside), aside


def _is_whole(theirs: ObjectInfo, body: Body, meta: Mapping[str, str]) -> bool:
    """Whether what is there has exactly the bytes of *body*, and the attributes that they are stored with."""
    if body.md5 is None or theirs.size != body.size:
        return False
    told = theirs.meta or {}
    in_parts = base64.b64encode(bytes.fromhex(body.md5)).decode("ascii")
    has_bytes = theirs.etag == body.md5 or told.get("md5chksum") == in_parts
    return has_bytes and metadata.is_of_write(told, meta)
