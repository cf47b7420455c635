"""The control socket under callers who send nonsense, stop half way, never listen, or come in crowds."""

import array
import json
import os
import random
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from cachefs.client import ControlClient
from cachefs.server import SOCKET_NAME, serve_control
from tests.engine.rig import LATER, Rig, serving, until

CROWD: Final = 300
VERBS: Final = ("status", "flush", "drain", "dirty", "export", "discard", "upload")
PATH_VERBS: Final = (
    *("stat", "list", "read", "put", "mkdir", "delete", "rename", "await"),
    *("lease", "renew", "release", "pin", "unpin", "evict", "refresh", "explain"),
)


@asynccontextmanager
async def controlled(directory: Path) -> AsyncIterator[tuple[Rig, Path]]:
    """A service with a dirty file, and its socket."""
    async with serving(directory, **LATER) as rig:
        await rig.write("file", b"acknowledged")
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, rig.service, directory)
            yield rig, directory / SOCKET_NAME
            nursery.cancel_scope.cancel()


async def ask(path: Path, verb: str) -> Any:  # noqa: ANN401 - JSON
    def talk() -> object:
        with ControlClient(path) as client:
            return client.ask(verb)

    return await trio.to_thread.run_sync(talk)


async def answer_of(stream: trio.SocketStream) -> dict[str, Any] | None:
    """The next answer; None: the other side has hung up."""
    text = b""
    with trio.fail_after(30):
        while not text.endswith(b"\n"):
            data = await stream.receive_some()
            if not data:
                return None
            text += data
    answer: dict[str, Any] = json.loads(text)
    return answer


def odd_value(chance: random.Random, depth: int = 0) -> object:
    odd: list[object] = [
        *(None, True, False, 0, -1, 1, 2**63, 10**30, 0.5, float("inf"), float("nan")),
        *("", "a", "/", "..", "a\0b", "\ud800", "\udc80", "x" * 3000, "file", "é"),
    ]
    if depth < 3 and chance.random() < 0.3:
        return [odd_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    if depth < 3 and chance.random() < 0.3:
        return {chance.choice(("verb", "id", "a")): odd_value(chance, depth + 1)}
    return chance.choice(odd)


def odd_line(chance: random.Random) -> bytes:
    """A question that may be one."""
    names = ("id", "paths", "wait", "timeout", "target", "else")
    question: dict[str, object] = {"verb": chance.choice(VERBS)}
    question |= {name: odd_value(chance) for name in chance.sample(names, chance.randrange(5))}
    if isinstance(question.get("timeout"), int | float):
        question["timeout"] = 0  # a drain is not what is tried here
    if question["verb"] in ("discard", "upload") and question.get("id") == 1:
        question["id"] = 99
    line = json.dumps(question).encode()
    match chance.randrange(6):
        case 0:
            return chance.randbytes(chance.randrange(200)).replace(b"\n", b"")
        case 1:
            at = chance.randrange(len(line))
            return line[:at] + chance.randbytes(3).replace(b"\n", b"") + line[at:]
        case 2:
            return json.dumps(odd_value(chance)).encode()
        case _:
            return line


@pytest.mark.parametrize("lines", [300, pytest.param(5_000, marks=pytest.mark.soak)])
@pytest.mark.timeout(900)
async def test_whatever_is_asked_is_answered_and_never_unforeseen(
    tmp_path: Path, lines: int
) -> None:
    chance = random.Random(lines)
    async with controlled(tmp_path) as (rig, path):
        stream = await trio.open_unix_socket(path)
        for _ in range(lines):
            line = odd_line(chance)
            await stream.send_all(line + b"\n")
            answer = await answer_of(stream)
            assert answer is not None, line
            assert isinstance(answer["ok"], bool)
            assert "unexpected" not in str(answer.get("error")), (line, answer)
        await stream.aclose()
        waiting = {file["path"] for file in await ask(path, "dirty")}
        assert waiting | set(rig.objects()) == {"file"}, (
            "stored at a flush, perhaps, and never lost"
        )
        assert rig.service.background.failed == 0


def odd_question(chance: random.Random) -> bytes:
    """A question about a path, of which each part may be nonsense."""
    version = {"etag": None, "size": 12, "mtime_ns": 0}
    likely: dict[str, object] = {
        "path": "file",
        "target": "d/other",
        "after": 0,
        "offset": 0,
        "size": 5,
        "version": version,
        "grown_from": version,
        "replace": True,
        "parents": True,
        "job": 1,
        "lease": "x",
        "hold": True,
        "seconds": 1,
    }
    question: dict[str, object] = {"verb": chance.choice(PATH_VERBS)}
    for name, value in likely.items():
        match chance.randrange(5):
            case 0:
                question[name] = odd_value(chance)
            case 1 | 2 | 3:
                question[name] = value
    return json.dumps(question).encode() + b"\n"


@pytest.mark.parametrize("lines", [300, pytest.param(20_000, marks=pytest.mark.soak)])
@pytest.mark.timeout(900)
async def test_whatever_is_asked_about_paths_is_answered_and_leaves_a_sound_cache(
    tmp_path: Path, lines: int
) -> None:
    chance = random.Random(lines)
    (tmp_path / "source").write_bytes(b"put by somebody")
    async with controlled(tmp_path / "c") as (rig, path):
        stream = await trio.open_unix_socket(path)
        with (tmp_path / "source").open("rb") as file:
            for _ in range(lines):
                line = odd_question(chance)
                if chance.random() < 0.5:
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _packed(file.fileno()))
                    assert await stream.socket.sendmsg([line], [rights]) == len(line)
                else:
                    await stream.send_all(line)
                answer = await answer_of(stream)
                assert answer is not None, line
                assert "unexpected" not in str(answer.get("error")), (line, answer)
            rig.check()
        await stream.aclose()
        await until(lambda: not _is_open(tmp_path / "source"))
        await until(lambda: not rig.service._disk.inodes.detached())
        assert rig.service.background.failed == 0


def _is_open(path: Path) -> bool:
    descriptors = [each for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    return str(path) in {os.path.realpath(each) for each in descriptors}


def _packed(descriptor: int) -> bytes:
    return array.array("i", [descriptor]).tobytes()


async def test_a_crowd_that_says_nothing_or_stops_half_way_keeps_nobody_out(
    tmp_path: Path,
) -> None:
    async with controlled(tmp_path) as (_, path):
        crowd, before = [], len(os.listdir("/proc/self/fd"))
        for number in range(CROWD):
            stream = await trio.open_unix_socket(path)
            crowd.append(stream)
            if number % 2:
                await stream.send_all(b'{"verb": "sta')
            if number % 50 == 0:
                assert await ask(path, "dirty")
        assert await ask(path, "status")
        # Both ends are in this process: those of the crowd, and the few that the daemon holds.
        assert len(os.listdir("/proc/self/fd")) < before + CROWD + 100
        for stream in crowd:
            await stream.aclose()
        assert await ask(path, "status")


async def test_who_is_being_answered_is_not_put_out_for_the_silent(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (_, path):
        drained = await trio.open_unix_socket(path)
        await drained.send_all(b'{"verb": "drain", "timeout": 0}\n')
        assert await answer_of(drained)
        crowd = [await trio.open_unix_socket(path) for _ in range(CROWD)]
        assert await ask(path, "status")
        await drained.send_all(b'{"verb": "dirty"}\n')
        assert await answer_of(drained) is not None
        for stream in (drained, *crowd):
            await stream.aclose()


async def test_who_does_not_take_an_answer_in_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.server._SLOWEST_S", 0.2)
    async with controlled(tmp_path) as (_, path):
        stream = await trio.open_unix_socket(path)
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            # More and more answers, of which it reads none.
            await stream.send_all(b'{"verb": "status"}\n' * 100_000)
        await stream.aclose()
        assert await ask(path, "status")


async def test_questions_without_end_cost_little_memory(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (_, path):
        endless = b"x" * 2**24
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        async def flood() -> None:
            stream = await trio.open_unix_socket(path)
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(endless)
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(flood)
        assert await ask(path, "status")
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown_kib < 200 * 1024
