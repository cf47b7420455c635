"""The order in which cached files go: by the mount's policy, kept over a restart, and cheap to begin."""

import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs.core.errors import DiskFull
from cachefs.core.eviction import MAIN, SMALL, Policy, choose_victims
from cachefs.core.types import ETag, Ino
from cachefs.local.cache import BLOCK, Entry
from cachefs.local.order import Order
from tests.local.disk import Disk, open_disk

CLOCK = itertools.count(1)
LIMIT = 100 * BLOCK


class Files:
    """A cache that is used and evicted from, as programs and the evictor do."""

    def __init__(self, directory: Path, policy: Policy | None, limit: int = LIMIT) -> None:
        self.directory = directory
        self.disk: Disk = open_disk(directory, limit=limit, policy=policy)
        self.inos: dict[str, Ino] = {}

    def open(self, name: str, blocks: int = 1, *, fetch_ns: int = 0) -> None:
        """Open a file, fetching it if it is not here, and close it."""
        cache = self.disk.cache
        if name not in self.inos:
            self.inos[name] = self.disk.mint(name)
        found = cache.find(self.inos[name])
        if found is None:
            entry = cache.create(self.inos[name], etag=ETag("v"), size=0, now_ns=next(CLOCK))
            entry.hit()
            self.disk.write(entry, 0, b"x" * (blocks * BLOCK))
            entry.fetch_ns = fetch_ns
        else:
            pinned = cache.pin(found, next(CLOCK))
            assert pinned is not None
            entry = pinned
            entry.hit()
        cache.unpin(entry, next(CLOCK))

    def entry(self, name: str) -> Entry:
        found = self.disk.cache.find(self.inos[name])
        assert found is not None
        return found

    def order(self) -> str:
        """All that may go, the first to go first; for policies that move nothing by it."""
        return "".join(self._name(each.ino) for each in self.disk.cache.evictable(1000))

    def evict(self, blocks: int) -> str:
        """Make room as the evictor does; return whom it took."""
        gone = ""
        for victim in choose_victims(self.disk.cache.evictable(1000), blocks * BLOCK):
            entry = self.disk.cache.load(victim.entry)
            assert entry is not None
            self.disk.delete(self.disk.cache.drop(entry))
            self.disk.cache.order.went(victim)
            gone += self._name(victim.ino)
        self.disk.cache.order.save()
        return gone

    def restart(self, policy: Policy | None) -> None:
        self.disk.close()
        self.disk = open_disk(self.directory, limit=LIMIT, policy=policy)

    def _name(self, ino: Ino) -> str:
        return next(name for name, each in self.inos.items() if each == ino)


@pytest.fixture
def files(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Files]:
    made = Files(tmp_path, getattr(request, "param", None))
    yield made
    made.disk.close()


def used(files: Files) -> None:
    """Three files: a is large and was used thrice, b came next and was used once, c came last and was used twice."""
    files.open("a", 8, fetch_ns=10**6)
    files.open("b", 2, fetch_ns=10**9)
    files.open("c", 1, fetch_ns=10**6)
    for name in "cab"[:2] + "a":
        files.open(name)


ORDERS = {
    Policy.GDSF: "acb",  # seconds saved for each block: 3/8 of a ms, 2 of a ms, half a second
    Policy.LRU: "bca",
    Policy.LFU: "bca",
    Policy.SIZE: "abc",
    Policy.AGE: "abc",
}


@pytest.mark.parametrize(("files", "order"), list(ORDERS.items()), indirect=["files"])
def test_files_go_by_the_policy_of_the_mount(files: Files, order: str) -> None:
    used(files)
    assert files.order() == order


@pytest.mark.parametrize("policy", ORDERS)
def test_another_policy_ranks_what_is_here_anew_at_the_start(
    tmp_path: Path, policy: Policy
) -> None:
    files = Files(tmp_path, Policy.S3FIFO)
    used(files)
    files.restart(policy)
    assert files.order() == ORDERS[policy]
    files.restart(None)
    assert files.order() == ORDERS[policy]
    files.disk.close()


def test_a_change_of_policy_that_is_cut_off_leaves_the_order_of_before(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    used(files)
    db = files.disk.db

    def fail(name: str, value: str) -> None:
        raise sqlite3.OperationalError("killed")

    monkeypatch.setattr(db, "set_meta", fail)
    with pytest.raises(sqlite3.OperationalError):
        Order(db, policy=Policy.SIZE, limit=LIMIT)
    monkeypatch.undo()
    files.restart(None)
    assert files.disk.cache.order.policy is Policy.GDSF
    assert files.order() == ORDERS[Policy.GDSF]


def test_gdsf_lets_what_was_often_used_go_when_it_is_not_used_any_more(files: Files) -> None:
    for _ in range(5):
        files.open("o", 1, fetch_ns=10**8)
    gone = ""
    for number in range(20):
        files.open(chr(ord("A") + number), 1, fetch_ns=10**8)
        gone += files.evict(1)
    assert "o" in gone
    assert gone.index("o") >= 4


def test_gdsfs_clock_goes_on_after_a_restart(files: Files) -> None:
    files.open("a", fetch_ns=10**9)
    files.open("b", fetch_ns=10**8)
    files.evict(1)
    before = files.disk.cache.order.inflation
    assert before > 0
    files.restart(None)
    assert files.disk.cache.order.inflation == before
    files.open("c", fetch_ns=10**8)
    assert files.entry("c").standing.score > before


def test_what_was_written_here_is_worth_what_fetching_such_files_takes(files: Files) -> None:
    files.open("w", 1)
    before = files.entry("w").standing.score
    for number in range(50):
        files.open(str(number), 1, fetch_ns=10**10)
    files.open("v", 1)
    assert files.entry("v").standing.score > 50 * before


# ---- S3-FIFO -------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [Policy.S3FIFO], indirect=True)
def test_a_scan_does_not_drive_out_what_is_used(files: Files) -> None:
    for _ in range(3):
        files.open("u", 5)
    for number in range(40):
        files.open(chr(ord("A") + number), 5)
        if number >= 10:
            files.evict(5)
    assert files.entry("u").standing.queue == MAIN


@pytest.mark.parametrize("files", [Policy.S3FIFO], indirect=True)
def test_who_comes_back_soon_after_it_was_evicted_belongs_into_the_main_queue(
    files: Files,
) -> None:
    files.open("a", 20)
    files.open("b", 20)
    assert files.evict(1) == "a"
    files.open("a", 20)
    assert (files.entry("a").standing.queue, files.entry("b").standing.queue) == (MAIN, SMALL)


@pytest.mark.parametrize("files", [Policy.S3FIFO], indirect=True)
def test_the_evicted_are_remembered_for_no_more_bytes_than_the_cache_holds(files: Files) -> None:
    for number in range(30):
        files.open(str(number), 10)
        if number >= 5:
            files.evict(10)
    order = files.disk.cache.order
    assert 0 < order._ghost_bytes == sum(order._ghosts.values()) <= LIMIT


@pytest.mark.parametrize("files", [Policy.S3FIFO], indirect=True)
def test_what_the_small_queue_takes_is_known_without_adding_it_up(files: Files) -> None:
    files.evict(1)
    for number in range(8):
        files.open(str(number), number + 1)
        files.open(str(number // 2), 1)
    files.open("0")
    files.evict(3)
    files.disk.delete(files.disk.cache.drop(files.entry("7")))
    row = files.disk.db.one("SELECT sum(cost) FROM entries WHERE queue = 0")
    assert row == (files.disk.cache.order._small,)


@pytest.mark.parametrize("files", [Policy.S3FIFO], indirect=True)
def test_second_chances_are_kept_over_a_restart(files: Files) -> None:
    for _ in range(3):
        files.open("a", 10)
    files.open("b", 10)
    assert files.evict(1) == "b"
    files.restart(None)
    assert (files.entry("a").standing.queue, files.entry("a").standing.chances) == (MAIN, 0)


@pytest.mark.parametrize("files", [Policy.S3FIFO], indirect=True)
def test_a_full_disk_keeps_nobody_from_being_evicted(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        for _ in range(4):
            files.open(name, 10)

    def full(sql: str, values: object = ()) -> None:
        raise DiskFull("full")

    monkeypatch.setattr(files.disk.db, "execute", full)
    assert files.order() == "abc"


@pytest.mark.parametrize("files", list(Policy), indirect=True)
def test_nothing_dirty_pinned_or_in_use_is_ever_named(files: Files) -> None:
    for name in "abcd":
        files.open(name, 5)
    dirty = files.disk.cache.pin(files.entry("a"), 1)
    assert dirty is not None
    files.disk.promise(dirty)
    files.disk.cache.unpin(dirty, 2)
    files.disk.inodes.update(files.inos["b"], pinned=1)
    in_use = files.disk.cache.pin(files.entry("c"), 1)
    assert in_use is not None
    assert files.order() == "d"
    files.disk.cache.unpin(in_use, 2)


@pytest.mark.parametrize("files", [Policy.LRU], indirect=True)
def test_what_is_taken_for_used_long_ago_goes_as_such(files: Files) -> None:
    files.open("a")
    files.open("b")
    files.disk.cache.age(files.inos["b"], 0)
    assert files.order() == "ba"
