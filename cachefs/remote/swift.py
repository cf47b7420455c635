"""OpenStack Swift: the contract in terms of its own HTTP interface.

Swift has no conditional replace. A put looks at the version before (``HEAD``) and after: who was overtaken
learns it by ``Changed``. Who is overtaken in between learns it from the line that each version carries
(:mod:`cachefs.core.descent`). A directory's marker is an object without the slash, of the type
``application/directory``, as Swift's tools make and read it; where a file has that name, and for markers that
other tools wrote so, it is ``dir/``. Objects longer than one PUT may be are static large objects.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final

from cachefs.core import descent
from cachefs.core.errors import (
    Changed,
    Denied,
    Fault,
    NoBucket,
    NotFound,
    Refused,
    StoreError,
    TooMuchMetadata,
    Unsupported,
)
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint, with_md5
from cachefs.core.source import StoreOptions
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.remote.headers import of_user
from cachefs.remote.lines import Lines
from cachefs.remote.pages import Pages
from cachefs.remote.store import Body, Capabilities, Ledger, Sink, Support
from cachefs.remote.swift_fetch import pour, whole_size
from cachefs.remote.swift_large import Made, Segments, Work, copy_source, md5_of, patience_s
from cachefs.remote.swift_listing import Lister
from cachefs.remote.swift_lookup import Look, Lookup, existing, name_for, require
from cachefs.remote.swift_probe import probe
from cachefs.remote.swift_session import Session, Upload, quoted_path
from cachefs.remote.swift_values import (
    MARKER_TYPE,
    Version,
    bare,
    encode_meta,
    is_md5,
    require_bearable,
    served_headers,
    stem_of,
    version_of,
)
from cachefs.remote.works import Works

_PAGE = 1000
_BYTES: Final = "application/octet-stream"
_SMALL: Final = 2**18
"""A body up to this may be sent in vain: that costs less than to ask first."""
_EXPIRY: Final = "X-Delete-At"
"""Kept by a change of metadata and by a copy. Not by new content, which nobody asked to have deleted."""


class SwiftStore:
    """The objects of the container *bucket*.

    *environ* holds the credentials (``OS_*``, ``ST_*``) unless *options* name a cloud. *session*: the
    connections of a store that is already open. *origin* names the container of the same account that :meth:`copy`
    takes its sources from; None: this one. Nothing is asked before the first call.
    """

    def __init__(
        self,
        bucket: str,
        options: StoreOptions,
        *,
        environ: Mapping[str, str],
        session: Session | None = None,
        origin: str | None = None,
        page_size: int = _PAGE,
    ) -> None:
        self._bucket = bucket
        self._origin = origin or bucket
        self._options = options
        self._environ = environ
        self._page_size = page_size
        self._session = session or Session(options, environ)
        self._lookup = Lookup(self._session, bucket)
        self._originals = self._lookup if origin is None else Lookup(self._session, origin)
        self._works = Works()
        self._segments = Segments(
            self._session,
            bucket,
            self._lookup,
            self._works,
            segment_limit=options.segment_limit,
            transfers=options.transfers,
        )
        self._lister = Lister(
            self._session,
            bucket,
            self._lookup.head,
            page_size=page_size,
            transfers=options.transfers,
        )
        self._capabilities = Capabilities()
        self._lines = Lines()

    @property
    def capabilities(self) -> Capabilities:
        """All unknown until :meth:`probe` ran."""
        return self._capabilities

    @property
    def description(self) -> str:
        """``swift://photos at https://keystone:5000/v3``."""
        address = self._session.address
        return f"swift://{self._bucket}" + (f" at {address}" if address else "")

    def list_buckets(self) -> tuple[str, ...]:
        """Return the names of the account's containers."""
        return _containers(self._session)

    def in_bucket(self, bucket: str) -> "SwiftStore":
        """Return a store for another container of the account, on the same connections."""
        return SwiftStore(
            bucket,
            self._options,
            environ=self._environ,
            session=self._session,
            page_size=self._page_size,
        )

    def check(self) -> None:
        """List one object."""
        try:
            self._session.ask(
                "GET", quoted_path(self._bucket), self.description, query={"limit": "1"}
            )
        except NotFound:
            raise NoBucket(f"there is no container {self._bucket!r}") from None

    def check_key(self, key: Key) -> None:
        """Raise ``BadKey`` for what is no UTF-8, holds a NUL or is too long."""
        require_bearable(key)

    def probe(self) -> Capabilities:
        """Write, overwrite, copy and delete an object of our own."""
        try:
            self._capabilities = probe(self._session, self._bucket)
        except NotFound:
            raise NoBucket(f"there is no container {self._bucket!r}") from None
        return self._capabilities

    def head(self, key: Key) -> ObjectInfo:
        """Return what is at *key*."""
        return existing(key, self._lookup.look(key).found).info

    def fingerprint(self, key: Key) -> Fingerprint:
        """Return what is at *key*: its MD5, or the segments that it is made of and theirs."""
        version = existing(key, self._lookup.look(key).found)
        if not (version.is_slo or version.is_dlo):
            return Fingerprint(
                version.info, md5=version.info.etag if is_md5(version.info.etag) else None
            )
        parts = self._segments.parts_of(version)
        return Fingerprint(version.info, parts=parts, is_joined=not parts)

    def list(self, prefix: Key, *, deep: bool = False) -> Pages:
        """Yield the pages of the listing. Needs a HEAD for the directory's own marker, and for what looks empty."""
        return self._lister.pages(prefix, deep=deep)

    def overview(self, prefix: Key) -> Pages:
        """Yield the pages of the listing. What looks empty in it is doubtful."""
        return self._lister.pages(prefix, deep=True, is_exact=False)

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        """Write the bytes of *extent*. If that is the whole object, its MD5 is checked as well."""
        require_bearable(key)
        if not extent.length or key.endswith("/"):
            version = existing(key, self._lookup.look(key).found)
            require(key, version, if_match)
            if not 0 <= extent.start <= extent.stop <= version.info.size:
                raise Fault(f"{key!r} does not reach so far")
            if not extent.length:
                return version.info
            return self._fetch(key, version.name, extent, into, if_match)
        return self._fetch(key, key, extent, into, if_match)

    def put(
        self,
        key: Key,
        body: Body,
        *,
        meta: Mapping[str, str],
        content_type: str | None = None,
        if_match: ETag | None,
    ) -> ObjectInfo:
        """Store *body*, its MD5 checked by the store; what is too long for that, in segments."""
        require_bearable(key)
        if body.md5 is not None and body.size > self._options.segment_limit:
            meta = with_md5(meta, body.md5)  # its ETag will be none
        if if_match is None and body.size <= _SMALL and self._may_create(key):
            # Most often nothing is there; where something is, nothing was stored.
            with suppress(Changed):
                return self._put(key, body, Look(None), meta, content_type)
        look = self._lookup.look(key, newest=True)
        if self._is_stored(key, body, look.found, meta, content_type):
            return existing(key, look.found).info
        require(key, look.found, if_match)
        return self._put(key, body, look, meta, content_type)

    def _is_stored(
        self,
        key: Key,
        body: Body,
        found: Version | None,
        meta: Mapping[str, str],
        content_type: str | None,
    ) -> bool:
        """Whether an earlier try has stored a large object, and its answer was lost."""
        if body.size <= self._options.segment_limit or found is None or not found.is_slo:
            return False
        headers = _headers(meta, _file_type(content_type))
        return self._segments.is_made_before(key, found.name, body, headers)

    def _may_create(self, key: Key) -> bool:
        """Whether the store itself tells when *key* is there already; a marker may be so under another name."""
        is_enforced = self._capabilities.conditional_create is Support.ENFORCED
        return is_enforced and stem_of(key) is None

    def _put(
        self,
        key: Key,
        body: Body,
        look: Look,
        meta: Mapping[str, str],
        content_type: str | None,
    ) -> ObjectInfo:
        about = meta
        meta, headers = self._described(key, meta, body.size, look)
        name = name_for(key, look, is_directory=body.size == 0)
        is_marker = name == stem_of(key)
        kind = headers["Content-Type"] = MARKER_TYPE if is_marker else _file_type(content_type)
        if body.size > self._options.segment_limit:
            # What is sent again for the same object goes on, although its line is another.
            return self._put_large(key, body, name, look, headers, _headers(about, kind))
        extent = Extent(0, body.size)
        etag = body.md5 or md5_of(body.reader(extent))

        def send(conditions: Mapping[str, str]) -> str:
            self._session.ask(
                "PUT",
                quoted_path(self._bucket, name),
                f"storing {key!r}",
                headers={**headers, **conditions, "ETag": etag},
                data=Upload(body, extent) if body.size else b"",
            )
            return etag

        return self._replace(key, name, look, send, _is_like(meta))

    def copy(
        self,
        source: Key,
        target: Key,
        *,
        if_match: ETag,
        replaces: ETag | None,
        content_type: str | None = None,
    ) -> ObjectInfo:
        """Copy within the store. The copy of a large object gets segments of its own."""
        require_bearable(target)
        version = existing(source, self._originals.look(source, newest=True).found)
        require(source, version, if_match)
        look = self._lookup.look(target, newest=True)
        require(target, look.found, replaces)
        name = name_for(target, look, is_directory=version.is_directory)
        if version.is_slo:
            kind = _file_type(content_type or version.info.content_type)
            return self._copy_large(source, version, target, name, look, kind)
        if version.info.size > self._options.segment_limit:
            raise Unsupported(
                f"{source!r} is too long for Swift to copy, and no static large object"
            )
        headers = copy_source(self._origin, version.name, if_match)
        meta = self._grown(target, version.info.meta or {}, version.info.size, look)
        if descent.LINE in meta:
            headers |= encode_meta({descent.LINE: meta[descent.LINE]})
        if version.is_directory:
            if name != stem_of(target):
                headers["Content-Type"] = _BYTES
        elif content_type is not None:
            headers["Content-Type"] = _file_type(content_type)

        def send(_: Mapping[str, str]) -> str:
            answer = self._session.ask(
                "PUT",
                quoted_path(self._bucket, name),
                f"copying {source!r} to {target!r}",
                headers=headers,
                patience_s=patience_s(version.info.size),
            )
            return bare(answer.headers.get("ETag", ""))

        return self._replace(target, name, look, send, _is_like(meta))

    def set_meta(
        self, key: Key, meta: Mapping[str, str], *, content_type: str | None, if_match: ETag
    ) -> ObjectInfo:
        """Replace the metadata. Bytes and ETag stay."""
        version = existing(key, self._lookup.look(key, newest=True).found)
        require(key, version, if_match)
        if not key.endswith("/"):
            meta = descent.kept(meta, version.info)
        headers = encode_meta(meta)
        kept = version.info.content_type or _BYTES
        headers["Content-Type"] = kept if version.is_directory else content_type or kept
        headers |= _carried(version)
        if version.is_dlo:  # without it, the manifest would become an empty object
            headers["X-Object-Manifest"] = version.headers["X-Object-Manifest"]
        self._session.ask(
            "POST",
            quoted_path(self._bucket, version.name),
            f"setting the metadata of {key!r}",
            headers=headers,
        )
        is_ours = _is_like(meta)
        return self._verified(key, version.name, version, lambda now: is_ours(now, if_match))

    def delete(self, key: Key, *, if_match: ETag | None = None) -> None:
        """Remove the object, then its segments. Those that a fault left behind go when we are asked again."""
        version = self._lookup.look(key, newest=True).found
        if version is None:
            self._segments.give_up_lost(key)
            raise NotFound(f"{key!r} is not there")
        if if_match is not None:
            require(key, version, if_match)
        self._lines.removed(key, version.info)
        segments = self._segments.manifest_of(version.name) if version.is_slo else []
        doomed = self._segments.doom(key, version.name, segments)
        try:
            self._drop(key, version.name)
            if version.name != key:  # a marker in the other spelling would come to light
                with suppress(NotFound):
                    self._drop(key, key)
        except BaseException:
            self._segments.leave(doomed)
            raise
        self._segments.give_up(doomed)

    def keep_ledger(self, ledger: Ledger) -> None:
        """Note in *ledger* the names of segments, before they are sent and before they are removed."""
        self._works.keep_in(ledger)

    def abandon(self, key: Key, work: str) -> None:
        """Remove segments that are of no object."""
        self._segments.abandon(key, work)

    def close(self) -> None:
        """Close the connections, also those of siblings. Removes segments that nobody would know of any more."""
        for key, work in self._works.forgotten():
            with suppress(StoreError):
                self.abandon(key, work)
        self._session.close()

    def _fetch(
        self, key: Key, name: str, extent: Extent, into: Sink, if_match: ETag
    ) -> ObjectInfo:
        headers = {"Range": f"bytes={extent.start}-{extent.stop - 1}", "If-Match": f'"{if_match}"'}
        what = f"reading {key!r}"
        try:
            with self._session.stream(
                "GET", quoted_path(self._bucket, name), what, headers=headers
            ) as response:
                size = whole_size(key, response, extent)
                version = version_of(key, name, response.headers, size=size)
                if version.info.etag != if_match:
                    # It was asked for this version: has it another by now, or does it not know what it says?
                    require(key, self._lookup.head(key, name, newest=True), if_match)
                    raise Fault(f"{what}: the answer is about another version than is there")
                is_whole = extent.length == size and is_md5(if_match)
                check = is_whole and not version.is_slo and not version.is_dlo
                md5 = pour(response, extent.length, into, what, check=check)
        except NotFound:
            self._lookup.confirm_container()
            raise
        if md5 is not None and md5 != if_match:
            raise Fault(f"{what}: the bytes are not those that the ETag stands for")
        is_told = is_md5(if_match) and not version.is_slo and not version.is_dlo
        return replace(version.info, md5=if_match if is_told else None)

    def _put_large(
        self,
        key: Key,
        body: Body,
        name: str,
        look: Look,
        headers: Mapping[str, str],
        about: Mapping[str, str],
    ) -> ObjectInfo:
        made = self._segments.upload(key, body, name, about)

        def confirm() -> None:  # the segments have taken a while
            require(key, self._lookup.look(key, newest=True).found, _etag_of(look.found))

        try:
            return self._replace_large(key, name, look, made, headers, before=confirm)
        except (Denied, NoBucket):
            raise
        except Refused as error:
            if made.is_continued:
                raise Fault("segments that were sent some time ago are gone") from error
            raise

    def _described(
        self, key: Key, meta: Mapping[str, str], size: int, look: Look
    ) -> tuple[Mapping[str, str], dict[str, str]]:
        """Return *meta* with the line of the new version, and what says it in headers."""
        served = served_headers(meta)
        lined = self._grown(key, meta, size, look)
        try:
            return lined, encode_meta(lined) | served
        except TooMuchMetadata:
            return meta, encode_meta(meta) | served

    def _grown(self, key: Key, meta: Mapping[str, str], size: int, look: Look) -> dict[str, str]:
        return self._lines.grown(key, meta, size, look.found.info if look.found else None)

    def _copy_large(
        self, source: Key, version: Version, target: Key, name: str, look: Look, kind: str
    ) -> ObjectInfo:
        segments = self._segments.manifest_of(version.name, self._origin)
        made = self._segments.copy(target, segments, name)
        _, described = self._described(target, version.info.meta or {}, version.info.size, look)
        headers = {
            **described,
            **_carried(version),
            "Content-Type": kind,
        }

        def confirm() -> None:
            require(source, self._originals.look(source, newest=True).found, version.info.etag)

        return self._replace_large(target, name, look, made, headers, before=confirm)

    def _replace_large(
        self,
        key: Key,
        name: str,
        look: Look,
        made: Made,
        headers: Mapping[str, str],
        *,
        before: Callable[[], None] = lambda: None,
    ) -> ObjectInfo:
        def send(conditions: Mapping[str, str]) -> str:
            before()
            self._segments.seal(key, made)
            return self._segments.write_manifest(name, made.segments, {**headers, **conditions})

        def is_ours(version: Version, _: str) -> bool:
            # Not by the ETag: Swifts do not agree on that of a manifest, and segments hang on the answer.
            return version.is_slo and self._segments.are_of(name, made.segments)

        try:
            info = self._replace(
                key, name, look, send, is_ours, undo=lambda: self._segments.undo(made)
            )
        except BaseException:
            self._segments.leave(made.work)
            raise
        self._segments.keep(made.work)
        return info

    def _replace(
        self,
        key: Key,
        name: str,
        look: Look,
        send: Callable[[Mapping[str, str]], str],
        is_ours: Callable[[Version, str], bool],
        *,
        undo: Callable[[], None] = lambda: None,
    ) -> ObjectInfo:
        """Write a version by *send*, which gets the conditions and returns the ETag, and see that it stands.

        *is_ours* tells from what is shown afterwards, and from that ETag.
        *undo* is called only when it surely does not: after a fault, nobody knows whether the store will
        not still take what was sent.
        """
        found, beside = look.found, look.beside
        doomed: Work | None = None
        try:
            if found and found.is_slo:
                replaced = self._segments.manifest_of(found.name)
                doomed = self._segments.doom(key, found.name, replaced)
            if beside and beside.name == name:
                self._set_aside(beside)
            may_create = not found and not beside
            may_create &= self._capabilities.conditional_create is not Support.REFUSED
            etag = send({"If-None-Match": "*"} if may_create else {})
        except BaseException as error:
            self._segments.leave(doomed)
            if isinstance(error, (Changed, NotFound, Refused)):
                undo()
            if isinstance(error, NotFound):
                raise NoBucket(f"there is no container {self._bucket!r}") from None
            raise
        try:
            info = self._verified(key, name, found, lambda now: is_ours(now, etag))
        except BaseException as error:
            self._segments.leave(doomed)
            if isinstance(error, Changed):
                undo()
            raise
        if found and found.name != name:
            with suppress(StoreError):
                self._drop(key, found.name)
        self._segments.give_up(doomed)
        return info

    def _verified(
        self, key: Key, name: str, base: Version | None, is_ours: Callable[[Version], bool]
    ) -> ObjectInfo:
        """Return what is there after a write, if it is what was written."""
        version = self._lookup.head(key, name, newest=True)
        if version is None or (base and base.name == name and version.stamp == base.stamp):
            raise Fault(f"{key!r} was taken by the store, and is not shown by it")
        if not is_ours(version):
            raise Changed(f"{key!r} was replaced by another writer just as it was stored")
        return version.info

    def _set_aside(self, marker: Version) -> None:
        """Make room for a file that has the name of a directory's marker."""
        self._session.ask(
            "PUT",
            quoted_path(self._bucket, f"{marker.name}/"),
            f"moving the marker of {marker.name!r}",
            headers=copy_source(self._bucket, marker.name, marker.info.etag),
        )

    def _drop(self, key: Key, name: str) -> None:
        self._session.ask("DELETE", quoted_path(self._bucket, name), f"deleting {key!r}")


def container_names(options: StoreOptions, *, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the containers in the account that *options* and *environ* name."""
    session = Session(options, environ)
    try:
        return _containers(session)
    finally:
        session.close()


def _containers(session: Session) -> tuple[str, ...]:
    names: list[str] = []
    while True:
        query = {"format": "json", "limit": str(_PAGE), "marker": names[-1] if names else ""}
        answer = session.ask("GET", "", "listing the containers", query=query)
        try:
            page = [str(row["name"]) for row in answer.json()] if answer.content else []
        except (KeyError, TypeError):
            raise Fault("the list of containers is not what it should be") from None
        names += page
        if len(page) < _PAGE:
            return tuple(names)


def _etag_of(version: Version | None) -> ETag | None:
    return version.info.etag if version else None


def _is_like(meta: Mapping[str, str]) -> Callable[[Version, str], bool]:
    """Return whether a version has an ETag and this metadata: two writers may have stored the same bytes."""
    lowered = {name.lower(): value for name, value in of_user(meta).items()}

    def is_like(version: Version, etag: str) -> bool:
        info = descent.read(replace(version.info, meta=lowered))
        is_same = of_user(version.info.meta or {}) == info.meta and version.info.line == info.line
        return version.info.etag == etag and is_same

    return is_like


def _file_type(content_type: str | None) -> str:
    """Return the type to store a file with: never one that would make a directory of it while it is empty."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    return _BYTES if not kind or kind in (MARKER_TYPE, "text/directory") else str(content_type)


def _headers(meta: Mapping[str, str], kind: str) -> dict[str, str]:
    """Return the headers that an object with this metadata, of this type, is stored with."""
    return encode_meta(meta) | served_headers(meta) | {"Content-Type": kind}


def _carried(version: Version) -> dict[str, str]:
    found = served_headers(version.info.meta or {})
    if _EXPIRY in version.headers:
        found[_EXPIRY] = version.headers[_EXPIRY]
    return found
