"""Attributes: what ``stat`` and ``getxattr`` show of an inode, and how a change of them reaches the store."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from cachefs.core import metadata, xattrs
from cachefs.core.errors import (
    Changed,
    NoAttribute,
    NotFound,
    NotPermitted,
    Stale,
    StoreError,
    Unsupported,
)
from cachefs.core.intent import Intent, State
from cachefs.core.keys import is_conflict_name
from cachefs.core.types import Attrs, ETag, Ino, Key, ObjectInfo
from cachefs.engine.body import BytesBody
from cachefs.engine.checksums import Checksums
from cachefs.engine.handles import OpenFiles
from cachefs.engine.openfile import Rooms
from cachefs.engine.upload import Defaults
from cachefs.local.cache import Entry
from cachefs.local.db import Database
from cachefs.local.inodes import ROOT, Inode, InodeTable
from cachefs.remote import deadline
from cachefs.remote.store import ObjectStore

_PATIENCE_S: Final = 5.0
"""How long the store is asked for an MD5, without which there is none."""
_DIRECTORY_TTL_S: Final = 60.0
"""A directory's own attributes change through this mount only; the kernel checks its mode at each step of a path."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What the kernel is told of an inode, and for how many seconds it may believe it."""

    ino: Ino
    attrs: Attrs
    name_ttl_s: float
    attrs_ttl_s: float
    links: int = 1
    """0: open, and without a name."""


class Attributes:
    """Reads and changes the attributes of inodes."""

    def __init__(
        self,
        store: ObjectStore,
        db: Database,
        inodes: InodeTable,
        rooms: Rooms,
        files: OpenFiles,
        checksums: Checksums,
        defaults: Defaults,
    ) -> None:
        self._store = store
        self._db = db
        self._inodes = inodes
        self._rooms = rooms
        self._names = rooms.names
        self._files = files
        self.checksums = checksums
        """The MD5s that are kept."""
        self._defaults = defaults

    def stat(self, inode: Inode) -> Stat:
        """Return what the kernel is told of *inode*."""
        attrs = self._defaults.attrs(inode)
        file = self._files.find(inode.ino)
        if file is not None and file.is_altered:
            attrs = replace(attrs, size=file.size, mtime_ns=file.mtime_ns, ctime_ns=file.ctime_ns)
        ttl_s = self._names.ttl_left_s(inode)
        links = 0 if inode.parent is None and inode.ino != ROOT else 1
        return Stat(inode.ino, attrs, ttl_s, _DIRECTORY_TTL_S if inode.is_dir else ttl_s, links)

    async def set(self, ino: Ino, columns: dict[str, object]) -> None:
        """Set columns of an inode, at the store too unless they will travel with an upload."""
        columns.setdefault("ctime_ns", self._names.wall_ns())
        entry = self._rooms.cache.find(ino)
        if entry is not None:
            while self._rooms.uploader.is_uploading(entry.id):
                await self._rooms.uploader.stop(entry.id)
            self._rooms.uploader.kick()
        file = self._files.find(ino)
        if file is not None:
            self._files.save(file)
        inode = self._require(ino)
        is_dirty = entry is not None and self._rooms.journal.of(entry.id) is not None
        if not is_dirty and inode.parent is not None:
            try:
                await self._store_as(replace(inode, **_fields(columns)))
            except BaseException:
                self._names.doubt(ino)
                raise
            columns.pop("meta", None)  # the row has what was stored, all of it
        self._inodes.update(ino, **columns)
        file = self._files.find(ino)
        if file is not None:
            file.mtime_ns = int(str(columns.get("mtime_ns", file.mtime_ns)))
            file.ctime_ns = int(str(columns["ctime_ns"]))

    def _require(self, ino: Ino) -> Inode:
        inode = self._inodes.get(ino)
        if inode is None:
            raise Stale("the file is gone")
        return inode

    async def store(self, ino: Ino) -> None:
        """Store an inode's attributes as its object's metadata."""
        await self._store_as(self._require(ino))

    async def _store_as(self, inode: Inode) -> None:
        """Store the attributes of *inode*, which may differ from its row."""
        if inode.ino == ROOT:
            return  # a bucket has no metadata of its own: kept here only
        before = self._require(inode.ino)
        key = await self._names.settled_key(inode.ino)
        current = self._inodes.get(inode.ino)
        if key is None or current is None:
            raise Stale("the file is gone")
        # What was waited for may have made another version of it.
        inode = replace(inode, etag=current.etag)
        if inode.meta_json == before.meta_json:  # else it is the metadata that is to be changed
            inode = replace(inode, meta_json=current.meta_json)
        if inode.is_dir:
            await self._store_at(key, inode)
            return
        # A fetch that fails because the version is another now waits here, and sees that it is the same bytes.
        with self._names.moving(key):
            await self._store_at(key, inode)
        self._rooms.uploader.kick()

    async def _store_at(self, key: Key, inode: Inode) -> None:
        meta = metadata.encode(self._defaults.attrs(inode), None, await self._others(inode, key))
        try:
            await self._put_meta(inode, key, meta)
        except (NotFound, Changed) as error:
            if not inode.is_dir:
                raise Stale("the object changed at the store meanwhile") from error
            # Somebody made, changed or removed the marker meanwhile: the directory is the same.
            await self._put_meta(replace(inode, etag=await self._marker(key)), key, meta)

    async def _put_meta(self, inode: Inode, key: Key, meta: dict[str, str]) -> None:
        if inode.etag is None:
            await self._make_marker(inode, key, meta)
            return
        info = await self._rooms.threads.ask(
            self._store.set_meta, key, meta, content_type=inode.content_type, if_match=inode.etag
        )
        self.follow(inode, info, meta)

    async def _marker(self, key: Key) -> ETag | None:
        try:
            return (await self._rooms.threads.ask(self._store.head, key)).etag
        except NotFound:
            return None

    async def _others(self, inode: Inode, key: Key) -> dict[str, str]:
        """Return the metadata that the object has now, which a listing may not have told."""
        if inode.meta_json is not None or inode.etag is None:
            return dict(inode.meta or {})
        info = await self._rooms.threads.ask(self._store.head, key)
        return dict(info.meta or {})

    async def _make_marker(self, inode: Inode, key: Key, meta: dict[str, str]) -> None:
        info = await self._rooms.threads.ask(
            self._store.put,
            key,
            BytesBody(b""),
            meta=meta,
            content_type=metadata.DIRECTORY_TYPE,
            if_match=None,
        )
        self.follow(inode, info, meta)

    def follow(self, inode: Inode, info: ObjectInfo, meta: dict[str, str]) -> None:
        """Note that a change of ours gave the object a new version, with the same bytes."""
        with self._db.transaction():
            self._inodes.update(
                inode.ino,
                etag=info.etag,
                stored_ns=info.mtime_ns,
                meta=meta,
                checked_ns=self._names.now_ns(),
                is_md5=int(info.is_md5),
            )
            entry = self._rooms.cache.find(inode.ino)
            if entry is not None and entry.etag == inode.etag:
                self._files.follow(entry, info.etag if inode.etag else None)
        if not inode.is_dir:
            self.checksums.follow(info.key, inode, info)

    # ---- extended attributes ----------------------------------------------------------------

    async def getxattr(self, ino: Ino, name: bytes) -> bytes:
        """Return a ``user.*`` attribute of the object, or one of ``user.cachefs.*``. Raise ``NoAttribute``."""
        if name == xattrs.OWN + b"md5":
            md5 = await self.md5(ino)
            found = None if md5 is None else md5.encode("ascii")
        elif name.startswith(xattrs.OWN):
            found = self._of_cache(self._require(ino)).get(name)
        else:
            found = (await self._attributes(ino)).get(name)
        if found is None:
            raise NoAttribute("no such attribute")
        return found

    async def listxattr(self, ino: Ino) -> list[bytes]:
        """Return the names of the object's ``user.*`` attributes."""
        return list(await self._attributes(ino))

    async def setxattr(self, ino: Ino, name: bytes, value: bytes | None) -> None:
        """Set a ``user.*`` attribute, or remove it (*value* None: raise ``NoAttribute`` if there is none).

        Raise ``NoSpace`` if the object's metadata has no room for it.
        """
        if ino == ROOT:
            raise Unsupported("a bucket has no attributes")
        if name.startswith(xattrs.OWN):
            raise NotPermitted("these attributes tell of the cache, and are read-only")
        meta = xattrs.changed(await self._meta(ino), name, value)
        if value is not None:
            metadata.require_room(self._defaults.attrs(self._require(ino)), meta)
        await self.set(ino, {"meta": meta})

    async def _attributes(self, ino: Ino) -> dict[bytes, bytes]:
        return xattrs.decode(await self._meta(ino))

    async def _meta(self, ino: Ino) -> Mapping[str, str]:
        """Return all metadata of the object, asking the store where only a listing was seen."""
        inode = self._require(ino)
        key = await self._names.settled_key(ino)
        if inode.meta_json is None and inode.etag is not None and key is not None:
            info = await self._rooms.threads.ask(self._store.head, key)
            inode = self._require(ino)
            if info.etag == inode.etag and inode.meta_json is None:
                self._inodes.put(ino, info, self._names.now_ns())
            return info.meta or {}
        return inode.meta or {}

    def _of_cache(self, inode: Inode) -> dict[bytes, bytes]:
        found: dict[str, str | None] = {
            "key": self._inodes.key_of(inode.ino) or None,
            "etag": inode.etag,
        }
        if not inode.is_dir:
            found |= self._state_of(inode)
        return {
            xattrs.OWN + label.encode(): value.encode("utf-8", "surrogateescape")
            for label, value in found.items()
            if value is not None
        }

    def known_md5(self, inode: Inode) -> str | None:
        """Return the MD5 of what is at the store, as far as it is known here. Of a file that waits for upload, none."""
        key = self._inodes.key_of(inode.ino)
        if key is None or inode.is_dir or self._is_dirty(inode.ino):
            return None
        return self.checksums.of(key, inode)

    async def md5(self, ino: Ino) -> str | None:
        """Return the MD5 of a file, asking the store where nothing here tells it; None: it is not known."""
        inode = self._require(ino)
        known = self.known_md5(inode)
        key = self._inodes.key_of(ino)
        if known is not None or key is None or inode.is_dir or inode.etag is None:
            return known
        try:
            with deadline.limited(_PATIENCE_S):
                said = await self._rooms.threads.ask(self._store.fingerprint, key)
        except StoreError:
            return None
        now = self._inodes.get(ino)
        if now is None or not said.info.etag == now.etag == inode.etag:
            return None
        md5 = self.checksums.told(key, said)
        return None if self._is_dirty(ino) else md5

    def _is_dirty(self, ino: Ino) -> bool:
        entry, file = self._rooms.cache.find(ino), self._files.find(ino)
        is_promised = entry is not None and self._rooms.journal.of(entry.id) is not None
        return is_promised or (file is not None and file.is_altered)

    def state(self, ino: Ino) -> str | None:
        """Return where the bytes of a file are: ``user.cachefs.state``."""
        return self._state_of(self._require(ino))["state"]

    def _state_of(self, inode: Inode) -> dict[str, str | None]:
        entry = self._rooms.cache.find(inode.ino)
        intent = self._rooms.journal.of(entry.id) if entry is not None else None
        found: dict[str, str | None] = {
            "state": _state(entry, intent),
            "cached_bytes": "0" if entry is None else str(entry.here.total),
            "pinned": str(inode.pinned),
        }
        if intent is not None:
            found["error"] = intent.error
        is_copy = inode.name is not None and is_conflict_name(inode.name)
        if (intent is None and is_copy) or (entry is not None and self.is_contested(entry)):
            found["state"] = "conflict"
        return found

    def is_contested(self, entry: Entry) -> bool:
        """Whether the upload of an entry was given up because the store has another version."""
        intent = self._rooms.journal.of(entry.id)
        key = self._inodes.key_of(entry.ino)
        if intent is None or intent.state is not State.PARKED or key is None:
            return False
        return self._rooms.journal.has_conflict(key, intent.error or "")


def _state(entry: Entry | None, intent: Intent | None) -> str:
    if intent is not None:
        return "uploading" if intent.state is State.UPLOADING else "dirty"
    if entry is None or not (entry.is_whole or entry.here.total):
        return "remote"
    return "cached" if entry.is_whole else "partial"


def _fields(columns: dict[str, object]) -> dict[str, Any]:
    """Return *columns* as fields of an inode."""
    fields = dict(columns)
    if "meta" in fields:
        fields["meta_json"] = json.dumps(fields.pop("meta"))
    return fields
