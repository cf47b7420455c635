"""CloudManager against a model of a few lines, by random histories."""

import hashlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cachefs import CloudManager
from cachefs.core.errors import StoreError

CAPACITY = 100
SIZES = (0, 1, 10, 20, 30, 45, 45, 60, 85, 90, 91, 100, 120)
CONTENTS = [bytes([65 + number]) * size for number, size in enumerate(SIZES)]


class Machine(RuleBasedStateMachine):
    """Uploads, syncs, removals and retrievals, with a remote that comes and goes and a program that ends."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.remote = self.directory / "remote"
        self.sizes: dict[str, int] = {}
        self.held: set[str] = set()
        self.stored: set[str] = set()
        self.is_up = True

    @initialize()
    def begin(self) -> None:
        self.remote.mkdir()
        self.sources = {}
        for content in CONTENTS:
            digest = hashlib.sha256(content).hexdigest()
            self.sources[digest] = self.directory / digest[:12]
            self.sources[digest].write_bytes(content)
        self.open()

    def open(self) -> None:
        self.manager = CloudManager(
            self.directory / "db",
            self.directory / "storage",
            CAPACITY,
            remotes=[f"file://{self.remote}"],
            timeout_s=0.2,
        )

    def teardown(self) -> None:
        self.manager.close()
        shutil.rmtree(self.directory)

    # ---- the model --------------------------------------------------------------------------

    def used(self) -> int:
        return sum(self.sizes[digest] for digest in self.held)

    def room(self, size: int) -> bool:
        """Make room as it is promised."""
        if 10 * size > 9 * CAPACITY:
            return False
        lacking = self.used() + size - CAPACITY
        may_go = sorted((self.sizes[each], each) for each in self.held & self.stored)
        if lacking > sum(bytes_ for bytes_, _ in may_go):
            return False
        enough = [each for bytes_, each in may_go if bytes_ >= lacking]
        while lacking > 0:
            # The smallest that is enough; else, of those that are not, the largest: by name where two are alike.
            gone = enough[0] if enough else min(may_go, key=lambda pair: (-pair[0], pair[1]))[1]
            may_go.remove((self.sizes[gone], gone))
            self.held.remove(gone)
            lacking -= self.sizes[gone]
        return True

    def sync(self) -> None:
        if self.is_up:
            self.stored |= self.held

    # ---- what happens -----------------------------------------------------------------------

    @rule(index=st.integers(0, len(CONTENTS) - 1))
    def upload(self, index: int) -> None:
        digest, size = list(self.sources)[index], len(CONTENTS[index])
        expected: str | bool = digest
        if digest not in self.held:
            is_taken = self.room(size)
            if not is_taken and 10 * size <= 9 * CAPACITY and set(self.sizes) - self.stored:
                self.sync()
                is_taken = self.room(size)
            if is_taken:
                self.sizes[digest] = size
                self.held.add(digest)
            elif digest not in self.stored:
                expected = False

        assert self.manager.upload(self.sources[digest]) == expected

    @rule()
    def cloud_sync(self) -> None:
        self.sync()

        assert self.manager.cloud_sync() == (set(self.sizes) <= self.stored)

    @rule(index=st.integers(0, len(CONTENTS) - 1))
    def warm_up(self, index: int) -> None:
        digest = list(self.sources)[index]
        if digest not in self.sizes:
            assert self.manager.warm_up(digest) is None
        elif digest in self.held:
            assert self.manager.warm_up(digest) == str(self.directory / "storage" / digest)
        elif not self.room(self.sizes[digest]):
            assert self.manager.warm_up(digest) is False
        elif self.is_up:
            self.held.add(digest)
            path = self.manager.warm_up(digest)
            assert path
            assert Path(path).read_bytes() == CONTENTS[index]
        else:
            with pytest.raises(StoreError):
                self.manager.warm_up(digest)

    @rule(size=st.integers(0, 120))
    def make_room_for(self, size: int) -> None:
        assert self.manager.make_room_for(size) == self.room(size)

    @precondition(lambda self: self.is_up)
    @rule()
    def lose_the_remote(self) -> None:
        self.remote.rename(self.directory / "away")
        self.is_up = False

    @precondition(lambda self: not self.is_up)
    @rule()
    def have_the_remote_again(self) -> None:
        (self.directory / "away").rename(self.remote)
        self.is_up = True

    @rule()
    def open_again(self) -> None:
        self.manager.close()
        self.open()

    # ---- what is always so ------------------------------------------------------------------

    @invariant()
    def is_as_the_model(self) -> None:
        storage = {path.name: path for path in (self.directory / "storage").iterdir()}
        assert set(storage) == self.held
        assert all(
            self.manager.on_cache(digest) == (digest in self.held) for digest in self.sources
        )
        assert all(
            self.manager.exists(digest) == (digest in self.sizes) for digest in self.sources
        )
        assert self.manager.used_space() == self.used() <= CAPACITY
        waiting = set(self.sizes) - self.stored
        assert waiting <= self.held
        assert self.manager.upload_queue_info() == {
            "count": len(waiting),
            "size": sum(self.sizes[digest] for digest in waiting),
        }


@pytest.mark.timeout(300)
def test_it_does_as_the_model_does() -> None:
    Machine.TestCase.settings = settings(
        max_examples=8,
        stateful_step_count=20,
        suppress_health_check=list(HealthCheck),
    )
    Machine.TestCase("runTest").runTest()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_it_does_as_the_model_does_in_many_histories() -> None:
    Machine.TestCase.settings = settings(
        max_examples=400,
        stateful_step_count=50,
        suppress_health_check=list(HealthCheck),
    )
    Machine.TestCase("runTest").runTest()
