"""The control socket about files: what programs ask that have no mount, over a real connection."""

import base64
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from cachefs.client import ControlClient, ControlError, NoDaemon
from cachefs.server import SOCKET_NAME, jobs, paths, serve_control
from tests.engine.rig import LATER, MIB, Rig, serving, until

T = TypeVar("T")


@asynccontextmanager
async def answering(tmp_path: Path, **settings: Any) -> AsyncIterator[Rig]:  # noqa: ANN401
    async with serving(tmp_path / "c", **settings) as rig, trio.open_nursery() as nursery:
        await nursery.start(serve_control, rig.service, tmp_path / "c")
        yield rig
        nursery.cancel_scope.cancel()


async def talk(rig: Rig, work: Callable[[ControlClient], T]) -> T:
    def run() -> T:
        with ControlClient(rig.settings.cache_dir / SOCKET_NAME) as client:
            return work(client)

    return await trio.to_thread.run_sync(run, abandon_on_cancel=True)


def put(client: ControlClient, path: str, content: bytes, tmp_path: Path) -> Any:  # noqa: ANN401
    (tmp_path / "source").write_bytes(content)
    with (tmp_path / "source").open("rb") as file:
        return client.put(path, file.fileno())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_file_goes_along_with_the_question_and_is_stored(tmp_path: Path) -> None:
    async with answering(tmp_path) as rig:
        before = descriptors()
        for turn in range(3):
            found = await talk(rig, lambda client: put(client, "d/\udc80", b"new", tmp_path))

            assert (found["size"], found["kind"], found["name"]) == (3, "file", "\udc80"), turn
        assert rig.objects() == {"d/\udc80": b"new"}
        await until(lambda: descriptors() == before)


async def test_what_comes_along_and_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    def ask(client: ControlClient) -> list[ControlError]:
        errors = []
        read_end, write_end = os.pipe()
        directory = os.open(tmp_path, os.O_RDONLY)
        for descriptor in (None, read_end, directory):
            with pytest.raises(ControlError) as caught:
                client._ask({"verb": "put", "path": "x"}, None, descriptor)
            errors.append(caught.value)
        for descriptor in (read_end, write_end, directory):
            os.close(descriptor)
        return errors

    async with answering(tmp_path) as rig:
        before = descriptors()

        errors = await talk(rig, ask)

        assert [each.exit_code for each in errors] == [2, 2, 2]
        assert rig.objects() == {}
        await until(lambda: descriptors() == before)


async def test_descriptors_that_nobody_takes_are_closed(tmp_path: Path) -> None:
    async with answering(tmp_path):
        before = descriptors()
        with (tmp_path / "source").open("xb") as file, socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(tmp_path / "c" / SOCKET_NAME))
            for _ in range(50):
                socket.send_fds(caller, [b" "], [file.fileno()] * 4)
            socket.send_fds(caller, [b"\n"], [file.fileno()])
            caller.settimeout(10)
            answer = await trio.to_thread.run_sync(caller.recv, 1000)
            assert b"not a question" in answer

        await until(lambda: descriptors() == before)


async def test_an_error_has_the_errno_that_a_program_would_get(tmp_path: Path) -> None:
    def errno_of(client: ControlClient, verb: str, **arguments: Any) -> int | None:  # noqa: ANN401
        with pytest.raises(ControlError) as caught:
            client.ask(verb, **arguments)
        return caught.value.errno

    async with answering(tmp_path) as rig:
        rig.store("d/f", b"")

        def ask(client: ControlClient) -> list[int | None]:
            return [
                errno_of(client, "stat", path="none"),
                errno_of(client, "list", path="d/f", after=0),
                errno_of(client, "mkdir", path="d"),
                errno_of(client, "delete", path="d"),
                errno_of(client, "rename", path="none", target="x"),
                errno_of(client, "stat", path="../x"),
                errno_of(client, "await", job=7),
                errno_of(client, "lease", path="d"),
            ]

        assert await talk(rig, ask) == [
            errno.ENOENT,
            errno.ENOTDIR,
            errno.EEXIST,
            errno.ENOTEMPTY,
            errno.ENOENT,
            errno.EINVAL,
            errno.EINVAL,
            errno.EISDIR,
        ]


async def test_what_takes_long_is_asked_for_again_until_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SLICE_S", 0.02)
    async with answering(tmp_path) as rig:
        gate = rig.watched.gate("before", "put")

        def ask(client: ControlClient) -> object:
            answers: list[object] = []
            plain = client._exchange

            def exchange(*arguments: Any) -> Any:  # noqa: ANN401
                answers.append(plain(*arguments))
                if len(answers) == 3:
                    gate.open()
                return answers[-1]

            client._exchange = exchange  # type: ignore[method-assign, assignment]
            put(client, "file", b"new", tmp_path)
            assert len(answers) > 3
            return answers[0]

        assert await talk(rig, ask) == {"ok": True, "unfinished": 1}
        assert rig.objects() == {"file": b"new"}


async def test_what_was_asked_for_ends_with_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SLICE_S", 0.02)
    async with answering(tmp_path, **{**LATER, "cache_size": 2 * MIB}) as rig:
        gate = rig.watched.gate("before", "put")

        def ask(client: ControlClient) -> None:
            put(client, "first", bytes(MIB), tmp_path)
            with (tmp_path / "source").open("rb") as file:
                # There is no room for it until the first one is stored.
                answer = client._exchange({"verb": "put", "path": "second"}, None, file.fileno())
            assert answer == {"ok": True, "unfinished": 2}

        await talk(rig, ask)

        await until(lambda: len(rig.service._disk.inodes.detached()) == 0)
        assert await rig.names() == ["first"]
        gate.open()


async def test_a_lease_that_is_held_ends_with_the_connection(tmp_path: Path) -> None:
    async with answering(tmp_path) as rig:
        rig.store("a", b"x")

        def ask(client: ControlClient) -> None:
            client.renew(client.lease("a").lease, hold=True)
            client.release(client.lease("a").lease)
            assert rig.service.leases.status()["leases"] == 1

        await talk(rig, ask)

        await until(lambda: rig.service.leases.status()["leases"] == 0)


async def test_whoever_holds_a_lease_is_not_put_out_for_others(tmp_path: Path) -> None:
    async with answering(tmp_path) as rig:
        rig.store("a", b"x")
        path = rig.settings.cache_dir / SOCKET_NAME

        def hold() -> ControlClient:
            client = ControlClient(path)
            client.renew(client.lease("a").lease, hold=True)
            return client

        holders = [await trio.to_thread.run_sync(hold) for _ in range(150)]

        assert rig.service.leases.status()["leases"] == 150
        assert not any(each.is_over for each in holders)
        for each in holders:
            each.close()
        await until(lambda: rig.service.leases.status()["leases"] == 0)


async def test_a_directory_is_read_on_where_the_caller_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_PAGE", 3)
    async with answering(tmp_path, metadata_ttl_s=0) as rig:
        for each in range(8):
            rig.store(f"d/{each}", b"x" * each)
        rig.watched.forget()

        def ask(client: ControlClient) -> list[tuple[str, int]]:
            found: list[tuple[str, int]] = []
            after = 0
            while True:
                page: Any = client.ask("list", path="d", after=after)
                if not page:
                    return found
                assert len(page) <= 3
                found += [(each["name"], each["size"]) for each in page]
                after = page[-1]["ino"]

        assert sorted(await talk(rig, ask)) == [(str(each), each) for each in range(8)]
        assert len(rig.watched.of("list", "d/")) == 1


async def test_a_little_of_a_large_file_is_read_without_fetching_the_rest(
    tmp_path: Path,
) -> None:
    content = os.urandom(32 * MIB)
    async with answering(tmp_path, cache_size=8 * MIB) as rig:
        rig.store("large", content)
        found = await rig.service.paths.stat("large")
        version = {"etag": found.etag, "size": found.size, "mtime_ns": found.mtime_ns}

        def read(
            client: ControlClient, offset: int, size: int, other: dict[str, Any] | None = None
        ) -> bytes:
            of = {**version, **(other or {})}
            told = client.ask("read", path="large", offset=offset, size=size, version=of)
            return base64.b64decode(str(told))

        assert (
            await talk(rig, lambda client: read(client, 20 * MIB, 100))
            == (content[20 * MIB : 20 * MIB + 100])
        )
        extents = [call.extent for call in rig.watched.of("get_range") if call.extent]
        assert sum(each.length for each in extents) <= 3 * MIB
        assert await talk(rig, lambda client: read(client, 32 * MIB - 7, 100)) == content[-7:]
        assert await talk(rig, lambda client: read(client, 40 * MIB, 100)) == b""
        assert len(await talk(rig, lambda client: read(client, 0, 30 * MIB))) == 4 * MIB
        rig.check()
        for other in ({"etag": "x"}, {"size": 1}, {"mtime_ns": -1}):
            with pytest.raises(ControlError, match="other content") as caught:
                await talk(rig, lambda client, other=other: read(client, 0, 1, other))  # type: ignore[misc]
            assert caught.value.errno == errno.ESTALE


async def test_a_connection_that_the_daemon_has_closed_is_seen_without_asking(
    tmp_path: Path,
) -> None:
    async with answering(tmp_path) as rig:
        path = rig.settings.cache_dir / SOCKET_NAME
        client = await trio.to_thread.run_sync(ControlClient, path)
        assert not client.is_over
    assert client.is_over
    with pytest.raises(NoDaemon):
        client.ask("status")
    client.close()
