"""What is known of a database before it is opened: proven, changed, damaged, or nothing."""

import os
import sqlite3
import threading
from pathlib import Path

import pytest

from cachefs.core.errors import CacheError, Damaged
from cachefs.local import db as module
from cachefs.local.db import NAME, Database
from cachefs.local.soundness import Soundness, Verdict


def ended(directory: Path) -> Path:
    """A database at the end of a session."""
    database = Database(directory)
    database.set_meta("test-1", "a" * 5000)
    database.close_proven()
    return database.path


def broken_files(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"{NAME}.broken-*"))


def flip(path: Path, place: int) -> None:
    """What a disk does: a bit is another, and nothing says that the file was written."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every database is too large to be checked before it is used."""
    monkeypatch.setattr(module, "_CHECKED_FIRST", 0)


def test_what_a_session_left_is_proven_and_believed_unchecked(tmp_path: Path) -> None:
    path = ended(tmp_path)
    assert Soundness(path).judge().verdict is Verdict.PROVEN
    database = Database(tmp_path)
    assert database.is_proven
    assert not database.is_unchecked
    assert not database.was_changed
    database.close()


def test_the_proof_ends_when_the_database_is_opened(tmp_path: Path) -> None:
    path = ended(tmp_path)
    Database(tmp_path).close()  # as a daemon that is killed: it proves nothing
    assert Soundness(path).judge().verdict is Verdict.UNTOLD


def test_a_bit_that_flips_within_a_value_is_found_which_no_check_of_sqlite_does(
    tmp_path: Path,
) -> None:
    path = ended(tmp_path)
    place = path.read_bytes().index(b"aaaa")
    flip(path, place)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()

    database = Database(tmp_path)
    assert database.was_rebuilt
    assert database.get_meta("test-1") is None
    assert len(broken_files(tmp_path)) == 1
    assert not database.is_proven
    database.close_proven()
    assert Soundness(path).judge().verdict is Verdict.PROVEN


def test_what_a_program_has_changed_is_checked_and_said(tmp_path: Path) -> None:
    path = ended(tmp_path)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = 'b' WHERE name = 'test-1'")
    connection.commit()
    connection.close()
    database = Database(tmp_path)
    assert database.was_changed
    assert not database.was_rebuilt
    assert database.get_meta("test-1") == "b"
    database.close()


def test_a_log_beside_it_has_rows_that_nothing_proves(tmp_path: Path) -> None:
    path = ended(tmp_path)
    Path(f"{path}-wal").touch()  # as whoever may only read leaves it
    assert Soundness(path).judge().verdict is Verdict.PROVEN
    Path(f"{path}-wal").write_bytes(b"rows")
    assert Soundness(path).judge().verdict is Verdict.CHANGED


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"file": 1, "sum": "x"}'])
def test_garbage_in_its_place_proves_nothing(tmp_path: Path, content: bytes) -> None:
    ended(tmp_path)
    (tmp_path / "soundness").write_bytes(content)
    database = Database(tmp_path)
    assert not database.is_proven
    assert not database.was_rebuilt
    assert database.get_meta("test-1") == "a" * 5000
    database.close()


def test_a_database_that_is_gone_is_made_anew_whatever_is_said_of_it(tmp_path: Path) -> None:
    ended(tmp_path).unlink()
    database = Database(tmp_path)
    assert database.was_made
    assert not database.was_rebuilt
    assert not database.is_proven
    database.close()


def test_damage_that_is_met_while_it_is_used_has_the_next_start_set_it_aside(
    tmp_path: Path,
) -> None:
    path = ended(tmp_path)
    database = Database(tmp_path)
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))
    database.execute("PRAGMA shrink_memory")  # or SQLite would go on with what it has read
    with pytest.raises(Damaged):
        database.get_meta("test-1")
    assert database.state()["state"] == "damaged"
    database.close_proven()
    found = Soundness(path).judge()
    assert found.verdict is Verdict.DAMAGED
    assert found.reason == database.damage

    again = Database(tmp_path)
    assert again.was_rebuilt
    assert again.state() == {"state": "sound"}
    again.close_proven()
    assert Soundness(path).judge().verdict is Verdict.PROVEN


# ---- too large to be checked first -----------------------------------------------------------


@pytest.mark.usefixtures("tiny")
def test_one_that_is_too_large_is_used_before_it_is_checked_and_proven_only_after(
    tmp_path: Path,
) -> None:
    path = ended(tmp_path)
    Soundness(path).forget()
    database = Database(tmp_path)
    assert database.is_unchecked
    assert database.state() == {"state": "unchecked"}
    database.close_proven()
    assert Soundness(path).judge().verdict is Verdict.UNTOLD

    database = Database(tmp_path)
    database.examined(Database.examine(path, threading.Event()))
    assert database.state() == {"state": "sound"}
    database.close_proven()
    assert Soundness(path).judge().verdict is Verdict.PROVEN


@pytest.mark.usefixtures("tiny")
def test_what_tells_of_debts_is_checked_first_however_large_the_database(tmp_path: Path) -> None:
    path = ended(tmp_path)
    Soundness(path).forget()
    connection = sqlite3.connect(path)
    ((root,),) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'intents'")
    connection.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(os.urandom(4096))
    database = Database(tmp_path)
    assert database.was_rebuilt
    database.close()


def test_an_examination_that_is_told_to_stop_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, stop = ended(tmp_path), threading.Event()
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(4096))
    assert Database.examine(path, stop)
    monkeypatch.setattr(module, "_STEPS", 1)
    stop.set()
    assert Database.examine(path, stop) is None


def test_an_examination_names_the_damage(tmp_path: Path) -> None:
    path = ended(tmp_path)
    stop = threading.Event()
    assert Database.examine(path, stop) is None
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(4096))
    assert Database.examine(path, stop)
    path.write_bytes(os.urandom(8192))
    assert "not a database" in str(Database.examine(path, threading.Event()))
    path.unlink()
    with pytest.raises(CacheError, match="cannot look at"):
        Database.examine(path, threading.Event())
