"""A listing that fails half way, that repeats itself or that never ends: an error, and never taken for the whole."""

from pathlib import Path

import pytest

from cachefs.core.errors import CachefsError, Fault, NotEmpty, StoreError
from cachefs.core.types import Key, Listing, ObjectInfo
from cachefs.remote.memory import MemoryStore
from cachefs.remote.pages import Pages
from tests.engine.rig import FOREVER_ASKING, Rig, serving

NAMES = [f"f{number}" for number in range(7)]


def filled() -> MemoryStore:
    """Seven files in one directory, two names to a page."""
    return MemoryStore(page_size=2)


def fill(rig: Rig) -> None:
    for name in NAMES:
        rig.store(f"d/{name}", name.encode())


def fail_second_page(rig: Rig) -> None:
    """Let the first page of the next listing through, and no other."""

    def fail_the_rest() -> None:
        rig.watched.fail("before", "list", Fault("down"), times=10**6)

    rig.watched.on("after", "list", fail_the_rest, key="d/")


async def test_a_directory_that_nobody_has_seen_is_an_error_and_no_half_of_it(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, filled(), **FOREVER_ASKING) as rig:
        fill(rig)
        await rig.ino("d")
        fail_second_page(rig)
        with pytest.raises(StoreError):
            await rig.names("d")
        rig.watched.rules.clear()
        assert await rig.names("d") == NAMES


async def test_a_directory_that_was_known_stays_known_as_a_whole(tmp_path: Path) -> None:
    async with serving(tmp_path, filled(), **FOREVER_ASKING) as rig:
        fill(rig)
        assert await rig.names("d") == NAMES
        known = {name: await rig.ino(f"d/{name}") for name in NAMES}
        fail_second_page(rig)
        assert await rig.names("d") == NAMES
        rig.watched.rules.clear()
        assert {name: await rig.ino(f"d/{name}") for name in NAMES} == known


async def test_a_directory_that_may_hold_more_than_was_seen_is_not_removed(
    tmp_path: Path,
) -> None:
    memory = MemoryStore(page_size=1)
    async with serving(tmp_path, memory, **FOREVER_ASKING) as rig:
        await rig.mkdir("d")
        before = rig.objects()

        def fill_meanwhile() -> None:
            # The first page was empty but for the marker, and what comes then is not told.
            rig.watched.fail("before", "list", Fault("down"), times=10**6)

        rig.watched.on("after", "list", fill_meanwhile, key="d/")
        rig.store("d/hidden", b"x")
        with pytest.raises((StoreError, NotEmpty)):
            await rig.rmdir("d")
        rig.watched.rules.clear()
        assert set(before) < set(rig.objects())


@pytest.mark.parametrize("upload", ["seen", "unseen"])
async def test_a_rename_of_a_directory_that_is_listed_by_half_changes_nothing(
    tmp_path: Path, upload: str
) -> None:
    async with serving(tmp_path, filled(), **FOREVER_ASKING) as rig:
        fill(rig)
        if upload == "seen":
            assert await rig.names("d") == NAMES
        before = rig.objects()
        await rig.ino("d")
        fail_second_page(rig)
        with pytest.raises(CachefsError):
            await rig.rename("d", "e")
        rig.watched.rules.clear()
        assert rig.objects() == before
        assert await rig.names("d") == NAMES


# ---- pages that make no sense ---------------------------------------------------------------


def page(*names: str) -> Listing:
    return Listing(tuple(ObjectInfo(Key(name), 1, "etag", 0) for name in names))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answers",
    [
        {
            None: (page("a"), "1"),
            "1": (page("b"), "2"),
            "2": (page("a"), "3"),
            "3": (page("b"), ""),
        },
        {None: (page("a"), "1"), "1": (page("b"), "2"), "2": (page("c"), "1")},
    ],
    ids=["pages in turn", "tokens in turn"],
)
def test_a_listing_that_shows_a_page_again_is_a_fault(
    answers: dict[str | None, tuple[Listing, str]],
) -> None:
    pages = Pages(lambda token: (answers[token][0], answers[token][1] or None))
    with pytest.raises(Fault):
        list(pages)


def test_a_listing_of_ever_new_tokens_and_no_names_ends_in_a_fault() -> None:
    pages = Pages(lambda token: (Listing(), str(int(token or 0) + 1)))
    with pytest.raises(Fault, match="lists nothing"):
        list(pages)


def test_two_pages_in_turn_under_ever_new_tokens_end_in_a_fault() -> None:
    turns = (page("a"), page("b"))
    pages = Pages(lambda token: (turns[int(token or 0) % 2], str(int(token or 0) + 1)))
    with pytest.raises(Fault, match="repeats"):
        list(pages)


async def test_a_name_that_two_pages_show_is_there_once(tmp_path: Path) -> None:
    async with serving(tmp_path, filled(), **FOREVER_ASKING) as rig:
        fill(rig)

        def move_on() -> None:  # what was on the page before comes again on the next one
            rig.remove("d/f0")
            rig.store("d/f1x", b"new")

        rig.watched.on("after", "list", move_on, key="d/")
        await rig.ino("d")
        names = await rig.names("d")
        assert len(names) == len(set(names))
        assert set(NAMES) - {"f0"} <= set(names)
