"""Making room in a cache: which files go, in which order, why, and then just these."""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

from cachefs.core.cached import CachedFile, CacheUsage
from cachefs.core.eviction import MOST_CHANCES, SMALL, Policy, Standing, score
from cachefs.core.expression import Expression
from cachefs.core.policy import SECOND_NS
from cachefs.core.types import EntryId
from cachefs.local.ranked import Ranked, Ranking
from cachefs.ops.events import Progress

_BATCH: Final = 200
"""Files that are evicted by one question."""
_MOST_ROUNDS: Final = 10
_LARGEST_STEP: Final = 3


class Prunable(Protocol):
    """A cache, behind its daemon or without one."""

    def entries(self) -> Iterator[CachedFile]:
        """Yield every file in the cache."""
        ...

    def usage(self) -> CacheUsage:
        """Tell how full the cache is."""
        ...

    def evict(self, files: Sequence[tuple[EntryId, int]]) -> Sequence[int | str]:
        """Drop files, each named with its last use. Return for each the bytes that are free now, or why it stays."""
        ...


class Verified(Protocol):
    """Knows which files were found to be what the store has."""

    def __contains__(self, file: CachedFile, /) -> bool:
        """Whether the bytes here were found to be those of the version that the file is of."""
        ...


class Target(Protocol):
    """Knows how many bytes are to go."""

    def __call__(self, usage: CacheUsage, /) -> int:
        """Return how many bytes too many there are."""
        ...


@dataclass(frozen=True, slots=True)
class Which:
    """Which files may go, and in which order."""

    by: Policy | Expression
    now_ns: int
    unused_for_s: float = 0.0
    """Only files that were last used so long ago."""
    larger_than: int = 0
    """Only files that take more bytes of disk."""
    verified: Verified | None = None
    """Only files that were found to be what the store has."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A file whose turn it is."""

    number: int
    """Its place in the order, from 1."""
    file: CachedFile
    score: float
    """By a policy's name: the lowest goes first. Of an expression: its value, of which the highest goes first."""
    reason: str


@dataclass(frozen=True, slots=True)
class Planned:
    """This would go."""

    victim: Victim


@dataclass(frozen=True, slots=True)
class Removed:
    """This went."""

    victim: Victim


@dataclass(frozen=True, slots=True)
class Kept:
    """Its turn came, and it stays."""

    victim: Victim
    why: str


@dataclass(frozen=True, slots=True)
class Spared:
    """So many files were left out of the order."""

    why: str
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a job that had something to do."""

    lacking: int
    """Bytes that are still too many, because nothing else may go; 0: the target was met."""


Event = Planned | Removed | Kept | Spared | Ended | Progress


def prune(
    cache: Prunable, which: Which, target: Target, *, cache_size: int | None, is_dry: bool
) -> Generator[Event, None, None]:
    """Evict files until *target* is met, or tell which would go (*is_dry*).

    Yields why files are left out, then each file whose turn comes, in order. A cache that is in use fills meanwhile:
    it is looked at again until it is at the target, or nothing is left that may go.
    """
    total = 0
    for turn in range(_MOST_ROUNDS):
        usage = cache.usage()
        need = target(usage)
        if need <= 0:
            if turn:
                yield Ended(0)
            return
        with Ranking() as ranking:
            yield from _rank(cache, which, usage.policy, ranking)
            victims = _in_order(ranking, which, usage.limit or cache_size or 0)
            if is_dry:
                lacking = yield from _planned(victims, need)
                yield Ended(lacking)
                return
            # It fills while it is emptied: from the second time on, by more than what is too much at the moment.
            more = need << min(turn, _LARGEST_STEP)
            freed, kept = yield from _evict(cache, victims, more, total)
        total += freed
        if not freed and not kept:
            break
    yield Ended(max(0, target(cache.usage())))


def _planned(victims: Iterator[Victim], need: int) -> Generator[Event, None, int]:
    while need > 0 and (victim := next(victims, None)) is not None:
        need -= victim.file.cost
        yield Planned(victim)
    return max(0, need)


def _evict(
    cache: Prunable, victims: Iterator[Victim], need: int, before: int
) -> Generator[Event, None, tuple[int, int]]:
    """Evict so many bytes, and return how many went, and how many files came into use meanwhile."""
    freed = files = kept = 0
    while freed < need and (batch := _batch(victims, need - freed)):
        outcomes = cache.evict([(each.file.id, each.file.used_ns) for each in batch])
        for victim, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, str):
                kept += 1
                yield Kept(victim, outcome)
            else:
                freed, files = freed + outcome, files + 1
                yield Removed(victim)
        yield Progress(files, before + freed, None, before + max(need, freed))
    return freed, kept


def _batch(victims: Iterator[Victim], need: int) -> list[Victim]:
    """Return the next files that free *need* bytes, but not too many at a time."""
    batch: list[Victim] = []
    for victim in islice(victims, _BATCH):
        batch.append(victim)
        need -= victim.file.cost
        if need <= 0:
            break
    return batch


# ---- the order ------------------------------------------------------------------------------


def _rank(cache: Prunable, which: Which, policy: Policy, ranking: Ranking) -> Iterator[Spared]:
    spared: dict[str, tuple[int, int]] = {}
    for file in cache.entries():
        why = _why_spared(file, which)
        if why is None:
            ranking.add(Ranked(file, standing(file, which, policy)))
            continue
        files, size = spared.get(why, (0, 0))
        spared[why] = files + 1, size + file.cost
    for why, (files, size) in sorted(spared.items()):
        yield Spared(why, files, size)


def _why_spared(file: CachedFile, which: Which) -> str | None:
    reasons = {
        "waits for upload": file.state is not None,
        "is in use": file.pins > 0,
        "is pinned": file.is_pinned,
        "was used too lately": which.now_ns - file.used_ns < which.unused_for_s * SECOND_NS,
        "is too small": which.larger_than > 0 and file.cost <= which.larger_than,
    }
    why = next((reason for reason, holds in reasons.items() if holds), None)
    if why is None and which.verified is not None and file not in which.verified:
        return "was not verified"
    return why


def standing(file: CachedFile, which: Which, policy: Policy) -> Standing:
    """Return where a file stands by what was asked for; *policy* is what the cache itself goes by."""
    if isinstance(which.by, Expression):
        return Standing(score=-which.by.value(variables(file, which.now_ns)))
    if which.by is policy:  # with all that the mount knows: GDSF's clock, S3-FIFO's queues
        return file.standing
    rank = score(which.by, file.facts, fetch_s=file.fetch_s)
    if which.by is Policy.S3FIFO:
        return Standing(SMALL, rank, max(0, min(MOST_CHANCES, file.hits - 1)))
    return Standing(score=rank)


def variables(file: CachedFile, now_ns: int) -> dict[str, float]:
    """Return what an expression may use of a file."""
    return {
        "size": float(file.cost),
        "age": max(0.0, (now_ns - file.made_ns) / SECOND_NS),
        "idle": max(0.0, (now_ns - file.used_ns) / SECOND_NS),
        "hits": float(file.hits),
        "fetch_seconds": file.fetch_s,
    }


def _in_order(ranking: Ranking, which: Which, cache_size: int) -> Iterator[Victim]:
    is_s3fifo = which.by is Policy.S3FIFO
    ranked = ranking.by_s3fifo(cache_size) if is_s3fifo else ranking.in_order()
    for number, each in enumerate(ranked, 1):
        is_value = isinstance(which.by, Expression)
        value = -each.standing.score if is_value else each.standing.score
        yield Victim(number, each.file, value, _reason(each, which, value))


def _reason(ranked: Ranked, which: Which, value: float) -> str:
    """Return in words why a file is where it is in the order."""
    file, by = ranked.file, which.by
    known = variables(file, which.now_ns)
    opened = f"opened {file.hits} times" if file.hits != 1 else "opened once"
    if isinstance(by, Expression):
        return "it has no value" if math.isinf(value) and value < 0 else f"{by.text} = {value:.6g}"
    match by:
        case Policy.GDSF:
            source = "to fetch" if file.fetch_ns else "to fetch, by its size"
            return f"{opened}, {file.fetch_s:.3g} s {source}, {mebibytes(file.cost)}"
        case Policy.LRU:
            return f"unused for {duration(known['idle'])}"
        case Policy.LFU:
            return f"{opened}, unused for {duration(known['idle'])}"
        case Policy.SIZE:
            return mebibytes(file.cost)
        case Policy.AGE:
            return f"came {duration(known['age'])} ago"
        case Policy.S3FIFO:
            queue = "new" if ranked.queue == SMALL else "used before, not of late"
            return f"{queue}, {opened}, came {duration(known['age'])} ago"


def mebibytes(size: int) -> str:
    """Return *size* in MiB, as exactly as a reader wants it."""
    return f"{size / 2**20:.3g} MiB"


def duration(seconds: float) -> str:
    """Return *seconds* in the largest unit that leaves at least 2."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
