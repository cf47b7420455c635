"""Names: every key of a real store has one, and whatever is done to the name is done to exactly that key."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from cachefs.core.errors import InvalidName, Refused
from cachefs.core.extents import Extent
from cachefs.core.keys import component_of
from cachefs.core.source import Source, StoreKind, StoreOptions
from cachefs.core.types import Key, Name
from cachefs.remote.open import open_store
from cachefs.remote.store import ObjectStore
from tests.contract.bodies import BytesBody, fetched
from tests.mount import programs
from tests.mount.harness import Mount
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]

KEYS = [
    "plain",
    "both",
    "both/inner",
    "a//b",
    "a//c//d",
    "/lead",
    "dot/./x",
    "dot/../y",
    "dot/.",
    ".",
    "..",
    "x" * 300,
    "x" * 301,
    "long/" + "ü" * 200 + "/file",
    "marked/",
    "marked/file",
    "e~cachefs~f",
    "~cachefs~dot",
    "both~cachefs~object",
    "nfc-\u00fc",
    "nfd-u\u0308",
    " blank ",
    "tab\there",
    "new\nline",
    "control\x01\x1b\x7f",
    "?#%&+;=@:!*'()",
    '"<>\\^`{|}',
    "%41%00",
    "-rf",
    "\U0001f600",
    "no text \udcff",
    "nul\0byte",
]
REFUSED: Mapping[str, set[str]] = {
    "file": set(),
    "moto": {"no text \udcff"},
    "radosgw": {"no text \udcff", "nul\0byte"},
    "swift": {"no text \udcff", "nul\0byte"},
}
"""What a store of that kind cannot have as a key."""


@pytest.fixture
def far(store: LiveStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """The store without a mount: no SDK takes every key that a server takes."""
    target = store.target()
    for name, value in target.environment.items():
        monkeypatch.setenv(name, value)
    kind = {"file": StoreKind.FILE, "swift": StoreKind.SWIFT}.get(store.name, StoreKind.S3)
    options = StoreOptions(endpoint_url=store.endpoint or None, force_path_style=True)
    source = Source(kind, store.bucket)
    with closing(open_store(source, options, timeout_s=10, environ=target.environment)) as opened:
        yield opened


def view(far: ObjectStore) -> dict[str, bytes]:
    """Every object's content by its key; what only marks a directory is left out."""
    return {
        info.key: fetched(far, info.key, Extent(0, info.size), info.etag)
        for page in far.list(Key(""), deep=True)
        for info in page.objects
        if info.size or not info.key.endswith("/")
    }


def fill(far: ObjectStore, keys: list[str]) -> tuple[dict[str, bytes], set[str]]:
    """Put an object under each of *keys*; return what was taken, and what was refused."""
    taken, refused = dict[str, bytes](), set[str]()
    for key in keys:
        content = f"the content of {key!a}".encode()
        try:
            far.put(Key(key), BytesBody(content), meta={}, if_match=None)
            taken[key] = content
        except Refused:
            refused.add(key)
    return taken, refused


def unescaped(path: Path) -> str | None:
    """The key that a path shows; None if that cannot be told from it alone."""
    components = []
    for name in path.parts:
        try:
            components.append(component_of(Name(os.fsencode(name)))[0])
        except InvalidName:
            return None
    return "/".join(components)


def keys_below(root: Path) -> dict[Path, str]:
    """Every file below *root*, and the key that it says it has."""
    return {
        (Path(top) / name).relative_to(root): os.fsdecode(
            os.getxattr(Path(top) / name, "user.cachefs.key")
        )
        for top, _, names in os.walk(root)
        for name in names
    }


@pytest.mark.parametrize(
    "store",
    [
        "file",
        "radosgw",
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("moto", "swift")),
    ],
    indirect=True,
)
def test_every_key_has_a_name_and_what_is_done_to_the_name_is_done_to_the_key(
    store: LiveStore, far: ObjectStore, mounting: Mounting
) -> None:
    # moto, alone, has no route for a newline.
    taken, refused = fill(far, [key for key in KEYS if store.name != "moto" or "\n" not in key])
    assert refused == REFUSED[store.name]

    with mounting(store.target()) as mount:
        shown = mount.do(keys_below, mount.mountpoint)
        assert sorted(shown.values()) == sorted(taken)
        for path, key in shown.items():
            if (told := unescaped(path)) is None:
                assert "~cachefs~long~" in str(path)
            else:
                assert told == key, path
            assert mount.do(programs.read_file, mount.mountpoint / path) == taken[key]

        mount.do(_rewrite_all, mount.mountpoint, shown)
        rewritten = {key: b"new " + ascii(key).encode() for key in taken}
        assert view(far) == rewritten

        mount.do(_rename_all, mount.mountpoint, shown)
        renamed = {
            f"{key[: key.rfind('/') + 1]}renamed {number}": rewritten[key]
            for number, key in enumerate(shown.values())
        }
        assert view(far) == renamed

    with mounting(store.target(), name="again") as mount:
        again = mount.do(keys_below, mount.mountpoint)
        assert sorted(again.values()) == sorted(renamed)
        mount.run("find", ".", "-mindepth", "1", "-delete")
    assert [page for page in far.list(Key(""), deep=True) if page.objects] == []


@pytest.mark.parametrize(
    ("store", "name"),
    [
        ("moto", "no text \udcff"),
        pytest.param("swift", "no text \udcff", marks=pytest.mark.soak),
        pytest.param("swift", "~cachefs~raw~nul%00byte", marks=pytest.mark.soak),
    ],
    indirect=["store"],
)
def test_a_name_that_the_store_cannot_have_is_refused_before_a_byte_is_taken(
    store: LiveStore, name: str, mounting: Mounting
) -> None:
    with mounting(store.target(), "--upload", "background") as mount:
        with pytest.raises(OSError, match="Errno") as refusal:
            mount.do(programs.write_file, mount / name, b"x")
        assert refusal.value.errno == errno.EILSEQ
        assert mount.do(os.listdir, mount.mountpoint) == []
        assert mount.status()["dirty"] == []
        assert mount.umount().returncode == 0


def _rewrite_all(root: Path, shown: dict[Path, str]) -> None:
    for path, key in shown.items():
        programs.write_file(root / path, b"new " + ascii(key).encode())


def _rename_all(root: Path, shown: dict[Path, str]) -> None:
    for number, path in enumerate(shown):
        (root / path).rename((root / path).with_name(f"renamed {number}"))
