"""Whole files that are given out to be read by a path, while a lease lasts."""

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
import trio
import trio.testing

from cachefs.client import ControlClient, ControlError, LeasedFile
from cachefs.core.errors import IsDirectory, NoEntry, NoRoom, UsageError
from cachefs.engine.leases import Leased
from cachefs.remote import deadline
from cachefs.remote.memory import MemoryStore
from cachefs.server import SOCKET_NAME, serve_control, verbs
from tests.engine.rig import FOREVER_ASKING, LATER, MIB, Rig, serving, store, together, until
from tests.engine.watched import Gate


async def lease(rig: Rig, path: str, seconds: float = 300) -> Leased:
    with deadline.limited(rig.settings.timeout_s):
        return await rig.service.leases.take(path, seconds=seconds)


def check(rig: Rig) -> None:
    """Assert that what is lent is counted, whatever names it has."""
    rig.cache.check()
    found = {
        (status.st_dev, status.st_ino): status.st_blocks * 512
        for directory in (rig.cache.data, rig.cache.lent)
        for path in directory.iterdir()
        for status in [path.stat()]
    }
    assert sum(found.values()) <= rig.cache.used <= rig.cache.limit


async def test_a_leased_file_is_the_cached_one_under_another_name(tmp_path: Path) -> None:
    memory, content = MemoryStore(), os.urandom(2 * MIB + 5)
    info = store(memory, "d/a.csv", content)
    async with serving(tmp_path / "c", memory) as rig:
        leased = await lease(rig, "d/a.csv")

        assert leased.path.read_bytes() == content
        assert (leased.size, leased.etag) == (len(content), info.etag)
        assert leased.path.name.endswith("-a.csv")
        status = leased.path.stat()
        assert status.st_nlink == 2
        assert stat.S_IMODE(status.st_mode) == 0o400
        assert rig.cache.used < 1.1 * len(content)
        check(rig)


async def test_whoever_was_let_read_a_leased_file_can_whoever_was_first(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"one")
    async with serving(tmp_path / "c", memory) as rig:
        leases = rig.service.leases
        for readers, mode in ((0o400, 0o400), (0o444, 0o444), (0o440, 0o444)):
            leased = await leases.take("a", readers=readers)
            assert stat.S_IMODE(leased.path.stat().st_mode) == mode


async def test_who_asks_while_an_older_version_is_fetched_gets_the_newest(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "a", b"old")
    async with serving(tmp_path / "c", memory, **FOREVER_ASKING) as rig:
        gate = Gate()
        rig.watched.on("after", "get_range", gate)
        assert await rig.service.lease("a", seconds=60, patience_s=0.01) is None
        with trio.fail_after(10):
            await gate.reached.wait()
        rig.store("a", b"new")

        async def ask() -> None:
            leased = await rig.service.lease("a", seconds=60, patience_s=10)
            assert leased is not None
            assert leased.path.read_bytes() == b"new"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.05)
            gate.open()
        assert rig.service.leases.status()["leases"] == 1
        check(rig)


async def test_who_wants_only_what_is_here_causes_no_fetch(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"one")
    async with serving(tmp_path / "c", memory) as rig:
        with pytest.raises(NoEntry, match="not in the cache"):
            await rig.service.lease("a", seconds=60, patience_s=5, only_here=True)
        assert rig.watched.of("get_range") == []
        await lease(rig, "a")
        leased = await rig.service.lease("a", seconds=60, patience_s=5, only_here=True)
        assert leased is not None
        assert leased.path.read_bytes() == b"one"
        assert len(rig.watched.of("get_range")) == 1
        check(rig)


async def test_any_number_of_askers_cause_one_fetch_and_share_one_name(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", os.urandom(MIB // 2))
    found: list[Leased] = []
    async with serving(tmp_path / "c", memory) as rig:

        async def ask() -> None:
            found.append(await lease(rig, "a"))

        await together(*[ask] * 50)

        assert len({each.path for each in found}) == 1
        assert len({each.lease for each in found}) == 50
        assert len(rig.watched.of("get_range")) == 1
        for each in found[1:]:
            await rig.service.release(each.lease)
        assert found[0].path.exists()
        await rig.service.release(found[0].lease)
        assert not found[0].path.exists()
        check(rig)


async def test_a_lease_ends_when_its_time_is_over_and_what_is_open_stays_readable(
    tmp_path: Path,
) -> None:
    memory, content = MemoryStore(), os.urandom(MIB)
    store(memory, "a", content)
    async with serving(tmp_path / "c", memory) as rig:
        renewed = await lease(rig, "a", 0.05)
        rig.service.renew(renewed.lease, seconds=60)
        short = await lease(rig, "a", 0.05)
        await until(lambda: rig.service.leases.status()["leases"] == 1)
        assert short.path == renewed.path
        assert renewed.path.exists()

        with renewed.path.open("rb") as file:
            rig.service.renew(renewed.lease, seconds=0.01)
            await until(lambda: not renewed.path.exists())
            rig.remove("a")
            assert file.read() == content
        with pytest.raises(UsageError, match="no such lease"):
            rig.service.renew(renewed.lease, seconds=1)
        await rig.service.release(renewed.lease)  # which is over, and no error
        with pytest.raises(UsageError, match="lasts"):
            await lease(rig, "a", 0)


async def test_a_leased_file_is_not_evicted_and_another_one_waits_for_its_room(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    for name in "abcd":
        store(memory, name, os.urandom(MIB))
    async with serving(tmp_path / "c", memory, cache_size=3 * MIB, timeout_s=0.3) as rig:
        first, second = await lease(rig, "a"), await lease(rig, "b")
        with pytest.raises(NoRoom, match="leased"):
            await lease(rig, "c")
        check(rig)
        assert first.path.exists()
        assert second.path.exists()
        entry = next(each for each in rig.service.entries(0) if each["path"] == "a")
        assert await rig.service.evict([(entry["id"], entry["used_ns"])]) == ["is leased"]  # type: ignore[list-item]

    async with serving(tmp_path / "c", memory, cache_size=3 * MIB) as rig:
        first, second = await lease(rig, "a"), await lease(rig, "b")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease, rig, "c")
            nursery.start_soon(lease, rig, "d")
            await trio.testing.wait_all_tasks_blocked(0.05)
            await rig.service.release(first.lease)
            await rig.service.release(second.lease)
        assert rig.service.leases.status()["files"] == 2
        check(rig)


async def test_what_is_larger_than_the_cache_is_refused_at_once(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", os.urandom(3 * MIB))
    store(memory, "d/x", b"")
    async with serving(tmp_path / "c", memory, cache_size=2 * MIB) as rig:
        with trio.fail_after(1), pytest.raises(NoRoom):
            await lease(rig, "a")
        with pytest.raises(NoEntry):
            await lease(rig, "b")
        with pytest.raises(IsDirectory):
            await lease(rig, "d")
        assert (await lease(rig, "d/x")).path.read_bytes() == b""


async def test_another_version_gets_another_path_and_the_old_bytes_stay_counted(
    tmp_path: Path,
) -> None:
    memory, old, new = MemoryStore(), os.urandom(MIB), os.urandom(MIB)
    store(memory, "a", old)
    async with serving(tmp_path / "c", memory, cache_size=4 * MIB, **FOREVER_ASKING) as rig:
        before = await lease(rig, "a")
        rig.store("a", new)
        after = await lease(rig, "a")

        assert (before.path.read_bytes(), after.path.read_bytes()) == (old, new)
        check(rig)
        assert rig.cache.used >= 2 * MIB
        await rig.service.release(before.lease)
        assert not before.path.exists()
        check(rig)
        assert rig.cache.used < 1.1 * MIB


@pytest.mark.parametrize("is_truncated", [False, True])
async def test_a_write_changes_nothing_of_what_was_leased(
    tmp_path: Path, *, is_truncated: bool
) -> None:
    memory, old = MemoryStore(), os.urandom(MIB)
    store(memory, "a", old)
    async with serving(tmp_path / "c", memory, cache_size=4 * MIB) as rig:
        before = await lease(rig, "a")
        fh = await rig.open("a", os.O_RDWR | (os.O_TRUNC if is_truncated else 0))
        await rig.fs.write(fh, 10, b"new")
        assert before.path.read_bytes() == old
        check(rig)
        await rig.close(fh)

        new = b"\0" * 10 + b"new" if is_truncated else old[:10] + b"new" + old[13:]
        assert rig.objects()["a"] == new == await rig.read("a")
        after = await lease(rig, "a")
        assert (before.path.read_bytes(), after.path.read_bytes()) == (old, new)
        await rig.service.release(before.lease)
        check(rig)


async def test_a_write_changes_nothing_of_what_a_program_has_open_since_a_lease_that_is_over(
    tmp_path: Path,
) -> None:
    memory, old = MemoryStore(), os.urandom(MIB)
    store(memory, "a", old)
    async with serving(tmp_path / "c", memory) as rig:
        leased = await lease(rig, "a")
        file = leased.path.open("rb")
        await rig.service.release(leased.lease)
    async with serving(tmp_path / "c", memory) as rig:  # which knows of it from the file alone
        fh = await rig.open("a", os.O_RDWR)
        await rig.fs.write(fh, 10, b"new")
        with file:
            assert file.read() == old
        await rig.close(fh)
        assert await rig.read("a") == old[:10] + b"new" + old[13:]
        check(rig)


async def test_a_file_that_nobody_has_open_any_more_is_written_in_place(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", os.urandom(MIB))
    async with serving(tmp_path / "c", memory, cache_size=MIB * 3 // 2) as rig:
        leased = await lease(rig, "a")
        await rig.service.release(leased.lease)
        fh = await rig.open("a", os.O_RDWR)  # of which the cache could not hold a copy
        await rig.fs.write(fh, 10, b"new")
        await rig.close(fh)
        check(rig)


async def test_a_file_that_waits_for_upload_is_leased_as_a_copy_of_what_it_is(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", cache_size=4 * MIB, **LATER) as rig:
        await rig.write("a", b"x" * MIB)
        leased = await lease(rig, "a")
        fh = await rig.open("a", os.O_RDWR)
        await rig.fs.write(fh, 0, b"yyy")

        assert leased.path.read_bytes() == b"x" * MIB
        assert leased.etag is None
        check(rig)
        assert rig.cache.used > 2 * MIB
        await rig.close(fh)
        await rig.service.release(leased.lease)
        assert not leased.path.exists()
        check(rig)


async def test_what_an_earlier_daemon_had_leased_is_removed_at_the_start(tmp_path: Path) -> None:
    memory, content = MemoryStore(), os.urandom(MIB)
    store(memory, "a", content)
    async with serving(tmp_path / "c", memory) as rig:
        leased = await lease(rig, "a")
        image = rig.crash_image(tmp_path / "image")
        assert leased.path.exists()
    assert not leased.path.exists()
    assert list((image / "leased").iterdir())

    async with serving(image, memory) as rig:
        assert not list(rig.cache.lent.iterdir())
        rig.watched.forget()
        assert (await lease(rig, "a")).path.read_bytes() == content
        check(rig)


async def test_bytes_that_have_rotted_are_not_given_out(tmp_path: Path) -> None:
    memory, content = MemoryStore(), os.urandom(MIB)
    store(memory, "a", content)
    async with serving(tmp_path / "c", memory) as rig:
        assert await rig.read("a") == content
    with next((tmp_path / "c" / "data").iterdir()).open("r+b") as file:
        file.write(b"rotten")
    async with serving(tmp_path / "c", memory) as rig:
        assert (await lease(rig, "a")).path.read_bytes() == content


async def test_any_process_gets_leases_by_the_control_socket(tmp_path: Path) -> None:
    memory, content = MemoryStore(), os.urandom(MIB)
    store(memory, "d/a", content)

    def talk() -> tuple[LeasedFile, Path]:
        with ControlClient(tmp_path / "c" / SOCKET_NAME) as client:
            kept = client.lease("d/a", seconds=60)
            assert kept.path.read_bytes() == content
            client.renew(kept.lease, seconds=120)
            released = client.lease("d/a")
            assert released.path == kept.path
            client.release(released.lease)
            with pytest.raises(ControlError, match="no such file"):
                client.lease("d/b")
            for wrong in (
                {"path": 1},
                {"path": "d/a", "seconds": 0},
                {"path": "a", "seconds": "1"},
            ):
                with pytest.raises(ControlError) as refused:
                    client.ask("lease", **wrong)
                assert refused.value.exit_code == 2
            with pytest.raises(ControlError, match="no such lease"):
                client.renew(released.lease)
            return kept, client.lease("d/a", seconds=0.01).path

    async with serving(tmp_path / "c", memory) as rig, trio.open_nursery() as nursery:
        await nursery.start(serve_control, rig.service, tmp_path / "c")
        kept, path = await trio.to_thread.run_sync(talk)
        await until(lambda: rig.service.leases.status()["leases"] == 1)
        assert kept.path.exists()  # the connection is closed, its time is not over
        assert path == kept.path
        assert rig.service.status()["leased"] == {"leases": 1, "files": 1, "bytes": MIB}
        nursery.cancel_scope.cancel()


async def test_who_asks_for_a_large_file_asks_again_until_it_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbs, "SLICE_S", 0.05)
    memory, gate = MemoryStore(), Gate()
    store(memory, "a", b"x")
    async with serving(tmp_path / "c", memory) as rig, trio.open_nursery() as nursery:
        await nursery.start(serve_control, rig.service, tmp_path / "c")
        rig.watched.on("before", "get_range", gate)

        def talk() -> bytes:
            with ControlClient(tmp_path / "c" / SOCKET_NAME) as client:
                assert client.ask("lease", path="a") == {"lease": None}
                assert client.ask("lease", path="a") == {"lease": None}
                gate.open()
                return client.lease("a").path.read_bytes()

        assert await trio.to_thread.run_sync(talk) == b"x"
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, as root alone can")
def test_a_cache_that_is_not_roots_reads_and_writes_what_it_has_lent() -> None:
    own = Path(tempfile.mkdtemp())
    os.chown(own, 65534, 65534)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            trio.run(_lend_and_write, own / "c")
            code = 0
        finally:
            os._exit(code)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        shutil.rmtree(own)


async def _lend_and_write(cache_dir: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"old")
    async with serving(cache_dir, memory) as rig:
        leased = await lease(rig, "a")
        with pytest.raises(PermissionError):
            leased.path.open("r+b")
        file = leased.path.open("rb")
        await rig.service.release(leased.lease)
        assert await rig.read("a") == b"old"
        fh = await rig.open("a", os.O_RDWR)
        await rig.fs.write(fh, 0, b"new")
        await rig.close(fh)
        with file:
            assert file.read() == b"old"
        assert rig.objects()["a"] == b"new"
