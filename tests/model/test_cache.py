"""The cache and its journal against plain bytes: nothing promised is lost, wherever the process is killed."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from cachefs.core.eviction import Policy, choose_victims
from cachefs.core.intent import State
from cachefs.core.types import EntryId, ETag, Ino
from cachefs.local.cache import BLOCK, SLACK, Doomed, Entry
from tests.local.disk import Disk, open_disk

LIMIT = 40 * BLOCK
slots = st.integers(0, 3)
offsets = st.sampled_from([0, 1, BLOCK - 1, BLOCK, 3 * BLOCK])
contents = st.binary(min_size=1, max_size=8).map(lambda piece: piece * 700)


class CacheMachine(RuleBasedStateMachine):
    """A few files, each with what its entry must hold; the disk may be killed between any two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="cft-model-"))
        self.disk: Disk = open_disk(self.directory, limit=LIMIT)
        self.inos: list[Ino] = [self.disk.mint(f"f{slot}") for slot in range(4)]
        self.content: dict[int, bytes] = {}  # slot → bytes, of every entry
        self.state: dict[int, State] = {}  # slot → state, of every promise
        self.pins: dict[int, list[Entry]] = {}
        self.doomed: list[Doomed] = []
        self.now = 1

    def teardown(self) -> None:
        self.disk.close()
        shutil.rmtree(self.directory)

    def tick(self) -> int:
        self.now += 1
        return self.now

    def entry(self, slot: int) -> Entry:
        found = self.disk.cache.find(self.inos[slot])
        assert found is not None
        return found

    def entry_id(self, slot: int) -> EntryId:
        return self.entry(slot).id

    # ---- programs ---------------------------------------------------------------------------

    @rule(slot=slots)
    def opens(self, slot: int) -> None:
        found = self.disk.cache.find(self.inos[slot])
        assert (found is not None) == (slot in self.content)
        if found is None:
            entry = self.disk.cache.create(
                self.inos[slot], etag=ETag("v"), size=0, now_ns=self.tick()
            )
            self.content[slot] = b""
        else:
            pinned = self.disk.cache.pin(found, self.tick())
            assert pinned is not None
            entry = pinned
        self.pins.setdefault(slot, []).append(entry)

    @rule(slot=slots, offset=offsets, content=contents)
    def writes(self, slot: int, offset: int, content: bytes) -> None:
        held = self.pins.get(slot)
        if not held or held[0].dropped:
            return
        if self.disk.cache.short_of(len(content) + 2 * BLOCK + SLACK + BLOCK):
            return
        self.disk.promise(held[0], f"promise of {slot}".encode())
        self.state[slot] = State.OPEN
        self.disk.write(held[0], offset, content)
        old = self.content[slot].ljust(offset, b"\0")
        self.content[slot] = old[:offset] + content + old[offset + len(content) :]

    @rule(slot=slots)
    def closes(self, slot: int) -> None:
        if not self.pins.get(slot):
            return
        entry = self.pins[slot].pop()
        if self.state.get(slot) is State.OPEN:
            self.disk.cache.save(entry)
            self.disk.journal.seal(entry.id, due_ns=0, is_synced=True)
            self.state[slot] = State.QUEUED
        doomed = self.disk.cache.unpin(entry, self.tick())
        if doomed is not None:
            self.doomed.append(doomed)

    # ---- uploads ----------------------------------------------------------------------------

    @rule(slot=slots)
    def an_upload_begins(self, slot: int) -> None:
        if slot in self.content:
            claimed = self.disk.journal.claim(self.entry_id(slot))
            assert (claimed is not None) == (self.state.get(slot) is State.QUEUED)
            if claimed is not None:
                self.state[slot] = State.UPLOADING

    @rule(slot=slots, ends=st.sampled_from(["settled", "failed", "refused"]))
    def an_upload_ends(self, slot: int, ends: str) -> None:
        if self.state.get(slot) is not State.UPLOADING:
            return
        entry = self.entry_id(slot)
        if ends == "settled":
            self.disk.settle(entry)
            del self.state[slot]
        elif ends == "failed":
            self.disk.journal.postpone(entry, due_ns=0, error="cut")
            self.state[slot] = State.QUEUED
        else:
            self.disk.journal.park(entry, "denied")
            self.state[slot] = State.PARKED

    # ---- room -------------------------------------------------------------------------------

    @rule(need=st.integers(1, 20))
    def room_is_made(self, need: int) -> None:
        for victim in choose_victims(self.disk.cache.evictable(100), need * BLOCK):
            entry = self.disk.cache.load(victim.entry)
            assert entry is not None
            slot = self.inos.index(entry.ino)
            assert slot not in self.state
            assert not self.pins.get(slot)
            doomed = self.disk.cache.drop(entry)
            assert doomed is not None
            self.doomed.append(doomed)
            self.disk.cache.order.went(victim)
            del self.content[slot]

    @rule()
    def doomed_files_are_deleted(self) -> None:
        while self.doomed:
            self.disk.delete(self.doomed.pop())

    # ---- the end of the process -------------------------------------------------------------

    @rule(policy=st.sampled_from([None, *Policy]))
    def the_process_is_killed(self, policy: Policy | None) -> None:
        self.disk.close()
        self.pins.clear()
        self.doomed.clear()
        self.disk = open_disk(self.directory, limit=LIMIT, policy=policy)
        self.disk.cache.skip_numbers()
        for path in list(self.disk.cache.strays()):
            self.disk.cache.remove_stray(path)
        # As recovery does: a promised file is believed, a clean one is measured or forgotten.
        for entry_id in self.disk.cache.all_ids():
            entry = self.disk.cache.load(entry_id)
            assert entry is not None
            slot = self.inos.index(entry.ino)
            if slot in self.state:
                self.disk.cache.take_whole(entry)
            else:
                self.disk.cache.remeasure(entry)

    # ---- what always holds ------------------------------------------------------------------

    @invariant()
    def the_limit_and_the_counts_hold(self) -> None:
        self.disk.cache.check()
        assert self.disk.cache.used == self.disk.disk_bytes() <= LIMIT

    @invariant()
    def what_is_promised_is_there_with_its_promise(self) -> None:
        assert {intent.entry: intent.state for intent in self.disk.journal.all()} == {
            self.entry_id(slot): state for slot, state in self.state.items()
        }
        for slot in self.state:
            entry = self.entry_id(slot)
            assert self.disk.cache.path_of(entry).read_bytes() == self.content[slot]
            promise = self.disk.cache.promise_path(entry)
            assert promise.read_bytes() == f"promise of {slot}".encode()

    @invariant()
    def what_is_cached_is_right(self) -> None:
        for slot, content in self.content.items():
            entry = self.entry(slot)
            held = self.disk.cache.path_of(entry.id).read_bytes()
            for extent in entry.here:
                assert held[extent.start : extent.stop] == content[extent.start : extent.stop]


def test_nothing_promised_is_lost_wherever_the_process_is_killed() -> None:
    run_state_machine_as_test(
        CacheMachine, settings=settings(max_examples=40, stateful_step_count=30, deadline=None)
    )
