"""Objects too long for one PUT: their segments, made, copied and removed. A segment belongs to one object only.

Segments lie in the container ``NAME_segments``, as those of Swift's other tools do, under a prefix that no other
upload has. Segments elsewhere may be objects in their own right: they are never removed.
"""

import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from cachefs.core.errors import (
    Denied,
    Fault,
    NotFound,
    Refused,
    StoreError,
    Unsupported,
)
from cachefs.core.extents import Extent
from cachefs.remote.store import Body, UploadStopped
from cachefs.remote.swift_session import CalledOff, Session, Upload, quoted_path
from cachefs.remote.swift_values import bare

_SEGMENT = 256 * 2**20
"""Longer segments would leave too little to do in parallel."""
_MOST_SEGMENTS = 1000
"""In one manifest, unless the operator of the Swift allows more."""
_LONGEST_PREFIX = 900
_CHUNK = 2**20
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


def md5_of(body: Body, extent: Extent) -> str:
    """Return the MD5 of a part of *body*, which Swift checks what arrives against."""
    digest = hashlib.md5(usedforsecurity=False)
    reader = body.reader(extent)
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
        self, session: Session, container: str, *, segment_limit: int, transfers: int
    ) -> None:
        self._session = session
        self._container = container
        self._own = f"{container}_segments"
        self._limit = segment_limit
        self._transfers = transfers

    def upload(self, body: Body, name: str) -> list[Segment]:
        """Store *body* in segments for the object *name*, some at a time. All of them, or none and an error."""
        length = max(min(self._limit, _SEGMENT), -(-body.size // _MOST_SEGMENTS))
        if length > self._limit:
            raise Refused(f"{body.size} bytes are more than Swift can hold in one object")
        team = _Team(self._transfers)
        planned = [
            Segment(self._own, segment, min(length, body.size - start), "")
            for start, segment in zip(range(0, body.size, length), _names(name), strict=False)
        ]

        def send(number: int) -> Segment:
            segment = planned[number]
            extent = Extent(number * length, number * length + segment.size)
            etag = md5_of(body, extent)
            self._session.ask(
                "PUT",
                quoted_path(segment.container, segment.name),
                f"storing segment {number} of {name!r}",
                headers={"ETag": etag, "Content-Type": "application/octet-stream"},
                data=Upload(body, extent, team.is_called_off),
            )
            return replace(segment, etag=etag)

        return self._made(team, send, planned)

    def copy(self, segments: Sequence[Segment], name: str) -> list[Segment]:
        """Copy *segments*, within the store, to segments of the object *name* alone. All, or none and an error."""
        team = _Team(self._transfers)
        planned = [
            segment if segment.inline else replace(segment, container=self._own, name=copy)
            for segment, copy in zip(segments, _names(name), strict=False)
        ]

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

        return self._made(team, send, planned)

    def manifest_of(self, name: str) -> list[Segment]:
        """Return the segments that the static large object *name* is made of."""
        answer = self._session.ask(
            "GET",
            quoted_path(self._container, name),
            f"reading the manifest of {name!r}",
            query={"multipart-manifest": "get", "format": "json"},
        )
        if not answer.content:
            raise Unsupported("this Swift (radosgw?) does not tell what a large object is made of")
        try:
            return [_segment_of(entry) for entry in answer.json()]
        except (KeyError, TypeError, ValueError) as error:
            raise Fault(f"the manifest of {name!r} makes no sense") from error

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

    def remove(self, segments: Iterable[Segment]) -> None:
        """Remove those of *segments* that are surely nothing else. What cannot be removed is left behind."""
        names = [segment.name for segment in segments if segment.container == self._own]

        def delete(name: str) -> None:
            with suppress(StoreError):
                self._session.ask(
                    "DELETE", quoted_path(self._own, name), f"removing the segment {name!r}"
                )

        if names:
            with ThreadPoolExecutor(min(self._transfers, len(names))) as pool:
                list(pool.map(delete, names))

    def _made(
        self, team: "_Team", send: Callable[[int], Segment], planned: Sequence[Segment]
    ) -> list[Segment]:
        self._make_container()
        try:
            return team.run(send, len(planned))
        except BaseException:
            self.remove(segment for segment in planned if not segment.inline)
            raise

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
    return Segment(container, name, size, etag, part=str(entry.get("range") or ""))
