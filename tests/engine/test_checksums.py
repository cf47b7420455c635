"""The MD5 of a file is known wherever anything has told it, and never that of other bytes."""

import contextlib
import hashlib
import os
import sqlite3
from pathlib import Path

import pytest

from cachefs.core.errors import NoAttribute
from cachefs.core.fingerprint import with_md5
from cachefs.core.known_md5 import How, KnownMd5
from cachefs.core.source import Source, StoreKind
from cachefs.core.types import ETag
from cachefs.engine.filesystem import Changes
from cachefs.local.db import NAME, Database
from cachefs.remote.memory import MemoryStore
from tests.engine.opaque import Opaque
from tests.engine.rig import LATER, MIB, Rig, serving, store, until

CONTENT = b"some bytes"
ATTRIBUTE = b"user.cachefs.md5"


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


async def md5(rig: Rig, path: str) -> str | None:
    try:
        return (await rig.fs.attributes.getxattr(await rig.ino(path), ATTRIBUTE)).decode()
    except NoAttribute:
        return None


async def told(rig: Rig, path: str) -> object:
    return (await rig.service.explain(path))["md5"]


def rows(rig: Rig) -> dict[str, KnownMd5]:
    return {each.key: each for each in rig.service._disk.md5s.all_of("")}


async def test_an_etag_that_is_the_md5_is_told_and_takes_no_row(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "theirs", CONTENT)
    async with serving(tmp_path, memory) as rig:
        await rig.write("ours", CONTENT)

        for path in ("ours", "theirs"):
            assert await md5(rig, path) == await told(rig, path) == md5_of(CONTENT)
        assert rows(rig) == {}


async def test_what_is_written_has_an_md5_where_the_store_names_none(tmp_path: Path) -> None:
    memory = Opaque()
    async with serving(tmp_path, memory) as rig:
        await rig.write("a", CONTENT)
        asked = memory.requests.get("fingerprint", 0)
        assert await md5(rig, "a") == md5_of(CONTENT)
        assert memory.requests.get("fingerprint", 0) == asked

        await rig.write("a", b"other bytes")
        assert await md5(rig, "a") == md5_of(b"other bytes")
        assert rows(rig)["a"].how == "uploaded"


async def test_of_what_nobody_has_told_the_md5_there_is_none(tmp_path: Path) -> None:
    memory = Opaque()
    store(memory, "a", CONTENT)
    async with serving(tmp_path, memory) as rig:
        assert await md5(rig, "a") is None
        assert await told(rig, "a") is None


async def test_what_the_metadata_tells_is_kept(tmp_path: Path) -> None:
    memory = Opaque()
    store(memory, "a", CONTENT, with_md5({}, md5_of(CONTENT)))
    async with serving(tmp_path, memory) as rig:
        assert await md5(rig, "a") == md5_of(CONTENT)
        assert await told(rig, "a") == md5_of(CONTENT)


async def test_of_a_file_that_waits_for_upload_no_older_md5_is_told(tmp_path: Path) -> None:
    memory = Opaque()
    async with serving(tmp_path, memory, **LATER) as rig:
        await rig.write("a", CONTENT)
        assert await md5(rig, "a") is None
        await rig.service.flush([], wait=True)
        assert await md5(rig, "a") == md5_of(CONTENT)

        fh = await rig.open("a", os.O_RDWR)
        await rig.fs.write(fh, 0, b"S")
        assert (await md5(rig, "a"), await told(rig, "a")) == (None, None)
        await rig.close(fh)
        assert (await md5(rig, "a"), await told(rig, "a")) == (None, None)


async def test_a_new_version_of_somebody_else_is_not_told_the_md5_of_the_old(
    tmp_path: Path,
) -> None:
    memory = Opaque()
    async with serving(tmp_path, memory, metadata_ttl_s=0) as rig:
        await rig.write("a", CONTENT)
        assert await md5(rig, "a") == md5_of(CONTENT)

        rig.store("a", b"SOME bytes")
        assert await md5(rig, "a") is None
        assert await told(rig, "a") is None


async def test_the_md5_goes_along_with_a_rename_and_a_chmod_and_goes_with_the_file(
    tmp_path: Path,
) -> None:
    memory = Opaque()
    async with serving(tmp_path, memory) as rig:
        await rig.mkdir("d")
        await rig.write("d/a", CONTENT)
        await rig.rename("d/a", "d/b")
        await rig.fs.setattr(await rig.ino("d/b"), Changes(mode=0o600))
        assert await md5(rig, "d/b") == md5_of(CONTENT)
        await rig.rename("d", "e")
        assert await md5(rig, "e/b") == md5_of(CONTENT)
        assert set(rows(rig)) == {"e/b"}

        await rig.fs.unlink(*await rig.spot("e/b"))
        assert rows(rig) == {}


async def test_an_md5_is_kept_under_the_key_that_the_store_has(tmp_path: Path) -> None:
    source = Source(StoreKind.S3, "photos", "100%/")
    async with serving(tmp_path, Opaque(), source=source) as rig:
        await rig.write("_\udcff", CONTENT)
        found = rig.service._disk.md5s.find("photos", "100%/_\udcff")

    assert found is not None
    assert found.md5 == md5_of(CONTENT)


async def test_what_was_read_wholly_has_an_md5_from_then_on(tmp_path: Path) -> None:
    memory = Opaque()
    content = os.urandom(3 * MIB + 7)
    store(memory, "a", content)
    async with serving(tmp_path, memory) as rig:
        fh = await rig.open("a")
        await rig.read_fh(fh, 0, 1000)
        assert await rig.read_fh(fh) == content
        await until(lambda: "a" in rows(rig))
        await rig.fs.release(fh)

        found = rows(rig)["a"]
        assert (found.md5, found.how) == (md5_of(content), "read")
        assert await md5(rig, "a") == md5_of(content)


async def test_what_is_written_while_it_is_hashed_is_not_told_the_md5_of_before(
    tmp_path: Path,
) -> None:
    memory = Opaque()
    store(memory, "a", os.urandom(2 * MIB))
    async with serving(tmp_path, memory, **LATER) as rig:
        fh = await rig.open("a", os.O_RDWR)
        await rig.read_fh(fh)
        await rig.fs.write(fh, 0, b"changed")
        await rig.close(fh)
        await rig.service.flush([], wait=True)

        assert await md5(rig, "a") == md5_of(await rig.read("a"))


async def test_what_is_unused_in_the_database_is_given_back_while_it_serves(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "a", CONTENT)
    async with serving(tmp_path, memory) as rig:
        many = [
            KnownMd5("", f"{number}{'k' * 800}", ETag("e-2"), 1, "0" * 32, How.GIVEN)
            for number in range(2000)
        ]
        rig.service.keep_md5s(many)
        Database.checkpoint(tmp_path / NAME)
        grown = (tmp_path / NAME).stat().st_size
        while rig.service.forget_md5s(None):
            pass
        Database.checkpoint(tmp_path / NAME)
        assert (tmp_path / NAME).stat().st_size == grown

        told = await rig.service.vacuum()
        assert await rig.read("a") == CONTENT

        after = (tmp_path / NAME).stat().st_size
        assert told == {"before": grown, "after": after, "is_possible": True, "is_held": False}
        assert after < grown / 4
        assert rows(rig) == {}


async def test_a_program_that_reads_all_the_time_ends_the_giving_back_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.local.db._WAL_PRESSING", 2**20)
    monkeypatch.setattr("cachefs.engine.service.WAL_KEPT", 2**19)
    async with serving(tmp_path) as rig:
        rig.service.keep_md5s(
            [
                KnownMd5("", f"{number}{'k' * 800}", ETag("e-2"), 1, "0" * 32, How.GIVEN)
                for number in range(8000)
            ]
        )
        while rig.service.forget_md5s(None):
            pass
        Database.checkpoint(tmp_path / NAME)
        unused = rig.service._disk.db.one("PRAGMA freelist_count")
        with contextlib.closing(sqlite3.connect(tmp_path / NAME, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM meta").fetchall()

            told = await rig.service.vacuum()

            assert told["is_held"]
            left = rig.service._disk.db.one("PRAGMA freelist_count")
            assert unused is not None
            assert left is not None
            assert 0 < left[0] < unused[0]
        told = await rig.service.vacuum()
        assert not told["is_held"]
        assert rig.service._disk.db.one("PRAGMA freelist_count") == (0,)
