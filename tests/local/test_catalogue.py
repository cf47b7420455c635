"""The database of a cloud manager: its own, whole or not at all, and told of where it cannot be used."""

import sqlite3
from pathlib import Path

import pytest

from cachefs.core.errors import CacheError, UsageError
from cachefs.local.catalogue import Catalogue


def test_a_database_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "db") as other:
        other.execute("CREATE TABLE t (x)")

    with pytest.raises(UsageError, match="something else"):
        Catalogue(tmp_path / "db")

    with sqlite3.connect(tmp_path / "db") as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]


def test_a_file_that_is_no_database_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "db").write_text("no database, but long enough to be taken for one" * 20)

    with pytest.raises(UsageError, match="not a database"):
        Catalogue(tmp_path / "db")


def test_nothing_is_asked_of_a_database_that_is_closed(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "db")
    catalogue.close()

    with pytest.raises(CacheError, match="closed"):
        catalogue.number("SELECT 1")


def test_what_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "db")
    before = catalogue.all("SELECT name FROM sqlite_master ORDER BY name")

    def fail() -> None:
        with catalogue.transaction(), catalogue.transaction():
            catalogue.execute("CREATE TABLE t (x)")
            catalogue.execute("no statement")

    with pytest.raises(CacheError, match="syntax error"):
        fail()

    assert catalogue.all("SELECT name FROM sqlite_master ORDER BY name") == before
    catalogue.close()


def test_a_fork_in_between_is_gone_over(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "db")
    catalogue.before_fork()
    catalogue.after_fork()

    assert catalogue.number("SELECT 1") == 1
    catalogue.close()
