"""Any set of keys is a tree of names: list, then unescape, gives exactly the keys, and each name acts on its own."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cachefs.core.errors import InvalidName
from cachefs.core.keys import KEY_MAX, component_of, name_of
from cachefs.core.types import Kind, Name
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import Rig, objects, serving, store

_components = st.one_of(
    st.sampled_from(["", "", ".", "..", "a", "a", "b", "ü", "u\u0308", " ", "\n", "%", "~", "\0"]),
    st.sampled_from(["a~cachefs~object", "~cachefs~empty", "~cachefs~raw~a", "~cachefs~"]),
    st.sampled_from(["x" * 255, "x" * 256, "x" * 255 + "ü", "\udcff", "é" * 200]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), max_size=6),
)
_keys = (
    st.lists(_components, min_size=1, max_size=4)
    .map("/".join)
    .filter(lambda key: key and len(key.encode("utf-8", "surrogateescape")) <= KEY_MAX)
)
_contents = st.sampled_from([b"content", b""])


def is_marker(key: str, content: bytes) -> bool:
    """Whether it shows as a directory and not as a file."""
    return key.endswith("/") and not content


async def tree(rig: Rig) -> tuple[dict[str, str], dict[str, str]]:
    """Every file and every directory: its key, and the path that shows it."""
    files: dict[str, str] = {}
    directories: dict[str, str] = {}

    async def walk(path: str, above: str) -> None:
        for name in await rig.names(path):
            child = f"{path}/{name}".lstrip("/")
            found = await rig.fs.getattr(await rig.ino(child))
            key = rig.service._disk.inodes.key_of(found.ino)
            assert key is not None
            is_dir = found.attrs.kind is Kind.DIR
            (directories if is_dir else files)[key] = child
            unescaped = undone(name)
            assert unescaped is None or f"{above}{unescaped}{'/' * is_dir}" == key
            if is_dir:
                await walk(child, key)

    await walk("", "")
    return files, directories


def undone(name: str) -> str | None:
    """The component that a name shows; None if that takes a listing."""
    try:
        return component_of(Name(name.encode("utf-8", "surrogateescape")))[0]
    except InvalidName:
        assert "~cachefs~long~" in name
        return None


def directories_of(keys: set[str]) -> set[str]:
    """Every prefix that is a directory."""
    return {key[: at + 1] for key in keys for at, letter in enumerate(key) if letter == "/"}


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(_keys, _contents, min_size=1, max_size=6))
@example({"a": b"x", "a/": b"", "a/b": b"y"})
@example({"a": b"x", "a/": b"y", "a//": b"z", "a/a~cachefs~object": b"w"})
@example({"//": b"", "/": b"x", "/a": b"y"})
async def test_a_walk_shows_exactly_the_keys(contents: dict[str, bytes]) -> None:
    await look(contents)


@pytest.mark.soak
@pytest.mark.timeout(900)
@settings(max_examples=1000, deadline=None)
@given(st.dictionaries(_keys, _contents, min_size=1, max_size=6))
async def test_a_walk_shows_exactly_the_keys_of_a_thousand_stores(
    contents: dict[str, bytes],
) -> None:
    await look(contents)


async def look(contents: dict[str, bytes]) -> None:
    memory = MemoryStore(page_size=3)
    for key, content in contents.items():
        store(memory, key, content)
    with tempfile.TemporaryDirectory() as directory:
        async with serving(Path(directory) / "c", memory) as rig:
            files, directories = await tree(rig)
            assert (set(files), set(directories)) == shown_keys(contents)
            for key, path in files.items():
                assert await rig.read(path) == contents[key]
        assert objects(memory) == contents, "to look changes nothing"


@settings(max_examples=10, deadline=None)
@given(st.dictionaries(_keys, _contents, min_size=1, max_size=5), st.data())
async def test_what_is_done_to_a_name_is_done_to_its_key(
    contents: dict[str, bytes], data: st.DataObject
) -> None:
    await change(contents, data)


@pytest.mark.soak
@pytest.mark.timeout(900)
@settings(max_examples=500, deadline=None)
@given(st.dictionaries(_keys, _contents, min_size=1, max_size=5), st.data())
async def test_what_is_done_to_names_is_done_to_their_keys_in_hundreds_of_stores(
    contents: dict[str, bytes], data: st.DataObject
) -> None:
    await change(contents, data)


async def change(contents: dict[str, bytes], data: st.DataObject) -> None:
    memory = MemoryStore(page_size=3)
    for key, content in contents.items():
        store(memory, key, content)
    with tempfile.TemporaryDirectory() as directory:
        async with serving(Path(directory) / "c", memory) as rig:
            files, _ = await tree(rig)
            for key in sorted(files):
                await act(rig, files[key], key, data)
                now_files, now_directories = await tree(rig)
                assert (set(now_files), set(now_directories)) == shown_keys(rig.objects())
        async with serving(Path(directory) / "other", memory) as rig:
            files, directories = await tree(rig)
            assert (set(files), set(directories)) == shown_keys(objects(memory))


def shown_keys(contents: dict[str, bytes]) -> tuple[set[str], set[str]]:
    """The keys that show as files, and the prefixes that show as directories."""
    files = {key for key, content in contents.items() if not is_marker(key, content)}
    return files, directories_of(set(contents))


async def act(rig: Rig, path: str, key: str, data: st.DataObject) -> None:
    """Change one file by its name, and look what became of all objects."""
    before = rig.objects()
    match data.draw(st.sampled_from(["rewrite", "remove", "rename"]), label=ascii(path)):
        case "rewrite":
            await rig.write(path, b"rewritten")
            assert rig.objects() == before | {key: b"rewritten"}
        case "remove":
            await rig.unlink(path)
            rest = {other: content for other, content in before.items() if other != key}
            assert without_new_marker(rig, before, key) == rest
        case "rename":
            component = data.draw(st.sampled_from(["new", ".", "\0"]), label="to")
            name = bytes(name_of(component)).decode()
            new = f"{path.rpartition('/')[0]}/{name}".lstrip("/")
            new_key = f"{key[: key.rfind('/') + 1]}{component}"
            if new_key in before or any(other.startswith(f"{new_key}/") for other in before):
                return
            await rig.rename(path, new)
            rest = {other: content for other, content in before.items() if other != key}
            after = without_new_marker(rig, before, key)
            assert after == rest | {new_key: before[key]}


def without_new_marker(rig: Rig, before: dict[str, bytes], key: str) -> dict[str, bytes]:
    """All objects but the marker that keeps a directory whose last content left."""
    marker = key[: key.rfind("/") + 1]
    return {
        other: content
        for other, content in rig.objects().items()
        if not (other == marker and content == b"" and (marker not in before or marker == key))
    }
