"""What becomes of a write whose base is no longer what the store holds."""

import os
from pathlib import Path

import pytest

from cachefs.core.errors import CachefsError, Exists, Fault, Overtaken, Refused
from cachefs.core.types import ConflictPolicy, Key
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import LATER, Rig, lose_answer, serving, store


@pytest.fixture(params=["changed", "appeared"])
def was_there(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "changed")


async def _race(rig: Rig, *, was_there: bool) -> None:
    """Write ours while theirs comes in between."""
    fh = await (rig.open("d/a", os.O_RDWR) if was_there else rig.create("d/a"))
    await rig.fs.write(fh, 0, b"ours!")
    rig.store("d/a", b"theirs")
    await rig.close(fh)


def _memory(*, was_there: bool) -> MemoryStore:
    memory = MemoryStore()
    store(memory, "d/other", b"")
    if was_there:
        store(memory, "d/a", b"base")
    return memory


async def test_keep_both_keeps_both_and_shows_both(tmp_path: Path, was_there: bool) -> None:
    async with serving(tmp_path / "c", _memory(was_there=was_there)) as rig:
        await _race(rig, was_there=was_there)
        found = rig.objects()
        assert found.pop("d/other") == b""
        assert found.pop("d/a") == b"theirs"
        ((beside, content),) = found.items()
        assert beside.startswith("d/a.conflict-")
        assert content == b"ours!"
        assert await rig.names("d") == sorted(["a", "other", beside.removeprefix("d/")])
        assert await rig.read("d/a") == b"theirs"
        assert await rig.read(beside) == b"ours!"
        assert len(rig.service._disk.journal.conflicts()) == 1
        assert rig.service.dirty() == []
        rig.check()


async def test_ours_overwrites(tmp_path: Path, was_there: bool) -> None:
    memory = _memory(was_there=was_there)
    async with serving(tmp_path / "c", memory, conflict=ConflictPolicy.OURS) as rig:
        await _race(rig, was_there=was_there)
        assert rig.objects() == {"d/a": b"ours!", "d/other": b""}
        assert await rig.read("d/a") == b"ours!"


async def test_theirs_gives_ours_up(tmp_path: Path, was_there: bool) -> None:
    memory = _memory(was_there=was_there)
    async with serving(tmp_path / "c", memory, conflict=ConflictPolicy.THEIRS) as rig:
        await _race(rig, was_there=was_there)
        assert rig.objects() == {"d/a": b"theirs", "d/other": b""}
        assert await rig.read("d/a") == b"theirs"
        assert rig.service.dirty() == []


async def test_fail_parks_ours_for_the_operator(tmp_path: Path, was_there: bool) -> None:
    memory = _memory(was_there=was_there)
    async with serving(tmp_path / "c", memory, conflict=ConflictPolicy.FAIL) as rig:
        with pytest.raises(Refused):
            await _race(rig, was_there=was_there)
        assert rig.objects() == {"d/a": b"theirs", "d/other": b""}
        (dirty,) = rig.service.dirty()
        assert dirty["state"] == "parked"
        assert await rig.read("d/a") == b"ours!"


@pytest.mark.parametrize("policy", ConflictPolicy)
async def test_an_object_deleted_meanwhile_is_stored_anew_where_the_policy_lets_ours_win(
    tmp_path: Path, policy: ConflictPolicy
) -> None:
    async with serving(tmp_path / "c", _memory(was_there=True), conflict=policy) as rig:
        fh = await rig.open("d/a", os.O_RDWR)
        await rig.fs.write(fh, 0, b"ours!")
        rig.remove("d/a")
        if policy is ConflictPolicy.FAIL:
            with pytest.raises(Refused):
                await rig.close(fh)
        else:
            await rig.close(fh)
        wins = policy in (ConflictPolicy.KEEP_BOTH, ConflictPolicy.OURS)
        assert rig.objects().get("d/a") == (b"ours!" if wins else None)
        assert len(rig.service.dirty()) == (policy is ConflictPolicy.FAIL)
        assert await rig.exists("d/a") == (policy is not ConflictPolicy.THEIRS)
        assert len(rig.service._disk.journal.conflicts()) == 1


async def test_two_conflicts_in_one_second_get_two_names(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", _memory(was_there=True)) as rig:
        for turn in range(3):
            fh = await rig.open("d/a", os.O_RDWR)
            await rig.fs.write(fh, 0, b"ours%d" % turn)
            rig.store("d/a", b"theirs%d" % turn)
            await rig.close(fh)
        assert len(rig.objects()) == 5
        assert {each[:5] for each in rig.objects().values()} >= {b"ours0", b"ours1", b"ours2"}


async def test_a_handle_whose_file_yielded_to_theirs_tells_its_writer(tmp_path: Path) -> None:
    memory = _memory(was_there=True)
    async with serving(tmp_path / "c", memory, conflict=ConflictPolicy.THEIRS) as rig:
        fh = await rig.open("d/a", os.O_RDWR)
        await rig.fs.write(fh, 0, b"ours!")
        rig.store("d/a", b"theirs")
        await rig.fs.flush(fh)

        async def write_on() -> None:
            await rig.fs.write(fh, 0, b"more")
            await rig.fs.flush(fh)

        with pytest.raises(CachefsError):
            await write_on()


async def test_a_conflict_of_an_object_with_an_odd_key_keeps_both(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a~cachefs~b", b"base")
    async with serving(tmp_path / "c", memory) as rig:
        (name,) = await rig.names()
        fh = await rig.open(name, os.O_RDWR)
        await rig.fs.write(fh, 0, b"ours!")
        rig.store("a~cachefs~b", b"theirs")
        await rig.close(fh)
        assert sorted(rig.objects().values()) == [b"ours!", b"theirs"]


async def test_what_another_tool_made_of_our_unanswered_upload_is_not_overwritten(
    tmp_path: Path,
) -> None:
    # s3fs and rclone carry metadata that they do not know on: our token stands on their bytes.
    async with serving(tmp_path / "c", _memory(was_there=True)) as rig:

        def rewrite_and_lose_the_answer() -> None:
            found = rig.memory.head(Key("d/a"))
            said = {**(found.meta or {}), "mtime": "1700000000"}
            rig.store("d/a", b"theirs, made of ours", said)
            raise Fault("lost")

        rig.watched.on("after", "put", rewrite_and_lose_the_answer, key="d/a")
        fh = await rig.open("d/a", os.O_RDWR)
        await rig.fs.write(fh, 0, b"ours!")
        await rig.close(fh)

        found = rig.objects()
        assert found["d/a"] == b"theirs, made of ours"
        assert b"ours!" in found.values()


# ---- names that go, and versions that nobody here has seen ------------------------------------


def _beside(rig: Rig, key: str = "d/a") -> list[bytes]:
    return [v for k, v in rig.objects().items() if k.startswith(f"{key}.conflict-")]


async def test_a_file_that_was_never_stored_is_removed_without_what_appeared_in_its_place(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", _memory(was_there=False), **LATER) as rig:
        await rig.write("d/a", b"ours!")
        rig.store("d/a", b"theirs")
        await rig.unlink("d/a")
        assert rig.objects()["d/a"] == b"theirs"
        assert rig.service.dirty() == []


async def test_a_removal_whose_answer_was_lost_does_not_remove_what_was_made_since(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", _memory(was_there=True)) as rig:
        await rig.read("d/a")

        def make_anew_and_lose_the_answer() -> None:
            rig.store("d/a", b"theirs")
            raise Fault("lost")

        rig.watched.on("after", "delete", make_anew_and_lose_the_answer, key="d/a")
        await rig.unlink("d/a")
        assert "d/a" not in rig.objects()
        assert _beside(rig) == [b"theirs"]
        assert set(await rig.names("d")) == {k.removeprefix("d/") for k in rig.objects()}


async def test_an_upload_whose_answer_was_lost_is_removed_as_our_own(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", _memory(was_there=False), store_timeout_s=1) as rig:
        lose_answer(rig, "put", "d/a")
        with pytest.raises(CachefsError):
            await rig.write("d/a", b"ours!")
        assert rig.objects()["d/a"] == b"ours!"
        rig.watched.rules.clear()
        await rig.unlink("d/a")
        assert list(rig.objects()) == ["d/other"]
        assert rig.service._disk.journal.conflicts() == []


async def test_a_rename_that_must_not_replace_refuses_what_appeared(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", _memory(was_there=True)) as rig:
        await rig.names("d")
        rig.store("d/b", b"theirs")
        with pytest.raises(Exists):
            await rig.rename("d/a", "d/b", no_replace=True)
        assert rig.objects() == {"d/a": b"base", "d/b": b"theirs", "d/other": b""}


async def test_what_was_refused_once_is_done_when_it_is_asked_for_again(tmp_path: Path) -> None:
    memory = _memory(was_there=True)
    async with serving(tmp_path / "c", memory, conflict=ConflictPolicy.FAIL) as rig:
        await rig.read("d/a")
        rig.store("d/a", b"theirs")
        with pytest.raises(Overtaken):
            await rig.unlink("d/a")
        assert await rig.read("d/a") == b"theirs"
        await rig.unlink("d/a")
        assert "d/a" not in rig.objects()


async def test_a_write_under_the_old_name_during_a_rename_is_kept(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", _memory(was_there=True)) as rig:
        await rig.ino("d/a")
        rig.watched.on("after", "copy", lambda: _ignore(rig.store("d/a", b"theirs")))
        await rig.rename("d/a", "d/b")
        assert rig.objects() == {"d/a": b"theirs", "d/b": b"base", "d/other": b""}
        assert len(rig.service._disk.journal.conflicts()) == 1


def _ignore(_: object) -> None:
    """Make a statement of an expression."""
