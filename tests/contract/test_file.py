"""A directory as a store: what the common suite cannot ask, for it knows nothing of the directory."""

import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachefs.core.errors import BadKey, Changed, Fault, NoBucket, NotFound, Refused
from cachefs.core.extents import Extent
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.remote.file import FileStore, tick
from cachefs.remote.file_names import odd_key, place_of
from cachefs.remote.store import Support, UploadStopped
from tests.contract.bodies import BytesBody, BytesSink, StoppedBody, fetched


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "store"
    directory.mkdir()
    return directory


@pytest.fixture
def store(root: Path) -> FileStore:
    return FileStore(str(root))


def put(
    store: FileStore, key: str, content: bytes = b"", etag: ETag | None = None, **meta: str
) -> ObjectInfo:
    return store.put(Key(key), BytesBody(content), meta=meta, if_match=etag)


def get(store: FileStore, key: str) -> bytes:
    info = store.head(Key(key))
    return fetched(store, info.key, Extent(0, info.size), info.etag)


def keys(store: FileStore, prefix: str = "", *, deep: bool = True) -> list[str]:
    return [
        key
        for page in store.list(Key(prefix), deep=deep)
        for key in sorted([*(o.key for o in page.objects), *page.prefixes])
    ]


def objects(store: FileStore, prefix: str = "") -> Iterator[ObjectInfo]:
    for page in store.list(Key(prefix), deep=True):
        yield from page.objects


def test_objects_are_files_that_ordinary_tools_read_and_write(
    store: FileStore, root: Path
) -> None:
    put(store, "a/b", b"ours", mode=str(stat.S_IFREG | 0o640), mtime="1000000000.500000000")
    assert (root / "a/b").read_bytes() == b"ours"
    shown = (root / "a/b").stat()
    assert stat.S_IMODE(shown.st_mode) == 0o640
    assert shown.st_mtime_ns == 1_000_000_000_500_000_000
    (root / "a/c").write_bytes(b"theirs")
    assert keys(store) == ["a/b", "a/c"]
    assert get(store, "a/c") == b"theirs"


def test_a_foreign_file_shows_its_own_mode_owner_and_time(store: FileStore, root: Path) -> None:
    path = root / "f"
    path.write_bytes(b"x")
    path.chmod(0o604)
    os.utime(path, ns=(0, 5_000_000_007))
    meta = store.head(Key("f")).meta
    assert meta == {
        "mode": str(stat.S_IFREG | 0o604),
        "uid": str(os.getuid()),
        "gid": str(os.getgid()),
        "mtime": "5.000000007",
    }


def test_an_edit_from_outside_is_another_version_and_not_our_promise_any_more(
    store: FileStore, root: Path
) -> None:
    meta = {"cachefs-token": "t", "mode": "33188", "colour": "red"}
    first = store.put(Key("f"), BytesBody(b"one"), meta=meta, if_match=None)
    assert first.meta == meta
    with open(root / "f", "ab") as file:
        file.write(b" two")
    now = store.head(Key("f"))
    assert now.etag != first.etag
    assert now.meta is not None
    assert "cachefs-token" not in now.meta
    assert now.meta["colour"] == "red"
    assert now.meta["mtime"] != "0"
    with pytest.raises(Changed):
        put(store, "f", b"three", first.etag)
    assert get(store, "f") == b"one two"


def test_etags_live_as_long_as_the_version_whoever_asks(store: FileStore, root: Path) -> None:
    infos = [put(store, "d/"), put(store, "d/f", b"1", colour="red")]
    again = FileStore(str(root))
    assert [again.head(info.key).etag for info in infos] == [info.etag for info in infos]
    assert again.head(Key("d/f")) == infos[1]
    assert [info.etag for info in objects(again)] == [info.etag for info in infos]


def test_quick_replacements_never_come_back_to_an_etag(store: FileStore) -> None:
    etags = []
    etag = None
    for _ in range(20):
        etag = put(store, "f", b"same", etag, mtime="1.000000000").etag
        etags.append(etag)
    assert len(set(etags)) == len(etags)


def test_a_version_within_one_tick_of_the_clock_is_told_apart(root: Path) -> None:
    # Kernels since 6.13 stamp finely enough by themselves: hence not by two quick replacements.
    path = root / "f"
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    try:
        before = os.fstat(fd)
        tick(fd, before)
        after = os.fstat(fd)
    finally:
        os.close(fd)
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns


def test_new_metadata_has_a_new_etag_and_the_same_bytes(store: FileStore, root: Path) -> None:
    first = put(store, "f", b"bytes", colour="red")
    second = store.set_meta(
        Key("f"), {"mode": str(stat.S_IFREG | 0o600)}, content_type="text/x", if_match=first.etag
    )
    assert store.head(Key("f")) == second
    assert second.meta == {"mode": str(stat.S_IFREG | 0o600)}
    assert second.content_type == "text/x"
    assert get(store, "f") == b"bytes"
    with pytest.raises(Changed):
        store.set_meta(Key("f"), {}, content_type=None, if_match=first.etag)


def test_directories_are_markers_unless_only_a_put_made_them(store: FileStore, root: Path) -> None:
    put(store, "made/on/the/way", b"x")
    (root / "foreign").mkdir()
    marker = put(store, "ours/", mode=str(stat.S_IFDIR | 0o750))
    assert keys(store) == ["foreign/", "made/on/the/way", "ours/"]
    assert keys(store, deep=False) == ["foreign/", "made/", "ours/"]
    assert keys(store, "ours/", deep=False) == ["ours/"]
    assert stat.S_IMODE((root / "ours").stat().st_mode) == 0o750
    with pytest.raises(NotFound):
        store.head(Key("made/"))
    put(store, "ours/below", b"x")
    assert store.head(Key("ours/")).etag == marker.etag


def test_the_last_object_takes_the_directories_along_that_it_made(
    store: FileStore, root: Path
) -> None:
    put(store, "kept/")
    put(store, "kept/a/b/c", b"x")
    store.delete(Key("kept/a/b/c"))
    assert keys(store) == ["kept/"]
    assert not (root / "kept/a").exists()
    assert (root / "kept").is_dir()


def test_a_marker_goes_and_what_lies_below_it_stays(store: FileStore, root: Path) -> None:
    put(store, "d/")
    put(store, "d/f", b"x")
    store.delete(Key("d/"))
    assert keys(store) == ["d/f"]
    marker = put(store, "d/")
    store.delete(Key("d/f"))
    assert keys(store) == ["d/"]
    store.delete(Key("d/"), if_match=marker.etag)
    assert keys(store) == []
    assert not (root / "d").exists()


ODD_KEYS = [
    "a//b", "/lead", "./x", "../x", "..", "a/../../x", "a/./b", "nul\0byte", "n" * 300, "//", "/", "a/b",
    "a", "a/", "a/b/c", ".cachefs-store/lock", ".cachefs-store", "new\nline", "k/" * 511 + "kk", "\udcff\udcfe",
    "e\u0301", "\u00e9", "%2F", "+", "tail ", "\U0001f600", "\uffff",
]  # fmt: skip


def test_keys_that_no_path_can_be_are_stored_and_listed_in_their_place(
    store: FileStore, root: Path, tmp_path: Path
) -> None:
    for key in ODD_KEYS:
        put(store, key, key.encode("utf-8", "surrogateescape"))
    for key in ODD_KEYS:
        assert get(store, key) == key.encode("utf-8", "surrogateescape")
    by_bytes = sorted(ODD_KEYS, key=lambda key: key.encode("utf-8", "surrogateescape"))
    assert [info.key for info in objects(store)] == by_bytes
    assert [store.head(info.key).etag for info in objects(store)] == [
        info.etag for info in objects(store)
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    for key in ODD_KEYS:
        store.delete(Key(key))
    assert keys(store) == []
    left = [path for path in root.rglob("*") if path.is_file() and path.name != "lock"]
    assert left == []


def test_a_shallow_listing_shows_odd_keys_as_objects_and_prefixes(store: FileStore) -> None:
    for key in ("a/b", "a", "a//c", "/x", "b/"):
        put(store, key, b"content")
    assert keys(store, deep=False) == ["/", "a", "a/", "b/"]
    assert keys(store, "a/", deep=False) == ["a/", "a//", "a/b"][1:]
    assert keys(store, "a//", deep=False) == ["a//c"]
    assert keys(store, "b/", deep=False) == ["b/"]


@pytest.mark.parametrize("key", ["", "x" * 1025, "lone\ud800surrogate"])
def test_what_no_store_bears_is_refused(store: FileStore, key: str) -> None:
    with pytest.raises(BadKey):
        put(store, key, b"x")


KEY = st.text(
    alphabet=st.one_of(
        st.sampled_from("/.a~%+ \0\n"), st.characters(exclude_categories=["Cs"]),
        st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]),
    ),
    min_size=1,
    max_size=300,
).filter(lambda key: key.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") == key)  # fmt: skip


@given(KEY)
def test_every_key_has_an_odd_spot_that_tells_it(key: str) -> None:
    try:
        spot = place_of(Key(key)).odd
    except BadKey:
        assert len(key.encode("utf-8", "surrogateescape")) > 1024
        return
    pieces = (*spot.parents[2:], spot.name)
    assert odd_key(pieces) == key
    assert all(0 < len(piece) <= 255 and b"/" not in piece for piece in pieces)
    assert not {b".", b".."} & set(pieces)


@settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.sets(KEY, max_size=8))
def test_any_set_of_keys_is_listed_as_it_was_stored(
    tmp_path_factory: pytest.TempPathFactory, wanted: set[str]
) -> None:
    store = FileStore(str(tmp_path_factory.mktemp("store")))
    wanted = {key for key in wanted if len(key.encode("utf-8", "surrogateescape")) <= 1024}
    for key in wanted:
        put(store, key, b"x")
    assert [info.key for info in objects(store)] == sorted(
        wanted, key=lambda key: key.encode("utf-8", "surrogateescape")
    )
    for key in wanted:
        assert get(store, key) == b"x"
        store.delete(Key(key))
    assert keys(store) == []


def test_symlinks_are_shown_and_never_followed(
    store: FileStore, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"outside")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "way").symlink_to(tmp_path)
    info = store.head(Key("link"))
    assert info.meta is not None
    assert stat.S_ISLNK(int(info.meta["mode"]))
    assert get(store, "link") == bytes(tmp_path / "secret")
    assert keys(store) == ["link", "way"]
    with pytest.raises(NotFound):
        store.head(Key("way/secret"))
    put(store, "way/secret", b"inside")
    put(store, "link", b"a file now", info.etag)
    assert (tmp_path / "secret").read_bytes() == b"outside"
    assert get(store, "way/secret") == b"inside"


def test_pipes_and_sockets_are_no_objects_and_stay(store: FileStore, root: Path) -> None:
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
    assert keys(store) == []
    with pytest.raises(NotFound):
        store.head(Key("pipe"))
    put(store, "pipe", b"x")
    assert get(store, "pipe") == b"x"
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)


def test_a_range_is_of_one_version_or_changed(store: FileStore, root: Path) -> None:
    info = put(store, "f", b"a" * 3_000_000)

    class Meddling(BytesSink):
        def write(self, data: memoryview, /) -> None:
            super().write(data)
            (root / "f").write_bytes(b"b" * 3_000_000)

    with pytest.raises(Changed):
        store.get_range(Key("f"), Extent(0, info.size), Meddling(), if_match=info.etag)


def test_an_error_of_the_sink_passes_untouched(store: FileStore) -> None:
    info = put(store, "f", b"abc")

    class Full(BytesSink):
        def write(self, data: memoryview, /) -> None:
            raise OSError(28, "the cache is full")

    with pytest.raises(OSError, match="the cache is full"):
        store.get_range(Key("f"), Extent(0, 3), Full(), if_match=info.etag)


def test_an_upload_that_is_called_off_leaves_nothing(store: FileStore, root: Path) -> None:
    with pytest.raises(UploadStopped):
        store.put(Key("d/f"), StoppedBody(b"abc", after=0), meta={}, if_match=None)
    assert keys(store) == []
    assert not (root / "d").exists()
    assert list((root / ".cachefs-store/tmp").iterdir()) == []


def test_of_many_writers_from_one_version_one_wins(root: Path) -> None:
    stores = [FileStore(str(root)) for _ in range(4)]
    base = put(stores[0], "f", b"base").etag
    results: list[str] = []

    def write(number: int) -> None:
        try:
            put(stores[number % 4], "f", b"%d" % number, base)
            results.append("won")
        except Changed:
            results.append("lost")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["lost"] * 11 + ["won"]


def test_a_copy_takes_bytes_metadata_and_type_along(store: FileStore, root: Path) -> None:
    content = os.urandom(2_500_000)
    info = store.put(
        Key("a"), BytesBody(content), meta={"k": "v"}, content_type="text/x", if_match=None
    )
    copy = store.copy(Key("a"), Key("b/c"), if_match=info.etag, replaces=None)
    assert get(store, "b/c") == content
    assert (copy.meta, copy.content_type) == ({"k": "v"}, "text/x")
    with pytest.raises(Changed):
        store.copy(Key("a"), Key("b/c"), if_match=info.etag, replaces=None)
    marker = put(store, "d/", k="v")
    assert store.copy(marker.key, Key("e/"), if_match=marker.etag, replaces=None).meta == {
        "k": "v"
    }
    assert (root / "e").is_dir()


def test_metadata_too_long_for_an_attribute_lies_beside(store: FileStore, root: Path) -> None:
    long = "v" * 200_000
    info = put(store, "f", b"x", k=long)
    assert info.meta == {"k": long}
    assert len(list((root / ".cachefs-store/meta").iterdir())) == 1
    short = store.set_meta(Key("f"), {"k": "v"}, content_type=None, if_match=info.etag)
    assert FileStore(str(root)).head(Key("f")).meta == {"k": "v"}
    put(store, "f", b"y", short.etag, k=long)
    store.delete(Key("f"))
    assert list((root / ".cachefs-store/meta").iterdir()) == []


def test_pages_go_on_where_the_last_one_ended(store: FileStore, root: Path) -> None:
    for number in range(1_200):
        (root / f"f{number:04}").touch()
    (root / "d").mkdir()
    for number in range(1_000):
        (root / "d" / f"{number:04}").touch()
    pages = list(store.list(Key(""), deep=True))
    assert [len(page.objects) for page in pages] == [1000, 1000, 201]
    shown = [info.key for page in pages for info in page.objects]
    assert shown == sorted(shown)
    assert len(set(shown)) == 2_201


def test_a_listing_outlives_a_fault(store: FileStore, root: Path) -> None:
    for number in range(1_500):
        (root / f"f{number:04}").touch()
    pages = store.list(Key(""))
    first = next(pages)
    moved = root.with_name("moved")
    root.rename(moved)
    with pytest.raises(NoBucket):
        next(pages)
    moved.rename(root)
    second = next(pages)
    shown = [info.key for info in (*first.objects, *second.objects)]
    assert shown == [f"f{number:04}" for number in range(1_500)]


def test_a_root_that_is_not_there_is_no_bucket_and_never_empty(
    root: Path, store: FileStore
) -> None:
    store.check()
    root.rename(root.with_name("away"))
    for ask in (store.check, lambda: keys(store), lambda: store.head(Key("f"))):
        with pytest.raises(NoBucket):
            ask()
    root.mkdir()  # what a share that is no longer mounted looks like
    with pytest.raises(NoBucket):
        keys(store)
    root.rmdir()
    root.write_bytes(b"a file")
    with pytest.raises(NoBucket):
        FileStore(str(root)).check()


def test_the_probe_finds_everything_enforced_and_sweeps_what_a_killed_process_left(
    store: FileStore, root: Path
) -> None:
    tmp = root / ".cachefs-store/tmp"
    tmp.mkdir(parents=True)
    (tmp / "left").write_bytes(b"half")
    found = store.probe()
    assert found.writable
    assert found.conditional_put is found.conditional_copy is Support.ENFORCED
    assert list(tmp.iterdir()) == []
    assert store.capabilities == found


def as_nobody(code: str, root: Path) -> str:
    """Run *code* without root's powers, which would pass every permission."""
    drop = "os.setgroups([]);os.setgid(65534);os.setuid(65534);" if os.getuid() == 0 else ""
    program = f"import os,sys;from cachefs.remote.file import FileStore;{drop}{code}"
    ran = subprocess.run(
        [sys.executable, "-c", program, str(root)],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    return ran.stdout + ran.stderr


def test_what_may_not_be_read_or_written_is_denied(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = Path("/dev/shm") / f"cachefs-{os.getpid()}"
    root.mkdir(mode=0o755)
    try:
        code = "s=FileStore(sys.argv[1]);s.check();print(s.probe().writable)"
        assert as_nobody(code, root).strip() == "False"
        root.chmod(0o700)
        assert "Denied" in as_nobody("FileStore(sys.argv[1]).check()", root)
    finally:
        root.rmdir()


def test_a_listing_tells_all_that_a_head_tells(store: FileStore, root: Path) -> None:
    put(store, "d/", mode=str(stat.S_IFDIR | 0o750))
    put(store, "d/ours", b"x", mode=str(stat.S_IFREG | 0o640), name="value")
    put(store, "d/long", b"x", long="x" * 200_000)
    put(store, "d//odd", b"x", name="odd")
    (root / "d/theirs").write_bytes(b"theirs")
    (root / "d/link").symlink_to("nowhere")
    put(store, "d/edited", b"ours", mode=str(stat.S_IFREG | 0o600))
    (root / "d/edited").write_bytes(b"and theirs")

    told = list(objects(store, "d/"))

    assert [info.key for info in told] == [
        "d/", "d//odd", "d/edited", "d/link", "d/long", "d/ours", "d/theirs"
    ]  # fmt: skip
    assert told == [store.head(info.key) for info in told]


def test_a_listing_under_way_tells_no_mix_of_two_versions(store: FileStore) -> None:
    written: dict[str, ObjectInfo] = {}
    ending = threading.Event()

    def write() -> None:
        info = put(store, "name", b"0", version="0")
        for number in range(1, 200):
            written[info.etag] = info
            info = put(store, "name", b"0", info.etag, version=str(number))
        written[info.etag] = info
        ending.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen: list[ObjectInfo] = []
    while not ending.is_set():
        seen += [info for info in objects(store) if info.meta is not None]
    writer.join()

    assert all(info.meta == written[info.etag].meta for info in seen)


def test_a_full_disk_is_refused_with_its_reason(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(root)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        store = FileStore(str(root))
        with pytest.raises(Refused, match="No space left"):
            put(store, "f", b"x" * 500_000)
        assert keys(store) == []
        put(store, "f", b"x" * 1_000)
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_a_body_of_another_length_is_a_fault(store: FileStore) -> None:
    class Short(BytesBody):
        @property
        def size(self) -> int:
            return 10

    with pytest.raises(Fault):
        store.put(Key("f"), Short(b"abc"), meta={}, if_match=None)
    assert keys(store) == []


_KILLED = """
import os, sys
from cachefs.core.types import Key
from cachefs.remote.file import FileStore
from tests.contract.bodies import BytesBody

base = sys.argv[1]
for limit in range(1, 100):
    os.mkdir(f"{base}/{limit}")
    pid = os.fork()
    if not pid:
        left = limit
        for name in ("mkdir", "setxattr", "fchmod", "fsync", "rename", "utime"):
            def counted(*args, real=getattr(os, name), **kwargs):
                global left
                left -= 1
                if not left:
                    os._exit(9)
                return real(*args, **kwargs)
            setattr(os, name, counted)
        FileStore(f"{base}/{limit}").put(
            Key("a/b/"), BytesBody(b""), meta={"mode": "16872"}, if_match=None
        )
        os._exit(0)
    if os.waitpid(pid, 0)[1] == 0:
        break
print(limit)
"""


def test_a_marker_appears_whole_or_not_at_all_whenever_its_maker_is_killed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path)], check=True, capture_output=True, text=True
    )
    steps = int(done.stdout)
    assert steps > 10
    seen = []
    for limit in range(1, steps + 1):
        store = FileStore(str(tmp_path / str(limit)))
        found = [(info.key, (info.meta or {}).get("mode")) for info in objects(store)]
        assert found in ([], [("a/b/", "16872")]), limit
        seen.append(bool(found))
        store.probe()
        assert os.listdir(tmp_path / str(limit) / ".cachefs-store" / "tmp") == []
    assert seen == sorted(seen)
    assert seen[-1]
