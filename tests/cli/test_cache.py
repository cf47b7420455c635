"""``cachefs cache`` as it is typed, on a cache that no mount uses."""

import json
import shutil
from pathlib import Path

import pytest

from cachefs.cli.cache import COMMAND
from cachefs.cli.parser import Parser
from tests.cli.running import Done, cachefs

SIZES = {"large": 300_000, "d/odd\n": 200_000, "small": 100_000}


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
    assert "Cached: 3 (100.0%), 59" in told.out
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
        (("stats", "--cache-dir", "/nowhere"), "there is no cache in /nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, words: tuple[str, ...], why: str) -> None:
    done = cachefs("cache", *words, home=tmp_path)

    assert (done.code, done.out) == (2, "")
    assert why in done.err
    assert len(done.err.splitlines()) == 1


def test_every_option_is_taken_by_some_action() -> None:
    parser = Parser(prog="cachefs cache")
    COMMAND.configure(parser)

    assert {"bucket", "remote", "workspace"} <= set(parser.long_options)
