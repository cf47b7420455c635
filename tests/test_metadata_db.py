"""``from cachefs import MetadataDB``: what programs are told, and have recorded, without a mount beside them."""

import doctest
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import assert_type

import pytest

import cachefs
import cachefs.metadata_db
from cachefs import MetadataDB
from cachefs.config import current
from cachefs.core.errors import CacheError, UsageError
from cachefs.core.types import ETag, Key, Listing, ObjectInfo
from cachefs.local.db import NAME, Database
from cachefs.local.inodes import ROOT, InodeTable

A, B = "a" * 32, "b" * 32


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration and no place but the test's own, whoever runs it."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("CACHEFS_CONFIG", "")
    # Below /var/cache, where root's are, others may have theirs.
    surroundings = replace(current(), uid=12345)
    monkeypatch.setattr("cachefs.metadata_db.current", lambda: surroundings)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[MetadataDB]:
    with MetadataDB(db_path=tmp_path / "sub" / "md5.db") as db:
        yield db


def given(
    db: MetadataDB,
    key: str = "k",
    *,
    bucket: str = "b",
    md5: str = A,
    etag: str = "e-2",
    remote: str | None = None,
) -> None:
    db.set_md5(
        bucket_name=bucket, object_key=key, etag=etag, file_size=7, md5_hash=md5, remote=remote
    )


def cache_of(source: str, directory: Path, *infos: ObjectInfo) -> Path:
    """A cache directory that a mount of *source* has left."""
    directory.mkdir(parents=True)
    db = Database(directory)
    db.set_meta("source", source)
    inodes = InodeTable(db, is_dirty=lambda ino: False)
    inodes.make_root(1)
    inodes.merge(ROOT, Listing(infos), since_ns=10**18, now_ns=10**18, held=())
    db.close()
    return directory


def info(key: str, etag: str = A, *, is_md5: bool = True, size: int = 7) -> ObjectInfo:
    return ObjectInfo(Key(key), size, ETag(etag), 1, is_md5=is_md5)


def test_the_example_of_the_documentation_runs() -> None:
    failed, tried = doctest.testmod(cachefs.metadata_db)

    assert tried >= 4
    assert not failed


def test_an_md5_is_told_of_its_version_and_by_its_key(db: MetadataDB) -> None:
    given(db)

    assert db.get_md5("b", "k", etag="e-2") == A
    assert db.get_md5("b", "k", etag="e-2", size=8) is None
    assert db.get_md5("b", "k", etag="f-2") is None
    assert db.get_md5_by_key(workspace_id=None, bucket_name="b", object_key="k") == A
    assert db.get_md5_by_key("b", "K") is None
    assert db.remove_md5("b", "k")
    assert not db.remove_md5("b", "k")


def test_what_was_recorded_is_there_the_next_time(db: MetadataDB, tmp_path: Path) -> None:
    given(db)
    with MetadataDB(tmp_path / "sub" / "md5.db") as again:
        assert again.get_md5_by_key("b", "k") == A


def test_stores_are_told_apart(db: MetadataDB) -> None:
    given(db, remote="one")
    given(db, md5=B, remote="two")
    given(db, bucket="c", remote="two")

    assert db.list_workspaces() == ["one", "two"]
    assert db.list_buckets() == ["b", "c"]
    assert db.get_md5_by_key("b", "k", workspace_id="two") == B
    assert db.get_stats()["total_files"] == 3
    assert [each["bucket"] for each in db.get_stats(remote="two")["buckets"]] == ["b", "c"]
    assert db.cleanup_workspace("two") == 2
    assert db.cleanup_bucket("b") == 1
    assert db.get_stats()["buckets"] == []
    assert db.get_stats()["oldest_entry"] is None


@pytest.mark.parametrize("md5", ["", "a" * 31, "g" * 32, "e-2"])
def test_nothing_but_an_md5_is_recorded(db: MetadataDB, md5: str) -> None:
    with pytest.raises(UsageError):
        given(db, md5=md5)


def test_statistics_are_those_of_a_cache_directory(tmp_path: Path) -> None:
    cache = cache_of(
        "p in s3://b at http://h",
        tmp_path / "c",
        info("plain"),
        info("parts", "x-2", is_md5=False),
    )
    with MetadataDB(cache) as db:
        stats = db.get_stats()
        assert (stats["total_files"], stats["total_size"], stats["with_md5"]) == (2, 14, 1)
        assert stats["newest_entry"] == "2001-09-09T01:46:40+00:00"
        json.dumps(stats)
        assert db.get_md5_by_key("b", "p/plain") == A
        assert db.get_md5_by_key("b", "p/parts") is None

        given(db, "p/parts", etag="x-2", md5=B)
        assert db.get_md5_by_key("b", "p/parts") == B
        assert db.get_stats()["with_md5"] == 2

        given(db, "p/plain", etag="older-2", md5=B)  # a version that the store has replaced
        assert db.get_md5_by_key("b", "p/plain") == A
        assert db.get_md5("b", "p/plain", etag="older-2") == B
        assert db.get_md5("b", "p/plain", etag=A) == A
        with pytest.raises(UsageError, match="another store"):
            given(db, "elsewhere")


def test_without_a_path_every_cache_is_asked_and_the_rest_is_the_users_own(tmp_path: Path) -> None:
    root = tmp_path / "XDG_CACHE_HOME" / "cachefs"
    cache_of("s3://b at http://one", root / "1", info("k"))
    cache_of("s3://b at http://two", root / "2", info("k", B))
    cache_of("s3://c at http://two", root / "3")
    (root / "4").mkdir()
    (root / "4" / NAME).write_bytes(b"this is no database" * 100)
    with MetadataDB() as db:
        assert list(db.unusable) == [root / "4"]
        assert db.list_workspaces() == [f"s3://{each}" for each in ("b at http://one", "b at http://two", "c at http://two")]  # fmt: skip
        assert db.get_md5_by_key("b", "k", remote="s3://b at http://two") == B
        with pytest.raises(UsageError, match=r"s3://b at http://one, s3://b at http://two"):
            given(db)
        given(db, remote="s3://b at http://one", md5=B, etag=A)
        given(db, bucket="c")
        assert not (root / "md5s.sqlite3").exists()
        given(db, bucket="d", remote="elsewhere")
        assert (root / "md5s.sqlite3").exists()

    with MetadataDB(root / "3") as third, MetadataDB() as db:
        assert third.list_buckets() == ["c"]
        assert db.get_md5_by_key("d", "k") == A
        assert db.list_buckets() == ["b", "c", "d"]


def test_a_database_that_was_set_aside_is_not_asked_any_more(tmp_path: Path) -> None:
    cache = cache_of("s3://b at http://h", tmp_path / "c", info("k"))
    with MetadataDB(cache) as db:
        given(db, "old")
        fresh = cache_of("s3://b at http://h", tmp_path / "new")
        (fresh / NAME).replace(cache / NAME)
        for suffix in ("-wal", "-shm"):
            Path(f"{cache / NAME}{suffix}").unlink(missing_ok=True)

        assert db.get_md5_by_key("b", "old") is None
        given(db, "new")
        assert db.get_md5_by_key("b", "new") == A


@pytest.mark.parametrize("content", [b"garbage " * 1000, b"SQLite format 3\0" + b"x" * 5000])
def test_what_is_no_database_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises((CacheError, UsageError)):
        MetadataDB(path)
    assert path.read_bytes() == content

    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE things (name TEXT)")
    connection.close()
    with pytest.raises(UsageError, match="no database of cachefs"):
        MetadataDB(other)


def test_a_database_of_a_newer_cachefs_is_refused(db: MetadataDB, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "md5.db"
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema'")
    connection.close()
    with pytest.raises(UsageError, match="newer cachefs"):
        MetadataDB(path)


def test_the_types_are_told_to_those_who_check_them(db: MetadataDB) -> None:
    assert_type(db.get_md5_by_key("b", "k"), str | None)
    assert_type(db.get_stats()["total_files"], int)
    assert cachefs.MetadataDB is MetadataDB
    assert not hasattr(cachefs, "NoSuchThing")
