"""Objects too long for one PUT: their segments, made, copied and removed. A segment belongs to one object only.

Segments lie in the container ``NAME_segments``, as those of Swift's other tools do, under a prefix that no other
upload has. Segments elsewhere may be objects in their own right: they are never removed.

Names of segments are noted before the first is sent, and before an object loses those that it is made of. So
whoever is cut off leaves none that nobody knows of.
"""

import hashlib
import itertools
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

from cachefs.core.errors import (
    Denied,
    Fault,
    NotFound,
    Refused,
    StoreError,
    Unsupported,
)
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Part, is_md5
from cachefs.core.types import Key
from cachefs.remote.store import Body, Reader, UploadPaused, UploadStopped
from cachefs.remote.swift_lookup import Lookup
from cachefs.remote.swift_session import CalledOff, Session, Upload, quoted_path
from cachefs.remote.swift_values import Version, bare
from cachefs.remote.works import Works, mark_of

_SEGMENT = 256 * 2**20
"""Longer segments would leave too little to do in parallel."""
_MOST_SEGMENTS = 1000
"""In one manifest, unless the operator of the Swift allows more."""
_PAGE = 1000
_LONGEST_PREFIX = 900
_CHUNK = 2**20
_MAY_STILL_BE_MADE_S = 120
"""How long after a manifest was sent, and not answered, the store may still make the object."""
_COPIED_PER_S = 8 * 2**20
"""How slow a copy inside of the store may be: it says nothing before it is done."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One entry of a manifest."""

    container: str
    name: str
    size: int
    etag: str
    part: str = ""
    """The range of the segment that counts; empty: all of it."""
    inline: str = ""
    """Bytes that the manifest itself holds, in base64; there is no object then."""
    is_manifest: bool = False
    """It is itself made of segments, so that its ETag is no MD5 of its bytes."""

    @property
    def entry(self) -> dict[str, object]:
        """As a manifest that is to be stored has it."""
        if self.inline:
            return {"data": self.inline}
        entry: dict[str, object] = {
            "path": f"/{self.container}/{self.name}",
            "etag": self.etag,
            "size_bytes": self.size,
        }
        return entry | ({"range": self.part} if self.part else {})


@dataclass(frozen=True, slots=True)
class Work:
    """What the ledger keeps of segments: their names, and the object that they are to become, or were."""

    name: str
    """Of the object."""
    segments: tuple[str, ...]
    """In the container of segments, in order."""
    mark: str = ""
    """As :func:`cachefs.remote.works.mark_of` has it; empty: nobody continues it."""
    sent_s: int = 0
    """When the manifest was sent, seconds since the epoch; 0: it was not."""

    def encode(self) -> str:
        """Return it as text."""
        stem = os.path.commonprefix(self.segments)  # noqa: RUF071 - names are no paths
        tails = [name[len(stem) :] for name in self.segments]
        return json.dumps([self.name, self.mark, self.sent_s, stem, tails])

    @classmethod
    def decode(cls, text: str) -> "Work":
        """Return what :meth:`encode` wrote."""
        name, mark, sent_s, stem, tails = json.loads(text)
        return cls(name, tuple(stem + tail for tail in tails), mark, sent_s)


@dataclass(slots=True)
class Made:
    """Segments that are no object yet: none of them to begin with, then all."""

    work: Work
    """In our hands."""
    is_in_doubt: bool = False
    """Whether an earlier try sent a manifest of them: they may be an object, or become one, at any moment."""
    segments: list[Segment] = field(default_factory=list)
    is_continued: bool = False
    """Whether some of them were sent quite some time ago."""


def md5_of(reader: Reader) -> str:
    """Return the MD5 of all that *reader* reads, which Swift checks what arrives against."""
    digest = hashlib.md5(usedforsecurity=False)
    while chunk := reader.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def patience_s(size: int) -> float:
    """Return how much longer than usual the answer to a copy of *size* bytes may take."""
    return size / _COPIED_PER_S


def copy_source(container: str, name: str, etag: str) -> dict[str, str]:
    """Return the headers that make a PUT a copy of that version of that object.

    Conditions on a copy are about its source: none can be set on what is replaced.
    """
    return {"X-Copy-From": quoted_path(container, name), "If-Match": f'"{etag}"'}


class Segments:
    """The segments of the large objects in one container."""

    def __init__(
        self,
        session: Session,
        container: str,
        lookup: Lookup,
        works: Works,
        *,
        segment_limit: int,
        transfers: int,
    ) -> None:
        self._session = session
        self._lookup = lookup
        self._works = works
        self._container = container
        self._own = f"{container}_segments"
        self._limit = segment_limit
        self._transfers = transfers

    def upload(self, key: Key, body: Body, name: str, about: Mapping[str, object]) -> "Made":
        """Store *body* in segments for the object *name*, some at a time. Return them, their work in our hands.

        Goes on with segments that were sent before for an object that is the same, *about* included; those of
        others for *key* are removed. After a fault they wait for the next try, after any other error they are gone,
        as far as nothing was made of them.
        """
        length, sizes, mark = self._plan(body, about)
        work = self._taken_up(key, name, mark)
        is_begun = work is not None
        if work is None:
            names = tuple(itertools.islice(_names(name), len(sizes)))
            work = Work(name, names, mark)
            self._works.begin(key, work.encode())
        made = Made(work, is_in_doubt=bool(work.sent_s))
        there: dict[str, tuple[int, str]] = {}
        planned = [
            Segment(self._own, segment, size, "")
            for segment, size in zip(work.segments, sizes, strict=True)
        ]
        team = _Team(self._transfers)

        def send(number: int) -> Segment:
            segment = planned[number]
            extent = Extent(number * length, number * length + segment.size)
            reader = body.reader(
                extent
            )  # a body that comes from afar keeps what it reads as long as this is kept
            etag = md5_of(reader)
            if there.get(segment.name) == (segment.size, etag):
                return replace(segment, etag=etag)
            self._session.ask(
                "PUT",
                quoted_path(segment.container, segment.name),
                f"storing segment {number} of {name!r}",
                headers={"ETag": etag, "Content-Type": "application/octet-stream"},
                data=Upload(body, extent, team.is_called_off),
            )
            return replace(segment, etag=etag)

        try:
            if is_begun:
                there |= self._listed(work)
            made.is_continued = bool(there)
            made.segments = self._made(team, send, len(planned))
        except (Fault, UploadPaused):
            self._works.leave(work.encode())
            raise
        except BaseException:
            self.undo(made)
            raise
        return made

    def _plan(self, body: Body, about: Mapping[str, object]) -> tuple[int, list[int], str]:
        """Return how long the segments of *body* are, each of them, and the mark of the object that they make."""
        size = body.size
        length = max(min(self._limit, _SEGMENT), -(-size // _MOST_SEGMENTS))
        if length > self._limit:
            raise Refused(f"{size} bytes are more than Swift can hold in one object")
        sizes = [min(length, size - start) for start in range(0, size, length)]
        return length, sizes, mark_of(body.md5, about, sizes)

    def copy(self, key: Key, segments: Sequence[Segment], name: str) -> "Made":
        """Copy *segments*, within the store, to segments of the object *name* alone. All, or none and an error."""
        team = _Team(self._transfers)
        planned = [
            segment if segment.inline else replace(segment, container=self._own, name=copy)
            for segment, copy in zip(segments, _names(name), strict=False)
        ]
        work = Work(name, tuple(segment.name for segment in planned if not segment.inline))
        self._works.begin(key, work.encode())

        def send(number: int) -> Segment:
            source, target = segments[number], planned[number]
            if source.inline:
                return source
            answer = self._session.ask(
                "PUT",
                quoted_path(target.container, target.name),
                f"copying segment {number} to {name!r}",
                headers=copy_source(source.container, source.name, source.etag)
                | {"X-Fresh-Metadata": "true"},
                patience_s=patience_s(source.size),
            )
            etag = bare(answer.headers.get("ETag", ""))
            if not etag:
                raise Fault(f"copying segment {number} to {name!r}: the answer names no ETag")
            return replace(target, etag=etag)

        made = Made(work)
        try:
            made.segments = self._made(team, send, len(planned))
        except BaseException:
            self.undo(made)
            raise
        return made

    # ---- works ------------------------------------------------------------------------------

    def _taken_up(self, key: Key, name: str, mark: str) -> "Work | None":
        """Return, in our hands, the work that is for the same object; end those of *key* that are for another."""
        found: Work | None = None
        for text in self._works.noted(key):
            work = Work.decode(text)
            if not work.mark:
                continue  # of an object that is, or a copy: no business of an upload's
            if found is None and mark == work.mark and name == work.name:
                found = work if self._works.take(text) else None
            else:
                with suppress(StoreError):  # else another time
                    self.abandon(key, text)
        return found

    def _listed(self, work: "Work") -> dict[str, tuple[int, str]]:
        """Return the size and the MD5 of what the listing has of the segments of *work*."""
        stem = work.segments[0].rpartition("/")[0] + "/"
        query = {"prefix": stem, "format": "json", "limit": str(_MOST_SEGMENTS)}
        with suppress(NotFound, Denied):
            answer = self._session.ask(
                "GET", quoted_path(self._own), f"listing {stem!r}", query=query
            )
            try:
                rows = answer.json() if answer.content else []
                return {str(row["name"]): (int(row["bytes"]), str(row["hash"])) for row in rows}
            except (KeyError, TypeError, ValueError):
                raise Fault("the list of segments is not what it should be") from None
        return {}

    def seal(self, key: Key, made: "Made") -> None:
        """Note that the manifest is about to be sent: from now on the store may make an object of it."""
        sealed = replace(made.work, sent_s=int(time.time()))
        if sealed != made.work:
            self._works.amend(key, made.work.encode(), sealed.encode())
            made.work = sealed

    def doom(self, key: Key, name: str, segments: Sequence[Segment]) -> "Work | None":
        """Note that the object *name* is about to lose *segments*. Return the work; None: there is none to remove."""
        names = tuple(one.name for one in segments if one.container == self._own)
        if not names:
            return None
        work = Work(name, names)
        self._works.begin(key, work.encode())
        return work

    def is_made_before(self, key: Key, name: str, body: Body, about: Mapping[str, object]) -> bool:
        """Whether *name* is what an earlier try with *body* and *about* has made, whose answer was lost."""
        _, _, mark = self._plan(body, about)
        for text in self._works.noted(key):
            work = Work.decode(text)
            if mark and work.mark == mark and work.name == name:
                found = [one.name for one in self.manifest_of(name)]
                if found == list(work.segments):
                    self._works.end(text)
                    return True
        return False

    def keep(self, work: "Work | None") -> None:
        """Strike *work*: its segments are those of an object."""
        if work is not None:
            self._works.end(work.encode())

    def leave(self, work: "Work | None") -> None:
        """Let go of *work*, which stays in the ledger."""
        if work is not None:
            self._works.leave(work.encode())

    def undo(self, made: "Made") -> None:
        """Remove segments of which this try has made nothing, unless an earlier one may have: that is seen later."""
        if made.is_in_doubt:
            self._works.leave(made.work.encode())
        else:
            self.give_up(made.work)

    def give_up(self, work: "Work | None") -> None:
        """Remove the segments of *work*. What cannot be removed stays in the ledger, for another time."""
        if work is None:
            return
        try:
            self._remove(work.segments)
        except StoreError:
            self._works.leave(work.encode())
        else:
            self._works.end(work.encode())

    def give_up_lost(self, key: Key) -> None:
        """Remove what objects that were at *key* have left, as far as that can be done now."""
        for text in self._works.noted(key):
            if not Work.decode(text).mark:
                with suppress(StoreError):
                    self.abandon(key, text)

    def abandon(self, key: Key, text: str) -> None:
        """Remove the segments of a work that is in nobody's hands, but for those that an object is made of."""
        if not self._works.take(text):
            return
        try:
            work = Work.decode(text)
            used = self._used(key, work.name)
            left = [name for name in work.segments if name not in used]
            since_s = time.time() - work.sent_s
            if left and 0 <= since_s < _MAY_STILL_BE_MADE_S:
                return
            self._remove(left)
            self._works.end(text)
        finally:
            self._works.leave(text)

    def _used(self, key: Key, name: str) -> set[str]:
        """Return the names of the segments that the object *name* is made of."""
        version = self._lookup.head(key, name, newest=True)
        if version is None or not version.is_slo:
            return set()
        try:
            return {segment.name for segment in self.manifest_of(name)}
        except NotFound:
            return set()

    # ---- manifests --------------------------------------------------------------------------

    def manifest_of(self, name: str, container: str | None = None) -> list[Segment]:
        """Return the segments that the static large object *name* is made of; *container*: if another than ours."""
        answer = self._session.ask(
            "GET",
            quoted_path(container or self._container, name),
            f"reading the manifest of {name!r}",
            query={"multipart-manifest": "get", "format": "json"},
        )
        if not answer.content:
            raise Unsupported("this Swift (radosgw?) does not tell what a large object is made of")
        try:
            return [_segment_of(entry) for entry in answer.json()]
        except (KeyError, TypeError, ValueError) as error:
            raise Fault(f"the manifest of {name!r} makes no sense") from error

    def parts_of(self, version: Version) -> tuple[Part, ...]:
        """Return the parts of a large object; nothing where the store does not tell them, or their MD5s."""
        try:
            segments = self.manifest_of(version.name) if version.is_slo else self._dynamic(version)
        except Unsupported:
            return ()
        parts = tuple(Part(segment.size, segment.etag) for segment in segments)
        are_plain = all(
            not each.inline and not each.part and not each.is_manifest for each in segments
        )
        is_told = are_plain and all(is_md5(each.md5) for each in parts)
        return parts if is_told and sum(each.size for each in parts) == version.info.size else ()

    def _dynamic(self, version: Version) -> list[Segment]:
        """Return the segments of a dynamic large object: what its manifest's prefix lists at this moment."""
        container, _, prefix = unquote(version.headers["X-Object-Manifest"]).partition("/")
        found: list[Segment] = []
        while True:
            query = {"prefix": prefix, "format": "json", "limit": str(_PAGE)}
            answer = self._session.ask(
                "GET",
                quoted_path(container),
                f"listing the segments of {version.name!r}",
                query=query | ({"marker": found[-1].name} if found else {}),
            )
            try:
                page = (
                    [_listed_segment(container, row) for row in answer.json()]
                    if answer.content
                    else []
                )
            except (KeyError, TypeError, ValueError):
                raise Fault("the list of segments is not what it should be") from None
            found += page
            if len(page) < _PAGE:
                return found

    def are_of(self, name: str, segments: Sequence[Segment]) -> bool:
        """Whether *segments* are those that the object *name* is made of."""
        try:
            found = self.manifest_of(name)
        except NotFound:
            return False
        return [(one.container, one.name) for one in found] == [
            (one.container, one.name) for one in segments
        ]

    def write_manifest(
        self, name: str, segments: Sequence[Segment], headers: Mapping[str, str]
    ) -> str:
        """Make *segments*, each of which the store checks by its ETag and size, the object *name*.

        Return its ETag. (Not sent along: Swift compares it with that of the whole, radosgw with the MD5 of
        the manifest.)
        """
        joined = "".join(segment.etag for segment in segments)
        etag = hashlib.md5(joined.encode(), usedforsecurity=False).hexdigest()
        document = json.dumps([segment.entry for segment in segments]).encode()
        answer = self._session.ask(
            "PUT",
            quoted_path(self._container, name),
            f"storing the manifest of {name!r}",
            query={"multipart-manifest": "put"},
            headers=headers,
            data=document,
        )
        return bare(answer.headers.get("ETag", "")) or etag

    def _remove(self, names: Sequence[str]) -> None:
        """Remove segments, all that can be. Raise what kept one from going."""

        def delete(name: str) -> StoreError | None:
            try:
                self._session.ask(
                    "DELETE", quoted_path(self._own, name), f"removing the segment {name!r}"
                )
            except NotFound:
                return None
            except StoreError as error:
                return error
            return None

        if names:
            with ThreadPoolExecutor(min(self._transfers, len(names))) as pool:
                failures = [error for error in pool.map(delete, names) if error is not None]
            if failures:
                raise failures[0]

    def _made(self, team: "_Team", send: Callable[[int], Segment], count: int) -> list[Segment]:
        self._make_container()
        return team.run(send, count)

    def _make_container(self) -> None:
        """Make the container of the segments, under the policy of the one that they belong to."""
        with suppress(Denied):  # who may not look may still be allowed to write
            try:
                self._session.ask("HEAD", quoted_path(self._own), f"looking for {self._own!r}")
            except NotFound:
                answer = self._session.ask(
                    "HEAD", quoted_path(self._container), f"looking at {self._container!r}"
                )
                policy = answer.headers.get("X-Storage-Policy")
                self._session.ask(
                    "PUT",
                    quoted_path(self._own),
                    f"making the container {self._own!r}",
                    headers={"X-Storage-Policy": policy} if policy else {},
                )


class _Team:
    """Threads that work on one large object. When one fails, the others stop soon."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._is_called_off = threading.Event()

    def is_called_off(self) -> bool:
        """Whether somebody failed."""
        return self._is_called_off.is_set()

    def _require_going(self) -> None:
        if self.is_called_off():
            raise CalledOff

    def run(self, work: Callable[[int], Segment], count: int) -> list[Segment]:
        """Return what *work* makes of each number, in order. Raise what went wrong first, after all have ended."""

        def guarded(number: int) -> Segment:
            try:
                self._require_going()
                return work(number)
            except BaseException:
                self._is_called_off.set()
                raise

        with ThreadPoolExecutor(min(self._size, count)) as pool:
            futures = [pool.submit(guarded, number) for number in range(count)]
        failures = [error for future in futures if (error := future.exception()) is not None]
        if failures:
            raise _telling(failures)
        return [future.result() for future in futures]


def _telling(failures: Sequence[BaseException]) -> BaseException:
    """Return the failure that explains the others: our own stop, or else the first that is no mere echo."""
    for kind in (UploadStopped, Exception):
        for failure in failures:
            if isinstance(failure, kind):
                return failure
    return failures[0]


def _names(name: str) -> Iterable[str]:
    """Yield names for the segments of one upload of the object *name*."""
    head = name.encode("utf-8")[:_LONGEST_PREFIX].decode("utf-8", "ignore").rstrip("/")
    unique = secrets.token_hex(16)
    return (f"{head}/cachefs/{unique}/{number:08d}" for number in range(_MOST_SEGMENTS + 1))


def _segment_of(entry: Mapping[str, Any]) -> Segment:
    if "data" in entry:
        return Segment("", "", 0, "", inline=str(entry["data"]))
    path = str(entry.get("path") or entry["name"])
    container, _, name = path.removeprefix("/").partition("/")
    size = int(entry["size_bytes"] if "size_bytes" in entry else entry["bytes"])
    etag = bare(str(entry.get("etag") or entry.get("hash") or ""))
    part, is_manifest = str(entry.get("range") or ""), bool(entry.get("sub_slo"))
    return Segment(container, name, size, etag, part=part, is_manifest=is_manifest)


def _listed_segment(container: str, row: Mapping[str, Any]) -> Segment:
    is_manifest = bool(row.get("slo_etag"))
    return Segment(
        container, str(row["name"]), int(row["bytes"]), str(row["hash"]), is_manifest=is_manifest
    )
