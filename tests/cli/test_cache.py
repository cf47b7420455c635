"""``cachefs cache`` as it is typed, on a cache that no mount uses."""

import hashlib
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from cachefs import MetadataDB
from cachefs.cli.cache import COMMAND
from cachefs.cli.parser import Parser
from cachefs.core.known_md5 import How, KnownMd5
from cachefs.core.types import ETag
from tests.cli.running import Done, cachefs

SIZES = {"large": 300_000, "d/odd\n": 200_000, "small": 100_000}

pytestmark = pytest.mark.timeout(240)  # each command is a process of its own


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of three files of a ``file://`` store."""
    home = tmp_path_factory.mktemp("filled")
    (home / "list").write_bytes(b"\0".join(name.encode() for name in SIZES) + b"\0")
    for name, size in SIZES.items():
        (home / "objects" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "objects" / name).write_bytes(b"x" * size)
    words = ("--list", home / "list", "-0", "--cache-dir", home / "cache")
    done = cachefs("preheat", f"file://{home}/objects", *words, home=home)
    assert done.code == 0, done.err
    with MetadataDB(home / "cache") as db:  # which have been read already, all of them
        db.cleanup_bucket(f"{home}/objects")
    return home


@pytest.fixture
def home(filled: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(filled / "cache", tmp_path / "cache", ignore=shutil.ignore_patterns("*.sock"))
    return tmp_path


def cache(action: str, home: Path, *words: str | Path) -> Done:
    return cachefs("cache", action, *words, "--cache-dir", home / "cache", home=home)


def test_stats_tell_of_each_bucket(home: Path, filled: Path) -> None:
    told = cache("stats", home)
    document = json.loads(cache("stats", home, "--json").out)

    assert told.code == 0
    assert "Total files: 3\n  Total size: 585.9 KiB\n" in told.out
    assert "With MD5: 0 (0.0%)\n  Cached: 3 (100.0%), 59" in told.out
    assert f"  Bucket {filled}/objects (file://{filled}/objects):\n    Files: 3\n" in told.out
    assert document["total_files"] == document["cached_files"] == 3
    assert document["buckets"][0]["bucket"] == f"{filled}/objects"
    assert document["oldest_entry"] <= document["newest_entry"]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("--bucket", "{}/objects"), 3),
        (("--bucket", "{}/object"), 0),
        (("--remote", "file://{}/objects"), 3),
        (("--workspace", "file://{}"), 3),
        (("--remote", "file://"), 3),
        (("--remote", "s3://"), 0),
        (("--remote", "file://{}/obj"), 0),
        (("--bucket", "{}/objects", "--remote", "s3://objects"), 0),
    ],
)
def test_stats_of_a_bucket_or_a_store_leave_out_the_others(
    home: Path, filled: Path, words: tuple[str, ...], count: int
) -> None:
    named = [word.format(filled) for word in words]
    assert json.loads(cache("stats", home, "--json", *named).out)["total_files"] == count
    if not count:
        assert cache("stats", home, *named).out.startswith("nothing is recorded of ")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("stats", "--remote", "unknown"), "there is no remote unknown"),
        (
            ("stats", "--cache-size", "1GiB"),
            "--cache-size 1GiB means nothing to cachefs cache stats",
        ),
        (("statistics",), "invalid choice"),
        (("vacuum", "--bucket", "b"), "--bucket means nothing to cachefs cache vacuum"),
        (("cleanup",), "say what to remove records of"),
        (("cleanup", "--all", "--bucket", "b"), "leave out --bucket"),
        (("cleanup", "--bucket", "b", "--yes"), "--yes answers what --all asks"),
        (("stats", "--dry-run"), "--dry-run means nothing to cachefs cache stats"),
        (("stats", "--cache-dir", "/nowhere"), "there is no cache in /nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, words: tuple[str, ...], why: str) -> None:
    done = cachefs("cache", *words, home=tmp_path)

    assert (done.code, done.out) == (2, "")
    assert why in done.err
    assert len(done.err.splitlines()) == 1


def test_migrate_reads_what_has_no_md5_once(home: Path, filled: Path) -> None:
    words = (f"file://{filled}/objects", "--json")
    planned = json.loads(cache("migrate", home, *words, "--dry-run").out)
    done = cache("migrate", home, *words)
    again = cache("migrate", home, f"file://{filled}/objects")

    assert (planned["read"], planned["read_bytes"]) == (3, 600_000)
    assert (json.loads(done.out)["read"], done.code) == (3, 0)
    assert again.out == (
        f"file://{filled}/objects: 3 objects, 3 known already, 0 told by the store, 0 read (0 B), 0 failed\n"
    )
    with MetadataDB(home / "cache") as db:
        assert db.get_stats()["with_md5"] == 3
        found = db.get_md5_by_key(f"{filled}/objects", "d/odd\n")
    assert found == hashlib.md5(b"x" * 200_000, usedforsecurity=False).hexdigest()


def test_migrate_names_what_it_could_not_read(home: Path, filled: Path) -> None:
    nobody = cache("migrate", home, "--remote", "s3://photos")
    lost = cachefs("cache", "migrate", "file:///nowhere", "--cache-dir", home / "c", home=home)

    assert nobody.code == 2
    assert "no cache of that is known" in nobody.err or "cannot reach" in nobody.err
    assert lost.code == 3
    assert len(lost.err.splitlines()) == 1


def test_cleanup_removes_records_and_nothing_that_is_cached(home: Path, filled: Path) -> None:
    bucket = f"{filled}/objects"
    with MetadataDB(home / "cache") as db:
        db.keep(KnownMd5(bucket, "small", ETag("e"), 1, "0" * 32, How.GIVEN))
    done = cache("cleanup", home, "--bucket", bucket, "--json")
    assert json.loads(done.out) == {"md5s": 1, "names": 0, "mounted": []}
    assert len(list((home / "cache" / "data").iterdir())) == 3

    cachefs("prune", "--threshold", "0%", "--to", "0%", "--cache-dir", home / "cache", home=home)
    other = cache("cleanup", home, "--bucket", "another")
    all_of_it = cache("cleanup", home, "--remote", f"file://{bucket}")

    assert other.out == "Removed 0 MD5s and 0 names of objects that are not cached\n"
    assert all_of_it.out == "Removed 0 MD5s and 3 names of objects that are not cached\n"
    with MetadataDB(home / "cache") as db:
        assert db.get_stats()["total_files"] == 0
    assert {"d", "large", "small"} <= {path.name for path in (filled / "objects").iterdir()}


def test_all_is_asked_for_or_answered_beforehand(home: Path, filled: Path) -> None:
    with MetadataDB(home / "cache") as db:
        db.keep(KnownMd5(f"{filled}/objects", "small", ETag("e"), 1, "0" * 32, How.GIVEN))
    refused = cache("cleanup", home, "--all")
    done = cache("cleanup", home, "--all", "--yes", "--json")

    assert (refused.code, refused.out) == (2, "")
    assert "pass --yes" in refused.err
    assert json.loads(done.out)["md5s"] == 1


def test_vacuum_gives_back_what_is_unused(home: Path) -> None:
    database = home / "cache" / "cachefs.sqlite3"
    with MetadataDB(home / "cache") as db:
        (bucket,) = db.list_buckets()
        for number in range(300):
            db.keep(KnownMd5(bucket, f"{number}{'k' * 900}", ETag("e-2"), 1, "0" * 32, How.GIVEN))
    cache("cleanup", home, "--all", "--yes")

    done = cache("vacuum", home)
    told = json.loads(cache("vacuum", home, "--json").out)

    assert done.out.startswith("Optimizing cache database...\n✓ Database optimized")
    assert "  Saved: " in done.out
    assert told[0]["after"] == told[0]["before"] == database.stat().st_size


def test_a_database_of_an_older_cachefs_is_made_so_that_a_mount_can_shorten_it(home: Path) -> None:
    database = home / "cache" / "cachefs.sqlite3"
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("VACUUM")
    connection.close()

    assert cache("vacuum", home).code == 0
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    with MetadataDB(home / "cache") as db:
        assert db.get_stats()["cached_files"] == 3


def test_every_option_is_taken_by_some_action() -> None:
    parser = Parser(prog="cachefs cache")
    COMMAND.configure(parser)

    assert {"bucket", "remote", "workspace"} <= set(parser.long_options)
