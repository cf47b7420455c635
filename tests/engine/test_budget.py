"""How many requests an operation costs, counted where they leave for the store."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cachefs.core.types import AttributeMode
from cachefs.local.inodes import ROOT
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import Rig, serving, store

PAGE = 1000
CARRIED = {"mode": str(0o100640), "uid": "7", "gid": "8", "mtime": "1.5"}


def filled(count: int, meta: dict[str, str] | None = None) -> MemoryStore:
    """A store of *count* objects in its root, and one in a directory."""
    memory = MemoryStore(page_size=PAGE)
    for number in range(count):
        store(memory, f"f{number:05}", b"content", meta)
    store(memory, "d/inner", b"content", meta)
    return memory


async def cost(rig: Rig, work: Callable[[], Awaitable[object]]) -> dict[str, int]:
    """Do *work*, and return how many requests of each kind it took."""
    rig.watched.forget()
    await work()
    return rig.watched.count()


def age(rig: Rig) -> None:
    """Let all that is known be too old to be believed."""
    inodes = rig.service._disk.inodes
    for each in (ROOT, *(each.ino for each in inodes.below(ROOT))):
        inodes.age(each)


async def test_a_cold_open_and_read_is_two_requests(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", filled(3)) as rig:
        assert await cost(rig, lambda: rig.read("f00001")) == {"get_range": 1, "head": 1}


async def test_what_was_read_is_read_again_for_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", filled(3)) as rig:
        await rig.read("d/inner")

        async def again() -> None:
            await rig.fs.getattr(await rig.ino("d/inner"))
            await rig.read("d/inner")

        assert await cost(rig, again) == {}


async def test_what_has_grown_old_is_read_for_one_request_while_it_is_the_same(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", filled(3)) as rig:
        await rig.read("f00001")
        age(rig)
        assert await cost(rig, lambda: rig.read("f00001")) == {"head": 1}


@pytest.mark.parametrize("where", ["", "d/"], ids=["the root", "a directory"])
async def test_a_first_create_is_two_requests_and_the_next_is_one(
    tmp_path: Path, where: str
) -> None:
    async with serving(tmp_path / "c", filled(3)) as rig:
        assert await cost(rig, lambda: rig.write(f"{where}new", b"x")) == {"list": 1, "put": 1}
        assert await cost(rig, lambda: rig.write(f"{where}newer", b"x")) == {"put": 1}
        age(rig)
        assert await cost(rig, lambda: rig.write(f"{where}old", b"x")) == {"list": 1, "put": 1}


async def test_a_create_in_a_directory_made_here_is_one_request(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", filled(3)) as rig:
        await rig.names()
        assert await cost(rig, lambda: rig.mkdir("made")) == {"put": 1}
        assert await cost(rig, lambda: rig.write("made/a", b"x")) == {"put": 1}
        assert await cost(rig, lambda: rig.write("made/b", b"x")) == {"put": 1}


async def test_a_create_in_a_directory_of_many_pages_reads_none_of_them_again(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", filled(2 * PAGE)) as rig:
        cold = await cost(rig, lambda: rig.write("new", b"x"))
        assert cold == {"head": 1, "list": 1, "put": 1}
        await rig.names()
        assert await cost(rig, lambda: rig.write("newer", b"x")) == {"put": 1}


async def test_what_is_not_there_is_asked_for_once(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", filled(3)) as rig:
        assert await cost(rig, lambda: rig.exists("nothing")) == {"list": 1}
        assert await cost(rig, lambda: rig.exists("nothing")) == {}
        assert await cost(rig, lambda: rig.exists("nothing else")) == {}


async def test_an_editors_save_is_three_requests(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", filled(3)) as rig:
        await rig.read("f00001")
        await rig.names()

        async def save() -> None:
            await rig.write("f00001.tmp", b"edited")
            await rig.rename("f00001.tmp", "f00001")

        assert await cost(rig, save) == {"delete": 1, "put": 2}
        assert await rig.read("f00001") == b"edited"


@pytest.mark.parametrize("count", [0, 1, 999, 2500])
async def test_a_listing_of_plain_objects_is_its_pages_and_a_sample(
    tmp_path: Path, count: int
) -> None:
    memory = filled(count)
    async with serving(tmp_path / "c", memory) as rig:
        counted = await cost(rig, rig.names)
        # The directory is a line of the listing, too, and is asked whether it has a marker.
        assert counted["list"] == -(-(count + 1) // PAGE)
        assert counted["head"] == min(count, 3) + 1 + (count > PAGE)
        assert await cost(rig, rig.names) == {}


async def test_a_listing_alone_asks_for_no_object(tmp_path: Path) -> None:
    async with serving(
        tmp_path / "c", filled(40, CARRIED), attributes=AttributeMode.LISTING
    ) as rig:
        assert await cost(rig, rig.names) == {"list": 1}


async def test_metadata_that_a_listing_lacks_is_asked_for_once_and_kept(tmp_path: Path) -> None:
    memory = filled(40, CARRIED)
    async with serving(tmp_path / "c", memory) as rig:
        assert await cost(rig, rig.names) == {"head": 40 + 1, "list": 1}
        age(rig)
        assert await cost(rig, rig.names) == {"list": 1}
    async with serving(tmp_path / "c", memory) as rig:
        age(rig)
        assert await cost(rig, rig.names) == {"list": 1}
