"""A cache without bytes: what the policies would have done with a sequence of opens."""

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final

from cachefs.core.eviction import (
    GHOST_SHARE,
    MAIN,
    SMALL,
    Facts,
    FetchTimes,
    Policy,
    Standing,
    s3fifo_victims,
    score,
)
from cachefs.core.policy import HIGH_WATER, LOW_WATER, SECOND_NS


@dataclass(frozen=True, slots=True)
class Rules:
    """How a cache counts its bytes and makes room."""

    block: int
    """Bytes of which a file takes whole multiples."""
    slack: int
    """Bytes that have to be free beside those of the file that is fetched."""
    writers_share: int
    """Reads leave one part in so many of the limit to writes; 0: none."""
    high_water: float
    """Share of the limit above which a write makes the cache evict down to ``LOW_WATER``."""
    keeps_parts: bool
    """Of a file that is larger than the cache as much is kept as fits, and everything else goes for it. Else it passes by."""


MOUNT: Final = Rules(
    block=4096, slack=8192, writers_share=16, high_water=HIGH_WATER, keeps_parts=True
)
"""As a mount does it."""
PLAIN: Final = Rules(block=1, slack=0, writers_share=0, high_water=1.0, keeps_parts=False)
"""As the literature does it, and libcachesim: every byte of the limit is used."""


@dataclass(slots=True)
class _File:
    """A file in the cache."""

    key: int
    size: int
    cost: int
    serial: int
    made_ns: int
    used_ns: int
    hits: int = 0
    fetch_ns: int = 0
    is_whole: bool = True
    is_here: bool = True
    queue: int = SMALL
    score: float = 0.0
    chances: int = 0


class SimulatedCache:
    """One cache of *limit* bytes.

    INVARIANT: used <= limit.
    """

    def __init__(self, policy: Policy, limit: int, rules: Rules = MOUNT) -> None:
        self._policy = policy
        self._limit = limit
        self._rules = rules
        share = rules.writers_share
        self._for_reads = limit - (limit // share if share else 0)
        self._files: dict[int, _File] = {}
        self.used = 0
        self._now_ns = 0
        self._serial = 0
        self._inflation = 0.0
        self._times = FetchTimes()
        self._heap: list[tuple[float, int, _File]] = []
        self._queues = _Queues()
        self._ghosts: OrderedDict[int, int] = OrderedDict()
        self._ghost_bytes = 0

    def __len__(self) -> int:
        return len(self._files)

    def read(self, key: int, size: int, *, time_ns: int, fetch_s: float | None) -> bool:
        """Open the file *key* of *size* bytes and read all of it. Return whether every byte was here.

        fetch_s: what fetching it takes; None: nobody knows, and the policy has to estimate it.
        """
        file = self._found(key, size)
        if file is not None:
            self._opened(file, time_ns)
            self._place(file)
            return file.is_whole
        self._fetched(self._made(key, size, time_ns), fetch_s)
        return False

    def write(self, key: int, size: int, *, time_ns: int) -> None:
        """Open the file *key* and leave it as one of *size* bytes, all of which are here."""
        file = self._files.get(key)
        if file is None:
            file = self._made(key, size, time_ns)
        else:
            self._opened(file, time_ns)
            self._forget(file)
        file.size, file.cost, file.fetch_ns, file.is_whole = size, self._cost(size), 0, True
        self._make_room(file.cost + self._rules.slack, self._limit)
        if self.used + file.cost <= self._limit:
            self._keep(file)
        if self.used > self._limit * self._rules.high_water:
            self._evict(int(self.used - self._limit * LOW_WATER))

    # ---- files ------------------------------------------------------------------------------

    def _found(self, key: int, size: int) -> _File | None:
        file = self._files.get(key)
        if file is not None and file.size != size:  # another version
            self._forget(file)
            return None
        return file

    def _made(self, key: int, size: int, time_ns: int) -> _File:
        self._serial += 1
        file = _File(key, size, self._cost(size), self._serial, 0, 0)
        if self._policy is Policy.S3FIFO and (ghost := self._ghosts.pop(key, None)) is not None:
            self._ghost_bytes -= ghost
            file.queue = MAIN
        self._opened(file, time_ns)
        file.made_ns = file.used_ns
        return file

    def _opened(self, file: _File, time_ns: int) -> None:
        self._now_ns = max(self._now_ns + 1, time_ns)  # no two at the same time
        file.used_ns = self._now_ns
        if file.hits:
            was = Standing(file.queue, file.score, file.chances)
            file.chances = was.hit().chances
        file.hits += 1

    def _fetched(self, file: _File, fetch_s: float | None) -> None:
        fits = file.cost + self._rules.slack <= self._for_reads
        if not fits and not self._rules.keeps_parts:
            return
        if not fits:
            file.is_whole = False
            file.cost = max(0, self._for_reads - self._rules.slack)
        self._make_room(file.cost + self._rules.slack, self._for_reads)
        if fetch_s is not None:
            file.fetch_ns = int(fetch_s * SECOND_NS)
            if file.fetch_ns:
                self._times.learn(file.cost, fetch_s)
        self._keep(file)

    def _cost(self, size: int) -> int:
        block = self._rules.block
        return -(-size // block) * block

    def _keep(self, file: _File) -> None:
        file.is_here = True
        self._files[file.key] = file
        self.used += file.cost
        if self._policy is Policy.S3FIFO:
            self._queues.add(file)
        else:
            self._place(file)

    def _forget(self, file: _File) -> None:
        """Take a file out of the cache."""
        del self._files[file.key]
        self.used -= file.cost
        file.is_here = False
        if self._policy is Policy.S3FIFO:
            self._queues.removed(file)

    def _place(self, file: _File) -> None:
        """Give a file its place in the order, as it is given back."""
        if self._policy is Policy.S3FIFO:
            return
        facts = Facts(file.cost, file.made_ns, file.used_ns, file.hits, file.fetch_ns)
        fetch_s = file.fetch_ns / SECOND_NS if file.fetch_ns else self._times.estimate(file.cost)
        file.score = score(self._policy, facts, fetch_s=fetch_s, inflation=self._inflation)
        heapq.heappush(self._heap, (file.score, file.serial, file))
        if len(self._heap) > 4 * len(self._files) + 1024:  # mostly places that were left since
            self._heap = [(each.score, each.serial, each) for each in self._files.values()]
            heapq.heapify(self._heap)

    # ---- room -------------------------------------------------------------------------------

    def _make_room(self, need: int, limit: int) -> None:
        if self.used + need > limit:
            self._evict(self.used + need - limit)

    def _evict(self, need: int) -> None:
        """Evict files that free *need* bytes together, or all."""
        if self._policy is Policy.S3FIFO:
            victims = s3fifo_victims(self._queues, self._limit)
            while need > 0 and (victim := next(victims, None)) is not None:
                need -= victim.cost
                self._remember(victim)
                self._forget(victim)
            return
        while need > 0 and self._files:
            found, serial, file = heapq.heappop(self._heap)
            if not file.is_here or (found, serial) != (file.score, file.serial):
                continue
            need -= file.cost
            if self._policy is Policy.GDSF:
                self._inflation = max(self._inflation, file.score)
            self._forget(file)

    def _remember(self, victim: _File) -> None:
        """Make a ghost of what is evicted from the small queue."""
        if victim.queue != SMALL:
            return
        self._ghosts[victim.key] = victim.cost
        self._ghost_bytes += victim.cost
        while self._ghost_bytes > self._limit * GHOST_SHARE:
            self._ghost_bytes -= self._ghosts.popitem(last=False)[1]


class _Queues:
    """S3-FIFO's queues."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[_File]] = {SMALL: deque(), MAIN: deque()}
        self._small = 0

    def add(self, file: _File) -> None:
        """Put a file at the end of its queue."""
        self._queues[file.queue].append(file)
        if file.queue == SMALL:
            self._small += file.cost

    def removed(self, file: _File) -> None:
        """Count that a file has left the cache; it is skipped when its turn comes."""
        if file.queue == SMALL:
            self._small -= file.cost

    def small_bytes(self) -> int:
        """Return the bytes in the small queue."""
        return self._small

    def first(self, queue: int) -> _File | None:
        """Take the first of *queue*."""
        waiting = self._queues[queue]
        while waiting:
            file = waiting.popleft()
            if file.is_here and file.queue == queue:
                return file
        return None

    def append(self, file: _File, chances: int) -> None:
        """Put a file that was taken at the end of the main queue."""
        if file.queue == SMALL:
            self._small -= file.cost
        file.queue, file.chances = MAIN, chances
        self._queues[MAIN].append(file)
