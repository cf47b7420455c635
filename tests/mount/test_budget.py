"""How many requests reach the store for what a program does: counted on the wire, kernel and adapter included."""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.harness import Mount
from tests.mount.proxy import Proxy
from tests.mount.stores import LiveStore

OBJECTS = 20


class Counted:
    """A mount, and the count of what it asks the store for."""

    def __init__(self, mount: Mount, proxy: Proxy) -> None:
        self.mount = mount
        self._proxy = proxy

    def cost(self, work: Callable[..., object], *args: object) -> dict[str, int]:
        """Do that in the mount; return the requests by their kind."""
        self._proxy.forget()
        self.mount.do(work, *args)
        kinds = [
            "LIST" if "list-type" in each.query else each.method
            for each in self._proxy.exchanges()
        ]
        return dict(Counter(kinds))


@pytest.fixture(scope="module")
def counted(
    new_store: Callable[[str], LiveStore], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Counted]:
    """One mount; each test below has a directory of plain objects that it has never looked at."""
    store = new_store("moto")
    for name in ("read", "create", "list", "save", "absent"):
        for number in range(OBJECTS):
            store.put(f"{name}/{number}", b"content")
    store.put("top", b"content")
    base = tmp_path_factory.mktemp("counted") / "mount"
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(store.proxy())
        target = store.target(proxy)
        mount = stack.enter_context(Mount(target, base, ("--metadata-ttl", "1h"), watchdog_s=120))
        yield Counted(mount, proxy)


def test_a_cold_open_and_read_is_two_requests_and_the_next_is_none(counted: Counted) -> None:
    path = counted.mount / "top"

    assert counted.cost(programs.read_file, path) == {"HEAD": 1, "GET": 1}
    assert counted.cost(programs.read_file, path) == {}
    assert counted.cost(os.stat, path) == {}


def test_a_file_in_a_directory_costs_the_directory_once(counted: Counted) -> None:
    directory = counted.mount / "read"

    assert counted.cost(programs.read_file, directory / "1") == {"LIST": 1, "HEAD": 1, "GET": 1}
    assert counted.cost(programs.read_file, directory / "2") == {"HEAD": 1, "GET": 1}


def test_a_create_is_two_requests_at_first_and_then_one(counted: Counted) -> None:
    directory = counted.mount / "create"

    assert counted.cost(programs.write_file, directory / "a", b"new") == {"LIST": 1, "PUT": 1}
    assert counted.cost(programs.write_file, directory / "b", b"new") == {"PUT": 1}
    assert counted.cost(programs.write_file, directory / "b", b"newer") == {"PUT": 1}
    assert counted.cost(os.mkdir, directory / "made") == {"PUT": 1}
    assert counted.cost(programs.write_file, directory / "made/a", b"new") == {"PUT": 1}


def test_a_listing_is_its_pages_and_a_sample_of_three(counted: Counted) -> None:
    directory = counted.mount / "list"

    assert counted.cost(os.listdir, directory) == {"LIST": 1, "HEAD": 3}
    assert counted.cost(_stat_all, directory) == {}


def _stat_all(directory: Path) -> int:
    return sum((directory / name).stat().st_size for name in os.listdir(directory))


def test_what_is_not_there_is_asked_for_once(counted: Counted) -> None:
    directory = counted.mount / "absent"

    assert counted.cost(programs.outcome_of_stat, directory / "nothing") == {"LIST": 1}
    assert counted.cost(programs.outcome_of_stat, directory / "nothing else") == {}


def test_an_editors_save_is_three_requests(counted: Counted) -> None:
    path = counted.mount / "save/1"
    counted.mount.do(programs.read_file, path)

    cost = counted.cost(_save, path, b"edited")

    assert sum(cost.values()) <= 3, cost
    assert counted.mount.do(programs.read_file, path) == b"edited"


def _save(path: Path, content: bytes) -> None:
    """As an editor does it: the new content beside the old, made durable, and renamed over it."""
    beside = path.with_name(f"{path.name}.tmp")
    fd = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    os.write(fd, content)
    os.fsync(fd)
    os.close(fd)
    beside.rename(path)
