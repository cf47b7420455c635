"""Whether bytes here are those of an object, by each means that a store has of telling."""

import base64
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cachefs.core.fingerprint import Part, PartMd5s, cut
from cachefs.core.metadata import pointing_to
from cachefs.core.types import Key
from cachefs.local.hashed import Hashed, Stamp
from cachefs.ops.compare import Comparer, FileContent, Moved, Patience, Stopped, Verdict
from cachefs.ops.throttle import Throttle
from tests.ops.telling import TellingStore

KEY = Key("file")
CONTENT = bytes(range(256)) * 5
OTHER = CONTENT[:-1] + b"!"
UNKNOWN = "4f2a-of-no-kind"


def md5_of(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def parts_of(content: bytes, length: int) -> PartMd5s:
    parts = PartMd5s(cut(len(content), length))
    parts.update(memoryview(content))
    return parts


def told(content: bytes) -> dict[str, tuple[str, dict[str, Any]]]:
    """What stores tell of *content*: ETag and fields of a fingerprint, by the means that should be found."""
    pieces = cut(len(content), 300)
    starts = [300 * number for number in range(len(pieces))]
    parts = tuple(
        Part(size, md5_of(content[start : start + size]))
        for start, size in zip(starts, pieces, strict=True)
    )
    return {
        "md5": (md5_of(content), {"md5": md5_of(content)}),
        "parts of a likely size": (parts_of(content, 100).s3, {}),
        "parts of a size that the store tells": (parts_of(content, 77).s3, {"part_size": 77}),
        "segments": (parts_of(content, 300).swift, {"parts": parts}),
        "segments that are not told": (parts_of(content, 100).swift, {"is_joined": True}),
        "sha256": (UNKNOWN, {"checksums": {"sha256": hashlib.sha256(content).hexdigest()}}),
        "sha1": (UNKNOWN, {"checksums": {"sha1": hashlib.sha1(content).hexdigest()}}),
    }


MEANS = sorted(told(CONTENT))


@pytest.fixture
def store() -> TellingStore:
    return TellingStore()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def content_of(path: Path) -> FileContent:
    found = os.lstat(path)
    return FileContent("file", os.fsencode(path), Stamp.of(found), is_link=path.is_symlink())


def comparer_of(
    store: TellingStore, *, patience: Patience | None = None, is_downloading: bool = False
) -> Comparer:
    return Comparer(
        store,
        throttle=Throttle(None),
        patience=patience or Patience(),
        now_ns=time.time_ns,
        is_downloading=is_downloading,
        likely_parts=(100,),
    )


def compared(store: TellingStore, path: Path, *, is_downloading: bool = False) -> Verdict:
    (listed,) = (info for page in store.list(Key("")) for info in page.objects)
    comparer = comparer_of(store, is_downloading=is_downloading)
    verdict, _ = comparer.compare(content_of(path), listed, None)
    return verdict


@pytest.mark.parametrize("means", MEANS)
def test_the_same_bytes_are_the_same_by_whatever_the_store_tells(
    store: TellingStore, path: Path, means: str
) -> None:
    etag, said = told(CONTENT)[means]
    store.add(KEY, CONTENT)
    store.tell(KEY, etag, **said)

    verdict = compared(store, path)

    assert verdict.is_same is True
    assert verdict.local_md5 == verdict.remote_md5 == md5_of(CONTENT)
    assert store.requests.get("get_range", 0) == 0


@pytest.mark.parametrize("means", MEANS)
def test_other_bytes_differ_by_whatever_the_store_tells(
    store: TellingStore, path: Path, means: str
) -> None:
    etag, said = told(OTHER)[means]
    store.add(KEY, OTHER)
    store.tell(KEY, etag, **said)

    verdict = compared(store, path)

    expected = (
        None
        if means
        in (
            "parts of a likely size",
            "parts of a size that the store tells",
            "segments that are not told",
        )
        else False
    )
    assert verdict.is_same is expected
    assert store.requests.get("get_range", 0) == 0
    # What only its parts would have told, reading tells.
    assert compared(store, path, is_downloading=True).is_same is False


@pytest.mark.parametrize(
    "meta",
    [
        {"md5chksum": base64.b64encode(hashlib.md5(CONTENT).digest()).decode()},
        {"s3cmd-attrs": f"atime:1/md5:{md5_of(CONTENT)}/uid:0"},
    ],
)
def test_the_md5_that_a_tool_has_put_into_metadata_tells(
    store: TellingStore, path: Path, meta: dict[str, str]
) -> None:
    store.add(KEY, CONTENT, meta)
    store.tell(KEY, UNKNOWN)
    assert compared(store, path).is_same is True

    path.write_bytes(OTHER)
    assert compared(store, path).is_same is False


def test_where_nothing_tells_the_bytes_are_read_only_if_that_is_wanted(
    store: TellingStore, path: Path
) -> None:
    store.add(KEY, CONTENT)
    store.tell(KEY, UNKNOWN)

    silent = compared(store, path)
    comparer = comparer_of(store, is_downloading=True)
    read, _ = comparer.compare(content_of(path), store._seen(store.head(KEY)), None)

    assert (silent.is_same, silent.local_md5) == (None, None)
    assert "--download" in silent.reason
    assert (read.is_same, comparer.counts.downloaded_bytes) == (True, len(CONTENT))


def test_the_stores_own_word_outweighs_metadata_that_a_tool_carried_along(
    store: TellingStore, path: Path
) -> None:
    store.add(KEY, OTHER, {"md5chksum": md5_of(CONTENT)})

    assert compared(store, path).is_same is False


def test_another_length_is_found_without_hashing(store: TellingStore, path: Path) -> None:
    store.add(KEY, CONTENT + b"more")
    comparer = comparer_of(store)

    verdict, row = comparer.compare(content_of(path), store.head(KEY), None)

    assert (verdict.is_same, row, comparer.counts.hashed_bytes) == (False, None, 0)
    assert "1280 bytes here, 1284 at the store" in verdict.reason


def test_what_a_late_listing_says_is_asked_again(store: TellingStore, path: Path) -> None:
    late = store.add(KEY, OTHER)
    store.add(KEY, CONTENT)
    comparer = comparer_of(store)

    now_same, _ = comparer.compare(content_of(path), late, None)
    store.delete(KEY)
    now_gone, _ = comparer.compare(content_of(path), late, None)

    assert now_same.is_same is True
    assert now_gone.remote is None


def test_what_was_found_is_not_found_out_again(store: TellingStore, path: Path) -> None:
    etag, said = told(CONTENT)["sha256"]
    store.add(KEY, CONTENT)
    store.tell(KEY, etag, **said)
    first = comparer_of(store)
    listed = store._seen(store.head(KEY))
    _, row = first.compare(content_of(path), listed, None)
    asked = dict(store.requests)

    again = comparer_of(store)
    verdict = again.recall(content_of(path), listed, row)

    assert row is not None
    assert row.etag == UNKNOWN
    assert verdict is not None
    assert verdict.is_same is True
    assert (again.counts.hashed_files, store.requests) == (0, asked)


@pytest.mark.parametrize(
    ("patience", "age_s", "believed"),
    [
        (Patience(), 10**6, True),
        (Patience(is_full=True), 0, False),
        (Patience(older_than_ns=10**12), 10, True),
        (Patience(older_than_ns=10**12), 10**4, False),
    ],
)
def test_how_long_something_is_believed_is_the_callers_to_say(
    store: TellingStore, path: Path, patience: Patience, age_s: int, believed: bool
) -> None:
    listed = store.add(KEY, CONTENT)
    content = content_of(path)
    then = time.time_ns() - age_s * 10**9
    known = Hashed("file", content.stamp, md5_of(CONTENT), listed.etag, then)

    verdict = comparer_of(store, patience=patience).recall(content, listed, known)

    assert (verdict is not None) is believed


def test_what_only_looks_empty_is_asked_about_once(store: TellingStore, path: Path) -> None:
    path.write_bytes(b"")
    empty = replace(store.add(KEY, b""), is_doubtful=True)
    comparer = comparer_of(store)

    verdict, row = comparer.compare(content_of(path), empty, None)

    assert (verdict.is_same, store.requests["fingerprint"]) == (True, 1)
    assert comparer.recall(content_of(path), empty, row) is not None
    assert comparer.recall(content_of(path), replace(empty, mtime_ns=1), row) is None
    store.add(KEY, CONTENT)
    assert comparer.compare(content_of(path), empty, None)[0].is_same is False


def test_a_link_is_its_target_and_geesefs_form_of_it_is_known(
    store: TellingStore, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to("tärget")
    store.add(KEY, "tärget".encode())
    assert compared(store, link).is_same is True
    store.add(KEY, b"", pointing_to("tärget".encode()))
    assert compared(store, link).is_same is True
    store.add(KEY, b"", pointing_to(b"another"))
    assert compared(store, link).is_same is False


def test_a_file_that_changes_while_it_is_read_is_not_judged(
    store: TellingStore, path: Path
) -> None:
    listed = store.add(KEY, CONTENT)
    content = content_of(path)
    path.write_bytes(CONTENT + b"grown")

    with pytest.raises(Moved):
        comparer_of(store).compare(content, listed, None)


def test_a_job_that_ends_does_not_finish_a_file(store: TellingStore, path: Path) -> None:
    listed = store.add(KEY, CONTENT)
    ended: list[bool] = []
    comparer = Comparer(
        store,
        throttle=Throttle(None),
        patience=Patience(),
        now_ns=time.time_ns,
        end_waiting=lambda: ended.append(True),
    )
    comparer.stop()
    assert ended == [True]

    with pytest.raises(Stopped):
        comparer.compare(content_of(path), listed, None)


def test_a_large_file_is_read_in_pieces(store: TellingStore, tmp_path: Path) -> None:
    large = tmp_path / "large"
    body = os.urandom(700_000)
    large.write_bytes(body)
    pieces: Iterator[memoryview] = content_of(large).chunks()
    assert b"".join(bytes(piece) for piece in pieces) == body
    store.add(KEY, body)
    assert compared(store, large).is_same is True
