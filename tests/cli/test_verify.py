"""``cachefs verify`` as operators and their scripts see it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Self

import pytest

from cachefs.cli import verify_caches
from cachefs.core.errors import UsageError
from tests.cli.running import Done, cachefs, surroundings

ROOT = Path(__file__).parents[2]
OLD_S = 10**9


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A tree with a copy of it, made well before any test."""
    here = tmp_path / "here"
    for name in ("same", "sub/same too", "changed", "new\nline", "\udcff"):
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode("utf-8", "surrogateescape"))
        os.utime(path, (OLD_S, OLD_S))
    shutil.copytree(here, tmp_path / "there")
    return here


def break_it(tmp_path: Path) -> None:
    (tmp_path / "there" / "changed").write_bytes(b"CHANGED")
    (tmp_path / "there" / "new\nline").unlink()
    (tmp_path / "here" / "\udcff").unlink()


def verify(tmp_path: Path, *words: str) -> Done:
    there = f"file://{tmp_path}/there"
    state = str(tmp_path / "state")
    words = ("--dir", "here", there, "--download", *words)
    return cachefs("verify", *words, home=tmp_path, XDG_STATE_HOME=state)


def test_a_tree_that_is_the_same_is_said_to_be_and_the_second_run_reads_nothing(
    tmp_path: Path, here: Path
) -> None:
    first = verify(tmp_path)
    second = verify(tmp_path)

    assert (first.code, first.err) == (second.code, second.err) == (0, "")
    assert first.out == (
        "5 files: 5 the same\n5 files hashed (32 B), 32 B downloaded;"
        " the store was asked for 1 page of its listing and about 5 single objects\n"
    )
    assert second.out == (
        "5 files: 5 the same\n0 files hashed (0 B);"
        " the store was asked for 1 page of its listing and about 0 single objects\n"
    )
    assert len(list((tmp_path / "state" / "cachefs" / "verify").glob("*.sqlite3"))) == 1


def test_what_is_out_of_sync_is_listed_in_words_and_ends_in_1(tmp_path: Path, here: Path) -> None:
    break_it(tmp_path)

    done = verify(tmp_path)

    assert (done.code, done.err) == (1, "")
    assert sorted(done.out.splitlines()[:-2]) == [
        "differs        changed: other bytes than at the store",
        r"missing_local  \xff",
        r"missing_remote new\nline",
    ]
    assert done.out.splitlines()[-2] == (
        "5 files: 2 the same, 1 differ, 1 missing at the store, 1 missing here"
    )


def test_a_store_that_is_not_there_is_named(tmp_path: Path, here: Path) -> None:
    done = cachefs("verify", "--dir", here, f"file://{tmp_path}/none", home=tmp_path)

    assert (done.code, done.out) == (3, "")
    assert done.err == (
        f"cachefs: cannot verify against file://{tmp_path}/none: no such directory — create it, or check the name\n"
    )


def test_json_has_one_object_a_line_that_other_jobs_take(tmp_path: Path, here: Path) -> None:
    break_it(tmp_path)

    done = verify(tmp_path, "--json")

    rows = {row["path"]: row for row in map(json.loads, done.out.splitlines())}
    assert {path: row["state"] for path, row in rows.items()} == {
        "changed": "differs",
        "new\nline": "missing_remote",
        "\udcff": "missing_local",
    }
    assert rows["changed"] == {
        "path": "changed",
        "state": "differs",
        "reason": "other bytes than at the store",
        "local_md5": hashlib.md5(b"changed").hexdigest(),
        "remote_md5": hashlib.md5(b"CHANGED").hexdigest(),
        "size": 7,
        "mtime": OLD_S,
    }
    assert (done.code, "5 files: 2 the same" in done.err) == (1, True)
    everything = verify(tmp_path, "--json", "--all", "-q")
    assert (len(everything.out.splitlines()), everything.err) == (5, "")


def test_combined_is_what_rclone_check_writes(tmp_path: Path, here: Path) -> None:
    (here / "new\nline").unlink()
    (tmp_path / "there" / "new\nline").unlink()
    break_missing = tmp_path / "there" / "same"
    break_missing.unlink()
    (tmp_path / "there" / "changed").write_bytes(b"CHANGED")
    (here / "\udcff").unlink()

    done = verify(tmp_path, "--combined", "--all", "-q")

    assert sorted(done.out.splitlines()) == [
        "* changed",
        "+ same",
        r"- \xff",
        "= sub/same too",
    ]


def test_the_stand_alone_tool_takes_the_same_words(tmp_path: Path, here: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "tools" / "verify_integrity.py",
            *("--dir", "here", f"file://{tmp_path}/there", "--download"),
        ],
        env=surroundings(tmp_path, XDG_STATE_HOME=str(tmp_path / "state")),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "5 files: 5 the same")


class _Daemon:
    """A daemon that tells which store it is of."""

    def __init__(self, socket: Path) -> None:
        self.store = "file:///mnt/one"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        """Hang up."""

    def ask(self, question: str) -> object:
        return {"status": {"store": self.store}}[question]


def test_a_cache_is_never_mended_by_what_another_store_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verify_caches, "ControlClient", _Daemon)
    verify_caches.require_same_store(tmp_path, "file:///mnt/one")
    with pytest.raises(UsageError, match="is a cache of file:///mnt/one, not of file:///mnt/two"):
        verify_caches.require_same_store(tmp_path, "file:///mnt/two")


def test_what_nobody_watches_and_nobody_chooses_from_loads_neither_bars_nor_patterns(
    tmp_path: Path, here: Path
) -> None:
    words = ["verify", "--dir", str(here), f"file://{tmp_path}/there", "--download"]
    loaded = (
        "import sys\n"
        "from cachefs.cli import main\n"
        f"code = main({words!r})\n"
        "print(code, sorted({'rich', 'pathspec', 'boto3', 'swiftclient', 'trio'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", loaded],
        env=surroundings(tmp_path, XDG_STATE_HOME=str(tmp_path / "state")),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
