"""The only retry loop: what it repeats, how long, and what it says at the end."""

import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest

from cachefs.core.errors import (
    Changed,
    Denied,
    Fault,
    NotFound,
    StoreError,
    TimedOut,
    Unreachable,
)
from cachefs.core.extents import Extent
from cachefs.core.types import ETag, Key, Listing, ObjectInfo
from cachefs.remote import deadline
from cachefs.remote.memory import MemoryStore
from cachefs.remote.retry import Health, Pace, Retrying
from cachefs.remote.store import Sink, UploadStopped
from tests.contract.bodies import BytesBody, BytesSink
from tests.contract.faulty import Faulty, FaultyStore

KEY = Key("name")


@dataclass
class Clock:
    """Time that passes only while someone waits."""

    now_s: float = 1000.0
    waits: list[float] = field(default_factory=list)

    def read(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now_s += seconds
        return False

    def pace(self) -> Pace:
        """The longest wait each time, to be predictable."""
        return Pace(
            first_wait_s=1,
            longest_wait_s=8,
            clock=self.read,
            wall=self.read,
            uniform=lambda _, most: most,
            wait=self.wait,
        )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def faulty() -> Faulty:
    return Faulty()


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore(page_size=2)


@pytest.fixture
def store(memory: MemoryStore, faulty: Faulty, clock: Clock) -> Retrying:
    return Retrying(FaultyStore(memory, faulty), timeout_s=60, pace=clock.pace())


def put(store: MemoryStore | Retrying, key: str = KEY, content: bytes = b"content") -> ObjectInfo:
    return store.put(Key(key), BytesBody(content), meta={}, if_match=None)


def test_a_fault_is_tried_again_after_longer_and_longer_waits(
    store: Retrying, memory: MemoryStore, faulty: Faulty, clock: Clock
) -> None:
    put(memory)
    faulty.before = [Fault("1"), Unreachable("2"), TimedOut("3"), Fault("4"), Fault("5")]

    assert store.head(KEY).size == 7

    assert clock.waits == [1, 2, 4, 8, 8]
    assert store.requests == {"head": 6}


def test_waits_are_drawn_from_the_whole_range(memory: MemoryStore, clock: Clock) -> None:
    ranges: list[tuple[float, float]] = []

    def uniform(least: float, most: float) -> float:
        ranges.append((least, most))
        return least

    pace = Pace(first_wait_s=1, uniform=uniform, wait=clock.wait)
    faulty = Faulty(before=[Fault(), Fault()])
    put(memory)

    Retrying(FaultyStore(memory, faulty), timeout_s=60, pace=pace).head(KEY)

    assert ranges == [(0, 1), (0, 2)]


@pytest.mark.parametrize("error", [NotFound("x"), Changed("x"), Denied("x")], ids=repr)
def test_a_definite_answer_is_not_questioned(
    store: Retrying, faulty: Faulty, clock: Clock, error: StoreError
) -> None:
    faulty.before = [error]

    with pytest.raises(type(error)):
        store.head(KEY)

    assert clock.waits == []


def test_a_transient_fault_is_never_reported_as_absence(store: Retrying, faulty: Faulty) -> None:
    faulty.before = [Fault("down")] * 100

    with pytest.raises(TimedOut, match="down"):
        store.head(KEY)


def test_nobody_there_stays_unreachable(store: Retrying, faulty: Faulty) -> None:
    faulty.before = [Fault("down"), *[Unreachable("refused")] * 100]

    with pytest.raises(Unreachable, match="refused"):
        store.check()


def test_no_try_ends_after_the_deadline(store: Retrying, faulty: Faulty, clock: Clock) -> None:
    faulty.before = [Fault("down")] * 100

    with pytest.raises(TimedOut):
        store.check()

    assert 45 <= clock.now_s - 1000 <= 60


def test_a_try_that_would_end_too_late_is_not_begun(memory: MemoryStore, clock: Clock) -> None:
    class Silent(FaultyStore):
        def check(self) -> None:
            clock.now_s += 20
            raise Fault("read timed out")

    store = Retrying(Silent(memory, Faulty()), timeout_s=60, pace=clock.pace())

    with pytest.raises(TimedOut):
        store.check()

    assert clock.now_s - 1000 <= 60
    assert store.requests == {"check": 2}


def test_what_the_store_asks_for_is_waited(
    store: Retrying, memory: MemoryStore, faulty: Faulty, clock: Clock
) -> None:
    put(memory)
    faulty.before = [Fault("slow down", retry_after_s=17)]

    store.head(KEY)

    assert clock.waits == [17]


def test_more_patience_than_there_is_time_for_ends_at_once(
    store: Retrying, faulty: Faulty, clock: Clock
) -> None:
    faulty.before = [Fault("slow down", retry_after_s=600)]

    with pytest.raises(TimedOut) as caught:
        store.check()

    assert clock.waits == []
    assert caught.value.retry_after_s == 600


def test_a_transfer_is_not_late_before_its_first_fault(memory: MemoryStore, clock: Clock) -> None:
    class Slow(FaultyStore):
        def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
            clock.now_s += 20
            return super().get_range(key, extent, into, if_match=if_match)

    stored = put(memory)
    faulty = Faulty(before=[Fault("cut")] * 2)
    store = Retrying(Slow(memory, faulty), timeout_s=45, pace=clock.pace())
    sink = BytesSink()

    store.get_range(KEY, Extent(0, 7), sink, if_match=stored.etag)

    assert bytes(sink.content) == b"content"
    assert clock.now_s - 1000 > 60


def test_a_fetch_begins_again_from_the_start(
    store: Retrying, memory: MemoryStore, faulty: Faulty
) -> None:
    stored = put(memory)
    faulty.after = [Fault("cut"), Fault("cut")]
    sink = BytesSink()

    store.get_range(KEY, Extent(0, 7), sink, if_match=stored.etag)

    assert bytes(sink.content) == b"content"
    assert sink.restarts == 2


def test_a_fault_within_a_listing_costs_one_request(
    store: Retrying, memory: MemoryStore, faulty: Faulty, clock: Clock
) -> None:
    for number in range(6):
        put(memory, f"{number}")
    pages = store.list(Key(""))
    seen = [info.key for info in next(pages).objects]
    faulty.before = [Fault("cut"), Fault("cut")]

    seen += [info.key for page in pages for info in page.objects]

    assert seen == ["0", "1", "2", "3", "4", "5"]
    assert memory.requests["list"] == 3
    assert clock.waits == [1, 2]


def test_a_listing_tells_which_page_is_the_last(store: Retrying, memory: MemoryStore) -> None:
    for number in range(6):
        put(memory, f"{number}")
    pages = store.list(Key(""))

    told = [pages.done for _ in pages]

    assert told == [*[False] * (len(told) - 1), True]
    assert len(told) > 1
    assert memory.requests["list"] == len(told)


def test_a_listing_that_fails_half_way_raises(
    store: Retrying, memory: MemoryStore, faulty: Faulty
) -> None:
    for number in range(6):
        put(memory, f"{number}")
    pages = store.list(Key(""))
    next(pages)
    faulty.before = [Fault("cut")] * 100

    with pytest.raises(TimedOut):
        next(pages)


class Generating(FaultyStore):
    """A store whose listing is a generator, which is spent once it has raised."""

    def list(self, prefix: Key, *, deep: bool = False) -> Iterator[Listing]:
        yield from super().list(prefix, deep=deep)


def test_a_spent_listing_is_begun_again_while_nobody_saw_it(
    memory: MemoryStore, clock: Clock
) -> None:
    put(memory)
    faulty = Faulty(before=[Fault("cut")])
    store = Retrying(Generating(memory, faulty), timeout_s=60, pace=clock.pace())

    assert len(list(store.list(Key("")))) == 1


def test_a_spent_listing_is_never_taken_for_the_whole(memory: MemoryStore, clock: Clock) -> None:
    for number in range(6):
        put(memory, f"{number}")
    faulty = Faulty()
    store = Retrying(Generating(memory, faulty), timeout_s=60, pace=clock.pace())
    pages = store.list(Key(""))
    next(pages)
    faulty.before = [Fault("cut")]

    with pytest.raises(Fault, match="cut"):
        list(pages)


def test_a_repeated_delete_that_finds_nothing_is_done(memory: MemoryStore, clock: Clock) -> None:
    class Strict(FaultyStore):
        def delete(self, key: Key, *, if_match: ETag | None = None) -> None:
            def remove() -> None:
                memory.head(key)
                memory.delete(key)

            self._faulty.run("delete", remove)

    put(memory)
    faulty = Faulty(after=[Fault("the answer was lost")])
    store = Retrying(Strict(memory, faulty), timeout_s=60, pace=clock.pace())

    store.delete(KEY)

    with pytest.raises(NotFound):
        store.delete(KEY)


def test_a_put_whose_answer_was_lost_says_that_something_is_there(
    store: Retrying, memory: MemoryStore, faulty: Faulty
) -> None:
    faulty.after = [Fault("the answer was lost")]

    with pytest.raises(Changed):
        put(store)

    assert memory.head(KEY).size == 7


def test_a_waiting_upload_can_be_called_off(store: Retrying, faulty: Faulty, clock: Clock) -> None:
    class CalledOff(BytesBody):
        def reader(self, extent: Extent) -> io.BytesIO:
            if clock.now_s > 1000.6:
                raise UploadStopped
            return super().reader(extent)

    faulty.before = [Fault("down")] * 100

    with pytest.raises(UploadStopped):
        store.put(KEY, CalledOff(b"content"), meta={}, if_match=None)

    assert clock.now_s < 1001


def test_what_is_no_error_of_the_store_passes(store: Retrying, memory: MemoryStore) -> None:
    class FullSink(BytesSink):
        def write(self, data: memoryview, /) -> None:
            raise OSError(28, "full")

    stored = put(memory)

    with pytest.raises(OSError, match="full"):
        store.get_range(KEY, Extent(0, 7), FullSink(), if_match=stored.etag)


def test_health_is_what_the_far_side_last_said(
    store: Retrying, faulty: Faulty, clock: Clock
) -> None:
    assert store.health == Health()
    store.check()
    assert store.health == Health(last_ok=1000)

    clock.now_s = 2000
    faulty.before = [Unreachable("refused")] * 100
    with pytest.raises(Unreachable):
        store.check()
    assert store.health == Health(
        last_ok=1000, last_error="refused", offline_since=2000, is_offline=True
    )

    faulty.before = [NotFound("x")]
    clock.now_s = 3000
    with pytest.raises(NotFound):
        store.head(KEY)
    assert store.health == Health(last_ok=3000, last_error="refused", offline_since=None)


@pytest.mark.parametrize("end", [Retrying.close, Retrying.give_up])
def test_closing_or_giving_up_ends_the_waiting(
    memory: MemoryStore, end: Callable[[Retrying], None]
) -> None:
    faulty = Faulty(before=[Unreachable("refused")] * 100)
    pace = Pace(first_wait_s=600, longest_wait_s=600, uniform=lambda _, most: most)
    store = Retrying(FaultyStore(memory, faulty), timeout_s=3600, pace=pace)
    ended: list[str] = []

    def ask() -> None:
        try:
            store.check()
        except Unreachable as error:
            ended.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    end(store)
    thread.join(10)

    assert len(ended) == 1


def test_an_operation_has_one_deadline_for_all_its_requests(
    store: Retrying, memory: MemoryStore, faulty: Faulty, clock: Clock
) -> None:
    put(memory)
    with deadline.limited(30):
        store.head(KEY)
        faulty.before = [Fault("busy", retry_after_s=40)]
        with pytest.raises(TimedOut, match="busy"):
            store.head(KEY)
    assert clock.waits == []
    assert not store.health.is_offline  # it had no whole deadline

    faulty.before = [Fault("busy", retry_after_s=40)]
    store.head(KEY)
    assert clock.waits == [40]


def test_an_operation_without_time_left_asks_no_more(store: Retrying, faulty: Faulty) -> None:
    with deadline.limited(0), pytest.raises(TimedOut):
        store.check()

    assert faulty.asked == []


def test_only_waiting_in_vain_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("cachefs.remote.deadline.monotonic", lambda: now[0])
    with deadline.limited(10):
        whole = deadline.current()
        assert whole is not None
        now[0] += 8
        whole.answered(5)
        assert whole.left_s == 7
        now[0] += 4
        assert whole.left_s == 3
        whole.answered(60)
        assert whole.left_s == 10
        with deadline.limited(4), deadline.limited(30):
            inner = deadline.current()
            assert inner is not None
            assert inner.left_s == 4
        with deadline.unlimited():
            assert deadline.current() is None
        assert deadline.current() is whole
        now[0] += 7
        with deadline.limited(4):
            inner = deadline.current()
            assert inner is not None
            now[0] += 3
            inner.answered(3)
        assert whole.left_s == 3
    assert deadline.current() is None


def test_a_store_that_answers_something_else_meanwhile_is_not_offline(
    memory: MemoryStore, clock: Clock
) -> None:
    put(memory)
    put(memory, "other")
    faulty = Faulty(before=[Fault("stuck")] * 100)
    answered: list[str] = []

    def wait(seconds: float) -> bool:
        clock.wait(seconds)
        if clock.now_s > 1030 and not answered:
            left, faulty.before = faulty.before, []
            answered.append(retrying.head(Key("other")).key)
            faulty.before = left
        return False

    pace = replace(clock.pace(), wait=wait)
    retrying = Retrying(FaultyStore(memory, faulty), timeout_s=60, pace=pace)
    with pytest.raises(TimedOut):
        retrying.head(KEY)

    assert answered == ["other"]
    assert not retrying.health.is_offline


def test_any_answer_ends_an_outage(store: Retrying, faulty: Faulty) -> None:
    faulty.before = [Fault("down")] * 100
    with pytest.raises(TimedOut):
        store.check()
    assert store.health.is_offline

    faulty.before = [Denied("no")]
    with pytest.raises(Denied):
        store.ping()

    assert not store.health.is_offline


def test_a_ping_is_tried_once(store: Retrying, faulty: Faulty, clock: Clock) -> None:
    faulty.before = [Fault("down")] * 2

    with pytest.raises(Fault):
        store.ping()

    assert faulty.asked == ["check"]
    assert clock.waits == []
