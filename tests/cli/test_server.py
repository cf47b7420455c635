"""The control socket: questions and answers over a real socket, with a service that is easy to watch."""

import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from cachefs.client import ControlClient, ControlError, NoDaemon
from cachefs.core.errors import Denied, TimedOut, UsageError
from cachefs.core.known_md5 import KnownMd5
from cachefs.server import SOCKET_NAME, serve_control


class FakeService:
    """Does what it is told, and remembers it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.left: list[dict[str, object]] = []
        self.is_draining = trio.Event()
        self.drain_takes = 0.0
        self.was_cut = False
        self.resumed = trio.Event()
        self.error: Exception | None = None

    def status(self) -> Mapping[str, object]:
        if self.error:
            raise self.error
        return {"source": "s3://photos", "dirty": [{"path": "a\udc80b"}]}

    async def flush(self, paths: Sequence[str], *, wait: bool) -> Mapping[str, object]:
        self.calls.append(("flush", (tuple(paths), wait)))
        return {"uploaded": 1, "waiting": [], "failed": []}

    async def drain(self, *, timeout_s: float) -> Sequence[Mapping[str, object]]:
        self.calls.append(("drain", timeout_s))
        self.is_draining.set()
        try:
            await trio.sleep(self.drain_takes)
        except trio.Cancelled:
            self.was_cut = True
            raise
        return self.left

    def resume(self) -> None:
        self.resumed.set()

    async def vacuum(self) -> Mapping[str, object]:
        return {"before": 2, "after": 1, "is_possible": True, "is_held": False}

    def keep_md5s(self, found: Sequence[KnownMd5]) -> None:
        self.calls.append(("keep_md5s", list(found)))

    def remove_md5(self, bucket: str, key: str) -> int:
        self.calls.append(("remove_md5", (bucket, key)))
        return 1

    def forget_md5s(self, bucket: str | None) -> int:
        self.calls.append(("forget_md5s", bucket))
        return 0

    def dirty(self) -> Sequence[Mapping[str, object]]:
        return [{"id": 1, "path": "a"}]

    async def export(self, identity: int, target: Path) -> None:
        self.calls.append(("export", (identity, target)))

    async def discard(self, identity: int) -> None:
        self.calls.append(("discard", identity))

    async def upload(self, identity: int) -> str:
        self.calls.append(("upload", identity))
        return "a"


@asynccontextmanager
async def serving(service: FakeService, directory: Path) -> AsyncIterator[Path]:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, service, directory)
        yield directory / SOCKET_NAME
        nursery.cancel_scope.cancel()


async def ask(path: Path, verb: str, timeout_s: float | None = None, **arguments: object) -> Any:  # noqa: ANN401 - JSON
    def talk() -> object:
        with ControlClient(path) as client:
            return client.ask(verb, timeout_s=timeout_s, **arguments)

    return await trio.to_thread.run_sync(talk)


async def test_a_question_is_answered(tmp_path: Path) -> None:
    service = FakeService()
    async with serving(service, tmp_path) as path:
        status = await ask(path, "status")
        await ask(path, "flush", paths=["a", "b"], wait=True)
        await ask(path, "export", id=1, target="/tmp/x")
        await ask(path, "discard", id=2)
        assert await ask(path, "upload", id=3) == {"path": "a"}
        dirty = await ask(path, "dirty")

    assert status["source"] == "s3://photos"
    assert status["dirty"] == [{"path": "a\udc80b"}]
    assert dirty == [{"id": 1, "path": "a"}]
    assert service.calls == [
        ("flush", (("a", "b"), True)),
        ("export", (1, Path("/tmp/x"))),
        ("discard", 2),
        ("upload", 3),
    ]


async def test_the_socket_is_for_its_user_alone_and_goes_with_the_daemon(tmp_path: Path) -> None:
    async with serving(FakeService(), tmp_path) as path:
        found = path.stat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600

    assert not path.exists()


async def test_a_dead_daemons_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / SOCKET_NAME))
    with pytest.raises(NoDaemon):
        await ask(tmp_path / SOCKET_NAME, "status")

    async with serving(FakeService(), tmp_path) as path:
        assert await ask(path, "status")


async def test_a_directory_deeper_than_a_socket_address_is_no_hindrance(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    async with serving(FakeService(), deep) as path:
        assert await ask(path, "status")


async def test_an_answer_that_comes_too_late_is_not_taken_for_that_of_the_next_question(
    tmp_path: Path,
) -> None:
    service = FakeService()
    service.drain_takes = 0.3

    def talk() -> None:
        with ControlClient(tmp_path / SOCKET_NAME) as client:
            with pytest.raises(ControlError, match="does not answer") as late:
                client.ask("drain", timeout=60, timeout_s=0.1)
            assert late.value.exit_code == 4
            with pytest.raises(NoDaemon, match="unanswered"):
                client.ask("dirty")

    async with serving(service, tmp_path):
        await trio.to_thread.run_sync(talk)


async def test_an_error_comes_back_with_its_exit_code(tmp_path: Path) -> None:
    service = FakeService()
    async with serving(service, tmp_path) as path:
        for error, code in (
            (UsageError("wrong"), 2),
            (Denied("no"), 3),
            (TimedOut("late"), 4),
            (KeyError("defect"), 1),
        ):
            service.error = error
            with pytest.raises(ControlError) as caught:
                await ask(path, "status")
            assert caught.value.exit_code == code
        service.error = None
        assert await ask(path, "status")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"[]",
        b"null",
        b'"status"',
        b"{}",
        b'{"verb": "reboot"}',
        b'{"verb": ["status"]}',
        b'{"verb": "flush", "paths": "a"}',
        b'{"verb": "flush", "paths": [1]}',
        b'{"verb": "drain"}',
        b'{"verb": "drain", "timeout": -1}',
        b'{"verb": "drain", "timeout": NaN}',
        b'{"verb": "export", "id": 1}',
        b'{"verb": "export", "id": 1, "target": "relative"}',
        b'{"verb": "discard", "id": "1"}',
        b'{"verb": "discard", "id": true}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
async def test_what_is_no_question_is_answered_by_an_error(line: bytes, tmp_path: Path) -> None:
    service = FakeService()
    async with serving(service, tmp_path) as path:
        stream = await trio.open_unix_socket(path)
        await stream.send_all(line + b"\n")
        answer = json.loads(await stream.receive_some())
        await stream.send_all(b'{"verb": "dirty"}\n')
        next_answer = json.loads(await stream.receive_some())
        await stream.aclose()

    assert answer["ok"] is False
    assert answer["code"] == 2
    assert "\n" not in answer["error"]
    assert next_answer["ok"] is True
    assert service.calls == []


async def test_a_question_without_end_is_cut_off(tmp_path: Path) -> None:
    async with serving(FakeService(), tmp_path) as path:
        stream = await trio.open_unix_socket(path)
        with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x" * 2**26)
        await stream.aclose()
        assert await ask(path, "status")


async def test_two_questions_in_one_go_are_answered_in_order(tmp_path: Path) -> None:
    async with serving(FakeService(), tmp_path) as path:
        stream = await trio.open_unix_socket(path)
        await stream.send_all(b'{"verb": "dirty"}\n{"verb": "status"}\n')
        text = b""
        while text.count(b"\n") < 2:
            text += await stream.receive_some()
        await stream.aclose()

    first, second = map(json.loads, text.splitlines())
    assert first["result"] == [{"id": 1, "path": "a"}]
    assert second["result"]["source"] == "s3://photos"


async def test_writes_are_taken_again_when_whoever_drained_hangs_up(tmp_path: Path) -> None:
    service = FakeService()
    async with serving(service, tmp_path) as path:
        client = await trio.to_thread.run_sync(ControlClient, path)
        answer = await trio.to_thread.run_sync(lambda: client.ask("drain", timeout=5))
        assert answer == {"left": []}
        assert not service.resumed.is_set()

        client.close()

        with trio.fail_after(10):
            await service.resumed.wait()


async def test_a_drain_ends_when_its_caller_is_gone(tmp_path: Path) -> None:
    service = FakeService()
    service.drain_takes = 1000
    async with serving(service, tmp_path) as path:
        stream = await trio.open_unix_socket(path)
        await stream.send_all(b'{"verb": "drain", "timeout": 1000}\n')
        with trio.fail_after(10):
            await service.is_draining.wait()

            await stream.aclose()
            await service.resumed.wait()

    assert service.was_cut


async def test_a_daemon_that_does_not_answer_is_not_waited_for_without_end(tmp_path: Path) -> None:
    service = FakeService()
    service.drain_takes = 1000
    async with serving(service, tmp_path) as path:
        with pytest.raises(ControlError, match="does not answer") as caught:
            await ask(path, "drain", timeout=1000, timeout_s=0.05)

    assert caught.value.exit_code == 4


def test_nobody_listening_is_told(tmp_path: Path) -> None:
    with pytest.raises(NoDaemon, match="no daemon listens"):
        ControlClient(tmp_path / SOCKET_NAME)
    with pytest.raises(NoDaemon, match="no daemon listens"):
        ControlClient(tmp_path / "none" / SOCKET_NAME)


def test_an_answer_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / SOCKET_NAME
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        for said in (b"nonsense\n", b"[]\n", b'{"ok": 1}\n', b""):
            client = ControlClient(path)
            server, _ = listener.accept()
            server.sendall(said)
            server.shutdown(socket.SHUT_WR)
            with pytest.raises(ControlError):
                client.ask("status")
            server.close()
            client.close()


def test_this_process_keeps_no_descriptor_of_the_directory(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NoDaemon):
        ControlClient(tmp_path / SOCKET_NAME)
    assert len(os.listdir("/proc/self/fd")) == before
