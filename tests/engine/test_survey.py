"""One listing of all keys makes the same tree as a listing of each directory, for a request for a page of keys."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cachefs.core.errors import Denied, Fault
from cachefs.core.types import Ino, Key, Listing, ObjectInfo
from cachefs.local.inodes import ROOT
from cachefs.remote.memory import MemoryStore
from cachefs.remote.pages import Pages
from tests.engine.rig import Rig, serving, store

Seen = dict[str, tuple[object, ...]]


async def walk(rig: Rig, path: str = "") -> Seen:
    """All that a program sees, each with the key that it stands for."""
    found: Seen = {}
    for name in await rig.names(path):
        inner = f"{path}/{name}" if path else name
        ino = await rig.ino(inner)
        inode = rig.service._disk.inodes.get(ino)
        assert inode is not None
        key = rig.service._disk.inodes.key_of(ino)
        # A directory's version is its marker's, which who only looks the name up need not have seen.
        etag = None if inode.is_dir else inode.etag
        found[inner] = (inode.kind, key, inode.size, etag)
        if inode.is_dir:
            found |= await walk(rig, inner)
    return found


async def survey(rig: Rig, path: str = "") -> dict[str, object]:
    """Make known all below *path*, to the end."""
    while not (told := await rig.service.survey(path))["over"]:
        pass
    return told


def listed(rig: Rig) -> set[Ino]:
    """The directories that are known as a whole."""
    inodes = rig.service._disk.inodes.below(ROOT)
    root = rig.service._disk.inodes.get(ROOT)
    assert root is not None
    return {each.ino for each in (root, *inodes) if each.is_dir and each.listed_ns}


_COMPONENTS = st.sampled_from(["a", "a-b", "a.", "b", "", ".", "x" * 260, "~cachefs~dot"])
_KEYS = (
    st.lists(_COMPONENTS, min_size=1, max_size=4)
    .map("/".join)
    .filter(lambda key: 0 < len(key) <= 1024)
)
_STORES = st.dictionaries(_KEYS, st.sampled_from([b"", b"x"]), max_size=10)


class MarkersBare(MemoryStore):
    """A store that sorts the markers of directories by what comes before the slash, as Swift has them."""

    def list(self, prefix: Key, *, deep: bool = False) -> Pages:
        if not deep:
            return super().list(prefix)
        all_of_it: list[ObjectInfo] = [
            info for page in super().list(prefix, deep=True) for info in page.objects
        ]
        all_of_it.sort(key=lambda info: info.key.removesuffix("/"))
        pages: Iterator[ObjectInfo] = iter(all_of_it)

        def fetch(_: str | None) -> tuple[Listing, str | None]:
            info = next(pages, None)
            return (Listing(), None) if info is None else (Listing((info,)), info.key)

        return Pages(fetch)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(_STORES, _STORES, st.integers(1, 3), st.booleans())
@example({"a": b""}, {"a/a": b""}, 1, False)
@example({"a": b"x", "a-b": b"x", "a/": b"", "a/b": b"x", "a//b": b"x"}, {}, 1, True)
@example({"a/b": b"x", "c/": b"content"}, {"a": b"x", "a/": b"", "a-b": b""}, 2, True)
def test_one_listing_of_all_makes_the_same_tree_as_one_of_each_directory(
    before: dict[str, bytes], after: dict[str, bytes], page_size: int, bare: bool
) -> None:
    async def run() -> None:
        memory = (MarkersBare if bare else MemoryStore)(page_size=page_size)
        with tempfile.TemporaryDirectory(prefix="cft.") as directory:
            async with serving(Path(directory) / "c", memory) as rig:
                for turn, contents in enumerate((before, after)):
                    for key in before:
                        memory.delete(Key(key))
                    for key, content in contents.items():
                        store(memory, key, content)
                    told = await survey(rig)
                    assert told["objects"] == len(contents)
                    rig.watched.forget()
                    seen = await walk(rig)
                    assert not rig.watched.of("list")
                    assert len(listed(rig)) == told["directories"]
                    async with serving(Path(directory) / f"o{turn}", memory) as other:
                        assert seen == await walk(other)

    trio.run(run)


async def test_a_survey_is_a_request_for_a_page_of_keys(tmp_path: Path) -> None:
    memory = MemoryStore(page_size=10)
    for number in range(40):
        store(memory, f"d/d{number:02}/x", b"x")
        store(memory, f"e/d{number:02}/x", b"x")
    async with serving(tmp_path, memory) as rig:
        told = await survey(rig, "d")
        assert told == {"objects": 40, "directories": 41, "requests": 4, "over": True}
        rig.watched.forget()
        assert len(await rig.names("d")) == 40
        assert await rig.names("d/d07") == ["x"]
        assert not rig.watched.of("list")
        await rig.names("e")
        assert rig.watched.of("list")


async def test_a_survey_that_fails_half_way_takes_no_directory_for_known_that_it_was_in(
    tmp_path: Path,
) -> None:
    memory = MemoryStore(page_size=2)
    for key in ("a/1", "a/2", "b/1", "b/2", "b/3"):
        store(memory, key, b"x")
    async with serving(tmp_path, memory) as rig:
        turns = iter(range(10**6))

        def deny() -> None:
            if next(turns) == 2:
                raise Denied("no more")

        rig.watched.on("before", "list", deny, times=10**6)
        with pytest.raises(Denied):
            await survey(rig)
        known = {rig.service._disk.inodes.key_of(ino) for ino in listed(rig)}
        assert known == {"a/"}
        rig.watched.rules.clear()
        assert await rig.names("b") == ["1", "2", "3"]


async def test_a_store_that_lists_in_no_order_is_found_out(tmp_path: Path) -> None:
    class Disordered(MemoryStore):
        def list(self, prefix: Key, *, deep: bool = False) -> Pages:
            pages = super().list(prefix, deep=deep)
            if not deep:
                return pages
            turned = Listing(tuple(reversed(next(pages).objects)))
            return Pages(lambda _: (turned, None))

    memory = Disordered()
    for key in ("a/1", "b/1"):
        store(memory, key, b"x")
    async with serving(tmp_path, memory) as rig:
        with pytest.raises(Fault, match="order"):
            await survey(rig)
        assert await rig.names() == ["a", "b"]
