"""A directory of more than a page, whose listing fails half way: whole, or an error, and never the half of it."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.mount.harness import Mount
from tests.mount.stores import Target
from tests.servers.scripted import Answer, Request, answer, scripted

Mounting = Callable[..., Mount]

PAGES = (("dir/a", "dir/b"), ("dir/c", "dir/d"))
NAMES = ["a", "b", "c", "d"]


def listing(keys: tuple[str, ...], prefixes: tuple[str, ...] = (), token: str = "") -> bytes:
    entries = "".join(
        f'<Contents><Key>{key}</Key><Size>1</Size><ETag>"{key}"</ETag>'
        "<LastModified>2025-01-01T00:00:00Z</LastModified></Contents>"
        for key in keys
    )
    entries += "".join(f"<CommonPrefixes><Prefix>{p}</Prefix></CommonPrefixes>" for p in prefixes)
    goes_on = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return answer(
        200,
        "<ListBucketResult><EncodingType>url</EncodingType>"
        f"<IsTruncated>{str(bool(token)).lower()}</IsTruncated>{goes_on}{entries}</ListBucketResult>",
    )


@dataclass
class PagedStore:
    """An S3 of one directory, listed two names at a time."""

    fault: str = ""
    held: threading.Event = field(default_factory=threading.Event)
    """What is held back, is until then."""

    def __call__(self, request: Request) -> Answer:
        if request.method != "GET" or "list-type" not in request.query:
            return answer(404)
        if request.query.get("prefix", "") == "":
            return listing((), ("dir/",))
        if request.query["prefix"] != "dir/":
            return listing(())
        if "continuation-token" not in request.query:
            return listing(PAGES[0], token="more")
        match self.fault:
            case "held":
                assert self.held.wait(20)
                return listing(PAGES[1])
            case "500":
                return answer(500)
            case "cut":
                return listing(PAGES[1])[:-30]
            case "again":
                return listing(PAGES[0], token="still more")
            case "for ever":
                return listing((), token=request.query["continuation-token"] + "+")
        return listing(PAGES[1])


@pytest.mark.parametrize(
    "fault",
    [
        "500",
        "for ever",
        pytest.param("cut", marks=pytest.mark.soak),
        pytest.param("again", marks=pytest.mark.soak),
    ],
)
def test_a_second_page_that_never_comes_is_an_error_or_what_was_known(
    mounting: Mounting, fault: str
) -> None:
    store = PagedStore(fault)
    with paged(store, mounting) as mount:
        with pytest.raises(OSError, match="Errno 5"):
            mount.do(os.listdir, mount / "dir")
        store.fault = ""
        assert sorted(mount.do(os.listdir, mount / "dir")) == NAMES
        store.fault = fault
        assert sorted(mount.do(os.listdir, mount / "dir")) == NAMES


def test_the_first_names_are_read_while_the_second_page_has_not_come(mounting: Mounting) -> None:
    store = PagedStore("held")
    with paged(store, mounting) as mount:
        assert mount.do(first_names, mount / "dir", 1) == ["a"]
        mount.hands().begin(os.listdir, mount / "dir")
        store.held.set()
        assert sorted(mount.do(os.listdir, mount / "dir")) == NAMES


def first_names(directory: Path, count: int) -> list[str]:
    """Read some names of a directory, and no more of it than that takes."""
    with os.scandir(directory) as entries:
        return [next(entries).name for _ in range(count)]


@contextmanager
def paged(store: PagedStore, mounting: Mounting) -> Iterator[Mount]:
    environment = {"AWS_ACCESS_KEY_ID": "access", "AWS_SECRET_ACCESS_KEY": "secret"}
    options = ("--timeout", "2s", "--metadata-ttl", "0", "--attributes", "listing", "--read-only")
    with scripted(store) as server:
        target = Target(
            "s3://bucket",
            ("--endpoint-url", server.url, "--force-path-style"),
            {**environment, "AWS_DEFAULT_REGION": "us-east-1"},
        )
        with mounting(target, *options) as mount:
            yield mount
