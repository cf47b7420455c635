"""Answers of a store that make no sense, through the SDK that reads them: a value or an error of ours, nothing else."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings

from cachefs.core.errors import StoreError
from cachefs.core.extents import Extent
from cachefs.core.source import StoreOptions
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.remote.s3 import S3Store
from tests.contract.bodies import BytesBody, BytesSink
from tests.fuzz.pieces import spliced
from tests.servers.scripted import Request, Scripted, answer, scripted


def _say(what: bytes, _: Request) -> bytes:
    return what


LISTING = (
    b"<?xml version='1.0'?><ListBucketResult><EncodingType>url</EncodingType>"
    b"<IsTruncated>false</IsTruncated><Contents><Key>a%0Ab</Key><Size>3</Size>"
    b'<ETag>"x"</ETag><LastModified>2025-01-01T00:00:00.000Z</LastModified></Contents>'
    b"<CommonPrefixes><Prefix>d/</Prefix></CommonPrefixes></ListBucketResult>"
)
REFUSAL = b"<Error><Code>NoSuchKey</Code><Message>gone</Message></Error>"
HEAD = b'ETag: "x"\r\nLast-Modified: Wed, 01 Jan 2025 00:00:00 GMT\r\nx-amz-meta-mode: 33188\r\n'
"""Of an object."""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[S3Store, Scripted]]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with scripted(lambda _: answer(200)) as server:
        options = StoreOptions(endpoint_url=server.url, force_path_style=True)
        with closing(S3Store("bucket", options)) as store:
            yield store, server


@pytest.mark.parametrize("examples", [15, pytest.param(600, marks=pytest.mark.soak)])
@pytest.mark.timeout(900)
def test_a_garbled_listing(served: tuple[S3Store, Scripted], examples: int) -> None:
    store, server = served

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(spliced(LISTING, REFUSAL))
    def check(body: bytes) -> None:
        for status in (200, 404, 500):
            server.handler = partial(_say, answer(status, body))
            try:
                found = [info for page in store.list(Key("")) for info in page.objects]
            except StoreError:
                continue
            assert all(info.etag and 0 <= info.size < 2**63 for info in found)

    check()


# Where headers are torn the SDK leaves its socket to the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("examples", [15, pytest.param(600, marks=pytest.mark.soak)])
@pytest.mark.timeout(900)
def test_a_garbled_object(served: tuple[S3Store, Scripted], examples: int) -> None:
    store, server = served

    asks: list[Callable[[], ObjectInfo]] = [
        lambda: store.head(Key("a")),
        lambda: store.get_range(Key("a"), Extent(0, 3), BytesSink(), if_match=ETag("x")),
        lambda: store.put(Key("a"), BytesBody(b"abc"), meta={}, if_match=None),
    ]

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(spliced(HEAD))
    def check(head: bytes) -> None:
        said = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n" + head + b"\r\n"
        server.handler = lambda request: said + (b"" if request.method == "HEAD" else b"abc")
        for ask in asks:
            try:
                info = ask()
            except StoreError:
                continue
            assert info.etag

    check()
