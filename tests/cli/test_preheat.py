"""``cachefs preheat`` as it is run from cron, before any mount."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cachefs.cli import main
from tests.cli.running import Done, cachefs, surroundings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    """A store of three objects, and a tree in which they were last read at different times."""
    objects, old = tmp_path / "objects", tmp_path / "old"
    for number, name in enumerate(["cold", "d/warm\n", "hot"]):
        for root in (objects, old):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(name[:1].encode() * 100_000)
        os.utime(old / name, (1000 + number, 5))
    return f"file://{objects}"


def preheated(*words: str | Path, home: Path) -> Done:
    return cachefs("preheat", *words, "--cache-dir", home / "cache", home=home)


def test_a_cache_without_a_mount_is_filled_by_last_access_and_the_second_run_fetches_nothing(
    bucket: str, tmp_path: Path
) -> None:
    def run(*words: str) -> Done:
        return preheated(bucket, "--from-dir", tmp_path / "old", *words, home=tmp_path)

    first = run("--bytes", "250000", "--json", "--threads", "1")
    again = run("--bytes", "250000")
    checked = run("--check")

    assert first.code == 0
    assert first.err.startswith("2 files fetched (195.3 KiB, ")
    assert [json.loads(line) for line in first.out.splitlines()] == [
        {"path": "hot", "state": "fetched", "size": 100_000, "fetched": 100_000},
        {"path": "d/warm\n", "state": "fetched", "size": 100_000, "fetched": 100_000},
        {"path": "cold", "state": "left", "error": "the budget of bytes is used up"},
    ]
    assert (again.code, again.err) == (0, "")
    assert again.out == (
        "0 files fetched (0 B, 0 B/s), 2 cached already, 0 failed; stopped at cold: the budget of bytes is used up\n"
    )
    assert (checked.code, checked.err) == (0, "")
    assert checked.out == "2 of 3 files cached (66.7%), 195.3 KiB of 293.0 KiB (66.7%)\n"


def test_a_file_that_is_not_at_the_store_is_one_line_and_the_rest_is_fetched(
    bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "list").write_text("gone\nhot\n")
    program: list[str | Path] = [sys.executable, ROOT / "tools" / "preheat_cache.py", bucket]

    done = subprocess.run(
        [*program, "--list", "list", "--cache-dir", "cache"],
        env=surroundings(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr == "cachefs: gone cannot be fetched: no such file or directory\n"
    assert done.stdout.startswith("1 file fetched (97.7 KiB, ")
    assert done.stdout.endswith(", 0 cached already, 1 failed\n")


def test_other_files_go_for_it_if_they_may_until_the_cache_has_what_it_can_keep(
    tmp_path: Path,
) -> None:
    (tmp_path / "objects").mkdir()
    for number in range(12):
        (tmp_path / "objects" / f"f{number:02}").write_bytes(bytes(100_000))
    backwards = "".join(f"f{number:02}\n" for number in reversed(range(12)))
    (tmp_path / "list").write_text(backwards)
    (tmp_path / "first").write_text("f00\nf01\nf02\n")
    words = (
        *(f"file://{tmp_path}/objects", "--cache-size", "1MiB", "--min-free", "0"),
        *("--policy", "lru", "--threads", "1", "--list"),
    )
    preheated(*words, "first", home=tmp_path)

    full = preheated(*words, "list", home=tmp_path)
    evicting = preheated(*words, "list", "--evict", home=tmp_path)
    checked = preheated(*words, "list", "--check", "--files", "8", home=tmp_path)

    assert "stopped at f05: the cache is full" in full.out
    assert "stopped at f03: the budget of bytes is used up" in evicting.out
    assert checked.out.startswith("8 of ")


def test_a_tree_that_can_be_read_in_part_only_is_a_failure_that_is_said(
    bucket: str, tmp_path: Path
) -> None:
    inside = os.open(tmp_path / "old", os.O_RDONLY)
    for _ in range(17):  # deeper than a path may be long
        os.mkdir("d" * 250, dir_fd=inside)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=inside)
        os.close(inside)
        inside = below
    os.close(inside)

    done = cachefs("preheat", bucket, "--from-dir", tmp_path / "old", "--check", home=tmp_path)

    assert done.code == 1
    assert done.err.startswith(f"cachefs: cannot look at {tmp_path}/old/ddd")
    assert done.err.endswith("ddd: File name too long\n")
    assert done.out.startswith("0 of 3 files cached")


def test_nothing_is_there_before_the_first_mount(bucket: str, tmp_path: Path) -> None:
    done = cachefs("preheat", bucket, "--from-dir", tmp_path / "old", "--check", home=tmp_path)

    assert (done.code, done.out) == (0, "0 of 3 files cached (0.0%), 0 B of 293.0 KiB (0.0%)\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--list a --from-dir b", "--from-dir is an order of its own — leave out --list and --by, or --from-dir"),
        ("--from-dir a --by last", "--from-dir is an order of its own — leave out --list and --by, or --from-dir"),
        ("--list a --by frequency", "--by frequency is of the history — with --list, only --by last"),
        ("--list a --check --until 5s", "--check fetches nothing — leave out --until and --evict"),
        ("-0", "--null says how to read --list — pass one, or leave it out"),
        (
            "--cache-dir none",
            "there is no cache in HOME/none that remembers opens — name an order by --from-dir or --list",
        ),
        ("--list none", "--list none cannot be read: No such file or directory — name a list of files"),
        ("--list a --bytes lots", "--bytes lots is not a size — for example --bytes 50GiB"),
        ("--list a --until soon", "--until soon is not a duration — for example --until 30m"),
        ("--list a --threads 99", "--threads 99 is not a number up to 32 — for example --threads 8"),
        ("--list a --files 0", "--files 0 is not a number — for example --files 8"),
        ("--from-dir none", "HOME/none is not a directory — name the tree that has the times of access"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line(
    words: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CACHEFS_CONFIG", "")

    code = main(["preheat", f"file://{tmp_path}", *words.split()])

    told = capsys.readouterr()
    assert told.err == f"cachefs: {line}\n".replace("HOME", str(tmp_path))
    assert (code, told.out) == (2, "")


def test_a_store_that_is_not_there_is_said_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("a\n")

    done = preheated(f"file://{tmp_path}/none", "--list", "list", home=tmp_path)

    assert (done.code, done.out) == (3, "")
    assert done.err.startswith(
        f"cachefs: cannot preheat file://{tmp_path}/none: no such directory"
    )
    assert not (tmp_path / "cache").exists()
