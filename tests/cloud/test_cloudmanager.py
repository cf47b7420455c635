"""CloudManager on one machine: what its methods return, and what is on the disk afterwards."""

import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cachefs
from cachefs import CloudManager
from cachefs.core.errors import NotFound, StoreError, UsageError

ROOT = Path(__file__).parents[2]
EXAMPLE = """
import cloudmanager

cm = cloudmanager.CloudManager(
  "/path/to/database.sqlite3",   # Database of the stored files' information
  "/path/to/storage/",           # Cached files will be stored here
  20 * (2**30))                  # 20 GiB capacity

cm.upload("/path/to/file")       # returns hash of the uploaded file, or False

cm.warm_up("6f7bed7...121b2")    # Puts the corresponding file in cache
cm.download("6f7bed7...121b2")   # Same as warm_up

cm.exists("6f7bed7...121b2")     # returns true if the file exists on the database
cm.on_cache("6f7bed7...121b2")   # returns true if the file is on cache

cm.usage_ratio()                 # Returns the storage usage percentage

cm.close()                       # cleans up everything.
"""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[CloudManager]:
    with CloudManager(tmp_path / "db.sqlite3", tmp_path / "storage", 1000) as manager:
        yield manager


@pytest.fixture
def make(tmp_path: Path) -> Callable[[bytes], Path]:
    def made(content: bytes) -> Path:
        path = tmp_path / f"source-{sha256(content)[:8]}"
        path.write_bytes(content)
        return path

    return made


def remote_of(tmp_path: Path) -> Path:
    return tmp_path / "db.sqlite3.remote"


def in_storage(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / "storage").iterdir()}


@pytest.mark.parametrize("named", ["6f7bed7...121b2", sha256(b"bytes of a file")])
def test_the_example_that_programs_were_written_by_runs_as_it_stands(
    tmp_path: Path, named: str
) -> None:
    (tmp_path / "file").write_bytes(b"bytes of a file")
    schema = (ROOT / "db" / "schema.sql").read_text("utf-8")
    with sqlite3.connect(tmp_path / "database.sqlite3") as database:
        database.executescript(schema)
    database.close()
    example = EXAMPLE.replace("/path/to", str(tmp_path)).replace("6f7bed7...121b2", named)
    said = re.sub(r"^(cm\.[a-z_]+\(.*\))", r"print(\1)", example, flags=re.MULTILINE)

    done = subprocess.run(
        ["python", "-W", "error", "-c", said], capture_output=True, text=True, check=True, cwd=ROOT
    )

    path = f"{tmp_path}/storage/{named}"
    digest = sha256(b"bytes of a file")
    is_it = named == digest
    assert done.stdout.split("\n")[:5] == [
        digest,
        path if is_it else "None",
        path if is_it else "None",
        str(is_it),
        str(is_it),
    ]


def test_the_schema_can_be_given_to_the_program_of_sqlite(tmp_path: Path) -> None:
    schema = (ROOT / "db" / "schema.sql").read_bytes()
    subprocess.run(["sqlite3", tmp_path / "db.sqlite3"], input=schema, check=True)

    with CloudManager(tmp_path / "db.sqlite3", tmp_path / "storage", 100) as manager:
        assert manager.used_space() == 0


def test_an_uploaded_file_is_here_by_its_hash_and_waits(
    manager: CloudManager, make: Callable[[bytes], Path], tmp_path: Path
) -> None:
    digest = manager.upload(make(b"hello"))

    assert digest == sha256(b"hello")
    assert manager.warm_up(digest) == str(tmp_path / "storage" / digest)
    assert in_storage(tmp_path) == {digest: b"hello"}
    assert manager.exists(digest)
    assert manager.on_cache(digest)
    assert (manager.used_space(), manager.capacity(), manager.usage_ratio()) == (5, 1000, 0.005)
    assert manager.upload_queue_info() == {"size": 5, "count": 1}
    assert manager.total_outgoing() == 0


def test_sync_uploads_what_waits_once(
    manager: CloudManager, make: Callable[[bytes], Path], tmp_path: Path
) -> None:
    digest = manager.upload(make(b"hello"))
    assert digest

    assert manager.cloud_sync()
    assert manager.cloud_sync()

    assert (remote_of(tmp_path) / digest).read_bytes() == b"hello"
    assert manager.upload_queue_info() == {"size": 0, "count": 0}
    assert manager.total_outgoing() == manager.current_outgoing() == 5
    info = manager.info(digest)
    assert info is not None
    assert info["uploaded"] is True
    assert info["filename"] == f"source-{digest[:8]}"


def test_the_same_bytes_are_kept_and_uploaded_once(
    manager: CloudManager, make: Callable[[bytes], Path], tmp_path: Path
) -> None:
    first = manager.upload(make(b"same"))
    other = tmp_path / "other name"
    other.write_bytes(b"same")

    assert manager.upload(other) == first
    assert manager.used_space() == 4
    manager.cloud_sync()
    assert manager.total_outgoing() == 4


def test_an_empty_file_is_a_file(
    manager: CloudManager, make: Callable[[bytes], Path], tmp_path: Path
) -> None:
    digest = manager.upload(make(b""))
    assert digest
    manager.cloud_sync()
    (tmp_path / "storage" / digest).unlink()

    path = manager.warm_up(digest)

    assert path
    assert Path(path).read_bytes() == b""


def test_what_is_removed_for_room_comes_back_from_the_remote(
    manager: CloudManager, make: Callable[[bytes], Path]
) -> None:
    old = manager.upload(make(b"a" * 600))
    manager.cloud_sync()
    new = manager.upload(make(b"b" * 600))

    assert old
    assert new
    assert not manager.on_cache(old)
    manager.cloud_sync()
    path = manager.warm_up(old)

    assert path
    assert Path(path).read_bytes() == b"a" * 600
    assert not manager.on_cache(new)
    assert manager.total_incoming() == manager.current_incoming() == 600


def test_files_that_wait_are_uploaded_when_room_lacks_and_stay_when_they_cannot_be(
    manager: CloudManager, make: Callable[[bytes], Path], tmp_path: Path
) -> None:
    manager.upload(make(b"a" * 600))
    away = remote_of(tmp_path).rename(tmp_path / "away")

    assert manager.upload(make(b"b" * 600)) is False
    assert not manager.make_room_for(600)
    assert in_storage(tmp_path) == {sha256(b"a" * 600): b"a" * 600}
    status = manager.sync_status()
    assert "No such file or directory" in json.dumps(status)

    away.rename(remote_of(tmp_path))
    assert manager.upload(make(b"b" * 600)) == sha256(b"b" * 600)


def test_a_file_larger_than_nine_tenths_of_the_capacity_is_not_taken(
    manager: CloudManager, make: Callable[[bytes], Path], tmp_path: Path
) -> None:
    assert manager.upload(make(b"x" * 901)) is False
    assert in_storage(tmp_path) == {}
    assert manager.upload(make(b"x" * 900))


def test_unknown_files_are_none(manager: CloudManager) -> None:
    unknown = sha256(b"never seen")

    assert manager.warm_up(unknown) is None
    assert manager.download("../../etc/passwd") is None
    assert manager.info(unknown) is None
    assert not manager.exists(unknown)
    assert not manager.on_cache(unknown)


def test_a_file_whose_only_copy_is_gone_is_false_and_what_remotes_lost_is_said(
    manager: CloudManager, make: Callable[[bytes], Path], tmp_path: Path
) -> None:
    waiting = manager.upload(make(b"waiting"))
    assert waiting
    (tmp_path / "storage" / waiting).unlink()
    assert manager.warm_up(waiting) is False
    assert not manager.on_cache(waiting)

    stored = manager.upload(make(b"stored"))
    assert stored
    assert not manager.cloud_sync()  # the other's bytes are nowhere
    (tmp_path / "storage" / stored).unlink()
    (remote_of(tmp_path) / stored).unlink()
    with pytest.raises(NotFound):
        manager.warm_up(stored)
    assert manager.exists(stored)


def test_a_file_that_was_damaged_here_is_fetched_anew_or_refused(
    manager: CloudManager, make: Callable[[bytes], Path], tmp_path: Path
) -> None:
    stored = manager.upload(make(b"stored"))
    manager.cloud_sync()
    waiting = manager.upload(make(b"waiting"))
    assert stored
    assert waiting
    for digest in (stored, waiting):
        path = tmp_path / "storage" / digest
        path.chmod(0o600)
        path.write_bytes(path.read_bytes().upper())

    path_of_stored = manager.warm_up(stored)

    assert path_of_stored
    assert Path(path_of_stored).read_bytes() == b"stored"
    assert manager.warm_up(waiting) is False
    assert not manager.cloud_sync()
    assert not (remote_of(tmp_path) / waiting).exists()
    assert manager.upload(make(b"waiting")) == waiting
    assert manager.cloud_sync()


def test_what_a_remote_has_already_is_verified_and_taken_or_replaced(
    manager: CloudManager, make: Callable[[bytes], Path], tmp_path: Path
) -> None:
    right, wrong = manager.upload(make(b"right")), manager.upload(make(b"wrong"))
    assert right
    assert wrong
    (remote_of(tmp_path) / right).write_bytes(b"right")
    (remote_of(tmp_path) / wrong).write_bytes(b"other")

    assert manager.cloud_sync()

    assert (remote_of(tmp_path) / wrong).read_bytes() == b"wrong"
    assert manager.total_outgoing() == len(b"wrong")


def test_two_remotes_stand_in_for_each_other_and_are_mended(
    tmp_path: Path, make: Callable[[bytes], Path]
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    remotes = [f"file://{tmp_path}/one", f"file://{tmp_path}/two"]
    with CloudManager(
        tmp_path / "db.sqlite3", tmp_path / "storage", 1000, remotes=remotes
    ) as manager:
        digest = manager.upload(make(b"twice"))
        assert digest
        assert manager.cloud_sync()
        (tmp_path / "one" / digest).write_bytes(b"TWICE")
        (tmp_path / "storage" / digest).unlink()

        path = manager.warm_up(digest)

        assert path
        assert Path(path).read_bytes() == b"twice"
        assert manager.upload_queue_info()["count"] == 1
        (tmp_path / "storage" / digest).unlink()  # the remote that lacks it gets it from the other
        assert manager.cloud_sync()
        assert (tmp_path / "one" / digest).read_bytes() == b"twice"

        (tmp_path / "one").rename(tmp_path / "gone")
        (tmp_path / "storage" / digest).unlink()
        assert manager.warm_up(digest)
        (tmp_path / "two").rename(tmp_path / "gone too")
        (tmp_path / "storage" / digest).unlink()
        with pytest.raises(StoreError):
            manager.warm_up(digest)


def test_a_file_stays_until_as_many_remotes_have_it_as_were_asked_for(
    tmp_path: Path, make: Callable[[bytes], Path]
) -> None:
    (tmp_path / "one").mkdir()
    remotes = [f"file://{tmp_path}/one", f"file://{tmp_path}/two"]
    with CloudManager(
        tmp_path / "db.sqlite3", tmp_path / "storage", 1000, remotes=remotes, copies=2
    ) as manager:
        digest = manager.upload(make(b"x" * 500))
        assert digest
        assert not manager.cloud_sync()
        assert not manager.make_room_for(600)
        (tmp_path / "two").mkdir()
        assert manager.cloud_sync()
        assert manager.make_room_for(600)
        assert not manager.on_cache(digest)


def test_a_dump_is_loaded_elsewhere_and_the_next_goes_on_behind_it(
    manager: CloudManager, make: Callable[[bytes], Path], tmp_path: Path
) -> None:
    first, second = manager.upload(make(b"first")), manager.upload(make(b"second"))
    assert first
    assert second
    assert manager.data_dump(10_000) is None  # nothing is uploaded
    manager.cloud_sync()
    whole = manager.data_dump(10_000)
    assert whole is not None
    one = manager.data_dump(len(whole) - 1)
    assert one is not None
    assert [row["filehash"] for row in json.loads(one)] == [first]
    assert manager.data_load(one, "block 1") == 0
    rest = manager.data_dump(10_000)
    assert rest is not None
    assert [row["filehash"] for row in json.loads(rest)] == [second]

    remote = f"file://{remote_of(tmp_path)}"
    with CloudManager(tmp_path / "b.sqlite3", tmp_path / "b", 1000, remotes=[remote]) as elsewhere:
        assert elsewhere.data_load(one, "block 1") == 1
        path = elsewhere.warm_up(first)
        assert path
        assert Path(path).read_bytes() == b"first"
        assert elsewhere.upload_queue_info()["count"] == 0


def test_the_word_of_a_dump_is_no_reason_to_remove_a_file(
    manager: CloudManager, make: Callable[[bytes], Path], tmp_path: Path
) -> None:
    digest = manager.upload(make(b"x" * 600))
    assert digest
    claim = {
        "version": "0.2",
        "filename": "x",
        "filesize": 600,
        "filehash": digest,
        "datetime": "2026-11-26T12:00:00Z",
        "uploads": [{"remote": f"file://{remote_of(tmp_path)}", "key": digest, "etag": None}],
    }
    manager.data_load(json.dumps([claim]), "a lie")

    assert not manager.make_room_for(600)
    assert manager.cloud_sync()
    assert (remote_of(tmp_path) / digest).read_bytes() == b"x" * 600
    assert manager.make_room_for(600)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "null", "[1]", '[{"version": "0.2"}]', "[" * 100_000],
)
def test_what_is_no_dump_is_refused(manager: CloudManager, text: str) -> None:
    with pytest.raises(UsageError):
        manager.data_load(text, "x")


def test_threads_work_beside_each_other(
    manager: CloudManager, make: Callable[[bytes], Path], tmp_path: Path
) -> None:
    contents = [bytes([65 + number]) * 100 for number in range(16)]
    paths = [make(content) for content in contents]
    failed: list[BaseException] = []

    def work(turn: int) -> None:
        try:
            for path in paths[turn:] + paths[:turn]:
                digest = manager.upload(path)
                assert digest
                assert manager.cloud_sync() in (True, False)
                assert manager.warm_up(digest)
                assert manager.used_space() <= manager.capacity()
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            failed.append(error)

    threads = [threading.Thread(target=work, args=(4 * turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert manager.cloud_sync()
    assert {path.name for path in remote_of(tmp_path).iterdir() if path.is_file()} == {
        sha256(content) for content in contents
    }
    assert sum(map(len, in_storage(tmp_path).values())) == manager.used_space() <= 1000


def test_uploads_can_go_on_in_the_background(
    tmp_path: Path, make: Callable[[bytes], Path]
) -> None:
    with CloudManager(
        tmp_path / "db.sqlite3", tmp_path / "storage", 1000, background=True
    ) as manager:
        manager.upload(make(b"by itself"))
        pause = threading.Event()
        while manager.upload_queue_info()["count"]:
            pause.wait(0.01)
    assert (remote_of(tmp_path) / sha256(b"by itself")).exists()


def test_a_forked_child_goes_on_when_its_parent_has_ended(
    tmp_path: Path, make: Callable[[bytes], Path]
) -> None:
    paths = [make(b"of the parent"), make(b"of the child")]
    read_end, write_end = os.pipe()
    manager = CloudManager(tmp_path / "db.sqlite3", tmp_path / "storage", 1000)
    manager.upload(paths[0])
    assert manager.cloud_sync()
    child = os.fork()
    if child == 0:  # pragma: no cover - seen by what it leaves
        signal.alarm(30)
        is_done = False
        try:
            manager.exists("x")
            os.close(write_end)
            os.read(
                read_end, 1
            )  # the parent closes, and takes SQLite's files away if nobody has them
            is_done = bool(manager.upload(paths[1])) and manager.cloud_sync()
        finally:
            os._exit(0 if is_done else 1)
    for end in (read_end, write_end):
        if end == write_end:
            manager.close()
        os.close(end)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with CloudManager(tmp_path / "db.sqlite3", tmp_path / "storage", 1000) as manager:
        assert manager.exists(sha256(b"of the parent"))
        assert manager.exists(sha256(b"of the child"))
        assert manager.upload_queue_info()["count"] == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_waits_for_no_network_and_leaves_no_lock_held(
    manager: CloudManager, make: Callable[[bytes], Path]
) -> None:
    path = make(b"beside")
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            manager.upload(path)
            manager.upload_queue_info()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:  # pragma: no cover - seen by its exit code
                signal.alarm(30)
                done = False
                try:
                    done = manager.cloud_sync() in (True, False) and manager.used_space() < 10
                finally:
                    os._exit(0 if done else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        is_over.set()
        thread.join()


def test_a_smaller_capacity_is_kept_when_it_is_opened_next(
    tmp_path: Path, make: Callable[[bytes], Path]
) -> None:
    with CloudManager(tmp_path / "db.sqlite3", tmp_path / "storage", 1000) as manager:
        for letter in b"abc":
            manager.upload(make(bytes([letter]) * 300))
        manager.cloud_sync()
    with CloudManager(tmp_path / "db.sqlite3", tmp_path / "storage", 400) as manager:
        assert manager.used_space() == 300
        assert sum(map(len, in_storage(tmp_path).values())) == 300


def test_losing_the_database_loses_no_file(tmp_path: Path, make: Callable[[bytes], Path]) -> None:
    with CloudManager(tmp_path / "db.sqlite3", tmp_path / "storage", 1000) as manager:
        digest = manager.upload(make(b"waits"))
        assert digest
    for path in tmp_path.glob("db.sqlite3*"):
        if path.is_file():
            path.unlink()

    with CloudManager(tmp_path / "db.sqlite3", tmp_path / "storage", 1000) as manager:
        assert manager.on_cache(digest)
        assert manager.cloud_sync()
    assert (remote_of(tmp_path) / digest).read_bytes() == b"waits"


def test_mistakes_are_said(tmp_path: Path, manager: CloudManager) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError):
        manager.upload(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        manager.upload(tmp_path)
    with pytest.raises(FileNotFoundError):
        manager.upload(tmp_path / "nothing")
    (tmp_path / "text").write_text("no database", encoding="utf-8")
    mistakes: list[Callable[[], CloudManager]] = [
        lambda: CloudManager(tmp_path / "text", tmp_path / "s", 100),
        lambda: CloudManager(tmp_path / "new", tmp_path / "text", 100),
        lambda: CloudManager(tmp_path / "new", tmp_path / "s", 0),
        lambda: CloudManager(tmp_path / "new", tmp_path / "s", 100, remotes=[]),
        lambda: CloudManager(tmp_path / "new", tmp_path / "s", 100, remotes=["nonsense"]),
        lambda: CloudManager(tmp_path / "new", tmp_path / "s", 100, copies=2),
    ]
    for wrong in mistakes:
        with pytest.raises(UsageError):
            wrong()


def test_the_library_says_what_it_has() -> None:
    assert cachefs.CloudManager is CloudManager
    assert not hasattr(cachefs, "nothing")
