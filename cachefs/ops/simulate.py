"""What each policy, in caches of each size, would have made of a trace: the ratio of hits, of bytes, and the time waited."""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cachefs.core.eviction import FetchTimes, Policy
from cachefs.core.simulation import SimulatedCache
from cachefs.ops import libcachesim
from cachefs.ops.events import Progress
from cachefs.ops.traces import Trace

FOREIGN: Final = "libcachesim:"
"""Before the name of a policy that the library and the mount both have: the library's."""
BOUND: Final = "no-eviction"
"""A cache in which everything fits: what is opened for the first time is all that it waits for."""
OWN: Final = tuple(policy.value for policy in Policy)
THEIRS: Final = tuple(name for name in libcachesim.POLICIES if name not in OWN)
_STEP: Final = 20_000
"""Opens between two words on how far it is."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One cache, at the end of the trace. Only opens that read are counted."""

    policy: str
    limit: int
    """Bytes that it may hold."""
    opens: int
    hits: int
    bytes: int
    """Of the files that were opened."""
    hit_bytes: int
    waited_s: float
    """What fetching the others took, all of them together."""

    @property
    def hit_ratio(self) -> float:
        """The share of the opens that found every byte in the cache."""
        return self.hits / self.opens if self.opens else 0.0

    @property
    def byte_hit_ratio(self) -> float:
        """The same by bytes."""
        return self.hit_bytes / self.bytes if self.bytes else 0.0


def is_known(policy: str) -> bool:
    """Whether *policy* can be simulated, if the library is there."""
    return policy in OWN or policy == BOUND or policy.removeprefix(FOREIGN) in libcachesim.POLICIES


def wants_library(policy: str) -> bool:
    """Whether *policy* is one of the library's."""
    return policy not in OWN and policy != BOUND


def simulate(
    trace: Trace, policies: Sequence[str], limits: Sequence[int]
) -> Iterator[Outcome | Progress]:
    """Run *trace* through a cache by each of *policies* of each of the sizes *limits*, one after the other.

    The mount's own policies are run as a mount does it: in blocks of the disk, and with the share that reads leave to
    writes. The library's use every byte. Raise ``UsageError`` where the library is wanted and is not there.
    """
    seconds = fetch_seconds(trace)
    next_uses = trace.next_uses() if any(map(wants_library, policies)) else array("q")
    runs = [(policy, limit) for policy in policies for limit in limits]
    for number, (policy, limit) in enumerate(runs):
        hits = _hits(trace, policy, limit, next_uses)
        counted = _Counted()
        for at, is_hit in enumerate(hits):
            if not trace.writes[at]:
                counted.count(trace.sizes[at], seconds[at], is_hit=is_hit)
            if at % _STEP == 0:
                done = number * len(trace) + at
                yield Progress(done, total_files=len(runs) * len(trace))
        yield counted.outcome(policy, limit)


@dataclass(slots=True)
class _Counted:
    opens: int = 0
    hits: int = 0
    bytes: int = 0
    hit_bytes: int = 0
    waited_s: float = 0.0

    def count(self, size: int, seconds: float, *, is_hit: bool) -> None:
        self.opens += 1
        self.bytes += size
        if is_hit:
            self.hits += 1
            self.hit_bytes += size
        else:
            self.waited_s += seconds

    def outcome(self, policy: str, limit: int) -> Outcome:
        return Outcome(
            policy, limit, self.opens, self.hits, self.bytes, self.hit_bytes, self.waited_s
        )


def _hits(trace: Trace, policy: str, limit: int, next_uses: "array[int]") -> Iterator[bool]:
    if policy == BOUND:
        return _all_kept(trace)
    if wants_library(policy):
        name = policy.removeprefix(FOREIGN)
        return libcachesim.hits(name, limit, trace.keys, trace.sizes, next_uses)
    return _as_the_mount(trace, SimulatedCache(Policy(policy), limit))


def _as_the_mount(trace: Trace, cache: SimulatedCache) -> Iterator[bool]:
    known = array("d", [math.nan] * trace.files)
    rows = zip(trace.times_ns, trace.keys, trace.sizes, trace.seconds, trace.writes, strict=True)
    for time_ns, key, size, seconds, is_write in rows:
        if not math.isnan(seconds):
            known[key] = seconds
        if is_write:
            cache.write(key, size, time_ns=time_ns)
            yield True
            continue
        took = known[key]
        yield cache.read(key, size, time_ns=time_ns, fetch_s=None if math.isnan(took) else took)


def _all_kept(trace: Trace) -> Iterator[bool]:
    sizes = array("q", [-1] * trace.files)
    for key, size in zip(trace.keys, trace.sizes, strict=True):
        yield sizes[key] == size
        sizes[key] = size


def fetch_seconds(trace: Trace) -> "array[float]":
    """Return what fetching the file of each open takes: as it took last, or as others of its size let expect."""
    times = FetchTimes()
    for size, took in zip(trace.sizes, trace.seconds, strict=True):
        if not math.isnan(took):
            times.learn(size, took)
    known = array("d", [math.nan] * trace.files)
    found = array("d")
    for key, size, took in zip(trace.keys, trace.sizes, trace.seconds, strict=True):
        if not math.isnan(took):
            known[key] = took
        last = known[key]
        found.append(times.estimate(size) if math.isnan(last) else last)
    return found
