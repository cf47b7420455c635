"""The ledger of large uploads of a job without a mount."""

import stat
from pathlib import Path

import pytest

from cachefs.core.errors import CacheError, InUse
from cachefs.core.types import Key
from cachefs.local.ledger import FileLedger

ODD = Key("odd\n\udc80")


def test_what_was_noted_is_there_for_the_next_process(tmp_path: Path) -> None:
    with FileLedger(tmp_path / "works.sqlite3", job="a job") as ledger:
        ledger.note(ODD, "first")
        ledger.note(Key("b"), "other")
        ledger.note(ODD, "second")
        ledger.note(Key("b"), "another", replaces="other")

    with FileLedger(tmp_path / "works.sqlite3", job="a job") as ledger:
        assert ledger.noted(ODD) == ["first", "second"]
        assert ledger.all() == [(ODD, "first"), (ODD, "second"), (Key("b"), "another")]
        ledger.strike("first")
        ledger.strike("never noted")
        assert ledger.noted(ODD) == ["second"]


def test_it_is_in_the_hands_of_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "works.sqlite3"
    with (
        FileLedger(path, job="a job"),
        pytest.raises(InUse, match="a job is running already"),
    ):
        FileLedger(path, job="a job")
    with FileLedger(path, job="a job"):
        pass


def test_one_that_makes_no_sense_is_begun_anew_and_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "works.sqlite3"
    path.write_bytes(b"no database" * 1000)

    with FileLedger(path, job="a job") as ledger:
        ledger.note(Key("a"), "work")
        assert ledger.noted(Key("a")) == ["work"]

    assert (tmp_path / "works.sqlite3.broken").read_bytes() == b"no database" * 1000


def test_it_is_for_its_owner_only_and_no_link_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "state" / "works.sqlite3"
    FileLedger(path, job="a job").close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    (tmp_path / "link.sqlite3").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="cannot be noted"):
        FileLedger(tmp_path / "link.sqlite3", job="a job")
    assert not (tmp_path / "elsewhere").exists()


def test_a_copy_that_was_not_seen_through_is_known_to_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "works.sqlite3"
    with FileLedger(path, job="a job") as ledger:
        for key in (ODD, Key("a"), Key("b")):
            ledger.begin(key)
        ledger.begin(ODD)
        ledger.end(Key("a"))
        ledger.end(Key("never begun"))

    with FileLedger(path, job="a job") as ledger:
        assert ledger.begun() == {ODD, Key("b")}
        ledger.note(ODD, "work")
        ledger.end_all()
        assert ledger.begun() == frozenset()
        assert ledger.noted(ODD) == ["work"]
