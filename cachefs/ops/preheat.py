"""Filling the cache before programs ask: the files of an order, one after the other, until a budget or the room is used up."""

import contextlib
import itertools
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from cachefs.core.errors import CachefsError, Fault, NoRoom, UsageError
from cachefs.core.heat import Heat, Heated, Presence
from cachefs.core.history import Accessed
from cachefs.local.sorting import Ordered, Ordering
from cachefs.ops.events import Failed, Progress
from cachefs.ops.globs import Chosen
from cachefs.ops.manifest import Row
from cachefs.ops.parallel import in_parallel

_FAULTS: Final = 8
"""So many files in a row that the store did not answer for end the job: so would all others, each after its deadline."""
_RESTARTS: Final = 3
"""So often a file may be lost from the cache, or replaced at the store, while it is fetched."""
_BATCH: Final = 200
_SPREAD: Final = 2**34
"""More than the seconds since the epoch will be in this century, so that a rank holds both."""
_MOST_OPENS: Final = 2**28
_MOST: Final = 2**63 - 1
"""Nanoseconds, and bytes, that SQLite can hold; file systems, and lists, have times beyond it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to have in the cache."""

    path: str
    """Relative to the root of the mount; bytes that are no UTF-8 as surrogates."""
    used_ns: int
    """When it counts as last used, since the epoch."""
    size: int | None = None
    """As the order's source has it; None: it does not say."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much to do at most. None: no limit."""

    bytes: int | None = None
    """Of the files that are in the cache in the end, those that were there before among them."""
    files: int | None = None
    """So many from the beginning of the order, those that are cached or fail among them."""
    seconds: float | None = None
    """After which nothing more is asked for."""


class Cache(Protocol):
    """The cache to fill. Called from several threads. Its ``Fault`` means that the store does not answer."""

    def look(self, path: str) -> Heated:
        """Tell of a file as the store has it, without fetching."""
        ...

    def heat(self, path: str, used_ns: int) -> Heated:
        """Fetch some of what is missing of a file."""
        ...

    def end(self) -> None:
        """Let whoever is waiting for an answer go."""
        ...


@dataclass(frozen=True, slots=True)
class Ready:
    """One file is in the cache."""

    path: str
    size: int
    fetched: int
    """Bytes of it that came from the store; 0: it was there."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """Nothing more is fetched, although the order has more."""

    reason: str
    path: str | None = None
    """The file that did not fit any more."""


Event = Ready | Failed | Stopped | Progress


@dataclass(slots=True)
class _Task:
    """One file on its way."""

    wanted: Wanted
    turn: int
    """Its place in the order."""
    fetched: int = 0
    cached: int = 0
    restarts: int = 0
    is_paid: bool = False


class _Purse:
    """The bytes that may still be spent: by the files in their order, so that it is always the same files. For threads."""

    def __init__(self, left: int | None) -> None:
        self._left = left
        self._turn = 0
        self._is_over = False
        self._moved = threading.Condition()

    @property
    def is_limited(self) -> bool:
        return self._left is not None

    def pay(self, turn: int, size: int) -> bool:
        """Take *size* bytes when it is the *turn* of the file, if they are there; nobody gets any after the first refusal."""
        with self._moved:
            self._moved.wait_for(lambda: self._is_over or self._turn >= turn)
            self._turn += 1
            self._moved.notify_all()
            if self._left is None or self._is_over:
                return not self._is_over
            self._is_over = size > self._left
            self._left -= size
            return not self._is_over

    def end(self) -> None:
        """Let everybody go who waits for a turn."""
        with self._moved:
            self._is_over = True
            self._moved.notify_all()


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of one question."""

    task: _Task
    heated: Heated | None = None
    """None: the budget has not so many bytes any more, or *error* tells."""
    error: CachefsError | None = None


class _Queue:
    """What is to be asked next: first the rest of files that were begun.

    Unlike other iterators it may go on after its end, when a file comes back that is not whole yet.
    """

    def __init__(self, wanted: Iterator[Wanted], *, is_late: Callable[[], bool]) -> None:
        self._wanted = wanted
        self._is_late = is_late
        self._begun: deque[_Task] = deque()
        self._turns = itertools.count()
        self._stopped_at = 0
        self.stopped: Stopped | None = None
        """Why nothing new is begun any more, if the order has not come to its end."""

    def __iter__(self) -> "_Queue":
        return self

    def __next__(self) -> _Task:
        if not self._begun and self.stopped is not None:
            raise StopIteration
        task = (
            self._begun.popleft() if self._begun else _Task(next(self._wanted), next(self._turns))
        )
        if self._is_late():
            self.stopped = self.stopped or Stopped("the time is over")
            raise StopIteration
        return task

    def again(self, task: _Task) -> None:
        """Have the rest of a file asked for."""
        self._begun.append(task)

    def stop(self, reason: str, task: _Task) -> None:
        """Begin nothing new, because there was no room for the file of *task*. The first of the order is told."""
        if self.stopped is None or task.turn < self._stopped_at:
            self.stopped, self._stopped_at = Stopped(reason, task.wanted.path), task.turn


@dataclass(slots=True)
class _Tally:
    files: int = 0
    bytes: int = 0
    faults: int = 0


def preheat(
    wanted: Iterable[Wanted],
    cache: Cache,
    *,
    budget: Budget,
    threads: int,
    totals: tuple[int | None, int | None] = (None, None),
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Event, None, None]:
    """Bring the files of *wanted* into *cache*, *threads* at a time, in their order.

    *totals*: files and bytes that there are, for the progress. Ends with ``Stopped`` where the budget or the room is
    used up before the order is. A file that cannot be had is ``Failed``. Raise what *wanted* raises, and the ``Fault``
    of a store that does not answer for many files in a row.
    """
    began = clock()

    def is_late() -> bool:
        return budget.seconds is not None and clock() - began >= budget.seconds

    purse, tally = _Purse(budget.bytes), _Tally()
    queue = _Queue(itertools.islice(wanted, budget.files), is_late=is_late)
    with contextlib.closing(
        in_parallel(
            lambda task: _asked(task, cache, purse), queue, threads=threads, stop=cache.end
        )
    ) as answers:
        for answer in answers:
            event = _weigh(answer, queue, tally)
            if event is not None:
                yield event
            if isinstance(event, Failed) and tally.faults >= _FAULTS:
                raise event.error
            yield Progress(tally.files, tally.bytes, *totals)
    if queue.stopped is not None:
        yield queue.stopped


def _asked(task: _Task, cache: Cache, purse: _Purse) -> _Answer:
    """Ask for some of a file, in a thread of its own."""
    try:
        if purse.is_limited and not task.is_paid:
            task.is_paid = True
            size = 0  # of what is not there
            try:
                size = cache.look(task.wanted.path).size
            finally:
                is_paid = purse.pay(task.turn, size)
            if not is_paid:
                return _Answer(task)
        return _Answer(task, cache.heat(task.wanted.path, task.wanted.used_ns))
    except CachefsError as error:
        return _Answer(task, error=error)


def _weigh(answer: _Answer, queue: _Queue, tally: _Tally) -> Ready | Failed | None:
    """Return what became of a file, if *answer* is the last word on it."""
    task, heated = answer.task, answer.heated
    path = task.wanted.path
    if answer.error is not None:
        tally.files += 1
        tally.faults = tally.faults + 1 if isinstance(answer.error, Fault) else 0
        return Failed(path, answer.error)
    tally.faults = 0
    if heated is None:
        queue.stop("the budget of bytes is used up", task)
        return None
    task.fetched += heated.fetched
    task.restarts += heated.cached <= task.cached
    tally.bytes += heated.cached - task.cached
    task.cached = heated.cached
    if heated.heat is Heat.CACHED:
        tally.files += 1
        return Ready(path, heated.size, task.fetched)
    if heated.heat is Heat.FULL:
        queue.stop("the cache is full", task)
        return None
    if task.restarts > _RESTARTS:
        tally.files += 1
        return Failed(path, NoRoom("it leaves the cache, or changes, as fast as it is fetched"))
    queue.again(task)
    return None


# ---- orders ---------------------------------------------------------------------------------


def tree(root: Path, chosen: Chosen, into: Ordering) -> Iterator[Failed]:
    """Put the files below *root* into *into*, the last read first. Yield what cannot be looked at.

    Links are not followed. Raise ``UsageError`` if *root* is no directory.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is not a directory — name the tree that has the times of access")
    failed: list[Failed] = []

    def note(error: OSError) -> None:
        failed.append(Failed(str(error.filename), error))

    for directory, names, files in os.walk(root, onerror=note):
        names.sort()
        for name in sorted(files):
            whole = os.path.join(directory, name)
            path = os.path.relpath(whole, root)
            if path not in chosen:
                continue
            try:
                found = os.lstat(whole)
            except OSError as error:
                note(error)
                continue
            if stat.S_ISREG(found.st_mode):
                used_ns = _bearable(found.st_atime_ns)
                into.add(Ordered(path, used_ns, found.st_size, used_ns))
        yield from failed
        failed.clear()
    yield from failed


def listed(rows: Iterable[Row], chosen: Chosen, *, now_ns: int) -> Iterator[Wanted]:
    """Yield the files that a list names, in its order."""
    for number, row in enumerate(row for row in rows if row.path in chosen):
        # Each a little older than the one before, so that the first of the list is not the first to be evicted.
        yield Wanted(row.path, now_ns - number, row.size)


def listed_by_access(rows: Iterable[Row], chosen: Chosen, into: Ordering) -> None:
    """Put the files that a list names into *into*, the last read first; those without a time last."""
    for row in rows:
        if row.path in chosen:
            used_ns = 0 if row.atime is None else _bearable(int(row.atime * 1e9))
            size = None if row.size is None else _bearable(row.size)
            into.add(Ordered(row.path, used_ns, size, used_ns))


def _bearable(number: int) -> int:
    return min(max(0, number), _MOST)


class By(StrEnum):
    """By what the history of opens is ordered."""

    LAST = "last"
    """The last opened first."""
    FREQUENCY = "frequency"
    """The most often opened first."""
    YESTERDAY = "yesterday"
    """What was opened yesterday, the most often opened first; nothing else."""


def remembered(
    history: Iterable[Accessed], by: By, chosen: Chosen, into: Ordering, *, today: int
) -> None:
    """Put the files of *history* into *into*. *today*: the number of the day (``datetime.date.toordinal``)."""
    for each in history:
        if each.path not in chosen:
            continue
        opens = {
            By.LAST: 1,
            By.FREQUENCY: each.opens,
            By.YESTERDAY: each.days.get(today - 1, 0),
        }[by]
        if opens:
            # Of two that were opened equally often the one that was opened last comes first.
            rank = min(opens, _MOST_OPENS) * _SPREAD + min(each.used_ns // 10**9, _SPREAD - 1)
            into.add(
                Ordered(
                    each.path,
                    each.used_ns if by is By.LAST else rank,
                    each.size,
                    each.used_ns,
                )
            )


def in_order(ordering: Ordering) -> Iterator[Wanted]:
    """Yield the files of *ordering*."""
    for each in ordering:
        yield Wanted(each.path, each.used_ns or 0, each.size)


# ---- what is there --------------------------------------------------------------------------


@dataclass(slots=True)
class Share:
    """How much of an order is in the cache."""

    files: int = 0
    cached_files: int = 0
    """Those of which every byte is here."""
    bytes: int = 0
    cached_bytes: int = 0
    unknown: int = 0
    """Files whose size nobody knows; they are counted as files only."""


def share(
    wanted: Iterable[Wanted],
    ask: Callable[[Sequence[str]], Sequence[Presence]],
    budget: Budget,
) -> Iterator[Progress | Share]:
    """Count how much of *wanted* is here, asking by batches of paths. The last event is the ``Share``.

    Of *wanted* only what *budget* has files and bytes for is counted; a file of unknown size takes none.
    """
    found = Share()
    source = itertools.islice(wanted, budget.files)
    while batch := list(itertools.islice(source, _BATCH)):
        for each, presence in zip(batch, ask([each.path for each in batch]), strict=True):
            size = each.size if presence.size is None else presence.size
            if budget.bytes is not None and found.bytes + (size or 0) > budget.bytes:
                yield found
                return
            found.files += 1
            found.unknown += size is None
            found.bytes += size or 0
            found.cached_bytes += presence.cached
            found.cached_files += presence.size is not None and presence.cached >= presence.size
        yield Progress(found.files, found.bytes)
    yield found
