"""What CloudManager promises, on either kind of storage: a directory of its own, and the cache of a running mount."""

import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs.core.errors import NotFound, Stale, StoreError
from tests.cloud.benches import Bench, bench

pytestmark = pytest.mark.timeout(200)


@pytest.fixture(params=["own", "mount"])
def on(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with bench(request.param, tmp_path) as made:
        yield made


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_an_uploaded_file_is_here_waits_and_is_uploaded_once(on: Bench) -> None:
    with on.manager() as manager:
        digest = manager.upload(on.source(b"hello"))
        assert digest == sha256(b"hello")
        assert Path(str(manager.warm_up(digest))).read_bytes() == b"hello"
        assert manager.exists(digest)
        assert manager.on_cache(digest)
        assert (manager.used_space(), manager.usage_ratio()) == (5, 0.005)
        assert manager.upload_queue_info() == {"size": 5, "count": 1}
        assert manager.total_outgoing() == 0

        assert manager.cloud_sync()
        assert manager.cloud_sync()
        assert on.at_remote(digest) == b"hello"
        assert manager.upload(on.source(b"hello", "another name")) == digest
        assert manager.cloud_sync()
        assert manager.used_space() == 5
        assert manager.upload_queue_info() == {"size": 0, "count": 0}
        assert manager.total_outgoing() == manager.current_outgoing() == 5
        info = manager.info(digest)
        assert info is not None
        assert (info["uploaded"], info["filename"], info["on_cache"]) == (True, "source", True)


def test_an_empty_file_is_a_file(on: Bench) -> None:
    with on.manager() as manager:
        digest = manager.upload(on.source(b""))
        assert digest
        assert manager.cloud_sync()
        on.lose(digest)
        assert Path(str(manager.warm_up(digest))).read_bytes() == b""


def test_what_is_removed_for_room_comes_back(on: Bench) -> None:
    with on.manager() as manager:
        old = manager.upload(on.source(b"a" * 600))
        assert old
        assert manager.cloud_sync()
        assert manager.warm_up(old)
        new = manager.upload(on.source(b"b" * 600))
        assert new
        assert not manager.on_cache(old)
        assert manager.cloud_sync()
        assert Path(str(manager.warm_up(old))).read_bytes() == b"a" * 600
        assert not manager.on_cache(new)
        assert manager.used_space() == 600
        assert manager.total_incoming() == manager.current_incoming() == 600


def test_what_waits_is_uploaded_when_room_lacks_and_stays_when_it_cannot_be(on: Bench) -> None:
    with on.manager() as manager:
        first = manager.upload(on.source(b"a" * 600))
        assert first
        bucket = on.remote if on.remote.exists() else on.remote.parent
        away = bucket.rename(bucket.with_name("away"))
        assert manager.upload(on.source(b"b" * 600)) is False
        assert not manager.make_room_for(600)
        assert Path(str(manager.warm_up(first))).read_bytes() == b"a" * 600
        (remote,) = manager.sync_status()["remotes"].values()  # type: ignore[attr-defined]
        assert remote["error"]

        away.rename(bucket)
        assert manager.upload(on.source(b"b" * 600)) == sha256(b"b" * 600)


def test_a_file_takes_nine_tenths_of_the_capacity_at_most(on: Bench) -> None:
    with on.manager() as manager:
        assert manager.upload(on.source(b"x" * 901)) is False
        assert not manager.exists(sha256(b"x" * 901))
        assert manager.upload(on.source(b"x" * 900))
        unknown = sha256(b"never seen")
        assert manager.warm_up(unknown) is None
        assert manager.download("../../etc/passwd") is None
        assert manager.info(unknown) is None
        assert not manager.on_cache(unknown)


def test_a_damaged_copy_is_refused_another_one_used_and_the_damage_mended(on: Bench) -> None:
    second = on.directory / "second"
    second.mkdir()
    with on.manager(remotes=[f"file://{second}"]) as manager:
        digest = manager.upload(on.source(b"twice"))
        assert digest
        assert manager.cloud_sync()
        on.lose(digest)
        on.touch(digest, b"TWICE")
        assert Path(str(manager.warm_up(digest))).read_bytes() == b"twice"
        assert manager.cloud_sync()
        assert on.at_remote(digest) == (second / digest).read_bytes() == b"twice"

        on.lose(digest)
        (second / digest).write_bytes(b"other")
        assert Path(str(manager.warm_up(digest))).read_bytes() == b"twice"


def test_another_remote_stands_in_for_the_first_when_that_is_lost(on: Bench) -> None:
    second = on.directory / "second"
    second.mkdir()
    with on.manager(remotes=[f"file://{second}"]) as manager:
        digest = manager.upload(on.source(b"twice"))
        assert digest
        assert manager.cloud_sync()
        on.lose(digest)
        bucket = on.remote if on.remote.parent == on.directory else on.remote.parent
        away = bucket.rename(bucket.with_name("away"))
        assert Path(str(manager.warm_up(digest))).read_bytes() == b"twice"
        away.rename(bucket)


def test_what_no_remote_has_any_more_is_said(on: Bench) -> None:
    with on.manager() as manager:
        digest = manager.upload(on.source(b"stored"))
        assert digest
        assert manager.cloud_sync()
        on.lose(digest)
        on.touch(digest, None)
        with pytest.raises(NotFound):
            manager.warm_up(digest)
        assert manager.exists(digest)


def test_what_the_remote_has_already_is_taken_or_replaced(on: Bench) -> None:
    right, wrong = sha256(b"right"), sha256(b"wrong")
    on.touch(right, b"right")
    on.touch(wrong, b"other")
    with on.manager() as manager:
        assert manager.upload(on.source(b"right")) == right
        assert manager.upload(on.source(b"wrong")) == wrong
        assert manager.cloud_sync()
        assert (on.at_remote(right), on.at_remote(wrong)) == (b"right", b"wrong")


def test_a_file_stays_until_as_many_remotes_have_it_as_were_asked_for(on: Bench) -> None:
    with on.manager(remotes=[f"file://{on.directory}/two"], copies=2) as manager:
        digest = manager.upload(on.source(b"x" * 500))
        assert digest
        assert not manager.cloud_sync()
        assert not manager.make_room_for(600)
        (on.directory / "two").mkdir()
        assert manager.cloud_sync()
        assert manager.make_room_for(600)
        assert not manager.on_cache(digest)
        assert (on.directory / "two" / digest).read_bytes() == b"x" * 500


def test_a_dump_is_loaded_elsewhere(on: Bench) -> None:
    with on.manager() as manager:
        digest = manager.upload(on.source(b"first"))
        assert digest
        assert manager.data_dump(10_000) is None
        assert manager.cloud_sync()
        whole = manager.data_dump(10_000)
        assert whole is not None
        assert [row["filehash"] for row in json.loads(whole)] == [digest]
        with on.manager(database="other.sqlite3") as elsewhere:
            elsewhere.data_load(whole, "block 1")
            assert Path(str(elsewhere.warm_up(digest))).read_bytes() == b"first"
            assert elsewhere.cloud_sync()


def test_threads_work_beside_each_other(on: Bench) -> None:
    contents = [bytes([65 + number]) * 100 for number in range(16)]
    paths = [on.source(content, content[:3].decode()) for content in contents]
    failed: list[BaseException] = []
    with on.manager() as manager:

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
        for content in contents:
            assert on.at_remote(sha256(content)) == content
        assert manager.used_space() <= 1000


def test_uploads_can_go_on_in_the_background(on: Bench) -> None:
    with on.manager(background=True) as manager:
        manager.upload(on.source(b"by itself"))
        pause = threading.Event()
        while manager.upload_queue_info()["count"]:
            pause.wait(0.01)
    assert on.at_remote(sha256(b"by itself")) == b"by itself"


def test_a_forked_child_goes_on(on: Bench) -> None:
    paths = [on.source(b"of the parent", "one"), on.source(b"of the child", "two")]
    with on.manager() as manager:
        digest = manager.upload(paths[0])
        assert digest
        assert manager.warm_up(digest)
        child = os.fork()
        if child == 0:  # pragma: no cover - seen by what it leaves
            signal.alarm(30)
            is_done = False
            try:
                is_done = bool(manager.upload(paths[1])) and manager.cloud_sync()
                manager.close()
            finally:
                os._exit(0 if is_done else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert Path(str(manager.warm_up(digest))).read_bytes() == b"of the parent"
        assert manager.exists(sha256(b"of the child"))
        assert manager.upload_queue_info()["count"] == 0


def test_a_smaller_capacity_is_kept_when_it_is_opened_next(on: Bench) -> None:
    with on.manager() as manager:
        for letter in b"abc":
            manager.upload(on.source(bytes([letter]) * 300))
        assert manager.cloud_sync()
    with on.manager(400) as manager:
        assert manager.used_space() == 300


def test_losing_the_database_loses_no_file(on: Bench) -> None:
    with on.manager() as manager:
        digest = manager.upload(on.source(b"waits"))
        assert digest
    for path in on.directory.glob("db.sqlite3*"):
        path.unlink()
    with on.manager() as manager:
        assert manager.on_cache(digest)
        assert manager.cloud_sync()
    assert on.at_remote(digest) == b"waits"


def test_a_file_that_is_changed_while_it_is_read_is_not_taken_for_what_it_was(on: Bench) -> None:
    source = on.source(b"before")
    with on.manager() as manager:
        whole = manager._storage.take_in

        def change(*args: object) -> bool:
            source.write_bytes(b"after!")
            return whole(*args)  # type: ignore[arg-type]

        manager._storage.take_in = change  # type: ignore[assignment, method-assign]
        with pytest.raises((Stale, StoreError)):
            manager.upload(source)
        assert not manager.on_cache(sha256(b"before"))
        assert not manager.upload_queue_info()["count"]
