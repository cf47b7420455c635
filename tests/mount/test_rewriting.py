"""Files that change at the very moment at which they are uploaded: the last content is what is stored."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from tests.mount import calls, programs
from tests.mount.harness import Hands, Mount, wait_until
from tests.mount.proxy import Action, Exchange, HoldAnswer, HoldRequest, HoldSent
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]

SIZE = 300_000
IN_PARTS = 64 * 2**20
PATCH = b"the last word"


def patched(content: bytes, place: int) -> bytes:
    return content[:place] + PATCH + content[place + len(PATCH) :]


@dataclass(frozen=True)
class Change:
    """What a program does to a file that another one has just closed."""

    begin: Callable[[Hands, Path], None]
    outcome: Callable[[str, bytes], dict[str, bytes]]
    """What the store then has, by the file's name and what was closed."""


CHANGES = {
    "written anew": Change(
        lambda hands, path: hands.begin(programs.write_file, path, PATCH),
        lambda name, _: {name: PATCH},
    ),
    "written to by another handle": Change(
        lambda hands, path: hands.begin(programs.write_at, path, 70_000, PATCH),
        lambda name, content: {name: patched(content, 70_000)},
    ),
    "appended to": Change(
        lambda hands, path: hands.begin(programs.append, path, PATCH),
        lambda name, content: {name: content + PATCH},
    ),
    "written to in memory": Change(
        lambda hands, path: hands.begin(calls.poke_and_unmap, path, 70_000, PATCH),
        lambda name, content: {name: patched(content, 70_000)},
    ),
    "cut": Change(
        lambda hands, path: hands.begin(os.truncate, path, 1000),
        lambda name, content: {name: content[:1000]},
    ),
    "renamed": Change(
        lambda hands, path: hands.begin(os.rename, path, path.with_suffix(".new")),
        lambda name, content: {f"{name}.new": content},
    ),
    "removed": Change(lambda hands, path: hands.begin(os.unlink, path), lambda *_: {}),
}
HOLDS: dict[str, Callable[[], Action]] = {
    "request": HoldRequest,
    "body": lambda: HoldSent(SIZE // 2),
    "answer": HoldAnswer,
}


def wait_working(hands: Hands) -> None:
    """Return when the call that was begun has reached the kernel: it does not wait for its next one any more."""

    def is_working() -> bool:
        doing = Path(f"/proc/{hands.pid}/syscall").read_text().split()
        waits = doing[:2] == ["0", "0x0"]  # read(0, …)
        return not hands.busy() or (doing != ["running"] and not waits)

    wait_until(is_working, "the program is at work")


OFTEN = {
    ("moto", "body", "background"),
}
CASES = [
    pytest.param(*case, marks=() if case in OFTEN else pytest.mark.soak)
    for case in product(("moto", "radosgw", "swift"), HOLDS, ("close", "background"))
]


@pytest.mark.parametrize(("store", "held", "upload"), CASES, indirect=["store"])
def test_the_last_change_is_what_is_stored(
    store: LiveStore, mounting: Mounting, held: str, upload: str
) -> None:
    options = ("--upload", upload, "--upload-delay", "0s")
    expected: dict[str, bytes] = {}
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        one, two = mount.hands(), mount.hands()
        for how, change in CHANGES.items():
            name = how.replace(" ", "-")
            path, closed = mount / name, programs.pattern(how, 0, SIZE)
            one.do(programs.write_file, path, bytes(SIZE))
            wait_until(lambda name=name: name in store.view(), "it is there")  # type: ignore[misc]
            if how == "written to in memory":
                two.do(calls.map_shared, path)
            hold = proxy.on(
                lambda e, name=name: store.is_object(e, "PUT", name),  # type: ignore[misc]
                HOLDS[held](),
                times=1,
            )
            one.begin(programs.write_file, path, closed)
            hold.wait_reached()
            change.begin(two, path)
            wait_working(two)
            hold.lift()
            two.finish(40)
            one.finish(40)
            expected |= change.outcome(name, closed)
        wait_until(lambda: set(store.keys()) == set(expected), "every name is right", 40)
        mount.wait_clean()
        assert store.view() == expected
        assert mount.status()["conflicts"] == []


def is_part(exchange: Exchange) -> bool:
    return "partNumber=3" in exchange.query


def is_completion(exchange: Exchange) -> bool:
    return exchange.method == "POST" and "uploadId" in exchange.query


@pytest.mark.soak
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("step", "action"),
    [
        (is_completion, HoldAnswer),
        (is_completion, HoldRequest),
        (is_part, HoldRequest),
        (is_part, HoldAnswer),
    ],
)
def test_the_last_change_of_what_goes_in_parts_is_what_is_stored(
    new_store: Callable[[str], LiveStore],
    mounting: Mounting,
    step: Callable[[Exchange], bool],
    action: Callable[[], Action],
) -> None:
    store = new_store("moto")
    options = ("--upload", "background", "--upload-delay", "0s")
    with store.proxy() as proxy, mounting(store.target(proxy), *options, watchdog_s=110) as mount:
        hold = proxy.on(step, action(), times=1)
        mount.do(programs.write_pattern, mount / "parts", "parts", IN_PARTS)
        hold.wait_reached()
        writer = mount.hands()
        writer.do(os.getpid)
        writer.begin(programs.write_at, mount / "parts", 70_000, PATCH)
        wait_working(writer)
        hold.lift()
        writer.finish(50)
        mount.wait_clean()
        assert store.view() == {"parts": patched(programs.pattern("parts", 0, IN_PARTS), 70_000)}
        assert mount.status()["conflicts"] == []
