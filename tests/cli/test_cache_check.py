"""``cachefs cache check`` as it is typed, on a cache that no mount uses."""

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from cachefs.local.db import NAME
from tests.cli.running import Done, cachefs

SIZES = {"large": 1_300_000, "d/odd\n": 200_000, "small": 100_000}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of three files of a ``file://`` store."""
    home = tmp_path_factory.mktemp("filled")
    (home / "list").write_bytes(b"\0".join(name.encode() for name in SIZES) + b"\0")
    for name, size in SIZES.items():
        (home / "objects" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "objects" / name).write_bytes(os.urandom(size))
    words = ("--list", home / "list", "-0", "--cache-dir", home / "cache")
    done = cachefs("preheat", f"file://{home}/objects", *words, home=home)
    assert done.code == 0, done.err
    return home


@pytest.fixture
def home(filled: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(filled / "cache", tmp_path / "cache", ignore=shutil.ignore_patterns("*.sock"))
    return tmp_path


def check(home: Path, *words: str) -> Done:
    return cachefs("cache", "check", *words, "--cache-dir", home / "cache", home=home)


def data_of(home: Path, size: int) -> Path:
    """The cache file of that length."""
    return next(each for each in (home / "cache/data").iterdir() if each.stat().st_size == size)


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def held_by(cache_dir: Path) -> dict[str, tuple[int, bytes]]:
    """Every file, but the one by which others are kept away: when it was written last, and its bytes."""
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in cache_dir.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def test_a_sound_cache_is_said_to_be(home: Path) -> None:
    told, quiet = check(home), check(home, "-q")
    assert (told.code, told.err) == (0, "")
    assert told.out == f"{home}/cache: sound; 5 names, 3 cache files, 1.5 MiB looked at\n"
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    (document,) = json.loads(check(home, "--json").out)["caches"]
    assert document == {
        "cache_dir": f"{home}/cache",
        "is_served": False,
        "names": 5,
        "files": 3,
        "bytes": sum(SIZES.values()),
        "flaws": [],
        "left": 0,
    }


def test_what_is_broken_is_told_by_its_name_and_given_up_when_asked(home: Path) -> None:
    flip(data_of(home, SIZES["large"]), 1_200_000)
    data_of(home, SIZES["d/odd\n"]).unlink()
    os.truncate(data_of(home, SIZES["small"]), 10)
    (home / "cache/data/99").touch()

    told = check(home)
    assert told.code == 1
    summary, advice = told.out.splitlines()[-2:]
    found, _, looked = summary.removeprefix(f"{home}/cache: ").partition("; ")
    assert sorted(found.split(", ")) == ["1 missing", "1 rotted", "1 short", "1 stray"]
    assert looked == "5 names, 3 cache files, 1.5 MiB looked at"
    assert advice.startswith("cachefs cache check --repair mends")
    assert "large: bytes 1048576 to 1300000 of its cache file" in told.out
    assert "d/odd\\n: its cache file" in told.out
    assert "99: the database knows nothing of this file\n" in told.out

    (document,) = json.loads(check(home, "--json").out)["caches"]
    assert document["left"] == 4
    assert {(each["kind"], each["path"]) for each in document["flaws"]} == {
        ("rotted", "large"),
        ("missing", "d/odd\n"),
        ("short", "small"),
        ("stray", "99"),
    }

    mended = check(home, "--repair")
    assert mended.code == 0, mended.out
    assert "(4 mended)" in mended.out
    assert "given up; the next read fetches it again" in mended.out
    after = check(home)
    assert (after.code, after.out) == (
        0,
        f"{home}/cache: sound; 5 names, 0 cache files, 0 B looked at\n",
    )
    assert not list((home / "cache/data").iterdir())


@pytest.mark.parametrize("harm", ["garbage", "nonsense", "gone"])
def test_a_damaged_database_is_told_set_aside_and_made_anew(home: Path, harm: str) -> None:
    path = home / "cache" / NAME
    if harm == "garbage":
        path.write_bytes(os.urandom(path.stat().st_size))
    elif harm == "nonsense":
        connection = sqlite3.connect(path)
        connection.execute("UPDATE inodes SET name = x'612f62' WHERE name = x'736d616c6c'")
        connection.commit()
        connection.close()
    else:
        path.unlink()
    told = check(home)
    assert told.code == 1
    assert told.out.startswith("database: ")
    assert "the files were not looked at" in told.out
    assert not list((home / "cache").glob("*.broken-*"))

    mended = check(home, "--repair")
    assert mended.code == 0, mended.out + mended.err
    assert "set aside, and a new one made" in mended.out
    assert len(list((home / "cache").glob(f"{NAME}.broken-*[0-9a-f]"))) == (harm != "gone")
    assert check(home).code == 0


def test_a_check_changes_nothing(home: Path) -> None:
    flip(data_of(home, SIZES["large"]), 0)
    before = held_by(home / "cache")
    assert check(home).code == 1
    assert held_by(home / "cache") == before


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("check", "--bucket", "x"), "--bucket means nothing to cachefs cache check"),
        (("stats", "--repair"), "--repair means nothing to cachefs cache stats"),
        (("check", "--cache-dir", "/nowhere"), "there is no cache in /nowhere"),
        (("check", "/mnt", "--cache-dir", "/nowhere"), ""),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, words: tuple[str, ...], why: str) -> None:
    done = cachefs("cache", *words, home=tmp_path)
    assert done.code == 2
    assert why in done.err
    assert done.err.count("\n") == 1
