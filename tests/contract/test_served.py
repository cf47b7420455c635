"""How an object is served, its class and its tags: kept by whatever cachefs does to it."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.remote.s3 import S3Store
from cachefs.remote.s3_served import params_of, served_of
from cachefs.remote.store import ObjectStore
from cachefs.remote.swift import SwiftStore
from tests.contract.bodies import BytesBody
from tests.contract.conftest import MIB, small
from tests.servers.s3 import S3Server
from tests.servers.swift import SwiftServer

KEY = Key("directory/page.html")
SERVED = {
    "CacheControl": "max-age=60",
    "ContentDisposition": 'attachment; filename="é日.txt"',
    "ContentEncoding": "gzip",
    "ContentLanguage": "de, en",
}
EXPIRES = "Wed, 01 Jan 2035 00:00:00 GMT"
TAGS = [{"Key": "a", "Value": "b"}, {"Key": "c d", "Value": "e=f+g/h@i"}]
TAGGING = "a=b&c%20d=e%3Df%2Bg/h%40i"

Change = Callable[[ObjectStore, ObjectInfo], Key]
Sdks = Callable[[S3Server], Any]
Fresh = Callable[[S3Server], str]


def rewritten(store: ObjectStore, seen: ObjectInfo) -> Key:
    store.put(
        KEY,
        BytesBody(b"other"),
        meta=seen.meta or {},
        content_type=seen.content_type,
        if_match=seen.etag,
    )
    return KEY


def rewritten_in_parts(store: ObjectStore, seen: ObjectInfo) -> Key:
    store.put(
        KEY,
        BytesBody(b"x" * 7 * MIB),
        meta=seen.meta or {},
        content_type=seen.content_type,
        if_match=seen.etag,
    )
    return KEY


def changed(store: ObjectStore, seen: ObjectInfo) -> Key:
    store.set_meta(KEY, {"a": "b"}, content_type=None, if_match=seen.etag)
    return KEY


def copied(store: ObjectStore, seen: ObjectInfo) -> Key:
    store.copy(KEY, Key("copy"), if_match=seen.etag, replaces=None)
    return Key("copy")


CHANGES: list[Change] = [rewritten, rewritten_in_parts, changed, copied]
SIZES = [(change, 1) for change in CHANGES] + [(changed, 7 * MIB), (copied, 7 * MIB)]
"""Each change of a small object, and those of a large one that do not replace it."""


@pytest.fixture(params=["moto", "radosgw", "swift_s3"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def bucket(server: S3Server, fresh_bucket: Fresh) -> str:
    return fresh_bucket(server)


@pytest.fixture
def s3(server: S3Server, bucket: str) -> Iterator[S3Store]:
    with closing(S3Store(bucket, small(server.options()), copy_limit=6 * MIB)) as store:
        store.probe()
        yield store


@pytest.mark.parametrize(("change", "size"), SIZES)
def test_how_an_object_of_s3_is_served_outlives_every_change(
    s3: S3Store, server: S3Server, bucket: str, sdks: Sdks, change: Change, size: int
) -> None:
    sdk = sdks(server)
    sdk.put_object(
        Bucket=bucket,
        Key=KEY,
        Body=b"x" * size,
        ContentType="text/html",
        Expires=EXPIRES,
        **SERVED,
    )
    before = sdk.head_object(Bucket=bucket, Key=KEY)

    key = change(s3, s3.head(KEY))

    seen = sdk.head_object(Bucket=bucket, Key=key)
    for name in (*SERVED, "ContentType", "Expires"):
        assert seen[name] == before[name], name


@pytest.mark.parametrize(("change", "size"), SIZES)
def test_tags_outlive_every_change(
    moto_server: S3Server,
    radosgw_server: S3Server,
    fresh_bucket: Fresh,
    sdks: Sdks,
    change: Change,
    size: int,
) -> None:
    for server in (moto_server, radosgw_server):
        bucket, sdk = fresh_bucket(server), sdks(server)
        sdk.put_object(Bucket=bucket, Key=KEY, Body=b"x" * size, Tagging=TAGGING)

        with closing(S3Store(bucket, small(server.options()), copy_limit=6 * MIB)) as store:
            store.probe()
            key = change(store, store.head(KEY))

        tags = sdk.get_object_tagging(Bucket=bucket, Key=key)["TagSet"]
        assert sorted(tags, key=str) == sorted(TAGS, key=str), server.url


@pytest.mark.parametrize("change", CHANGES)
def test_the_storage_class_outlives_every_change(
    moto_server: S3Server, fresh_bucket: Fresh, sdks: Sdks, change: Change
) -> None:
    bucket, sdk = fresh_bucket(moto_server), sdks(moto_server)
    sdk.put_object(
        Bucket=bucket,
        Key=KEY,
        Body=b"x",
        StorageClass="STANDARD_IA",
        WebsiteRedirectLocation="/other",
    )

    with closing(S3Store(bucket, small(moto_server.options()))) as store:
        store.probe()
        key = change(store, store.head(KEY))

    seen = sdk.head_object(Bucket=bucket, Key=key)
    assert (seen["StorageClass"], seen["WebsiteRedirectLocation"]) == ("STANDARD_IA", "/other")


def test_what_is_stored_anew_can_be_read_at_once() -> None:
    assert params_of({":x-amz-storage-class": "DEEP_ARCHIVE"}) == {}
    assert params_of({":x-amz-storage-class": "GLACIER_IR"}) == {"StorageClass": "GLACIER_IR"}


@pytest.mark.parametrize("expires", ["0", "-1", "never", EXPIRES.replace("GMT", "-0000")])
def test_an_expiry_that_is_no_date_means_long_ago(expires: str) -> None:
    found = served_of({"ExpiresString": expires})
    assert found == {":expires": expires}

    when = params_of(found)["Expires"]

    assert str(when).startswith("2035-01-01" if "2035" in expires else "1970-01-01")


def test_how_a_body_was_framed_is_no_encoding_of_it() -> None:
    assert served_of({"ContentEncoding": "aws-chunked"}) == {}
    assert served_of({"ContentEncoding": "gzip,aws-chunked"}) == {":content-encoding": "gzip"}
    assert served_of({"StorageClass": "STANDARD"}) == {}


@pytest.mark.parametrize(("change", "size"), SIZES)
def test_how_an_object_of_swift_is_served_outlives_every_change(
    swift_server: SwiftServer, fresh_container: str, change: Change, size: int
) -> None:
    served = {
        "Cache-Control": "max-age=60",
        "Content-Disposition": 'attachment; filename="é日.txt"',
        "Content-Encoding": "gzip",
        "Content-Language": "de, en",
        "Expires": EXPIRES,
        "X-Robots-Tag": "noindex",
    }
    with (
        closing(
            SwiftStore(
                fresh_container,
                small(swift_server.options()),
                environ=swift_server.environment(),
            )
        ) as store,
        closing(swift_server.sdk()) as sdk,
    ):
        first = store.put(KEY, BytesBody(b"x" * 7 * MIB), meta={}, if_match=None)
        headers = {"Content-Type": "text/html", **served}
        if size > 1:
            sdk.post_object(fresh_container, KEY, headers)
        else:
            store.delete(KEY, if_match=first.etag)
            sdk.put_object(fresh_container, KEY, b"x", headers=headers)

        before = sdk.head_object(fresh_container, KEY)
        key = change(store, store.head(KEY))

        seen = sdk.head_object(fresh_container, key)
    for name in map(str.lower, headers):
        assert seen[name] == before[name], name


def test_new_content_does_not_expire_with_the_old(
    swift_server: SwiftServer, fresh_container: str
) -> None:
    with (
        closing(
            SwiftStore(fresh_container, swift_server.options(), environ=swift_server.environment())
        ) as store,
        closing(swift_server.sdk()) as sdk,
    ):
        sdk.put_object(fresh_container, KEY, b"x", headers={"X-Delete-At": "4000000000"})
        copied(store, store.head(KEY))
        rewritten(store, store.head(KEY))

        assert sdk.head_object(fresh_container, "copy")["x-delete-at"] == "4000000000"
        assert "x-delete-at" not in sdk.head_object(fresh_container, KEY)


def test_a_header_among_metadata_is_kept_by_every_store(store: ObjectStore) -> None:
    meta = {"a": "b", ":cache-control": "no-store", ":content-language": "de"}

    first = store.put(KEY, BytesBody(b"x"), meta=meta, if_match=None)

    assert (first.meta, store.head(KEY).meta) == (meta, meta)
    store.put(KEY, BytesBody(b"y"), meta={"a": "c"}, if_match=ETag(first.etag))
    assert store.head(KEY).meta == {"a": "c"}
