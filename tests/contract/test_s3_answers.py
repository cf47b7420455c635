"""What S3 stores answer when something is wrong, and what we make of it."""

import base64
import gzip
import hashlib
import io
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace

import pytest

from cachefs.core.errors import (
    BadKey,
    Changed,
    Denied,
    Fault,
    NoBucket,
    NotFound,
    ObjectTooLarge,
    OverQuota,
    Refused,
    StoreError,
    StoreFull,
    TooMuchMetadata,
    Unreachable,
    Unsupported,
)
from cachefs.core.extents import Extent
from cachefs.core.metadata import TOKEN
from cachefs.core.source import StoreOptions
from cachefs.core.types import ETag, Key
from cachefs.remote.s3 import S3Store
from cachefs.remote.s3_multipart import Team
from cachefs.remote.s3_probe import Findings
from cachefs.remote.store import UploadPaused, UploadStopped
from cachefs.remote.works import MemoryLedger
from tests.contract.bodies import BytesBody, BytesSink, StoppedBody, fetched
from tests.contract.conftest import MIB
from tests.servers.scripted import Answer, Handler, Request, Scripted, answer, scripted

KEY = Key("name")
ETAG = ETag("0123456789abcdef0123456789abcdef-1")
DATE = "Wed, 01 Jan 2025 00:00:00 GMT"
OBJECT = {"ETag": f'"{ETAG}"', "Last-Modified": DATE}

Serve = Callable[..., tuple[S3Store, Scripted]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Makes a store that asks a handler of the test's."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with ExitStack() as stack:

        def start(handler: Handler, **chosen: object) -> tuple[S3Store, Scripted]:
            server = stack.enter_context(scripted(handler))
            store = S3Store("bucket", replace(options(server.url), **chosen))  # type: ignore[arg-type]
            return stack.enter_context(closing(store)), server

        yield start


def options(url: str) -> StoreOptions:
    return StoreOptions(
        endpoint_url=url,
        region="us-east-1",
        connect_timeout_s=2,
        read_timeout_s=5,
        multipart_threshold=6 * MIB,
        part_size=5 * MIB,
        transfers=2,
    )


def error(code: str, message: str = "said the store") -> str:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchKey", NotFound),
        (404, "NoSuchBucket", NoBucket),
        (403, "AccessDenied", Denied),
        (403, "SignatureDoesNotMatch", Denied),
        (403, "InvalidAccessKeyId", Denied),
        (400, "ExpiredToken", Denied),
        (403, "RequestTimeTooSkewed", Denied),
        (403, "SomethingNew", Denied),
        (401, "Unauthorized", Denied),
        (412, "PreconditionFailed", Changed),
        (409, "ConditionalRequestConflict", Fault),
        (409, "OperationAborted", Fault),
        (429, "TooManyRequests", Fault),
        (500, "InternalError", Fault),
        (502, "BadGateway", Fault),
        (503, "SlowDown", Fault),
        (400, "RequestTimeout", Fault),
        (400, "BadDigest", Fault),
        (400, "EntityTooLarge", ObjectTooLarge),
        (400, "MetadataTooLarge", TooMuchMetadata),
        (400, "KeyTooLongError", BadKey),
        (403, "QuotaExceeded", OverQuota),
        (507, "InsufficientStorage", StoreFull),
        (413, "SomethingNew", ObjectTooLarge),
        (501, "NotImplemented", Unsupported),
        (405, "MethodNotAllowed", Unsupported),
        (411, "MissingContentLength", Refused),
    ],
)
def test_every_refusal_has_one_kind_and_one_line(
    serve: Serve, status: int, code: str, kind: type[StoreError]
) -> None:
    store, _ = serve(lambda _: answer(status, error(code, "said\nthe store")))

    with pytest.raises(StoreError) as caught:
        fetched(store, KEY, Extent(0, 1), ETAG)

    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert code in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_server_that_has_moved_is_said_to_without_asking_on(serve: Serve, status: int) -> None:
    store, server = serve(lambda _: answer(status, "", {"Location": "https://127.0.0.1:1/"}))

    with pytest.raises(Refused, match="is the endpoint right"):
        store.check()
    with pytest.raises(Refused, match="is the endpoint right"):
        store.head(KEY)

    assert len(server.requests) <= 4


def test_a_denial_says_by_how_much_the_clock_is_wrong(serve: Serve) -> None:
    store, _ = serve(lambda _: answer(403, error("RequestTimeTooSkewed"), {"Date": DATE}))

    with pytest.raises(Denied, match=r"clock is \d+ years? .*ahead of the store's — set the time"):
        store.check()


def test_a_store_that_asks_for_patience_is_heard(serve: Serve) -> None:
    store, _ = serve(lambda _: answer(503, error("SlowDown"), {"Retry-After": "7"}))

    with pytest.raises(Fault) as caught:
        store.check()

    assert caught.value.retry_after_s == 7


def test_no_request_is_repeated_by_the_sdk(serve: Serve) -> None:
    store, server = serve(lambda _: answer(500, error("InternalError")))

    with pytest.raises(Fault):
        store.check()

    assert len(server.requests) == 1


@pytest.mark.parametrize("body", [b"", b"<html>nothing here</html>"], ids=["empty", "html"])
def test_a_404_that_is_not_the_stores_is_no_absence(serve: Serve, body: bytes) -> None:
    store, _ = serve(lambda _: answer(404, body))

    with pytest.raises(Fault):
        fetched(store, KEY, Extent(0, 1), ETAG)


def test_a_missing_bucket_is_told_from_a_missing_object(serve: Serve) -> None:
    store, server = serve(lambda _: answer(404))

    with pytest.raises(NoBucket):
        store.head(KEY)

    assert [request.path for request in server.requests] == ["/bucket/name", "/bucket"]


def test_a_bucket_that_was_just_seen_is_not_asked_for(serve: Serve) -> None:
    def handler(request: Request) -> Answer:
        return answer(404) if request.method == "HEAD" else answer(200, listing())

    store, server = serve(handler)
    store.check()

    with pytest.raises(NotFound):
        store.head(KEY)

    assert server.methods() == ["GET", "HEAD"]


def test_a_head_that_is_refused_is_denied(serve: Serve) -> None:
    store, _ = serve(lambda _: answer(403))

    with pytest.raises(Denied):
        store.head(KEY)


def partial(body: bytes, start: int, total: int, **headers: str) -> bytes:
    span = {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{total}"}
    return answer(206, body, {**OBJECT, **span, **headers})


@pytest.mark.parametrize(
    "said",
    [
        partial(b"abc", 0, 10, **{"Content-Length": "4"}),
        partial(b"abc", 0, 10),
        partial(b"abcde", 0, 10),
        partial(b"abcd", 1, 10),
        partial(b"abcd", 0, 10, **{"Content-Length": "", "Content-Range": "bytes 0-3/10"}) + b"e",
        partial(b"abc", 0, 10, **{"Content-Length": "", "Content-Range": "bytes 0-3/10"}),
        partial(b"abcd", 0, 10, **{"Content-Range": ""}),
        partial(b"abcd", 0, 10, **{"Content-Range": "bytes 0-3/*"}),
        b"",
        b"HTTP/1.1 200",
        b"\x00\x01garbage\r\n\r\n",
    ],
    ids=[
        *("cut", "short", "long", "elsewhere", "endless", "ended", "silent", "vague", "nothing", "torn", "noise"),
    ],
)  # fmt: skip
def test_a_body_that_is_not_the_range_is_a_fault(serve: Serve, said: bytes) -> None:
    store, _ = serve(lambda _: said)

    with pytest.raises(Fault):
        fetched(store, KEY, Extent(0, 4), ETAG)


def test_a_store_that_knows_no_ranges_is_said_to(serve: Serve) -> None:
    store, _ = serve(lambda _: answer(200, b"0123456789", OBJECT))

    with pytest.raises(Unsupported):
        fetched(store, KEY, Extent(0, 4), ETAG)
    assert fetched(store, KEY, Extent(0, 10), ETAG) == b"0123456789"


def test_a_compressed_body_is_handed_on_as_it_is(serve: Serve) -> None:
    body = gzip.compress(b"text")
    store, server = serve(lambda _: partial(body, 0, len(body), **{"Content-Encoding": "gzip"}))

    assert fetched(store, KEY, Extent(0, len(body)), ETAG) == body
    assert server.requests[0].headers["accept-encoding"] == "identity"


class Damaging:
    """A store whose ETags are MD5 sums, and which sends other bytes than it took when told to."""

    def __init__(self, **headers: str) -> None:
        self.headers = headers
        self.damaged = False

    def __call__(self, request: Request) -> Answer:
        if request.method == "GET":
            body = b"conTent" if self.damaged else b"content"
            etag = hashlib.md5(b"content", usedforsecurity=False).hexdigest()
            return partial(body, 0, 7, ETag=f'"{etag}"', **self.headers)
        if request.method == "PUT" and "x-amz-copy-source" not in request.headers:
            etag = hashlib.md5(request.body, usedforsecurity=False).hexdigest()
            return answer(200, "", {"ETag": f'"{etag}"'})
        return answer(501, error("NotImplemented"))


def test_a_flipped_bit_in_a_whole_object_is_a_fault(serve: Serve) -> None:
    handler = Damaging()
    store, _ = serve(handler)
    store.probe()
    etag = ETag(hashlib.md5(b"content", usedforsecurity=False).hexdigest())
    assert fetched(store, KEY, Extent(0, 7), etag) == b"content"

    handler.damaged = True

    with pytest.raises(Fault, match="ETag"):
        fetched(store, KEY, Extent(0, 7), etag)


def test_the_etag_of_an_encrypted_object_says_nothing_of_its_bytes(serve: Serve) -> None:
    handler = Damaging(**{"x-amz-server-side-encryption": "aws:kms"})
    store, _ = serve(handler)
    store.probe()
    etag = ETag(hashlib.md5(b"content", usedforsecurity=False).hexdigest())

    handler.damaged = True

    assert fetched(store, KEY, Extent(0, 7), etag) == b"conTent"


def test_another_version_gives_no_bytes_even_where_if_match_is_ignored(serve: Serve) -> None:
    store, _ = serve(lambda _: partial(b"abcd", 0, 10, ETag='"another"'))
    sink = BytesSink()

    with pytest.raises(Changed):
        store.get_range(KEY, Extent(0, 4), sink, if_match=ETAG)

    assert not sink.content


def test_a_range_that_is_refused_by_a_changed_object_is_a_change(serve: Serve) -> None:
    def handler(request: Request) -> Answer:
        if request.method == "HEAD":
            return answer(200, b"", {**OBJECT, "ETag": '"another"'})
        return answer(416, error("InvalidRange"))

    store, _ = serve(handler)

    with pytest.raises(Changed):
        fetched(store, KEY, Extent(0, 4), ETAG)


def listing(keys: tuple[str, ...] = (), *, token: str = "", truncated: bool = False) -> str:
    entries = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><ETag>&quot;{ETAG}&quot;</ETag>"
        "<LastModified>2025-01-01T00:00:00.123Z</LastModified></Contents>"
        for key in keys
    )
    goes_on = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return (
        "<ListBucketResult><EncodingType>url</EncodingType>"
        f"<IsTruncated>{str(truncated).lower()}</IsTruncated>{goes_on}{entries}</ListBucketResult>"
    )


def listed(store: S3Store) -> list[str]:
    return [info.key for page in store.list(Key(""), deep=True) for info in page.objects]


def test_a_listing_decodes_its_keys(serve: Serve) -> None:
    store, _ = serve(lambda _: answer(200, listing(("a%0Ab%2Fc+d%2B", "%FF"))))

    assert listed(store) == ["a\nb/c d+", "\udcff"]


def test_no_time_of_an_object_is_guessed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def guess(value: object) -> object:
        raise AssertionError(f"botocore is asked what {value} means")

    monkeypatch.setattr("botocore.parsers.DEFAULT_TIMESTAMP_PARSER", guess)
    store, _ = serve(lambda _: partial(b"abcd", 0, 4, ETag=f'"{ETAG}"'))

    info = store.get_range(KEY, Extent(0, 4), BytesSink(), if_match=ETAG)

    assert info.mtime_ns == 1735689600 * 10**9


@pytest.mark.parametrize(
    "pages",
    [
        {"": ("a", "1"), "1": ("b", "2"), "2": ("c", "1")},
        {"": ("a", "1"), "1": ("b", "1")},
        {"": ("a", "1"), "1": ("a", "2"), "2": ("b", "")},
        {"": ("a", ""), "cut": ("", "")},
    ],
    ids=["circle", "same token", "same page", "no token"],
)
def test_a_listing_that_goes_in_circles_is_never_whole(
    serve: Serve, pages: dict[str, tuple[str, str]]
) -> None:
    def handler(request: Request) -> Answer:
        key, token = pages[request.query.get("continuation-token", "")]
        return answer(200, listing((key,), token=token, truncated=bool(token) or "cut" in pages))

    store, _ = serve(handler)

    with pytest.raises(Fault):
        listed(store)


@pytest.mark.parametrize("said", ["", "<html><body>Please log in.</body></html>"])
def test_a_success_that_is_no_listing_is_a_fault_and_no_empty_bucket(
    serve: Serve, said: str
) -> None:
    store, _ = serve(lambda _: answer(200, said))

    with pytest.raises(Fault):
        listed(store)


def test_a_listing_is_asked_again_for_the_page_that_failed(serve: Serve) -> None:
    answers = [
        answer(200, listing(("a",), token="1", truncated=True)),
        answer(500, error("InternalError")),
        answer(200, "<ListBucketResult><Contents><Key>b</Key>"),
        answer(200, listing(("b",))),
    ]
    store, server = serve(lambda _: answers.pop(0))
    pages = store.list(Key(""))

    assert next(pages).objects[0].key == "a"
    with pytest.raises(Fault):
        next(pages)
    with pytest.raises(Fault):
        next(pages)
    assert next(pages).objects[0].key == "b"
    with pytest.raises(StopIteration):
        next(pages)
    tokens = [request.query.get("continuation-token") for request in server.requests]
    assert tokens == [None, "1", "1", "1"]


def test_an_error_inside_a_success_is_the_error(serve: Serve) -> None:
    def handler(request: Request) -> Answer:
        if request.method == "HEAD":
            return answer(200, b"", {**OBJECT, "Content-Length": "3"})
        return answer(200, error("InternalError"))

    store, _ = serve(handler)

    with pytest.raises(Fault):
        store.set_meta(KEY, {}, content_type=None, if_match=ETAG)


class Multipart:
    """A store that takes an upload in parts, and fails where it is told to."""

    def __init__(self, *, etag: str = f'"{ETAG}-2"') -> None:
        self.etag = etag
        self.completions: list[bytes] = []
        self.parts: list[bytes] = []
        self.there = False

    def __call__(self, request: Request) -> Answer:
        if request.path == "/bucket":
            return answer(200)
        if request.method == "HEAD":
            found = {**OBJECT, "ETag": f'"{ETAG}-2"', "Content-Length": str(11 * MIB)}
            return answer(200, b"", found) if self.there else answer(404)
        if request.method == "POST" and "uploads" in request.query:
            return answer(200, _result("InitiateMultipartUpload", UploadId="one"))
        if request.method == "PUT":
            said = self.parts.pop(0) if self.parts else b""
            return said or answer(
                200, b"", {"ETag": f'"{request.query.get("partNumber", "whole")}"'}
            )
        if request.method == "GET":
            return answer(404, error("NoSuchUpload"))  # which is how an aborted one looks
        if request.method == "POST":
            said = self.completions.pop(0) if self.completions else b""
            self.there = not said
            return said or answer(
                200, _result("CompleteMultipartUpload", ETag=self.etag, Bucket="bucket")
            )
        return answer(204)


def _result(operation: str, **fields: str) -> str:
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    return f"<{operation}Result>{inner}</{operation}Result>"


LARGE = BytesBody(bytes(11 * MIB))


def test_an_upload_takes_its_etag_from_a_head_when_the_answer_has_none(serve: Serve) -> None:
    store, server = serve(Multipart(etag=""))

    stored = store.put(KEY, LARGE, meta={}, if_match=None)

    assert stored.etag == f"{ETAG}-2"
    assert server.methods()[-1] == "HEAD"


@pytest.mark.parametrize(
    ("there", "kind"),
    [
        (answer(404), Fault),
        (answer(200, b"", {**OBJECT, "Content-Length": "7"}), Fault),
        (answer(200, b"", {**OBJECT, "ETag": '"another"', "Content-Length": "7"}), Changed),
    ],
    ids=["nothing", "what was before", "another's"],
)
def test_a_success_that_names_nothing_is_none_unless_ours_is_there(
    serve: Serve, there: bytes, kind: type[StoreError]
) -> None:
    was_put = threading.Event()

    def handler(request: Request) -> Answer:
        if request.method == "PUT":
            was_put.set()
            return answer(200)
        before = answer(200, b"", {**OBJECT, "Content-Length": "7"})
        return there if was_put.is_set() else before

    store, _ = serve(handler)

    with pytest.raises(kind):
        store.put(KEY, BytesBody(b"content"), meta={TOKEN: "ours"}, if_match=ETAG)


def test_a_store_that_has_other_bytes_than_were_sent_is_a_fault(serve: Serve) -> None:
    other = {**OBJECT, "ETag": f'"{md5(b"CONTENT")}"'}
    sent: dict[str, str] = {}

    def handler(request: Request) -> Answer:
        if request.method == "PUT":
            sent.update((k, v) for k, v in request.headers.items() if k.startswith("x-amz-meta-"))
            return answer(200, b"", other)
        if sent:
            return answer(200, b"", {**other, **sent, "Content-Length": "7"})
        return answer(200 if request.path == "/bucket" else 404)

    store, _ = serve(handler)
    store._found = Findings(md5_etags=True)  # as a probe would have found

    with pytest.raises(Fault, match="other bytes"):
        store.put(KEY, BytesBody(b"content"), meta={TOKEN: "ours"}, if_match=None)


def test_an_error_inside_a_completed_upload_is_the_error(serve: Serve) -> None:
    handler = Multipart()
    handler.completions = [answer(200, error("InternalError"))]
    store, _ = serve(handler)

    with pytest.raises(Fault):
        store.put(KEY, LARGE, meta={}, if_match=None)


def test_the_next_try_of_an_upload_sends_only_what_is_missing(serve: Serve) -> None:
    handler = Multipart()
    handler.parts = [b"", b"", answer(503, error("SlowDown"))]
    store, server = serve(handler)

    with pytest.raises(Fault):
        store.put(KEY, LARGE, meta={}, if_match=None)
    store.put(KEY, LARGE, meta={}, if_match=None)

    assert server.methods().count("PUT") == 4
    assert "DELETE" not in server.methods()


def test_a_part_that_arrives_while_another_fails_counts_as_sent() -> None:
    on_its_way = threading.Event()

    def send(number: int, stop: threading.Event) -> str:
        if number == 1:
            assert on_its_way.wait(10)
            raise Fault("this one is lost")
        on_its_way.set()
        assert stop.wait(10)
        return "arrived nevertheless"

    etags: dict[int, str] = {}
    with closing(Team(2)) as team, pytest.raises(Fault):
        team.work([1, 2, 3], send, etags)

    assert etags == {2: "arrived nevertheless"}


def test_another_upload_of_a_key_aborts_the_one_left_unfinished(serve: Serve) -> None:
    handler = Multipart()
    handler.parts = [answer(503, error("SlowDown"))]
    store, server = serve(handler)

    with pytest.raises(Fault):
        store.put(KEY, LARGE, meta={}, if_match=None)
    store.put(KEY, BytesBody(LARGE.content[::-1] + b"x"), meta={}, if_match=None)

    assert server.methods().count("DELETE") == 1


def test_an_unfinished_upload_is_aborted_at_the_end(serve: Serve) -> None:
    handler = Multipart()
    handler.parts = [answer(503, error("SlowDown"))]
    store, server = serve(handler)

    with pytest.raises(Fault):
        store.put(KEY, LARGE, meta={}, if_match=None)
    store.close()

    assert server.methods()[-2:] == ["DELETE", "GET"]


def test_an_upload_that_the_store_forgot_begins_anew(serve: Serve) -> None:
    handler = Multipart()
    handler.completions = [answer(404, error("NoSuchUpload"))]
    store, server = serve(handler)

    with pytest.raises(Fault):
        store.put(KEY, LARGE, meta={}, if_match=None)
    store.put(KEY, LARGE, meta={}, if_match=None)

    assert server.methods().count("PUT") == 6


class Remembering(Multipart):
    """A store that tells which parts it has, two at a time, and calls *seen* when one comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.has: dict[int, tuple[int, str]] = {}
        self.seen: Callable[[], None] = lambda: None

    def __call__(self, request: Request) -> Answer:
        if request.method == "GET" and "uploadId" in request.query:
            return self.listing(int(request.query.get("part-number-marker", "0")))
        if request.method == "PUT":
            self.seen()
        return super().__call__(request)

    def listing(self, after: int) -> Answer:
        numbers = [number for number in sorted(self.has) if number > after]
        rows = "".join(
            f"<Part><PartNumber>{number}</PartNumber><Size>{self.has[number][0]}</Size>"
            f"<ETag>&quot;{self.has[number][1]}&quot;</ETag></Part>"
            for number in numbers[:2]
        )
        truncated = str(len(numbers) > 2).lower()
        return answer(
            200,
            f"<ListPartsResult><IsTruncated>{truncated}</IsTruncated>{rows}</ListPartsResult>",
        )


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


SENT = {
    1: (5 * MIB, md5(LARGE.content[: 5 * MIB])),
    2: (5 * MIB, md5(LARGE.content[5 * MIB : 10 * MIB])),
    3: (MIB, md5(LARGE.content[10 * MIB :])),
}


@pytest.mark.parametrize(
    ("has", "missing"),
    [
        (SENT, 0),
        ({2: SENT[2]}, 2),
        ({**SENT, 3: (MIB - 1, SENT[3][1])}, 1),
        ({**SENT, 1: (5 * MIB, md5(b"other bytes"))}, 1),
        ({}, 3),
    ],
)
def test_another_process_sends_what_the_store_does_not_have_as_it_is_here(
    serve: Serve, has: dict[int, tuple[int, str]], missing: int
) -> None:
    ledger, handler = MemoryLedger(), Remembering()
    handler.parts = [answer(503, error("SlowDown"))]
    killed, _ = serve(handler)
    killed.keep_ledger(ledger)
    with pytest.raises(Fault):
        killed.put(KEY, LARGE, meta={}, if_match=None)
    (noted,) = ledger.all()
    handler.has, handler.parts = has, []
    store, server = serve(handler)
    store.keep_ledger(ledger)

    store.put(KEY, BytesBody(LARGE.content), meta={}, if_match=None)

    assert server.methods().count("PUT") == missing
    assert "DELETE" not in server.methods()
    assert noted[0] == KEY
    assert ledger.all() == []


def test_parts_that_are_gone_from_a_continued_upload_are_sent_anew(serve: Serve) -> None:
    ledger, handler = MemoryLedger(), Remembering()
    handler.parts = [answer(503, error("SlowDown"))]
    store, server = serve(handler)
    store.keep_ledger(ledger)
    with pytest.raises(Fault):
        store.put(KEY, LARGE, meta={}, if_match=None)
    handler.parts, handler.completions = [], [answer(400, error("InvalidPart"))]

    with pytest.raises(Fault, match="gone"):
        store.put(KEY, LARGE, meta={}, if_match=None)
    store.put(KEY, LARGE, meta={}, if_match=None)

    assert server.methods().count("DELETE") == 1
    assert ledger.all() == []


def test_an_upload_that_is_under_way_is_not_abandoned(serve: Serve) -> None:
    ledger, handler = MemoryLedger(), Remembering()
    store, server = serve(handler)
    store.keep_ledger(ledger)

    def abandon() -> None:
        for key, work in ledger.all():
            store.abandon(key, work)

    handler.seen = abandon
    store.put(KEY, LARGE, meta={}, if_match=None)

    assert "DELETE" not in server.methods()
    assert ledger.all() == []


def test_an_upload_whose_parts_come_in_after_the_abort_stays_noted(serve: Serve) -> None:
    ledger, handler = MemoryLedger(), Remembering()
    handler.parts = [answer(503, error("SlowDown"))]
    store, server = serve(handler)
    store.keep_ledger(ledger)
    with pytest.raises(Fault):
        store.put(KEY, LARGE, meta={}, if_match=None)
    ((key, work),) = ledger.all()
    handler.has = {1: SENT[1]}

    with pytest.raises(Fault, match="after it was aborted"):
        store.abandon(key, work)
    assert ledger.all() == [(key, work)]
    handler.has = {}
    store.abandon(key, work)

    assert ledger.all() == []
    assert server.methods().count("DELETE") == 2


def test_a_daemon_that_ends_leaves_its_uploads_to_the_next(serve: Serve) -> None:
    class PausedBody(BytesBody):
        def reader(self, extent: Extent) -> io.BytesIO:
            if extent.start:
                raise UploadPaused
            return super().reader(extent)

    ledger, handler = MemoryLedger(), Remembering()
    store, server = serve(handler)
    store.keep_ledger(ledger)
    with pytest.raises(UploadPaused):
        store.put(KEY, PausedBody(LARGE.content), meta={}, if_match=None)
    store.close()

    assert "DELETE" not in server.methods()
    assert len(ledger.all()) == 1


def test_an_upload_that_is_refused_is_aborted(serve: Serve) -> None:
    handler = Multipart()
    handler.parts = [b"", answer(400, error("EntityTooLarge"))]
    store, server = serve(handler)

    with pytest.raises(Refused):
        store.put(KEY, LARGE, meta={}, if_match=None)

    assert server.methods()[-1] == "DELETE"


def test_an_upload_in_parts_that_is_called_off_is_aborted(serve: Serve) -> None:
    store, server = serve(Multipart())

    with pytest.raises(UploadStopped):
        store.put(KEY, StoppedBody(LARGE.content, after=3 * MIB), meta={}, if_match=None)

    assert server.methods()[-1] == "DELETE"
    assert server.methods().count("POST") == 1


def test_what_a_body_raises_is_not_taken_for_the_networks(serve: Serve) -> None:
    class LostBody(BytesBody):
        def reader(self, extent: Extent) -> "LostReader":
            return LostReader()

    class LostReader(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "this disk is broken")

        def seek(self, offset: int, whence: int = 0, /) -> int:
            return MIB if whence == 2 else 0

    store, _ = serve(Multipart())

    with pytest.raises(OSError, match="this disk is broken"):
        store.put(KEY, LostBody(bytes(MIB)), meta={}, if_match=None)


def test_a_store_that_takes_a_connection_and_says_nothing_is_a_fault(serve: Serve) -> None:
    store, _ = serve(lambda _: None, read_timeout_s=0.5)

    with pytest.raises(Fault) as caught:
        store.head(KEY)

    assert not isinstance(caught.value, Unreachable)


def test_a_body_that_stands_still_is_a_fault(serve: Serve) -> None:
    still = threading.Event()

    def handler(_: Request) -> Answer:
        still.wait(0.1)
        return partial(b"", 0, 10, **{"Content-Length": "4", "Content-Range": "bytes 0-3/10"})

    store, _ = serve(handler)

    with pytest.raises(Fault):
        fetched(store, KEY, Extent(0, 4), ETAG)


@pytest.mark.usefixtures("serve")
def test_nobody_listening_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    away = S3Store("bucket", options(f"http://127.0.0.1:{port}"))

    with closing(away), pytest.raises(Unreachable) as caught:
        away.check()

    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("serve")
def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    away = S3Store("bucket", options("http://store.invalid"))

    with closing(away), pytest.raises(Unreachable):
        away.check()


def test_missing_credentials_are_denied_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    store = S3Store("bucket", options("http://127.0.0.1:9"))

    with closing(store), pytest.raises(Denied, match="AWS_ACCESS_KEY_ID"):
        store.check()


def test_a_profile_that_is_not_there_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    store = S3Store("bucket", replace(options("http://127.0.0.1:9"), profile="nobody"))

    with closing(store), pytest.raises(Denied, match="nobody"):
        store.check()


def test_an_endpoint_that_is_no_address_is_refused() -> None:
    with closing(S3Store("bucket", options("not an address"))) as store, pytest.raises(Refused):
        store.check()


@pytest.mark.usefixtures("serve")
def test_a_name_that_no_bucket_can_have_is_refused() -> None:
    with (
        closing(S3Store("no such/bucket", options("http://127.0.0.1:9"))) as odd,
        pytest.raises(Refused),
    ):
        odd.check()


def test_a_description_has_no_secrets() -> None:
    store = S3Store("bucket", options("http://user:secret@[::1]:9000/?token=1"))

    assert store.description == "s3://bucket at http://[::1]:9000"


def test_a_requester_who_pays_says_so(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    _, server = serve(lambda _: answer(200, listing()))
    paying = replace(options(server.url), request_payer=True, no_sign_request=True)

    with closing(S3Store("bucket", paying)) as store:
        store.check()

    assert server.requests[0].headers["x-amz-request-payer"] == "requester"
    assert "authorization" not in server.requests[0].headers


def test_what_the_operator_wants_of_objects_is_asked_for(serve: Serve) -> None:
    def handler(request: Request) -> Answer:
        return answer(404) if request.method == "HEAD" else answer(200, b"", {"ETag": '"x"'})

    _, server = serve(handler)
    wanted = replace(
        options(server.url), storage_class="STANDARD_IA", sse="aws:kms", sse_kms_key_id="k", acl="private"
    )  # fmt: skip

    with closing(S3Store("bucket", wanted)) as store, pytest.raises(NoBucket):
        store.put(KEY, BytesBody(b"x"), meta={}, if_match=None)
    with closing(S3Store("bucket", wanted)) as store:
        server.handler = lambda request: (
            answer(404) if request.path != "/bucket" and request.method == "HEAD"
            else answer(200, b"", {"ETag": '"x"'})
        )  # fmt: skip
        store.put(KEY, BytesBody(b"x"), meta={}, if_match=None)

    headers = server.requests[-1].headers
    assert headers["x-amz-storage-class"] == "STANDARD_IA"
    assert headers["x-amz-server-side-encryption"] == "aws:kms"
    assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "k"
    assert headers["x-amz-acl"] == "private"


def test_a_small_body_does_not_wait_for_leave(serve: Serve) -> None:
    handler = Multipart()
    handler.there = True
    store, server = serve(handler)

    with pytest.raises(Changed):
        store.put(KEY, BytesBody(b"x"), meta={}, if_match=None)
    assert server.methods() == ["HEAD"]

    with pytest.raises(Changed):
        store.put(KEY, BytesBody(b"x"), meta={}, if_match=ETag("other"))
    store.put(KEY, BytesBody(b"x"), meta={}, if_match=ETag(f"{ETAG}-2"))
    assert "expect" not in server.requests[-2].headers


def absent_until(put: bytes) -> Handler:
    """Nothing is there, and *put* answers who puts something there."""

    def handler(request: Request) -> Answer:
        if request.method == "PUT":
            return put
        return answer(200 if request.path == "/bucket" else 404)

    return handler


@pytest.mark.parametrize("size", [0, 1000, 2**20], ids=["empty", "small", "streamed"])
def test_an_upload_carries_the_md5_that_the_store_is_to_check(serve: Serve, size: int) -> None:
    content = bytes(range(256)) * (size // 256)
    store, server = serve(absent_until(answer(200, b"", {"ETag": f'"{ETAG}"'})))

    store.put(KEY, BytesBody(content), meta={}, if_match=None)

    (sent,) = (request for request in server.requests if request.method == "PUT")
    digest = hashlib.md5(content, usedforsecurity=False).digest()
    assert base64.b64decode(sent.headers["content-md5"]) == digest


def test_each_part_carries_its_md5_and_the_object_that_of_the_whole(serve: Serve) -> None:
    handler = Multipart()
    store, server = serve(handler)

    stored = store.put(KEY, LARGE, meta={"color": "red"}, if_match=None)

    parts = [request for request in server.requests if request.method == "PUT"]
    assert len(parts) == 3
    for part in parts:
        digest = hashlib.md5(part.body, usedforsecurity=False).digest()
        assert base64.b64decode(part.headers["content-md5"]) == digest
    (begun,) = (request for request in server.requests if "uploads" in request.query)
    whole = base64.b64encode(hashlib.md5(LARGE.content, usedforsecurity=False).digest()).decode()
    assert begun.headers["x-amz-meta-md5chksum"] == whole
    assert stored.meta == {"color": "red", "md5chksum": whole}


def test_a_store_that_got_other_bytes_is_asked_again(serve: Serve) -> None:
    store, _ = serve(absent_until(answer(400, error("BadDigest"))))

    with pytest.raises(Fault):
        store.put(KEY, BytesBody(b"content"), meta={}, if_match=None)
