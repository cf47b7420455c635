"""Which cached file goes first: the policies, as pure scores and verdicts.

*Waiting time* is what GDSF saves: what it costs that a file is not here is the seconds that fetching it takes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto
from typing import Final, Protocol, Self, TypeVar

from cachefs.core.policy import SECOND_NS
from cachefs.core.types import EntryId, Ino

_LEAST_BYTES: Final = 4096
"""An empty file is held for a small one: it takes a row and a name on the disk."""
_LFU_SPAN_S: Final = 2.0**34
"""More seconds than any clock tells: a fraction of them never amounts to one hit."""
_FADE: Final = 0.99
"""By what an observation loses weight with each one after it: about the last hundred count."""
_PRIOR: Final = ((0.0, 0.02), (8.0 * 2**20, 0.18))
"""Bytes and seconds to fetch them, supposed until something is known: 20 ms for the first, 50 MiB a second."""
_PRIOR_WEIGHT: Final = 0.1
"""Of each, against the 1 of an observation."""


class Policy(StrEnum):
    """By what files are chosen that leave the cache."""

    GDSF = "gdsf"
    """Greedy-Dual-Size-Frequency: those first that save the least waiting time for the room they take."""
    LRU = "lru"
    """The longest unused first."""
    LFU = "lfu"
    """The least often opened first; of these, the longest unused."""
    SIZE = "size"
    """The largest first."""
    AGE = "age"
    """Those first that came first, used or not."""
    S3FIFO = "s3fifo"
    """Those first that came first and were not opened again; a new file has to earn its place."""

    @property
    def goes_by_time(self) -> bool:
        """Whether scores are moments of the machine's clock."""
        return self in (Policy.LRU, Policy.AGE, Policy.LFU)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the policies know of a cached file."""

    size: int
    """Bytes of disk that it takes."""
    made_ns: int
    """When the first of it came here."""
    used_ns: int
    """When it was last opened or closed."""
    hits: int
    """How often programs have opened it since it came."""
    fetch_ns: int
    """How long fetching what is here took; 0: not known, because it was written here."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a file stands in the order in which files go."""

    queue: int = 0
    """S3-FIFO: ``SMALL`` or ``MAIN``."""
    score: float = 0.0
    """The lowest of a queue goes first."""
    chances: int = 0
    """S3-FIFO: hits since it came into its queue, ``MOST_CHANCES`` at most."""

    def hit(self) -> Self:
        """Return where the file stands once it was opened again."""
        return replace(self, chances=min(MOST_CHANCES, self.chances + 1))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may be evicted: clean, and nobody holds it."""

    entry: EntryId
    cost: int
    """Bytes of disk that dropping it frees."""
    score: float
    queue: int
    chances: int
    ino: Ino


def choose_victims(candidates: Iterator[Candidate], need: int) -> list[Candidate]:
    """Return the first of *candidates* that free *need* bytes together; all if that is not enough."""
    victims: list[Candidate] = []
    while need > 0 and (candidate := next(candidates, None)) is not None:
        victims.append(candidate)
        need -= candidate.cost
    return victims


class FetchTimes:
    """What fetching so many bytes takes, learnt from what it took: ``seconds = a + b * bytes``, least squares.

    Old observations fade, for networks change.
    """

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def learn(self, size: int, seconds: float) -> None:
        """Take in that *size* bytes took *seconds*."""
        self._weight = self._weight * _FADE + 1
        self._x = self._x * _FADE + size
        self._y = self._y * _FADE + seconds
        self._xx = self._xx * _FADE + float(size) * size
        self._xy = self._xy * _FADE + size * seconds

    def estimate(self, size: int) -> float:
        """Return the seconds that *size* bytes would take: more than none, and not fewer for more bytes."""
        weight, x, y, xx, xy = self._weight, self._x, self._y, self._xx, self._xy
        for bytes_, seconds in _PRIOR:
            weight, x, y = (
                weight + _PRIOR_WEIGHT,
                x + _PRIOR_WEIGHT * bytes_,
                y + _PRIOR_WEIGHT * seconds,
            )
            xx, xy = xx + _PRIOR_WEIGHT * bytes_**2, xy + _PRIOR_WEIGHT * bytes_ * seconds
        slope = max(0.0, (weight * xy - x * y) / (weight * xx - x * x))
        return max(1e-6, (y - slope * x) / weight) + slope * size


def score(policy: Policy, facts: Facts, *, fetch_s: float, inflation: float = 0.0) -> float:
    """Return by what a file is ranked: the lowest goes first.

    fetch_s: seconds that fetching it again would take.
    inflation: GDSF's L, the score of what was evicted last. Adding it ages whatever has not been used since:
    Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy", HP Labs 1998,
    after Cao & Irani, "Cost-Aware WWW Proxy Caching Algorithms", USITS 1997. The cost is the waiting time.

    S3-FIFO ranks by arrival; the rest of it is :func:`s3fifo_victims`.
    """
    match policy:
        case Policy.GDSF:
            return inflation + max(1, facts.hits) * fetch_s / max(facts.size, _LEAST_BYTES)
        case Policy.LRU:
            return facts.used_ns / SECOND_NS
        case Policy.LFU:
            return facts.hits + facts.used_ns / SECOND_NS / _LFU_SPAN_S
        case Policy.SIZE:
            return -float(facts.size)
        case Policy.AGE | Policy.S3FIFO:
            return facts.made_ns / SECOND_NS


# ---- S3-FIFO (Yang, Zhang, Qiu, Yue, Vinayak: "FIFO queues are all you need for cache eviction", SOSP 2023) -------

SMALL: Final = 0
"""The queue of what is new."""
MAIN: Final = 1
"""The queue of what was used again."""
SMALL_SHARE: Final = 0.1
"""Share of the cache that new files may take before they have to go first."""
GHOST_SHARE: Final = 0.9
"""Bytes of evicted new files that are remembered, as a share of the cache: who comes back belongs into the main queue."""
MOST_CHANCES: Final = 3


class Fate(Enum):
    """What becomes of the first of a queue."""

    EVICTED = auto()
    PROMOTED = auto()
    """It was used more than once since it came: to the end of the main queue."""
    SPARED = auto()
    """It was used in the main queue: to the end of it, with a chance less."""


def fate(queue: int, chances: int) -> Fate:
    """Return what becomes of the first of *queue* (algorithm 1 of the paper)."""
    if queue == SMALL:
        return Fate.PROMOTED if chances > 1 else Fate.EVICTED
    return Fate.SPARED if chances > 0 else Fate.EVICTED


class Queued(Protocol):
    """One file in a queue, whatever else is known of it."""

    @property
    def cost(self) -> int:
        """Bytes of disk that it takes."""
        ...

    @property
    def queue(self) -> int:
        """``SMALL`` or ``MAIN``."""
        ...

    @property
    def chances(self) -> int:
        """Hits since it came into its queue."""
        ...


T_queued = TypeVar("T_queued", bound=Queued)


class Queues(Protocol[T_queued]):
    """The two queues, of which files are taken one by one."""

    def small_bytes(self) -> int:
        """Return the bytes of disk of all files in the small queue."""
        ...

    def first(self, queue: int) -> T_queued | None:
        """Take the first of *queue* that may go and was not taken yet; None: there is none."""
        ...

    def append(self, file: T_queued, chances: int) -> None:
        """Put a file that was taken at the end of the main queue."""
        ...


def s3fifo_victims(queues: Queues[T_queued], cache_size: int) -> Iterator[T_queued]:
    """Yield the files that go, in order, moving those that do not."""
    small_bytes = queues.small_bytes()
    while True:
        order = (SMALL, MAIN) if small_bytes >= cache_size * SMALL_SHARE else (MAIN, SMALL)
        file = queues.first(order[0]) or queues.first(order[1])
        if file is None:
            return
        if file.queue == SMALL:
            small_bytes -= file.cost
        match fate(file.queue, file.chances):
            case Fate.EVICTED:
                yield file
            case Fate.PROMOTED:
                queues.append(file, 0)
            case Fate.SPARED:
                queues.append(file, file.chances - 1)
