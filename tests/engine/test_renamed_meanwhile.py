"""A file that is renamed while its promise is being written: the promise tells of the name that it has then."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from cachefs.local.cache import Cache
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import LATER, Rig, serving, store


class Held:
    """Holds the first call of a method back, in its thread, until the test lets it go."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        self.reached = trio.Event()
        self._go = threading.Event()
        self._has_held = False
        call: Callable[..., Any] = getattr(owner, name)

        def held(*args: object, **kwargs: object) -> object:
            if not self._has_held:
                self._has_held = True
                trio.from_thread.run_sync(self.reached.set)
                assert self._go.wait(20), "nobody let it go"
            return call(*args, **kwargs)

        patch.setattr(owner, name, held)

    def let_go(self) -> None:
        self._go.set()


async def _is_owed_to(rig: Rig, tmp_path: Path, key: str, content: bytes) -> None:
    """Assert that a crash at this moment finds the bytes under *key* alone, and that they are stored there."""
    image = rig.crash_image(tmp_path / "image")
    await rig.flush()
    assert not rig.service.dirty()
    assert rig.objects() == {key: content}
    async with serving(image, MemoryStore(), **LATER) as again:
        assert [one["key"] for one in again.service.dirty()] == [key]
        await again.flush()
        assert again.objects() == {key: content}


@pytest.mark.parametrize("directory", ["", "d/"])
async def test_a_file_that_is_renamed_during_its_close_is_stored_under_its_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        if directory:
            await rig.mkdir("d")
        fh = await rig.create(f"{directory}old")
        await rig.fs.write(fh, 0, b"content")
        syncing = Held(monkeypatch, Cache, "sync")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fs.flush, fh)
            await syncing.reached.wait()
            if directory:
                await rig.rename("d", "e")
                rig.remove("e/")
            else:
                await rig.rename("old", "new")
            syncing.let_go()
        await rig.fs.release(fh)
        await _is_owed_to(rig, tmp_path, "e/old" if directory else "new", b"content")


async def test_a_file_that_is_renamed_while_its_first_write_is_promised_is_stored_under_its_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = MemoryStore()
    store(memory, "old", b"before")
    async with serving(tmp_path / "c", memory) as rig:
        fh = await rig.open("old", os.O_RDWR)
        await rig.read_fh(fh)
        promising = Held(monkeypatch, Cache, "write_promise")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fs.write, fh, 0, b"after!")
            await promising.reached.wait()
            await rig.rename("old", "new")
            promising.let_go()
        await rig.close(fh)
        assert rig.objects() == {"new": b"after!"}
        assert not rig.service.dirty()
