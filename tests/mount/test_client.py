"""``cachefs.connect``: the same promises whether a mount has the cache or this process does."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

import cachefs
from cachefs import Client
from cachefs.core.errors import CachefsError, NotFound, UsageError
from tests.mount import programs
from tests.mount.harness import ROOT, Mount, wait_until
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]
MIB = 1 << 20
OLD, NEW = b"old" * 1000, os.urandom(2 * MIB + 7)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the test's own configuration is seen."""
    for name in [each for each in os.environ if each.startswith(("CACHEFS_", "XDG_", "AWS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CACHEFS_MIN_FREE", "0")
    (tmp_path / "config.toml").touch()
    monkeypatch.setenv("CACHEFS_CONFIG", str(tmp_path / "config.toml"))


@dataclass
class Door:
    """A client, and what it is of."""

    client: Client
    store: LiveStore
    mount: Mount | None

    @property
    def is_within(self) -> bool:
        return self.mount is None


@pytest.fixture(params=["within", "mount"])
def door(
    request: pytest.FixtureRequest,
    new_store: Callable[[str], LiveStore],
    mounting: Mounting,
    tmp_path: Path,
) -> Iterator[Door]:
    store = new_store("file")
    source = store.target().source
    with contextlib.ExitStack() as stack:
        mount = stack.enter_context(mounting(store.target())) if request.param == "mount" else None
        options = {} if mount else {"cache_dir": tmp_path / "cache"}
        client = stack.enter_context(
            cachefs.connect(mount.mountpoint if mount else source, **options)
        )
        yield Door(client, store, mount)


def test_it_is_this_process_that_has_the_cache_where_nobody_else_has(door: Door) -> None:
    assert door.client.is_in_process is door.is_within


def test_what_is_put_is_stored_and_read_back(door: Door, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(NEW)

    told = door.client.put(tmp_path / "local", "d/e/file")

    assert (told.path, told.size, told.is_file, told.name) == ("d/e/file", len(NEW), True, "file")
    assert door.store.get("d/e/file") == NEW
    assert door.client.read("d/e/file") == NEW
    door.client.get("/d/e/../e/file", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == NEW
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert [each.name for each in tmp_path.glob("tmp*")] == []


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_a_file_to_be_read_is_a_real_file_on_a_lease_that_ends_at_its_close(door: Door) -> None:
    door.client.write("file", NEW)

    with door.client.open("file", "rb") as file:
        assert os.pread(file.fileno(), 10, 5) == NEW[5:15]
        file.seek(-3, os.SEEK_END)
        assert file.read() == NEW[-3:]
        assert file.name == "file"
        assert leased(door.client) == 1

    assert leased(door.client) == 0
    with door.client.lease("file") as lease:
        assert Path(lease).read_bytes() == NEW
        assert not os.access(lease, os.W_OK) or os.geteuid() == 0
        assert leased(door.client) == 1
    assert leased(door.client) == 0


def leased(client: Client) -> int:
    status = client._wire.ask(lambda control: control.ask("status"))
    assert isinstance(status, dict)
    return int(status["leased"]["leases"])


def test_a_file_that_nobody_closes_gives_its_lease_back(door: Door) -> None:
    door.client.write("file", OLD)
    file = door.client.open("file", "rb")
    assert leased(door.client) == 1
    del file
    wait_until(lambda: leased(door.client) == 0, "the lease is given back")


def test_a_file_that_is_read_in_pieces_is_of_one_version_and_holds_no_lease(door: Door) -> None:
    door.client.write("file", NEW)

    with door.client.open("file", "rb", whole=False) as file:
        assert file.read(10) == NEW[:10]
        assert file.seek(-5, os.SEEK_END) == len(NEW) - 5
        assert file.read() == NEW[-5:]
        file.seek(0)
        assert file.read() == NEW
        file.seek(3)
        file.seek(4, os.SEEK_CUR)
        assert (file.tell(), file.read(2), file.name) == (7, NEW[7:9], "file")
        assert leased(door.client) == 0
        with pytest.raises(OSError, match="before the beginning"):
            file.seek(-1)
        door.client.write("file", OLD)
        file.seek(MIB)
        with pytest.raises(OSError, match="other content") as caught:
            file.read(MIB)
        assert caught.value.errno == errno.ESTALE
    with door.client.open("file", whole=False, encoding="ascii") as text:
        assert text.read() == OLD.decode()
    door.client.mkdir("d")
    with pytest.raises(IsADirectoryError):
        door.client.open("d", "rb", whole=False)


def test_a_file_that_the_cache_cannot_hold_is_read_in_pieces(
    new_store: Callable[[str], LiveStore], tmp_path: Path
) -> None:
    store = new_store("file")
    content = os.urandom(9 * MIB)
    store.put("large", content)
    options = {"cache_dir": tmp_path / "cache", "cache_size": "4MiB"}
    with cachefs.connect(store.target().source, **options) as client:
        with pytest.raises(OSError, match="more than the cache") as caught:
            client.open("large", "rb")
        assert caught.value.errno == errno.ENOSPC
        with client.open("large", "rb", whole=False) as file:
            assert file.read() == content


def test_files_are_written_as_the_built_in_open_does(door: Door) -> None:
    client = door.client
    with client.open("text", "w", encoding="utf-8") as file:
        file.write("eins\n")
        assert not client.exists("text")
    with client.open("text", "a") as file:
        file.write("zwei\n")
    with client.open("text") as file:
        assert file.read() == "eins\nzwei\n"
    with client.open("text", "r+b") as binary:
        binary.seek(2)
        binary.write(b"NS")
    with client.open("new", "xb") as binary:
        binary.write(b"new")
    with client.open("appended", "ab") as binary:
        binary.write(b"first")

    assert door.store.get("text") == b"eiNS\nzwei\n"
    assert door.store.get("new") == b"new"
    assert door.store.get("appended") == b"first"
    with pytest.raises(FileExistsError):
        client.open("new", "x")
    with pytest.raises(FileNotFoundError):
        client.open("none", "r+")
    for wrong in ("", "rw", "rbt", "z", "rr"):
        with pytest.raises(ValueError, match="mode"):
            client.open("text", wrong)


def test_nothing_is_stored_where_the_block_raises_or_the_file_is_dropped(door: Door) -> None:
    door.client.write("file", OLD)

    for mode in ("w", "wb", "a"):
        with contextlib.suppress(ZeroDivisionError), door.client.open("file", mode) as file:
            file.write("half" if mode != "wb" else b"half")
            raise ZeroDivisionError
    file = door.client.open("file", "wb")
    file.write(b"half")
    del file

    assert door.client.read("file") == OLD


def test_a_file_that_was_changed_meanwhile_is_not_overwritten_by_what_grew_from_it(
    door: Door,
) -> None:
    door.client.write("file", OLD)

    file = door.client.open("file", "ab")
    file.write(b"!")
    door.client.write("file", b"theirs")
    with pytest.raises(OSError, match="other content") as caught:
        file.close()

    assert caught.value.errno == errno.ESTALE
    assert file.closed
    assert door.client.read("file") == b"theirs"


def test_a_directory_is_listed_as_it_is(door: Door) -> None:
    for name in ("a", "d/b", "d/e/c"):
        door.client.write(name, name)

    assert sorted(each.path for each in door.client.list()) == ["a", "d"]
    assert {each.path: each.kind for each in door.client.list("d")} == {
        "d/b": "file",
        "d/e": "dir",
    }
    deep = {each.path: each.size for each in door.client.list(deep=True) if each.is_file}
    assert deep == {"a": 1, "d/b": 3, "d/e/c": 5}
    with pytest.raises(NotADirectoryError):
        list(door.client.list("a"))


def test_names_are_made_moved_copied_and_removed(door: Door) -> None:
    client = door.client
    client.mkdir("d/e", parents=True)
    client.mkdir("d/e", parents=True)
    client.write("d/e/f", OLD)
    client.copy("d/e/f", "copy")
    client.rename("d/e/f", "moved")
    assert client.read("copy") == client.read("moved") == OLD
    with pytest.raises(FileExistsError):
        client.rename("copy", "moved", replace=False)
    with pytest.raises(FileExistsError):
        client.mkdir("d")
    client.write("d/x", OLD)
    with pytest.raises(OSError, match="not empty") as caught:
        client.delete("d")
    assert caught.value.errno == errno.ENOTEMPTY
    client.delete("d", recursive=True)
    client.delete("copy")
    assert door.store.keys() == ["moved"]
    assert not client.exists("d")


def test_an_error_is_the_one_that_a_program_in_a_mount_would_get(door: Door) -> None:
    client = door.client
    client.write("file", OLD)
    client.write("d/inner", OLD)
    wrong: list[tuple[type[OSError], Callable[[], object]]] = [
        (FileNotFoundError, lambda: client.read("none")),
        (FileNotFoundError, lambda: client.delete("none")),
        (FileNotFoundError, lambda: client.lease("none")),
        (FileNotFoundError, lambda: client.put("/none", "x")),
        (NotADirectoryError, lambda: client.stat("file/below")),
        (IsADirectoryError, lambda: client.read("d")),
        (IsADirectoryError, lambda: client.write("d", b"")),
        (OSError, lambda: client.write("x" * 256, b"")),
    ]
    for error, act in wrong:
        with pytest.raises(error) as caught:
            act()

        assert type(caught.value) is error
        assert caught.value.errno
        assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, CachefsError)


def test_what_waits_is_seen_and_waited_for(
    new_store: Callable[[str], LiveStore], tmp_path: Path
) -> None:
    store = new_store("file")
    options = {"upload": "background", "upload_delay": "1h", "cache_dir": tmp_path / "cache"}
    with cachefs.connect(store.target().source, **options) as client:
        client.write("d/file", NEW)
        assert store.keys() == []
        assert client.stat("d/file").etag is None
        assert client.read("d/file") == NEW
        assert [each.path for each in client.list("d")] == ["d/file"]

        client.wait("d/file")

        assert store.get("d/file") == NEW
        assert client.stat("d/file").etag is not None
        client.write("other", OLD)
    assert store.get("other") == OLD  # before it was closed


def test_a_version_that_nobody_here_had_seen_is_kept_and_ours_is_told_where_it_is(
    door: Door,
) -> None:
    door.client.write("d/file", OLD)
    assert door.client.read("d/file") == OLD
    door.store.put("d/file", b"theirs")

    told = door.client.write("d/file", NEW)

    assert told.path.startswith("d/file.conflict-")
    assert door.store.get("d/file") == b"theirs"
    assert door.store.get(told.path) == NEW
    assert door.client.read("d/file") == b"theirs"


def test_nothing_is_written_where_nothing_may_be(
    new_store: Callable[[str], LiveStore], tmp_path: Path
) -> None:
    store = new_store("file")
    store.put("file", OLD)
    options = {"cache_dir": tmp_path / "cache", "read_only": True}
    with cachefs.connect(store.target().source, **options) as client:
        assert client.read("file") == OLD
        for act in (lambda: client.write("file", NEW), lambda: client.delete("file")):
            with pytest.raises(OSError, match="read-only") as caught:
                act()
            assert caught.value.errno == errno.EROFS
    assert store.get("file") == OLD


@pytest.mark.parametrize("store", ["moto", "radosgw", "swift"], indirect=True)
def test_on_each_kind_of_store_it_is_the_same(
    store: LiveStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = store.target()
    for name, value in target.environment.items():
        monkeypatch.setenv(name, value)
    endpoint = {"endpoint_url": store.endpoint} if "--endpoint-url" in target.options else {}
    path_style = {"force_path_style": True} if "--force-path-style" in target.options else {}
    options = {"cache_dir": tmp_path / "cache", **endpoint, **path_style}
    with cachefs.connect(target.source, **options) as client:
        for content in (OLD, NEW):
            client.write("d/e/file", content)
            assert store.get("d/e/file") == content
        client.refresh()
        assert client.read("d/e/file") == NEW
        assert sorted(each.path for each in client.list(deep=True)) == ["d", "d/e", "d/e/file"]
        client.rename("d/e/file", "moved")
        client.delete("d", recursive=True)
        assert store.keys() == ["moved"]


def test_pinned_files_are_here_and_stay(door: Door) -> None:
    door.store.put("d/file", NEW)

    door.client.pin("d")

    assert door.client._wire.ask(lambda c: c.ask("presence", paths=["d/file"])) == [
        [len(NEW), len(NEW)]
    ]
    door.client.unpin("d")
    with pytest.raises(FileNotFoundError):
        door.client.pin("none")


def test_what_others_store_is_seen_after_a_refresh(door: Door) -> None:
    door.store.put("file", OLD)
    assert door.client.read("file") == OLD
    door.store.put("file", NEW)

    door.client.refresh()

    assert door.client.read("file") == NEW


def test_the_kernel_sees_at_once_what_a_program_puts_and_the_program_what_waits_in_the_mount(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("file")
    options = ("--upload", "background", "--upload-delay", "1h")
    with mounting(store.target(), *options) as mount, cachefs.connect(mount.mountpoint) as client:
        mount.do(programs.write_file, mount / "file", OLD)
        assert mount.do(programs.read_file, mount / "file") == OLD
        assert client.read("file") == OLD
        assert store.keys() == []

        client.write("file", NEW)
        client.write("d/new", NEW)

        assert mount.do(programs.read_file, mount / "file") == NEW
        assert mount.do(programs.read_file, mount / "d/new") == NEW
        client.delete("d/new")
        assert not mount.do(os.path.exists, mount / "d/new")


def test_the_kernel_is_told_of_what_it_would_believe_for_long(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("file")
    store.put("file", OLD)
    options = ("--metadata-ttl", "600", "--negative-ttl", "600")
    with mounting(store.target(), *options) as mount, cachefs.connect(mount.mountpoint) as client:

        def seen() -> tuple[bool, bool, bool, int]:
            there = [mount.do(os.path.exists, mount / name) for name in ("new", "d/new", "moved")]
            return (*there, mount.do(os.path.getsize, mount / "file"))  # type: ignore[return-value]

        assert seen() == (False, False, False, len(OLD))
        client.write("new", NEW)
        client.write("d/new", NEW)
        client.write("file", NEW)
        wait_until(lambda: seen() == (True, True, False, len(NEW)), "what was put", 5)
        client.rename("new", "moved")
        client.delete("d/new")
        wait_until(lambda: seen() == (False, False, True, len(NEW)), "what was moved", 5)


def read_often(path: Path, times: int) -> set[tuple[int, int]]:
    """Read a file again and again. Return length and number of different bytes of each that was seen."""
    found = (path.read_bytes() for _ in range(times))
    return {(len(content), len(set(content))) for content in found}


def test_who_reads_in_the_mount_never_sees_half_of_what_is_put(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("file")
    options = ("--upload", "background", "--upload-delay", "0")
    with mounting(store.target(), *options) as mount, cachefs.connect(mount.mountpoint) as client:
        client.write("file", b"0" * (MIB // 4))
        reader = mount.hands()
        reader.begin(read_often, mount / "file", 40)
        lengths: set[int] = set()
        while reader.busy() or len(lengths) < 5:
            lengths.add(MIB // 4 + 1000 * len(lengths))
            client.write("file", b"%d" % (len(lengths) % 10) * max(lengths))

        seen = reader.finish(60)

    assert all(different == 1 for _, different in seen)
    assert {length for length, _ in seen} <= lengths | {MIB // 4}
    assert len(seen) > 1
    assert store.keys() == ["file"]


def test_what_was_acknowledged_outlives_a_kill_of_the_mount_and_is_put_by_the_next(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("file")
    acknowledged: list[int] = []

    def work() -> None:
        with contextlib.suppress(OSError, CachefsError):
            for number in range(10**6):
                client.write("d/file", str(number).ljust(300_000))
                acknowledged.append(number)

    options = ("--upload", "background", "--upload-delay", "0")
    with mounting(store.target(), *options) as mount:
        client = cachefs.connect(mount.mountpoint)
        writer = threading.Thread(target=work)
        writer.start()
        wait_until(lambda: len(acknowledged) > 20, "some files are put")
        mount.kill()
        writer.join(60)
        client.close()
        mount.start()
        with cachefs.connect(mount.mountpoint) as again:
            content = again.read("d/file")
            assert len(content) == 300_000
            assert int(content) - acknowledged[-1] in (0, 1)
            again.wait()
    assert store.get("d/file") == content
    assert store.keys() == ["d/file"]


STUCK = """
import sys, cachefs
client = cachefs.connect(sys.argv[1], cache_dir=sys.argv[2])
client.write("file", "x")
print("ready", flush=True)
sys.stdin.read()
client.close()
"""


def states_of(pid: int) -> set[str]:
    """What the threads of a process are doing, as the kernel has it."""
    told = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return {text.rpartition(")")[2].split()[0] for text in told}


def test_whoever_has_the_cache_and_hangs_is_not_waited_for_without_end(
    new_store: Callable[[str], LiveStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cache_dir = new_store("file").target().source, tmp_path / "cache"
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, source, str(cache_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        holder.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: states_of(holder.pid) == {"T"}, "every thread of it stands still")
            with monkeypatch.context() as patch:
                patch.setattr("cachefs.wire.ANSWER_S", 0.3)
                with cachefs.connect(cache_dir) as client, pytest.raises(TimeoutError):
                    client.stat("file")
        finally:
            holder.send_signal(signal.SIGCONT)
        with cachefs.connect(source, cache_dir=cache_dir) as client:
            assert client.read("file") == b"x"


def test_part_of_what_a_mount_shows_is_found_in_it(
    new_store: Callable[[str], LiveStore], mounting: Mounting, tmp_path: Path
) -> None:
    store = new_store("file")
    store.put("d/file", OLD)
    with mounting(store.target()) as mount:
        for where in (f"{mount.mountpoint}/d", store.target().source, mount.cache_dir):
            with cachefs.connect(where) as client:
                assert not client.is_in_process
                assert client.cache_dir == mount.cache_dir
                path = "file" if str(where).endswith("/d") else "d/file"
                assert client.read(path) == OLD
        with cachefs.connect(store.target().source, cache_dir=tmp_path / "own") as client:
            assert client.is_in_process


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_a_prefix_of_a_bucket_is_found_in_the_mount_of_the_bucket(
    store: LiveStore, mounting: Mounting, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in store.target().environment.items():
        monkeypatch.setenv(name, value)
    store.put("d/e/file", OLD)
    endpoint = {"endpoint_url": store.endpoint}
    with (
        mounting(store.target().below("d")) as mount,
        cachefs.connect(f"{store.target().source}/d/e", **endpoint) as client,
    ):
        assert client.cache_dir == mount.cache_dir
        assert client.read("file") == OLD
        client.write("new", NEW)
    assert store.get("d/e/new") == NEW


def test_a_cache_directory_needs_its_source_to_be_told(
    new_store: Callable[[str], LiveStore], tmp_path: Path
) -> None:
    store = new_store("file")
    source = store.target().source
    with cachefs.connect(source, cache_dir=tmp_path / "cache") as client:
        client.write("file", OLD)

    with cachefs.connect(tmp_path / "cache", source=source) as client:
        assert client.read("file") == OLD
    with pytest.raises(UsageError, match="name the source"):
        cachefs.connect(tmp_path / "cache")
    with pytest.raises(UsageError, match="no source, no mount"):
        cachefs.connect(tmp_path / "nothing")
    with pytest.raises(UsageError, match="unknown option"):
        cachefs.connect(source, cash_dir="x")
    with pytest.raises(CachefsError):
        cachefs.connect(f"file://{tmp_path}/none", cache_dir=tmp_path / "other")
    assert not isinstance(UsageError(""), NotFound)


def test_after_the_end_of_the_mount_this_process_goes_on(
    new_store: Callable[[str], LiveStore],
    mounting: Mounting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = new_store("file")
    monkeypatch.setenv("CACHEFS_CACHE_DIR", str(tmp_path / "own"))
    with mounting(store.target()) as mount, cachefs.connect(store.target().source) as client:
        client.write("file", OLD)
        with client.open("file", "rb") as file:
            assert not client.is_in_process
            mount.umount()
            assert client.read("file") == OLD
            assert client.is_in_process
            assert file.read() == OLD


CHILD = """
import sys, cachefs
client = cachefs.connect(sys.argv[1], cache_dir=sys.argv[2])
print(client.is_in_process, client.read("file").decode(), flush=True)
sys.stdin.read()
client.write("by-child", "x")
client.close()
"""


def test_two_programs_share_one_cache_and_the_second_goes_on_alone(
    new_store: Callable[[str], LiveStore], tmp_path: Path
) -> None:
    store = new_store("file")
    source, cache_dir = store.target().source, tmp_path / "cache"
    client = cachefs.connect(source, cache_dir=cache_dir)
    client.write("file", "shared")
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, source, str(cache_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "False shared\n"
        client.close()

        child.communicate("", timeout=30)

    assert child.returncode == 0
    assert store.get("by-child") == b"x"


def test_a_forked_child_goes_on_with_connections_of_its_own(
    new_store: Callable[[str], LiveStore], tmp_path: Path
) -> None:
    store = new_store("file")
    with cachefs.connect(store.target().source, cache_dir=tmp_path / "cache") as client:
        client.write("file", OLD)
        file = client.open("file", "rb")
        pid = os.fork()
        if not pid:
            code = 1
            with contextlib.suppress(BaseException):
                assert client.read("file") == OLD
                assert not client.is_in_process
                client.write("by-child", b"x")
                code = 0
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert client.read("by-child") == b"x"
        assert leased(client) == 1
        file.close()


LEAVING = """
import os, sys, cachefs
client = cachefs.connect(sys.argv[1], cache_dir=sys.argv[2])
client.write("file", "x")
if not os.fork():
    sys.stdin.read()
    os._exit(0)
os.kill(os.getpid(), 9)
"""


def test_a_forked_child_keeps_nothing_of_a_parent_that_is_killed(
    new_store: Callable[[str], LiveStore], tmp_path: Path
) -> None:
    source, cache_dir = new_store("file").target().source, tmp_path / "cache"
    with subprocess.Popen(
        [sys.executable, "-c", LEAVING, source, str(cache_dir)], stdin=subprocess.PIPE, cwd=ROOT
    ) as parent:
        parent.wait(30)

        with cachefs.connect(source, cache_dir=cache_dir) as client:
            assert client.is_in_process
            assert client.read("file") == b"x"


def test_many_threads_use_one_client(door: Door) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                name, content = f"d{number % 3}/{number}-{turn}", os.urandom(1000 * number)
                door.client.write(name, content)
                assert door.client.read(name) == content
                assert name in {each.path for each in door.client.list(f"d{number % 3}")}
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert len(door.store.keys()) == 40


def test_a_client_that_is_closed_says_so(door: Door) -> None:
    door.client.close()
    door.client.close()

    with pytest.raises(OSError, match="closed"):
        door.client.stat()


FORGETFUL = """
import sys, cachefs
client = cachefs.connect(sys.argv[1], cache_dir=sys.argv[2], upload="background", upload_delay="1h")
client.write("file", "x" * 1000)
lease = client.lease("file")
"""


def test_a_program_that_closes_nothing_ends_all_the_same_and_what_waits_is_kept(
    new_store: Callable[[str], LiveStore], tmp_path: Path
) -> None:
    store = new_store("file")
    source, cache_dir = store.target().source, tmp_path / "cache"

    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL, source, str(cache_dir)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=30,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    with cachefs.connect(source, cache_dir=cache_dir) as client:
        client.wait()
    assert store.get("file") == b"x" * 1000


WRITING = """
import sys, cachefs
client = cachefs.connect(sys.argv[1], cache_dir=sys.argv[2], upload="background", upload_delay="0")
for number in range(10**9):
    client.write("file", str(number).ljust(300_000))
    print(number, flush=True)
"""


@pytest.mark.parametrize("count", [1, 7, 20])
def test_whatever_was_acknowledged_outlives_a_kill(
    new_store: Callable[[str], LiveStore], tmp_path: Path, count: int
) -> None:
    store = new_store("file")
    source, cache_dir = store.target().source, tmp_path / "cache"
    with subprocess.Popen(
        [sys.executable, "-c", WRITING, source, str(cache_dir)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as child:
        assert child.stdout is not None
        told = [child.stdout.readline() for _ in range(count)]
        child.kill()
        told += child.stdout.readlines()
    last = max(int(line) for line in told if line.endswith("\n"))

    with cachefs.connect(source, cache_dir=cache_dir) as client:
        content = client.read("file")
        assert len(content) == 300_000
        assert int(content) in (last, last + 1)
        client.wait()
    assert store.get("file") == content
    assert store.keys() == ["file"]


async def test_on_trio_it_is_the_same_with_await(
    new_store: Callable[[str], LiveStore], tmp_path: Path
) -> None:
    store = new_store("file")
    source = store.target().source
    async with await cachefs.connect_async(source, cache_dir=tmp_path / "cache") as client:
        await client.mkdir("d")
        async with client.open("d/file", "w") as file:
            await file.write("one\n")
        async with client.open("d/file") as file:
            assert [line async for line in file] == ["one\n"]
        with contextlib.suppress(ZeroDivisionError):
            async with client.open("d/file", "w") as file:
                await file.write("half")
                raise ZeroDivisionError
        assert await client.read("d/file") == b"one\n"
        assert (await client.stat("d/file")).size == 4
        assert await client.exists("d/file")
        await client.copy("d/file", "copy")
        await client.rename("copy", "moved")
        await client.get("moved", tmp_path / "local")
        await client.put(tmp_path / "local", "put")
        await client.write("written", b"x")
        await client.pin("put")
        await client.unpin("put")
        await client.refresh()
        await client.wait()
        found = [each.path async for each in client.list(deep=True)]
        assert sorted(found) == ["d", "d/file", "moved", "put", "written"]
        with await client.lease("put") as lease:
            assert await trio.Path(lease).read_bytes() == b"one\n"
        await client.delete("d", recursive=True)
        with pytest.raises(FileNotFoundError):
            await client.stat("d")


async def test_on_trio_a_call_can_be_cancelled_while_it_waits(
    new_store: Callable[[str], LiveStore], tmp_path: Path
) -> None:
    source = new_store("file").target().source
    async with await cachefs.connect_async(source, cache_dir=tmp_path / "cache") as client:
        held = threading.Event()
        client.client.stat = lambda path="": held.wait(20)  # type: ignore[method-assign, assignment, return-value]

        with trio.fail_after(10), trio.move_on_after(0.05) as scope:
            await client.stat()

        held.set()
        assert scope.cancelled_caught


def test_the_asynchronous_client_has_all_that_the_other_has() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(Client) - public(cachefs.AsyncClient) == {"cache_dir", "is_in_process"}
