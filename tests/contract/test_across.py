"""Copies from one bucket to another of the same server: what `cachefs sync` lets the server do by itself."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import pytest

from cachefs.core.errors import Changed
from cachefs.core.extents import Extent
from cachefs.core.types import ETag, Key
from cachefs.remote.s3 import S3Store
from cachefs.remote.scoped import Scoped
from cachefs.remote.store import ObjectStore
from cachefs.remote.swift import SwiftStore
from tests.contract.bodies import BytesBody, fetched
from tests.contract.conftest import MIB, small

META: Final = {"mtime": "1.000000000", "size-of-it": "größer", ":cache-control": "max-age=60"}


@dataclass(frozen=True)
class Pair:
    """Two buckets; copies of the second are made of what is in the first."""

    source: ObjectStore
    target: ObjectStore


def _s3(request: pytest.FixtureRequest, name: str) -> Pair:
    server = request.getfixturevalue(f"{name}_server")
    bucket = request.getfixturevalue("fresh_bucket")
    client = request.getfixturevalue("s3_clients")(server)
    options, first = small(server.options()), bucket(server)
    target = S3Store(bucket(server), options, client=client, origin=first, copy_limit=5 * MIB)
    return Pair(S3Store(first, options, client=client), target)


def _swift(request: pytest.FixtureRequest, _: str) -> Pair:
    server = request.getfixturevalue("swift_server")
    first = request.getfixturevalue("fresh_container")
    with closing(server.sdk()) as sdk:
        sdk.put_container(f"{first}-copies")
    options, environ = small(server.options()), server.environment()
    return Pair(
        SwiftStore(first, options, environ=environ),
        SwiftStore(f"{first}-copies", options, environ=environ, origin=first),
    )


@pytest.fixture(params=["moto", "radosgw", "swift"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    opened = (_swift if request.param == "swift" else _s3)(request, request.param)
    with closing(opened.source), closing(opened.target):
        opened.target.probe()
        yield opened


def put(store: ObjectStore, key: str, content: bytes) -> ETag:
    return store.put(
        Key(key), BytesBody(content), meta=META, content_type="text/x-test", if_match=None
    ).etag


@pytest.mark.parametrize("size", [0, 6 * MIB + 1])
def test_a_copy_from_another_bucket_has_the_bytes_and_what_was_said_of_them(
    pair: Pair, size: int
) -> None:
    content = os.urandom(size)
    etag = put(pair.source, "a/b", content)

    copied = pair.target.copy(Key("a/b"), Key("a/b"), if_match=etag, replaces=None)

    seen = pair.target.head(Key("a/b"))
    assert (seen.size, seen.etag, seen.content_type) == (size, copied.etag, "text/x-test")
    told = seen.meta or {}
    assert {name: told.get(name) for name in META} == META
    assert fetched(pair.target, Key("a/b"), Extent(0, size), copied.etag) == content


def test_nothing_is_copied_but_the_version_named_over_the_version_named(pair: Pair) -> None:
    etag = put(pair.source, "key", b"source")
    there = put(pair.target, "key", b"target")

    for if_match, replaces in ((ETag("0" * 32), there), (etag, None), (etag, ETag("0" * 32))):
        with pytest.raises(Changed):
            pair.target.copy(Key("key"), Key("key"), if_match=if_match, replaces=replaces)

    assert fetched(pair.target, Key("key"), Extent(0, 6), there) == b"target"
    pair.target.copy(Key("key"), Key("key"), if_match=etag, replaces=there)
    assert pair.target.head(Key("key")).etag == etag


@pytest.mark.parametrize(
    ("pair", "key"),
    [("moto", "a%20b"), ("radosgw", "a%20b"), ("radosgw", "x%?versionId=3")],
    indirect=["pair"],
)
def test_a_copy_in_parts_is_of_the_key_that_was_meant(pair: Pair, key: str) -> None:
    content, other = os.urandom(5 * MIB + 1), os.urandom(5 * MIB + 1)
    put(pair.source, "a b", other)  # what `a%20b` is taken for where it is decoded twice
    etag = put(pair.source, key, content)

    copied = pair.target.copy(Key(key), Key("copy"), if_match=etag, replaces=None)

    assert fetched(pair.target, Key("copy"), Extent(0, len(content)), copied.etag) == content


def test_prefixes_of_both_buckets_are_added_where_they_belong(pair: Pair) -> None:
    etag = put(pair.source, "from/here/x", b"source")
    target = Scoped(pair.target, "to/there/", origin="from/here/")

    target.copy(Key("x"), Key("y"), if_match=etag, replaces=None)

    assert pair.target.head(Key("to/there/y")).size == 6
