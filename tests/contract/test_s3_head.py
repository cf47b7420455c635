"""The HEAD that does without boto3's ceremony answers as boto3's own, or leaves it to that."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cachefs.core.errors import Fault, StoreError, TimedOut
from cachefs.core.source import StoreOptions
from cachefs.core.types import Key
from cachefs.remote import s3_credentials
from cachefs.remote.s3 import S3Store
from cachefs.remote.s3_head import LeanHeads
from tests.servers.s3 import S3Server
from tests.servers.scripted import Answer, Handler, Request, Scripted, answer, scripted

DATE = "Wed, 01 Jan 2025 00:00:00 GMT"
OBJECT = {"ETag": '"0123456789abcdef0123456789abcdef"', "Last-Modified": DATE}
TOLD = ("ETag", "LastModified", "ContentLength", "ContentType", "Metadata")
LISTING = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
KEYS = [
    "plain", "a/b", "directory/", "a//b", "/first", "//", "a/./b", "a/../b", "./a", "..", "a b", " ", "+", "a+b",
    "%41", "100%", "a?b=c&d", "a#b", "a;b=c", "~!*'()", '"<>&\\^`{|}', "\x01\x1f", "a\tb", "\x7f", "ü", "e\u0301", "日本",
    "\U0001f389", "\u2028", "x" * 1024,
]  # fmt: skip
METADATA: list[dict[str, str]] = [
    {},
    {"mode": "33188", "mtime": "1700000000.123456789"},
    {"Mixed-Case": "Value", "with_underscore": "1"},
    {"word": "=?UTF-8?B?w7w=?=", "two": "=?UTF-8?Q?=C3=BC?= and more", "broken": "=?UTF-8?B?"},
    {"spaces": "a  b", "long": "x" * 1500, "quoted": '"a", b'},
]

Sdks = Callable[[S3Server], Any]
Fresh = Callable[[S3Server], str]
Serve = Callable[..., tuple[S3Store, Scripted]]


@pytest.fixture(params=["moto", "radosgw", "radosgw_tls"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(f"{request.param}_server")
    return found


def unasked() -> dict[str, Any]:
    raise AssertionError("the ordinary way was asked")


@pytest.fixture
def lean(server: S3Server, fresh_bucket: Fresh) -> Iterator[tuple[Any, str, LeanHeads]]:
    """A client, a bucket, and the lean HEADs that have learnt the way to it."""
    bucket = fresh_bucket(server)
    with closing(server.sdk()) as sdk:
        heads = LeanHeads(sdk)
        sdk.put_object(Bucket=bucket, Key="first")
        heads.ask(bucket, "first", lambda: dict(sdk.head_object(Bucket=bucket, Key="first")))
        yield sdk, bucket, heads


def test_every_key_is_found_as_boto3_finds_it(lean: tuple[Any, str, LeanHeads]) -> None:
    sdk, bucket, heads = lean
    found = 0
    for number, key in enumerate(KEYS):
        try:
            sdk.put_object(Bucket=bucket, Key=key, Body=b"x" * number)
            ordinary = sdk.head_object(Bucket=bucket, Key=key)
        except ClientError:
            continue  # not every store takes every key
        assert heads.ask(bucket, key, unasked) == told(ordinary), key
        found += 1
    assert found > len(KEYS) - 5


def told(ordinary: dict[str, Any]) -> dict[str, Any]:
    return {name: ordinary[name] for name in TOLD if name in ordinary}


@pytest.mark.parametrize("meta", METADATA, ids=range(len(METADATA)))
def test_all_metadata_is_told_as_boto3_tells_it(
    lean: tuple[Any, str, LeanHeads], meta: dict[str, str]
) -> None:
    sdk, bucket, heads = lean
    sdk.put_object(Bucket=bucket, Key="name", Metadata=meta, ContentType="text/x-test; a=b")

    ordinary = sdk.head_object(Bucket=bucket, Key="name")

    assert heads.ask(bucket, "name", unasked) == told(ordinary)


def test_an_object_that_is_not_there_is_missed_as_boto3_misses_it(
    lean: tuple[Any, str, LeanHeads],
) -> None:
    sdk, bucket, heads = lean
    with pytest.raises(ClientError) as ordinary:
        sdk.head_object(Bucket=bucket, Key="nothing")

    with pytest.raises(ClientError) as ours:
        heads.ask(bucket, "nothing", unasked)

    assert str(ours.value) == str(ordinary.value)
    assert ours.value.response["Error"] == ordinary.value.response["Error"]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Makes a store that asks a handler of the test's."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with ExitStack() as stack:

        def start(handler: Handler, **chosen: object) -> tuple[S3Store, Scripted]:
            server = stack.enter_context(scripted(handler))
            options = StoreOptions(endpoint_url=server.url, region="us-east-1", read_timeout_s=5)
            store = S3Store("bucket", replace(options, **chosen))  # type: ignore[arg-type]
            return stack.enter_context(closing(store)), server

        yield start


def is_lean(request: Request) -> bool:
    return request.method == "HEAD" and "amz-sdk-invocation-id" not in request.headers


def heads_of(server: Scripted) -> list[bool]:
    """Whether each HEAD so far was a lean one."""
    return [is_lean(request) for request in server.requests]


def test_the_first_head_is_boto3s_and_those_after_it_are_not(serve: Serve) -> None:
    store, server = serve(lambda _: answer(200, "", OBJECT))

    infos = [store.head(Key("name")) for _ in range(3)]

    assert infos[0] == infos[1] == infos[2]
    assert heads_of(server) == [False, True, True]
    assert {request.path for request in server.requests} == {"/bucket/name"}
    assert {request.headers["user-agent"] for request in server.requests} == {
        server.requests[0].headers["user-agent"]
    }


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        (404, [True]),
        (429, [True]),
        (500, [True]),
        (503, [True]),
        (301, [True, False]),
        (400, [True, False]),
        (401, [True, False]),
        (403, [True, False]),
        (405, [True, False]),
        (501, [True, False]),
        (204, [True, False]),
    ],
)
def test_what_is_no_success_is_judged_as_ever(
    serve: Serve, status: int, asked: list[bool]
) -> None:
    """What may be about how we asked is asked in the ordinary way; what is not is not asked twice."""

    def handler(request: Request) -> Answer:
        if request.path == "/bucket/other":
            return answer(200, "", OBJECT)
        return answer(status, "", {"Retry-After": "7"})

    store, server = serve(handler)
    store.head(Key("other"))
    with pytest.raises(StoreError) as ours:
        store.head(Key("name"))
    # boto3 looks further by itself for the region of a bucket.
    assert heads_of(server)[1:][: len(asked)] == asked
    assert status in (301, 400) or len(server.requests) == 1 + len(asked)

    cold, _ = serve(lambda r: answer(200, LISTING) if r.method == "GET" else handler(r))
    cold.check()
    with pytest.raises(StoreError) as ordinary:
        cold.head(Key("name"))
    assert type(ours.value) is type(ordinary.value)
    assert str(ours.value) == str(ordinary.value)
    assert vars(ours.value) == vars(ordinary.value)


@pytest.mark.parametrize("said", [None, b"", b"HTTP/1.1 2"], ids=["silent", "nothing", "torn"])
def test_no_answer_is_waited_for_once_and_is_a_fault(serve: Serve, said: Answer) -> None:
    def handler(request: Request) -> Answer:
        return said if is_lean(request) else answer(200, "", OBJECT)

    store, server = serve(handler, read_timeout_s=0.5 if said is None else 5)
    store.head(Key("name"))

    with pytest.raises(Fault) as caught:
        store.head(Key("name"))

    assert not isinstance(caught.value, TimedOut)
    assert heads_of(server) == [False, True]


@pytest.mark.parametrize(
    "spoilt",
    [
        {**OBJECT, "Last-Modified": ""},
        {**OBJECT, "Last-Modified": "2025-01-01T00:00:00Z"},
        {**OBJECT, "Last-Modified": "Wed, 32 Jan 2025 00:00:00 GMT"},
        {**OBJECT, "ETag": ""},
        {**OBJECT, "Content-Length": ""},
    ],
    ids=["no date", "another date", "no such date", "no etag", "no size"],
)
def test_an_answer_that_is_not_plain_is_left_to_boto3(
    serve: Serve, spoilt: dict[str, str]
) -> None:
    def handler(request: Request) -> Answer:
        return answer(200, "", spoilt if is_lean(request) else OBJECT)

    store, server = serve(handler)
    first = store.head(Key("name"))

    assert store.head(Key("name")) == first
    assert heads_of(server) == [False, True, False]


def test_a_way_that_does_not_work_is_given_up(serve: Serve) -> None:
    store, server = serve(lambda r: answer(403 if is_lean(r) else 200, "", OBJECT))

    for _ in range(6):
        store.head(Key("name"))

    assert sum(heads_of(server)) == 3
    assert heads_of(server)[-2:] == [False, False]


def test_a_way_that_works_at_times_is_not_given_up(serve: Serve) -> None:
    def handler(request: Request) -> Answer:
        refused = is_lean(request) and request.path == "/bucket/odd"
        return answer(403 if refused else 200, "", OBJECT)

    store, server = serve(handler)
    for _ in range(5):
        store.head(Key("odd"))
        store.head(Key("name"))

    assert heads_of(server)[-1]


def test_a_region_that_was_learnt_is_kept(serve: Serve) -> None:
    def handler(request: Request) -> Answer:
        if "/eu-west-1/" in request.headers["authorization"]:
            return answer(200, "", OBJECT)
        return answer(301, "", {"x-amz-bucket-region": "eu-west-1"})

    store, server = serve(handler)
    store.head(Key("name"))
    before = len(server.requests)
    store.head(Key("name"))

    assert heads_of(server)[before:] == [True]


def test_who_signs_nothing_does_not_sign(serve: Serve) -> None:
    store, server = serve(lambda _: answer(200, "", OBJECT), no_sign_request=True)

    store.head(Key("name"))
    store.head(Key("name"))

    assert heads_of(server) == [False, True]
    assert all("authorization" not in request.headers for request in server.requests)


def test_who_pays_says_so(serve: Serve) -> None:
    store, server = serve(lambda _: answer(200, "", OBJECT), request_payer=True)

    store.head(Key("name"))
    store.head(Key("name"))

    assert heads_of(server) == [False, True]
    for request in server.requests:
        assert request.headers["x-amz-request-payer"] == "requester"
        assert "x-amz-request-payer" in request.headers["authorization"]


def test_proxies_and_virtual_hosts_are_as_boto3_resolved_them(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with scripted(lambda _: answer(200, "", OBJECT)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        store, _ = serve(
            lambda _: answer(500), endpoint_url="http://s3.example.test", region="us-east-1"
        )
        store.head(Key("a/b"))
        store.head(Key("c d"))

        assert heads_of(proxy) == [False, True]
        assert [request.path for request in proxy.requests] == ["/a/b", "/c d"]
        assert {request.headers["host"] for request in proxy.requests} == {
            "bucket.s3.example.test"
        }


def test_credentials_that_expire_are_renewed_while_requests_go_on(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_credentials, "_AGAIN_S", 0.0)
    issued = tmp_path / "issued.json"
    (tmp_path / "config").write_text(f"[profile fresh]\ncredential_process = cat {issued}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)

    def issue(name: str) -> None:
        soon = datetime.now(UTC) + timedelta(minutes=5)  # boto3 renews what ends within ten
        document = {
            "Version": 1,
            "AccessKeyId": name,
            "SecretAccessKey": "s",
            "SessionToken": name,
        }
        issued.write_text(json.dumps({**document, "Expiration": soon.isoformat()}))

    store, server = serve(lambda _: answer(200, "", OBJECT), profile="fresh")
    for name in ("first", "second", "third"):
        issue(name)
        store.head(Key("name"))

    assert heads_of(server) == [False, True, True]
    for request, name in zip(server.requests, ("first", "second", "third"), strict=True):
        assert f"Credential={name}/" in request.headers["authorization"]
        assert request.headers["x-amz-security-token"] == name


def test_keys_that_were_replaced_on_disk_are_taken_up_by_the_request_that_was_denied(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(kept))
    valid = "old"

    def handler(request: Request) -> Answer:
        known = f"Credential={valid}/" in request.headers["authorization"]
        return answer(200 if known else 403, "", OBJECT)

    store, server = serve(handler)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    kept.write_text("[default]\naws_access_key_id = old\naws_secret_access_key = s\n")
    store.head(Key("name"))
    valid = "new"
    kept.write_text("[default]\naws_access_key_id = new\naws_secret_access_key = s\n")

    store.head(Key("name"))
    store.head(Key("name"))

    # Denied; denied in the ordinary way, too; and that once more, with the new keys.
    assert heads_of(server) == [False, True, False, False, True]
