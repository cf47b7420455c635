"""``cachefs prune`` as it is run from cron, before any mount."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cachefs.core.types import ETag
from cachefs.local.hashed import HashMemory, Stamp
from tests.cli.running import Done, cachefs, surroundings

ROOT = Path(__file__).parents[2]
SIZES = {"large": 300_000, "d/odd\n": 200_000, "small": 100_000}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of three files, each fetched after the one before, below ``cache``."""
    home = tmp_path_factory.mktemp("filled")
    (home / "list").write_bytes(b"\0".join(name.encode() for name in SIZES) + b"\0")
    for name, size in SIZES.items():
        (home / "objects" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "objects" / name).write_bytes(b"x" * size)
    words = ("--list", home / "list", "-0", "--threads", "1", "--cache-size", "1MiB")
    source = f"file://{home}/objects"
    done = cachefs("preheat", source, *words, "--cache-dir", home / "cache", home=home)
    assert done.code == 0, done.err
    return home


@pytest.fixture
def home(filled: Path, tmp_path: Path) -> Path:
    """The same, to be pruned."""
    shutil.copytree(filled / "cache", tmp_path / "cache", ignore=shutil.ignore_patterns("*.sock"))
    return tmp_path


def pruned(home: Path, *words: str | Path) -> Done:
    return cachefs("prune", *words, "--cache-dir", home / "cache", home=home)


def paths(done: Done, state: str) -> list[str]:
    rows = [json.loads(line) for line in done.out.splitlines()]
    return [row["path"] for row in rows if row["state"] == state]


def test_what_is_removed_is_what_was_explained(home: Path) -> None:
    words = ("--threshold", "30%", "--policy", "size", "--json")
    planned = pruned(home, *words, "--dry-run", "--explain")
    done = pruned(home, *words)
    again = pruned(home, "--threshold", "30%")

    assert planned.code == done.code == again.code == 0
    assert paths(planned, "would go") == paths(done, "removed") == ["large"]
    assert "1 file (296.0 KiB) removed; the cache takes" in done.err
    assert again.out.startswith("nothing to do: the cache takes 296.0 KiB, 28.9% of 1.0 MiB")


def test_the_order_the_scores_and_the_reasons_are_told(home: Path) -> None:
    told = pruned(home, "--threshold", "0", "--policy", "size * 2", "--explain", "-n")

    assert told.code == 0
    head, *lines, summary = told.out.splitlines()
    assert head.split()[:3] == ["#", "score", "size"]
    assert [line.split(": ")[-1] for line in lines] == ["large", r"d/odd\n", "small"]
    assert lines[0].split(None, 4)[4].startswith("would go   size * 2 = 606208: large")
    assert summary.startswith("3 files (592.0 KiB) would go; the cache takes 592.0 KiB, 57.8%")


def test_only_what_is_asked_for_goes_and_what_is_not_enough_is_said(home: Path) -> None:
    done = pruned(home, "--threshold", "0", "--larger-than", "250000", "--json")

    assert (done.code, paths(done, "removed")) == (1, ["large"])
    assert "296.0 KiB too many are left: the rest is needed, or not what was asked for" in done.err
    assert {"state": "spared", "reason": "is too small", "files": 2, "bytes": 303104} in [
        json.loads(line) for line in done.out.splitlines()
    ]
    assert pruned(home, "--threshold", "0", "--older-than", "1h", "--json").code == 1


def test_only_what_was_verified_goes_if_that_is_asked_for(home: Path) -> None:
    words = ("--threshold", "0", "--verified-only", "--json")
    never = pruned(home, *words)
    assert never.code == 2
    assert "cachefs verify" in never.err

    listed = pruned(home, "--threshold", "0", "--json", "-n")
    rows = {row["path"]: row for row in map(json.loads, listed.out.splitlines())}
    with HashMemory(home / "cache" / "hashed.sqlite3") as memory:
        for path in (home / "cache" / "data").iterdir():
            name = next(name for name, size in SIZES.items() if size == path.stat().st_size)
            later_ns = time.time_ns() + 10**10
            memory.note(f"data/{path.name}", Stamp.of(path.stat()), "md5", now_ns=later_ns)
            etag = "another" if name == "large" else rows[name]["etag"]
            if name != "small":
                memory.verified(f"data/{path.name}", "md5", ETag(etag), now_ns=later_ns)
    done = pruned(home, *words)

    assert paths(done, "removed") == ["d/odd\n"]
    assert done.code == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--threshold", "full"), "--threshold full is no fill level"),
        (("--policy", "size.real"), "is none of what it may be made of"),
        (("--older-than", "old"), "--older-than old"),
        (("--min-free", "5%"), "--min-free is for mounts"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    home: Path, words: tuple[str, str], said: str
) -> None:
    done = pruned(home, *words)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert " — " in done.err


def test_the_tool_that_operators_know_does_the_same(home: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "tools" / "prune_cache.py",
            "--threshold",
            "0",
            "--cache-dir",
            home / "cache",
        ],
        env=surroundings(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("3 files (592.0 KiB) removed")
