"""How a source becomes a store, and every bucket a directory."""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cachefs.core.errors import NoBucket, NotFound, TimedOut, Unsupported
from cachefs.core.extents import Extent
from cachefs.core.source import Source, StoreKind, StoreOptions
from cachefs.core.types import Key
from cachefs.remote.buckets import Buckets
from cachefs.remote.memory import MemoryStore
from cachefs.remote.open import open_store
from cachefs.remote.store import ObjectStore
from tests.contract.bodies import BytesBody, fetched
from tests.servers.s3 import S3Server
from tests.servers.scripted import scripted

KEY = Key("a/name")


def put(store: ObjectStore, key: Key = KEY) -> None:
    store.put(key, BytesBody(b"content"), meta={}, if_match=None)


def keys_of(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key for page in store.list(Key(prefix), deep=True) for info in page.objects]


def test_a_prefix_is_all_that_is_seen_of_a_bucket(
    moto_server: S3Server, fresh_bucket: Callable[[S3Server], str], sdks: Callable[[S3Server], Any]
) -> None:
    bucket = fresh_bucket(moto_server)
    sdk = sdks(moto_server)
    for key in ("deep/in", "deep/in/", "deep/inside", "other"):
        sdk.put_object(Bucket=bucket, Key=key)
    source = Source(StoreKind.S3, bucket, "deep/in/")

    with closing(open_store(source, moto_server.options(), timeout_s=10)) as store:
        store.check()
        assert store.probe().writable
        put(store)

        assert keys_of(store) == [KEY]
        assert store.requests == {"check": 1, "probe": 1, "put": 1, "list": 1}
        assert store.health.offline_since is None
        assert store.description == f"deep/in in s3://{bucket} at {moto_server.url}"
    listed = sdk.list_objects_v2(Bucket=bucket)["Contents"]
    assert [entry["Key"] for entry in listed] == [
        "deep/in",
        "deep/in/",
        "deep/in/a/name",
        "deep/inside",
        "other",
    ]


def test_without_a_bucket_every_bucket_is_a_directory(
    radosgw_server: S3Server, fresh_bucket: Callable[[S3Server], str]
) -> None:
    one, two = fresh_bucket(radosgw_server), fresh_bucket(radosgw_server)

    with closing(
        open_store(Source(StoreKind.S3), radosgw_server.options(), timeout_s=10)
    ) as store:
        store.check()
        store.probe()
        put(store, Key(f"{one}/{KEY}"))

        (page,) = store.list(Key(""))
        assert {f"{one}/", f"{two}/"} <= set(page.prefixes)
        assert keys_of(store, f"{one}/") == [f"{one}/", f"{one}/{KEY}"]
        assert keys_of(store, f"{two}/") == [f"{two}/"]
        assert keys_of(store, ".Trash/") == []


def test_a_missing_bucket_is_said(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    source = Source(StoreKind.S3, "no-such-bucket")

    with (
        closing(open_store(source, moto_server.options(), timeout_s=10)) as store,
        pytest.raises(NoBucket),
    ):
        store.check()


def test_a_directory_and_a_memory_are_stores(tmp_path: Path) -> None:
    for source in (Source(StoreKind.FILE, str(tmp_path)), Source(StoreKind.MEMORY)):
        with closing(open_store(source, StoreOptions(), timeout_s=10)) as store:
            store.check()
            put(store)
            assert keys_of(store) == [KEY]


def test_a_store_that_says_nothing_is_given_up_within_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    with scripted(lambda _: None) as server:
        options = StoreOptions(endpoint_url=server.url)
        with closing(open_store(Source(StoreKind.S3, "bucket"), options, timeout_s=2)) as store:
            began_s = time.monotonic()
            with pytest.raises(TimedOut):
                store.head(KEY)
            took_s = time.monotonic() - began_s

    assert took_s < 3


@pytest.fixture
def buckets() -> Buckets:
    stores = {"one": MemoryStore(), "two": MemoryStore()}
    return Buckets(lambda: list(stores), stores.__getitem__, description="all")


def test_the_root_of_all_buckets_lists_them(buckets: Buckets) -> None:
    put(buckets, Key("two/x"))

    (page,) = buckets.list(Key(""))
    assert (page.objects, page.prefixes) == ((), ("one/", "two/"))
    assert keys_of(buckets) == ["one/", "two/", "two/x"]


def test_a_bucket_has_a_marker_that_cannot_be_changed(buckets: Buckets) -> None:
    marker = buckets.head(Key("one/"))

    assert (marker.key, marker.size, marker.meta) == ("one/", 0, {})
    for change in (
        lambda: buckets.delete(Key("one/")),
        lambda: put(buckets, Key("three/")),
        lambda: put(buckets, Key("file")),
        lambda: buckets.set_meta(Key("one/"), {}, content_type=None, if_match=marker.etag),
    ):
        with pytest.raises(Unsupported):
            change()


def test_the_marker_of_a_bucket_is_in_the_first_page_of_its_listing(buckets: Buckets) -> None:
    (page,) = buckets.list(Key("one/"))
    assert [info.key for info in page.objects] == ["one/"]

    put(buckets, Key("one/x"))
    (page,) = buckets.list(Key("one/"))
    assert [info.key for info in page.objects] == ["one/", "one/x"]


def test_a_bucket_that_is_not_there_is_a_directory_that_is_not(buckets: Buckets) -> None:
    for key in ("three", "three/", "three/x", "one"):
        with pytest.raises(NotFound):
            buckets.head(Key(key))
    with pytest.raises(NotFound):
        fetched(buckets, Key("three/x"), Extent(0, 1), buckets.head(Key("one/")).etag)
    assert keys_of(buckets, "three/") == []
    with pytest.raises(NoBucket):
        put(buckets, Key("three/x"))


def test_nothing_is_copied_between_buckets(buckets: Buckets) -> None:
    put(buckets, Key("one/x"))
    etag = buckets.head(Key("one/x")).etag

    with pytest.raises(Unsupported):
        buckets.copy(Key("one/x"), Key("two/x"), if_match=etag, replaces=None)
    buckets.copy(Key("one/x"), Key("one/y"), if_match=etag, replaces=None)

    assert keys_of(buckets, "one/") == ["one/", "one/x", "one/y"]


def test_a_bucket_is_probed_before_its_first_write_only(buckets: Buckets) -> None:
    one = MemoryStore()
    buckets = Buckets(lambda: ["one"], lambda _: one, description="all")

    list(buckets.list(Key("one/")))
    assert "probe" not in one.requests
    put(buckets, Key("one/x"))
    put(buckets, Key("one/y"))
    assert one.requests["probe"] == 1


def test_opening_loads_no_sdk_that_is_not_needed() -> None:
    program = (
        "import sys\n"
        "from cachefs.core.source import Source, StoreKind, StoreOptions\n"
        "from cachefs.remote.open import open_store\n"
        "open_store(Source(StoreKind.FILE, '/'), StoreOptions(), timeout_s=1).close()\n"
        "assert not {'boto3', 'botocore', 'swiftclient'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
