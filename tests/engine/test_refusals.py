"""What becomes of bytes that the store refuses: for good, or until somebody has access again."""

import errno
from pathlib import Path

import pytest

from cachefs.core.errors import (
    Denied,
    ObjectTooLarge,
    OverQuota,
    StoreError,
    StoreFull,
    errno_of,
)
from cachefs.core.types import UploadMode
from cachefs.engine import upload
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import FOREVER_ASKING, LATER, MIB, serving, store, until

_FOR_EVER = 10**6
_LONG_NS = 50 * 10**9
REFUSALS = [
    (OverQuota("the bucket's quota"), errno.EDQUOT),
    (StoreFull("no space"), errno.ENOSPC),
    (ObjectTooLarge("at most 5 GB"), errno.EFBIG),
]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that failed is not tried again by itself while the test lasts."""
    monkeypatch.setattr(upload, "next_try_ns", lambda _tries, now_ns, _jitter: now_ns + _LONG_NS)


async def test_a_close_is_told_of_a_denial_at_once_and_the_bytes_go_when_access_is_back(
    tmp_path: Path,
) -> None:
    refusal = Denied("expired")
    async with serving(tmp_path) as rig:
        rig.watched.fail("before", "put", refusal, times=2)
        with pytest.raises(type(refusal), match=str(refusal)):
            await rig.write("file", b"content")
        assert len(rig.watched.of("put")) == 1
        (waiting,) = rig.service.dirty()
        assert (waiting["state"], waiting["error"]) == ("queued", str(refusal))
        assert await rig.read("file") == b"content"

        await until(lambda: not rig.service.dirty())  # by itself

        assert rig.objects() == {"file": b"content"}
        assert len(rig.watched.of("put")) == 3


async def test_what_a_close_has_acknowledged_waits_until_access_is_back(tmp_path: Path) -> None:
    settings = {"upload": UploadMode.BACKGROUND}
    async with serving(tmp_path, **settings) as rig:  # type: ignore[arg-type]
        rig.watched.fail("before", "put", Denied("expired"), times=2)
        await rig.write("file", b"content")
        await until(lambda: not rig.service.dirty())
        assert rig.objects() == {"file": b"content"}


@pytest.mark.usefixtures("patient")
async def test_a_flush_does_not_wait_for_the_next_try_of_what_was_denied(tmp_path: Path) -> None:
    async with serving(tmp_path, **LATER) as rig:
        rig.watched.fail("before", "put", Denied("expired"))
        await rig.write("file", b"content")
        done = await rig.flush()
        assert done["failed"] == [{"path": "file", "error": "expired"}]

        assert (await rig.flush())["uploaded"] == 1


@pytest.mark.usefixtures("patient")
async def test_the_first_upload_that_has_access_again_takes_the_others_along(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, **LATER) as rig:
        for name in ("a", "b", "c"):
            rig.watched.fail("before", "put", Denied("expired"), key=name)
            await rig.write(name, b"content")
        assert len(list((await rig.flush())["failed"])) == 3  # type: ignore[call-overload]

        await rig.service.flush(["a"], wait=True)

        await until(lambda: not rig.service.dirty())


@pytest.mark.usefixtures("patient")
async def test_what_alone_is_denied_is_not_tried_each_time_that_another_file_is_stored(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as rig:
        for name in ("mine", "other"):
            rig.watched.fail("before", "put", Denied("not yours"), key=name, times=_FOR_EVER)
            with pytest.raises(Denied):
                await rig.write(name, b"content")
        for number in range(20):
            await rig.write(f"file{number}", b"content")
        assert len(rig.watched.of("put", "mine")) == 1
        assert len(rig.watched.of("put", "other")) == 1


@pytest.mark.parametrize(("refusal", "number"), REFUSALS)
async def test_what_is_refused_for_good_is_parked_with_the_reason_and_said_by_the_close(
    tmp_path: Path, refusal: StoreError, number: int
) -> None:
    async with serving(tmp_path) as rig:
        rig.watched.fail("before", "put", refusal, times=_FOR_EVER)
        with pytest.raises(type(refusal)) as said:
            await rig.write("file", b"content")
        assert errno_of(said.value) == number
        (parked,) = rig.service.dirty()
        assert (parked["state"], parked["error"]) == ("parked", str(refusal))
        asked = len(rig.watched.of("put"))

        await rig.names()
        assert await rig.read("file") == b"content"
        assert len(rig.watched.of("put")) == asked  # nobody tries again unasked

        rig.watched.rules.clear()
        assert await rig.service.upload(int(str(parked["id"]))) == "file"
        assert rig.objects() == {"file": b"content"}


async def test_another_write_gives_what_was_refused_another_chance(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        rig.watched.fail("before", "put", OverQuota("full"))
        with pytest.raises(OverQuota):
            await rig.write("file", b"too long")
        await rig.write("file", b"short")
        assert rig.objects() == {"file": b"short"}
        assert rig.service.dirty() == []


async def test_what_was_refused_outlives_a_restart_and_a_full_cache(tmp_path: Path) -> None:
    memory = MemoryStore()
    content = b"p" * MIB
    for number in range(8):
        store(memory, f"large{number}", bytes(MIB))
    async with serving(tmp_path / "c", memory, cache_size=6 * MIB) as rig:
        rig.watched.fail("before", "put", OverQuota("full"), times=_FOR_EVER)
        with pytest.raises(OverQuota):
            await rig.write("refused", content)
    async with serving(tmp_path / "c", memory, cache_size=6 * MIB) as rig:
        rig.watched.fail("before", "put", OverQuota("full"), times=_FOR_EVER)
        await until(lambda: [each["state"] for each in rig.service.dirty()] == ["parked"])
        for number in range(8):  # more than the cache holds
            await rig.read(f"large{number}")
        assert await rig.read("refused") == content
        assert len(rig.watched.of("put")) <= 1
        target = tmp_path / "rescued"
        await rig.service.export(int(str(rig.service.dirty()[0]["id"])), target)
        assert target.read_bytes() == content
        rig.check()


async def test_while_access_is_denied_what_waits_is_reached_and_what_is_old_is_not(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, **LATER, **FOREVER_ASKING) as rig:
        rig.store("dir/clean", b"stored")
        assert await rig.read("dir/clean") == b"stored"
        fh = await rig.open("dir/clean")
        checked_ns = rig.service._names.now_ns()
        await rig.write("dir/waiting", b"not yet")
        for operation in ("head", "list", "get_range", "put"):
            rig.watched.fail("before", operation, Denied("expired"), times=_FOR_EVER)

        assert await rig.read("dir/waiting") == b"not yet"
        assert await rig.read_fh(fh) == b"stored"  # it is open, and all of it is here
        # Younger answers are believed.
        await until(lambda: rig.service._names.now_ns() > checked_ns + 10**8)
        with pytest.raises(Denied):
            await rig.ino("dir/clean")
        with pytest.raises(Denied):
            await rig.exists("dir/nothing")
        await rig.fs.release(fh)
        rig.watched.rules.clear()
        assert await rig.read("dir/clean") == b"stored"


async def test_while_access_is_denied_what_is_cached_and_fresh_is_served(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        rig.store("file", b"stored")
        assert await rig.read("file") == b"stored"
        for operation in ("head", "list", "get_range"):
            rig.watched.fail("before", operation, Denied("expired"), times=_FOR_EVER)
        assert await rig.read("file") == b"stored"
