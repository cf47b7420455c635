"""What becomes of a write whose base is no longer what the store holds: nothing is lost silently."""

import logging
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from cachefs.core import metadata
from cachefs.core.errors import Changed, Fault, NotFound
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
class KeptBeside:
    """Ours was stored under another name in the same directory."""

    name: Name
    component: str
    info: ObjectInfo
    theirs: ObjectInfo


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The policy says that ours yields."""

    theirs: ObjectInfo


@dataclass(frozen=True, slots=True)
class Parked:
    """The policy says that the operator decides."""

    reason: str


Verdict = Rebased | KeptBeside | GivenUp | Parked


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
            self.note(
                key, "deleted at the store meanwhile; the version of this mount was stored anew"
            )
            return Rebased(None)
        if metadata.token_of(theirs) == intent.token:
            return Rebased(theirs.etag)  # our own write, whose answer was lost
        if theirs.etag == base:
            raise Fault("the store refuses the upload although nothing has changed there")
        if self._policy is ConflictPolicy.OURS:
            self.note(key, "changed at the store meanwhile; overwritten, as --conflict ours says")
            return Rebased(theirs.etag)
        if self._policy is ConflictPolicy.THEIRS:
            self.note(
                key, "changed at the store meanwhile; ours was given up, as --conflict theirs says"
            )
            return GivenUp(theirs)
        if self._policy is ConflictPolicy.FAIL:
            return Parked(
                "changed at the store meanwhile, and --conflict fail says that you decide"
            )
        return await self._keep_both(inode, key, body, meta, theirs)

    async def _keep_both(
        self, inode: Inode, key: Key, body: Body, meta: Mapping[str, str], theirs: ObjectInfo
    ) -> Verdict:
        directory = Key(key[: len(key) - len(inode.component)])
        for turn in range(_TURNS):
            name, component = beside(inode, turn)
            target = child_key(directory, component)
            try:
                info = await self._threads.transfer(
                    self._store.put,
                    target,
                    body,
                    meta=meta,
                    content_type=inode.content_type,
                    if_match=None,
                )
            except Changed:
                if not await self._is_ours(target, meta):
                    continue
                info = await self._threads.ask(self._store.head, target)
            self.note(
                key, f"changed at the store meanwhile; the version of this mount is {component}"
            )
            return KeptBeside(name, component, info, theirs)
        return Parked("changed at the store meanwhile, and no name beside it is free")

    async def _is_ours(self, target: Key, meta: Mapping[str, str]) -> bool:
        """Whether *target* is our own copy, whose answer was lost."""
        try:
            info = await self._threads.ask(self._store.head, target)
        except NotFound:
            return False
        is_true = metadata.token_of(info) is not None
        return is_true and (info.meta or {}).get(metadata.TOKEN) == meta.get(metadata.TOKEN)

    async def keep_aside(self, inode: Inode, key: Key, found: ObjectInfo) -> Name:
        """Copy what somebody else put at *key* to a name beside it, before it is replaced. Return the name."""
        directory = Key(key[: len(key) - len(inode.component)])
        for turn in range(_TURNS):
            name, component = beside(inode, turn)
            try:
                await self._threads.transfer(
                    self._store.copy,
                    key,
                    child_key(directory, component),
                    if_match=found.etag,
                    replaces=None,
                )
            except Changed:
                continue
            self.note(
                key, f"changed at the store before it was replaced; that version is {component}"
            )
            return name
        raise Changed("changed at the store meanwhile, and no name beside it is free")

    def note(self, key: Key, outcome: str) -> None:
        """Say what was met at *key*, in the log and in ``status``."""
        _log.warning("conflict: %s: %s", ascii(key), outcome)
        self._journal.note_conflict(key, outcome, self._names.wall_ns())


def beside(inode: Inode, turn: int) -> tuple[Name, str]:
    """Return a name for a conflict copy of *inode*, and its component."""
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    plain = Name(inode.component.encode("utf-8", "surrogateescape") or b"empty")
    component = bytes(conflict_name(plain, host=_host(), when=when, turn=turn)).decode(
        "utf-8", "surrogateescape"
    )
    return name_of(component), component
