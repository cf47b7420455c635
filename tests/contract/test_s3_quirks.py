"""Where real S3 servers differ: what the probe finds, and that the adapter lives with it."""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any
from urllib.parse import unquote
from xml.sax.saxutils import escape

import pytest

from cachefs.core.errors import (
    Changed,
    Denied,
    Fault,
    NoBucket,
    NotFound,
    Refused,
    StoreError,
    Unreachable,
)
from cachefs.core.extents import Extent
from cachefs.core.source import StoreOptions
from cachefs.core.types import ETag, Key
from cachefs.remote.headers import of_user
from cachefs.remote.s3 import S3Store
from cachefs.remote.store import Capabilities, Support, UploadStopped
from tests.contract.bodies import BytesBody, StoppedBody, fetched
from tests.contract.conftest import MIB, small
from tests.servers.moto import moto
from tests.servers.s3 import S3Server
from tests.servers.scripted import Answer, Request, answer, scripted
from tests.servers.tls import Tls

KEY = Key("name")
LARGE = bytes(11 * MIB)

Fresh = Callable[[S3Server], str]
Sdks = Callable[[S3Server], Any]


@pytest.fixture
def radosgw_store(radosgw_server: S3Server, fresh_bucket: Fresh) -> Iterator[S3Store]:
    with closing(S3Store(fresh_bucket(radosgw_server), small(radosgw_server.options()))) as store:
        store.probe()
        yield store


@pytest.fixture
def moto_store(moto_server: S3Server, fresh_bucket: Fresh) -> Iterator[S3Store]:
    with closing(S3Store(fresh_bucket(moto_server), small(moto_server.options()))) as store:
        store.probe()
        yield store


def test_moto_holds_writes_to_their_conditions(moto_store: S3Store) -> None:
    found = moto_store.capabilities

    assert found.conditional_put is Support.ENFORCED
    assert found.conditional_create is Support.ENFORCED
    assert found.conditional_delete is Support.ENFORCED
    assert found.conditional_multipart is Support.IGNORED
    assert found.conditional_copy is Support.IGNORED
    assert found.notes == ()


def test_radosgw_wants_etags_unquoted_and_ignores_most_conditions(radosgw_store: S3Store) -> None:
    found = radosgw_store.capabilities

    assert found.conditional_put is Support.ENFORCED
    assert found.conditional_create is Support.ENFORCED
    assert found.conditional_delete is Support.IGNORED
    assert found.conditional_multipart is Support.IGNORED
    assert found.conditional_copy is Support.IGNORED
    assert "PUT wants the ETag of If-Match unquoted" in found.notes


def test_before_a_probe_conditions_are_checked_by_head(
    radosgw_server: S3Server, fresh_bucket: Fresh
) -> None:
    with closing(S3Store(fresh_bucket(radosgw_server), radosgw_server.options())) as store:
        first = store.put(KEY, BytesBody(b"1"), meta={}, if_match=None)
        second = store.put(KEY, BytesBody(b"2"), meta={}, if_match=first.etag)

        with pytest.raises(Changed):
            store.put(KEY, BytesBody(b"3"), meta={}, if_match=None)
        with pytest.raises(Changed):
            store.put(KEY, BytesBody(b"3"), meta={}, if_match=first.etag)
        assert fetched(store, KEY, Extent(0, 1), second.etag) == b"2"


def test_an_upload_to_radosgw_is_named_though_its_answer_is_not(radosgw_store: S3Store) -> None:
    stored = radosgw_store.put(KEY, BytesBody(LARGE), meta={"a": "b"}, if_match=None)

    assert stored.etag == radosgw_store.head(KEY).etag
    assert stored.etag.endswith("-3")


def test_an_upload_that_went_on_is_told_with_the_line_that_it_has(
    moto_server: S3Server, fresh_bucket: Fresh
) -> None:
    class Stumbling(BytesBody):
        has_stumbled = False

        def reader(self, extent: Extent) -> io.BytesIO:
            if extent.start and not self.has_stumbled:
                self.has_stumbled = True
                raise Fault("the answer was lost")
            return super().reader(extent)

    body = Stumbling(LARGE)
    with closing(S3Store(fresh_bucket(moto_server), small(moto_server.options()))) as store:
        with pytest.raises(Fault, match="lost"):
            store.put(KEY, body, meta={}, if_match=None)
        stored = store.put(KEY, body, meta={}, if_match=None)

        assert stored.line
        assert stored.line == store.head(KEY).line


@pytest.mark.parametrize("name", ["moto", "radosgw"])
def test_an_upload_that_is_called_off_leaves_no_parts(
    request: pytest.FixtureRequest, name: str, fresh_bucket: Fresh, sdks: Sdks
) -> None:
    server: S3Server = request.getfixturevalue(f"{name}_server")
    bucket = fresh_bucket(server)

    with closing(S3Store(bucket, small(server.options()))) as store:
        with pytest.raises(UploadStopped):
            store.put(KEY, StoppedBody(LARGE, after=6 * MIB), meta={}, if_match=None)

        assert not sdks(server).list_multipart_uploads(Bucket=bucket).get("Uploads")
        assert store.put(KEY, BytesBody(b"x"), meta={}, if_match=None).size == 1


@pytest.mark.parametrize("checksums", ["when_required", "when_supported"])
@pytest.mark.parametrize("size", [10, 2 * MIB, 11 * MIB])
def test_radosgw_over_tls_takes_no_trailers(
    radosgw_tls_server: S3Server, fresh_bucket: Fresh, checksums: str, size: int
) -> None:
    chosen = replace(small(radosgw_tls_server.options()), checksums=checksums)

    with closing(S3Store(fresh_bucket(radosgw_tls_server), chosen)) as store:
        if checksums == "when_supported":
            with pytest.raises(Refused, match="when_required"):
                store.put(KEY, BytesBody(bytes(size)), meta={}, if_match=None)
            with pytest.raises(NotFound):
                store.head(KEY)
        else:
            store.probe()
            stored = store.put(KEY, BytesBody(bytes(size)), meta={}, if_match=None)
            assert fetched(store, KEY, Extent(0, size), stored.etag) == bytes(size)


def test_checksums_may_be_asked_for_where_the_store_knows_them(
    moto_server: S3Server, fresh_bucket: Fresh
) -> None:
    chosen = replace(small(moto_server.options()), checksums="when_supported")

    with closing(S3Store(fresh_bucket(moto_server), chosen)) as store:
        for size in (10, MIB, 11 * MIB):
            key = Key(f"{size}")
            stored = store.put(key, BytesBody(bytes(size)), meta={}, if_match=None)
            assert fetched(store, key, Extent(0, size), stored.etag) == bytes(size)


def test_moto_over_tls_is_as_moto(tls: Tls, fresh_bucket: Fresh) -> None:
    with (
        moto(tls=tls) as server,
        closing(S3Store(fresh_bucket(server), small(server.options()))) as store,
    ):
        store.probe()
        stored = store.put(KEY, BytesBody(LARGE), meta={}, if_match=None)
        assert fetched(store, KEY, Extent(0, 9), stored.etag) == bytes(9)


def test_a_certificate_that_nobody_vouches_for_is_no_answer_of_the_store(
    radosgw_tls_server: S3Server, fresh_bucket: Fresh
) -> None:
    stranger = replace(radosgw_tls_server.options(), ca_bundle=None)

    with (
        closing(S3Store(fresh_bucket(radosgw_tls_server), stranger)) as store,
        pytest.raises(Unreachable, match="not trusted") as caught,
    ):
        store.check()

    assert "\n" not in str(caught.value)


def test_plain_http_at_a_tls_port_is_no_absence(
    radosgw_tls_server: S3Server, fresh_bucket: Fresh
) -> None:
    url = radosgw_tls_server.url.replace("https:", "http:")
    plain = replace(radosgw_tls_server.options(), endpoint_url=url, read_timeout_s=2)

    with closing(S3Store(fresh_bucket(radosgw_tls_server), plain)) as store:
        with pytest.raises(StoreError) as caught:
            store.head(KEY)
        assert not isinstance(caught.value, NotFound)


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "nobody", "InvalidAccessKeyId"),
    ],
)
def test_wrong_keys_are_denied_with_the_reason(
    radosgw_server: S3Server,
    fresh_bucket: Fresh,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    code: str,
) -> None:
    bucket = fresh_bucket(radosgw_server)
    monkeypatch.setenv(name, value)

    with closing(S3Store(bucket, radosgw_server.options())) as store:
        with pytest.raises(Denied, match=code):
            store.check()
        with pytest.raises(Denied):
            store.head(KEY)
        assert store.probe().writable is False


def test_who_signs_nothing_may_read_what_is_public(
    radosgw_server: S3Server, fresh_bucket: Fresh, sdks: Sdks
) -> None:
    bucket, sdk = fresh_bucket(radosgw_server), sdks(radosgw_server)
    sdk.put_object(Bucket=bucket, Key=KEY, Body=b"public", ACL="public-read")
    sdk.put_bucket_acl(Bucket=bucket, ACL="public-read")
    nobody = replace(radosgw_server.options(), no_sign_request=True)

    with closing(S3Store(bucket, nobody)) as store:
        store.check()
        seen = store.head(KEY)
        assert fetched(store, KEY, Extent(0, 6), seen.etag) == b"public"
        assert store.probe().writable is False
        with pytest.raises(Denied):
            store.put(Key("new"), BytesBody(b"x"), meta={}, if_match=None)


@pytest.mark.parametrize("name", ["moto", "radosgw"])
def test_a_bucket_that_vanishes_is_not_an_empty_one(
    request: pytest.FixtureRequest, name: str, fresh_bucket: Fresh, sdks: Sdks
) -> None:
    server: S3Server = request.getfixturevalue(f"{name}_server")
    bucket = fresh_bucket(server)

    with closing(S3Store(bucket, server.options())) as store:
        store.check()
        sdks(server).delete_bucket(Bucket=bucket)

        with pytest.raises(NoBucket):
            store.check()
        with pytest.raises(NoBucket):
            list(store.list(Key("")))
        with pytest.raises(NoBucket):
            fetched(store, KEY, Extent(0, 1), ETag("x"))
        with pytest.raises(NoBucket):
            store.put(KEY, BytesBody(b"x"), meta={}, if_match=None)


def test_what_others_stored_is_read(radosgw_server: S3Server, fresh_bucket: Fresh, sdks: Sdks) -> None:  # fmt: skip
    bucket, sdk = fresh_bucket(radosgw_server), sdks(radosgw_server)
    sdk.put_object(
        Bucket=bucket,
        Key=KEY,
        Body=b"x",
        Metadata={"Mixed-Case": "value", "word": "=?UTF-8?Q?=C3=BC?= and more"},
        ContentType="text/x-test",
        CacheControl="max-age=60",
        ContentEncoding="gzip",
    )

    with closing(S3Store(bucket, radosgw_server.options())) as store:
        seen = store.head(KEY)
        assert of_user(seen.meta or {}) == {"mixed-case": "value", "word": "ü and more"}
        changed = store.set_meta(KEY, {"a": "b"}, content_type=None, if_match=seen.etag)
        store.copy(KEY, Key("copy"), if_match=changed.etag, replaces=None)

    for key in (KEY, "copy"):
        kept = sdk.head_object(Bucket=bucket, Key=key)
        assert kept["CacheControl"] == "max-age=60"
        assert kept["ContentEncoding"] == "gzip"
        assert kept["ContentType"] == "text/x-test"


class Pretender:
    """A store that answers success to every write, whatever its condition says."""

    def __init__(self, *, refuses: bool = False, strict: bool = False) -> None:
        self.objects: dict[str, bytes] = {}
        self.refuses = refuses
        """Whether it answers 501 to a condition."""
        self.strict = strict
        """Whether it answers 412 to every If-Match, the right one included."""

    def __call__(self, request: Request) -> Answer:
        if "if-match" in request.headers and self.strict:
            return answer(412, "<Error><Code>PreconditionFailed</Code></Error>")
        if {"if-match", "if-none-match"} & set(request.headers) and self.refuses:
            return answer(501, "<Error><Code>NotImplemented</Code></Error>")
        tag = {"ETag": '"00000000000000000000000000000001"'}
        if request.method == "PUT":
            self.objects[request.path] = request.body
            return answer(200, "", tag) if request.body else answer(200, _COPIED)
        if request.method == "DELETE":
            self.objects.pop(request.path, None)
            return answer(204)
        if request.method == "POST":
            return answer(200, "<R><UploadId>1</UploadId><ETag>x</ETag></R>")
        there = request.path in self.objects
        return answer(200, "", {**tag, "Last-Modified": _DATE}) if there else answer(404)


class Strict:
    """A store that holds every request to its conditions, and names each version anew, as encrypting ones do."""

    def __init__(self) -> None:
        self.etags: dict[str, str] = {}
        self.count = 0
        self.lock = threading.Lock()
        self.fails_copies = False

    def __call__(self, request: Request) -> Answer:
        with self.lock:
            if "x-amz-copy-source" in request.headers and self.fails_copies:
                return answer(500)
            if not self._holds(request):
                return answer(412, "<Error><Code>PreconditionFailed</Code></Error>")
            return self._done(request)

    def _holds(self, request: Request) -> bool:
        source = unquote(request.headers.get("x-amz-copy-source", ""))
        if_match = request.headers.get("if-match")
        source_match = request.headers.get("x-amz-copy-source-if-match")
        return (
            if_match in (None, self.etags.get(request.path))
            and not ("if-none-match" in request.headers and request.path in self.etags)
            and source_match in (None, self.etags.get("/" + source.lstrip("/")))
        )

    def _done(self, request: Request) -> Answer:
        if request.method == "DELETE":
            if "uploadId" not in request.query:
                self.etags.pop(request.path, None)
            return answer(204)
        if request.method == "POST" and "uploads" in request.query:
            return answer(200, "<R><UploadId>1</UploadId></R>")
        self.count += 1
        etag = f'"version-{self.count}"'
        if "partNumber" not in request.query:
            self.etags[request.path] = etag
        if request.method == "PUT" and "x-amz-copy-source" not in request.headers:
            return answer(200, "", {"ETag": etag})
        return answer(
            200, f"<R><ETag>{escape(etag)}</ETag><LastModified>{_DATE}</LastModified></R>"
        )


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[S3Store, Strict]]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    handler = Strict()
    with (
        scripted(handler) as server,
        closing(S3Store("bucket", StoreOptions(endpoint_url=server.url))) as store,
    ):
        yield store, handler


def test_a_strict_store_is_trusted_though_its_etags_are_no_sums(
    strict: tuple[S3Store, Strict],
) -> None:
    store, handler = strict

    found = store.probe()

    yes = Support.ENFORCED
    assert found == Capabilities(yes, yes, yes, yes, yes, yes, True, notes=found.notes)
    assert found.notes == (
        "ETags are not MD5 sums: the content of what is fetched cannot be checked",
    )
    assert handler.etags == {}


def test_a_probe_that_fails_half_way_leaves_nothing(strict: tuple[S3Store, Strict]) -> None:
    store, handler = strict
    handler.fails_copies = True

    with pytest.raises(Fault):
        store.probe()

    assert handler.count > 5
    assert handler.etags == {}


_DATE = "Wed, 01 Jan 2025 00:00:00 GMT"
_COPIED = (
    f"<CopyObjectResult><ETag>x</ETag><LastModified>{_DATE}</LastModified></CopyObjectResult>"
)


@pytest.mark.parametrize(
    ("pretender", "support"),
    [
        (Pretender(), Support.IGNORED),
        (Pretender(refuses=True), Support.REFUSED),
        (Pretender(strict=True), Support.REFUSED),
    ],
    ids=["ignores", "refuses", "never agrees"],
)
def test_a_store_that_only_pretends_is_found_out(
    monkeypatch: pytest.MonkeyPatch, pretender: Pretender, support: Support
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    with (
        scripted(pretender) as server,
        closing(S3Store("bucket", StoreOptions(endpoint_url=server.url))) as store,
    ):
        found = store.probe()
        assert found.conditional_put is support
        if not pretender.strict:
            others = {
                found.conditional_create,
                found.conditional_multipart,
                found.conditional_delete,
                found.conditional_copy,
            }
            assert others == {support}, "each kind of condition is tried"
        assert found.writable is True
        assert any("PUT" in note for note in found.notes)
        assert pretender.objects == {}

        pretender.objects["/bucket"] = pretender.objects["/bucket/name"] = b"there"
        with pytest.raises(Changed):
            store.put(KEY, BytesBody(b"x"), meta={}, if_match=None)
        with pytest.raises(Changed):
            store.put(KEY, BytesBody(b"x"), meta={}, if_match=ETag("wrong"))
        assert pretender.objects["/bucket/name"] == b"there"


def test_a_listing_of_thousands_is_complete(
    radosgw_server: S3Server, fresh_bucket: Fresh, sdks: Sdks
) -> None:
    bucket, sdk = fresh_bucket(radosgw_server), sdks(radosgw_server)
    for number in range(1005):
        sdk.put_object(Bucket=bucket, Key=f"many/{number:04d}")

    with closing(S3Store(bucket, radosgw_server.options())) as store:
        pages = list(store.list(Key("many/")))

    assert [len(page.objects) for page in pages] == [1000, 5]
    with suppress(IndexError):
        assert pages[1].objects[-1].key == "many/1004"


def test_a_change_of_metadata_looks_once_where_the_store_does_not_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    with (
        scripted(Pretender()) as server,
        closing(S3Store("bucket", StoreOptions(endpoint_url=server.url))) as store,
    ):
        store.probe()
        seen = store.put(KEY, BytesBody(b"x"), meta={}, if_match=None)
        server.requests.clear()

        store.set_meta(KEY, {"a": "b"}, content_type=None, if_match=seen.etag)

        assert server.methods() == ["HEAD", "PUT"]
