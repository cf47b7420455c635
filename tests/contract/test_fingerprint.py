"""What every store tells of an object's content, held against the content."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
import swiftclient

from cachefs.core.errors import NotFound
from cachefs.core.fingerprint import CHECKSUMS, Fingerprint, PartMd5s, cut, part_sizes, parts_in
from cachefs.core.types import Key
from cachefs.remote.store import ObjectStore
from cachefs.remote.swift import SwiftStore
from cachefs.remote.swift_session import Answer, Session
from tests.contract.bodies import BytesBody
from tests.contract.conftest import MIB
from tests.servers.swift import SwiftServer

KEY = Key("dir/näme")
CONTENT = bytes(range(256)) * 40


def md5_of(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def proofs(told: Fingerprint, content: bytes) -> dict[str, bool]:
    """By which means *told* tells of content, and whether it tells of *content*."""
    found: dict[str, bool] = {}
    if told.md5:
        found["md5"] = told.md5 == md5_of(content)
    if told.stored_md5:
        found["metadata"] = told.stored_md5 == md5_of(content)
    if told.parts:
        parts = PartMd5s([each.size for each in told.parts])
        parts.update(memoryview(content))
        found["parts"] = parts.md5s == tuple(each.md5 for each in told.parts)
    if told.part_size:
        parts = PartMd5s(cut(len(content), told.part_size))
        parts.update(memoryview(content))
        found["part size"] = parts.s3 == told.info.etag
    for name, checksum in told.checksums.items():
        digest = CHECKSUMS[name]()
        digest.update(memoryview(content))
        found[name] = digest.hexdigest() == checksum
    return found


def test_a_small_object_is_told_by_its_md5(store: ObjectStore, kind: str) -> None:
    store.put(KEY, BytesBody(CONTENT), meta={"a": "b"}, if_match=None)

    told = store.fingerprint(KEY)

    assert told.info == store.head(KEY)
    assert proofs(told, CONTENT) == ({} if kind == "file" else {"md5": True})


def test_an_object_in_parts_is_told_although_its_etag_is_no_md5(
    store: ObjectStore, kind: str
) -> None:
    content = b"".join(number.to_bytes(4, "big") for number in range(11 * MIB // 4)) + b"end"
    store.put(KEY, BytesBody(content), meta={}, if_match=None)

    told = store.fingerprint(KEY)

    found = proofs(told, content)
    assert all(found.values())
    if kind.startswith("s3"):
        assert found["metadata"]
        parts = parts_in(told.info.etag)
        assert parts is not None
        assert 5 * MIB in part_sizes(len(content), parts)
    if kind == "swift":
        assert found["parts"]


def test_an_overview_is_the_deep_listing(store: ObjectStore) -> None:
    for key in ("a", "b/c", "b/d", "e"):
        store.put(Key(key), BytesBody(CONTENT), meta={}, if_match=None)

    for prefix in (Key(""), Key("b/")):
        listed = [info for page in store.list(prefix, deep=True) for info in page.objects]
        assert [info for page in store.overview(prefix) for info in page.objects] == listed


def test_what_is_not_there_has_no_fingerprint(store: ObjectStore) -> None:
    with pytest.raises(NotFound):
        store.fingerprint(KEY)


@pytest.fixture
def sdk(swift_server: SwiftServer) -> Iterator[swiftclient.Connection]:
    with closing(swift_server.sdk()) as connection:
        yield connection


@pytest.fixture
def swift(swift_server: SwiftServer, fresh_container: str) -> Iterator[SwiftStore]:
    options = replace(swift_server.options(), segment_limit=1000)
    with closing(
        SwiftStore(fresh_container, options, environ=swift_server.environment())
    ) as store:
        yield store


def test_a_dynamic_large_object_is_told_by_what_its_prefix_lists(
    swift: SwiftStore, sdk: swiftclient.Connection, fresh_container: str
) -> None:
    pieces = [b"a" * 1000, b"b" * 500, b"c"]
    for number, piece in enumerate(pieces):
        sdk.put_object(fresh_container, f"pärts/{number}", piece)
    manifest = {"X-Object-Manifest": f"{fresh_container}/p%C3%A4rts/"}
    sdk.put_object(fresh_container, "dlo", b"", headers=manifest)

    sdk.put_object(fresh_container, "empty", b"")
    swift.put(Key("dir/"), BytesBody(b""), meta={}, if_match=None)

    doubtful = {
        info.key for page in swift.overview(Key("")) for info in page.objects if info.is_doubtful
    }
    told = swift.fingerprint(Key("dlo"))

    assert doubtful == {"dlo", "empty"}

    assert proofs(told, b"".join(pieces)) == {"parts": True}


def test_a_store_that_does_not_tell_its_segments_says_that_its_etag_is_of_some(
    swift_server: SwiftServer, fresh_container: str
) -> None:
    class Silent(Session):
        def ask(self, method: str, path: str, what: str, **rest: object) -> Answer:
            answer = super().ask(method, path, what, **rest)  # type: ignore[arg-type]
            return replace(answer, content=b"") if what.startswith("reading the man") else answer

    options = replace(swift_server.options(), segment_limit=6000)
    ours = SwiftStore(fresh_container, options, environ=swift_server.environment())
    with closing(ours):
        ours.put(KEY, BytesBody(CONTENT), meta={}, if_match=None)
    session = Silent(options, swift_server.environment())
    silent = SwiftStore(fresh_container, options, environ={}, session=session)
    with closing(silent):
        told = silent.fingerprint(KEY)

    assert (told.md5, told.parts, told.is_joined) == (None, (), True)
    parts = PartMd5s(cut(len(CONTENT), 6000))
    parts.update(memoryview(CONTENT))
    assert parts.swift == told.info.etag
