"""What a push remembers outlives it, and belongs to one push at a time."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cachefs.core.errors import CacheError, InUse
from cachefs.core.types import ETag, Key
from cachefs.local.pushed import PushMemory, Stored

_ODD = Key("caf\udce9/\n")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "push.sqlite3"


def test_what_the_store_has_is_known_in_the_next_run(path: Path) -> None:
    stored = Stored(ETag("e"), "md5", "644 0 0 5")
    with PushMemory(path) as memory:
        memory.note_stored(_ODD, Stored(ETag("old"), None, ""))
        memory.note_stored(_ODD, stored)
        memory.note_stored(Key("gone"), stored)
        memory.forget(Key("gone"))
    with PushMemory(path) as memory:
        assert memory.stored(_ODD) == stored
        assert memory.stored(Key("gone")) is None


def test_a_kill_loses_nothing_of_the_ledger(path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from cachefs.local.pushed import PushMemory\n"
        "memory = PushMemory(Path(sys.argv[1]))\n"
        "memory.note('k', 'one'); memory.note('k', 'two', replaces='one'); memory.note('k', 'three')\n"
        "memory.note('other', 'four'); memory.strike('four'); memory.note_begun('k', {'mode': '5'})\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, path], check=False)

    with PushMemory(path) as memory:
        assert memory.noted(Key("k")) == ["two", "three"]
        assert memory.works() == [("k", "two"), ("k", "three")]
        assert memory.begun_with(Key("k")) == {"mode": "5"}
        memory.end_begun(Key("k"))
        assert memory.begun_with(Key("k")) is None


def test_what_was_noted_some_time_ago_survives_a_kill(path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from cachefs.local import pushed\n"
        "pushed._COMMIT_AFTER_S = 0.0\n"
        "memory = pushed.PushMemory(Path(sys.argv[1]))\n"
        "memory.note_stored('early', pushed.Stored('e', None, ''))\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, path], check=False)

    with PushMemory(path) as memory:
        assert memory.stored(Key("early")) is not None


def test_one_push_at_a_time_has_it(path: Path) -> None:
    with PushMemory(path), pytest.raises(InUse, match="under way"):
        PushMemory(path)
    PushMemory(path).close()


def test_what_is_to_be_deleted_is_of_one_run_and_comes_before_its_directory(path: Path) -> None:
    with PushMemory(path) as memory:
        for number in range(1200):
            memory.doom(Key(f"d/{number:04}"), ETag("e"))
        memory.doom(Key("d/"), ETag("e"))
        keys = [key for key, _ in memory.doomed()]
        assert memory.doomed_count() == len(keys) == len(set(keys)) == 1201
        assert keys[-1] == "d/"
    with PushMemory(path) as memory:
        assert memory.doomed_count() == 0


def test_a_name_is_first_once_in_a_run(path: Path) -> None:
    with PushMemory(path) as memory:
        assert memory.is_first(_ODD)
        assert not memory.is_first(_ODD)
    with PushMemory(path) as memory:
        assert memory.is_first(_ODD)


def test_a_broken_file_is_put_aside_and_begun_anew(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all" * 100)
    with PushMemory(path) as memory:
        assert memory.works() == []
    assert path.with_name("push.sqlite3.broken").exists()


def test_it_is_private(path: Path) -> None:
    with PushMemory(path):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700


def test_a_link_in_its_place_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    (tmp_path / "victim").write_bytes(b"")
    path.symlink_to(tmp_path / "victim")
    with pytest.raises(CacheError, match="push"):
        PushMemory(path)
    assert (tmp_path / "victim").read_bytes() == b""
