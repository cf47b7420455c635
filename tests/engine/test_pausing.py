"""Why an upload is called off decides what becomes of what the store has of it already."""

import threading
from collections.abc import Mapping
from pathlib import Path

from cachefs.core.extents import Extent
from cachefs.core.types import ETag, Key, ObjectInfo, UploadMode
from cachefs.remote.memory import MemoryStore
from cachefs.remote.store import Body, UploadPaused, UploadStopped
from tests.engine.rig import serving, until


class Endless(MemoryStore):
    """A store that takes no end of bytes, until it is told why it should not."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.called_off: list[type[UploadStopped]] = []
        self._pause = threading.Event()

    def put(
        self,
        key: Key,
        body: Body,
        *,
        meta: Mapping[str, str],
        content_type: str | None = None,
        if_match: ETag | None,
    ) -> ObjectInfo:
        self.begun.set()
        try:
            while True:
                body.reader(Extent(0, 1)).read(1)
                self._pause.wait(0.002)
        except UploadStopped as why:
            self.called_off.append(type(why))
            raise


async def test_the_end_of_the_daemon_pauses_an_upload(tmp_path: Path) -> None:
    store = Endless()
    async with serving(tmp_path / "c", store, upload=UploadMode.BACKGROUND) as rig:
        await rig.write("a", b"content")
        await until(store.begun.is_set)
    assert store.called_off == [UploadPaused]


async def test_a_removal_stops_an_upload_for_good(tmp_path: Path) -> None:
    store = Endless()
    async with serving(tmp_path / "c", store, upload=UploadMode.BACKGROUND) as rig:
        await rig.write("a", b"content")
        await until(store.begun.is_set)
        await rig.unlink("a")
        assert store.called_off == [UploadStopped]
