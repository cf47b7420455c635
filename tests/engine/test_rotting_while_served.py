"""Cache files that are harmed under a running daemon: fetched again while clean, never stored while dirty."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachefs.core.errors import CachefsError, Fault
from cachefs.core.types import UploadMode
from cachefs.engine.recovery import open_cache
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import LATER, MIB, Rig, serving

CONTENT = bytes(range(256)) * (3 * MIB // 256) + b"the end"
Harm = Callable[[Path], None]


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(2 * MIB)
        byte = file.read(1)[0]
        file.seek(2 * MIB)
        file.write(bytes([byte ^ 1]))


def cut(path: Path) -> None:
    os.truncate(path, MIB)


def put_a_directory_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_a_link_there(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


SEEN_AT_ONCE: dict[str, Harm] = {
    "cut": cut,
    "gone": os.remove,
    "a directory": put_a_directory_there,
    "a link": put_a_link_there,
}
HARMS = {"flipped": flip, **SEEN_AT_ONCE}
CLOSE: dict[str, Any] = {"upload": UploadMode.CLOSE}


def content_file(directory: Path) -> Path:
    (path,) = (each for each in (directory / "data").iterdir() if each.name.isdigit())
    return path


@pytest.mark.parametrize("settings", [CLOSE, LATER], ids=["close", "background"])
@pytest.mark.parametrize("harm", SEEN_AT_ONCE.values(), ids=SEEN_AT_ONCE)
async def test_what_is_clean_and_not_there_any_more_is_fetched_again(
    tmp_path: Path, harm: Harm, settings: dict[str, Any]
) -> None:
    async with serving(tmp_path, **settings) as rig:
        await rig.write("file", CONTENT)
        await rig.flush()
        harm(content_file(tmp_path))
        assert await rig.read("file") == CONTENT
        assert await rig.read("file") == CONTENT
        assert rig.objects() == {"file": CONTENT}


async def test_what_changed_after_it_was_put_there_is_found_at_the_next_start(
    tmp_path: Path,
) -> None:
    # Until then bytes that this daemon has put there are believed.
    memory = MemoryStore()
    async with serving(tmp_path, memory) as rig:
        await rig.write("file", CONTENT)
        flip(content_file(tmp_path))
        assert rig.objects() == {"file": CONTENT}
    async with serving(tmp_path, memory) as rig:
        assert await rig.read("file") == CONTENT
        assert rig.watched.of("get_range")


async def is_parked_and_not_stored(rig: Rig, stored: dict[str, bytes]) -> None:
    """Assert that the operator is told, that nobody is served other bytes, and that the store is as it was."""
    answer = await rig.service.flush((), wait=True)
    assert len(answer["failed"]) == 1, answer  # type: ignore[arg-type]
    (dirty,) = rig.service.dirty()
    assert (dirty["path"], dirty["state"]) == ("file", "parked")
    assert dirty["error"]
    assert rig.objects() == stored
    rig.cache.check()


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
async def test_acknowledged_bytes_that_are_harmed_before_their_upload_are_parked(
    tmp_path: Path, harm: Harm, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path, **LATER) as rig:
        rig.store("file", b"old")
        await rig.write("file", CONTENT)
        harm(content_file(tmp_path))
        await is_parked_and_not_stored(rig, {"file": b"old"})
    assert [record for record in caplog.records if record.levelname == "ERROR"]
    with open_cache(tmp_path) as stopped:
        (dirty,) = stopped.dirty()  # the next mount tries once more
        assert dirty["error"]


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
async def test_bytes_whose_upload_failed_and_that_are_harmed_then_are_parked(
    tmp_path: Path, harm: Harm
) -> None:
    async with serving(tmp_path, **CLOSE) as rig:
        rig.store("file", b"old")
        rig.watched.fail("before", "put", Fault("down"), times=10**6)
        with pytest.raises(CachefsError):
            await rig.write("file", CONTENT)
        harm(content_file(tmp_path))
        rig.watched.rules.clear()
        await is_parked_and_not_stored(rig, {"file": b"old"})


@pytest.mark.parametrize("settings", [CLOSE, LATER], ids=["close", "background"])
async def test_a_dirty_file_that_is_cut_while_it_is_open_is_an_error_and_is_parked(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    async with serving(tmp_path, **settings) as rig:
        fh = await rig.create("file")
        await rig.fs.write(fh, 0, CONTENT)
        cut(content_file(tmp_path))
        with pytest.raises(CachefsError):
            await rig.read_fh(fh)
        with contextlib.suppress(CachefsError):
            await rig.close(fh)
        await is_parked_and_not_stored(rig, {})


async def test_what_lies_in_the_data_directory_and_is_none_of_ours_hinders_nobody(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    async with serving(tmp_path, memory) as rig:
        await rig.write("file", CONTENT)
    for name in ("lost+found", "7", "8.promise", "9.sealed"):
        (tmp_path / "data" / name).mkdir()
    (tmp_path / "data" / "10").symlink_to("/etc/passwd")
    (tmp_path / "data" / "11.promise").symlink_to("/etc/passwd")
    async with serving(tmp_path, memory) as rig:
        assert await rig.read("file") == CONTENT
        await rig.write("new", b"x")
        assert rig.objects() == {"file": CONTENT, "new": b"x"}
