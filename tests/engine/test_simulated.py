"""A mount's eviction does what the simulation says: measured on the same opens."""

import os
import random
from itertools import accumulate
from pathlib import Path

import pytest

from cachefs.core.eviction import Policy
from cachefs.ops import traces
from cachefs.ops.events import Progress
from cachefs.ops.simulate import Outcome, simulate
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import MIB, serving, store


def simulated(trace: Path, policy: Policy, limit: int) -> Outcome:
    read = traces.read([trace], form=None, columns=None)
    (found,) = (
        each for each in simulate(read, [policy], [limit]) if not isinstance(each, Progress)
    )
    return found


@pytest.mark.parametrize(
    ("policy", "opens", "files"),
    [
        (Policy.GDSF, 900, 300),
        *(pytest.param(policy, 6000, 1200, marks=pytest.mark.soak) for policy in Policy),
    ],
)
@pytest.mark.timeout(300)
async def test_the_measured_hit_ratio_is_the_simulated_one(
    policy: Policy, opens: int, files: int, tmp_path: Path
) -> None:
    chance, memory, limit = random.Random(11), MemoryStore(), files * MIB // 75
    sizes = [int(min(MIB, 4096 * chance.paretovariate(0.7))) for _ in range(files)]
    for number, size in enumerate(sizes):
        store(memory, f"f{number}", os.urandom(size))
    weights = list(accumulate(1 / (rank + 1) ** 0.8 for rank in range(files)))
    wanted = chance.choices(range(files), cum_weights=weights, k=opens)
    trace = tmp_path / "trace.csv"
    async with serving(
        tmp_path / "c", memory, cache_size=limit, policy=policy, trace=trace
    ) as rig:
        for number in wanted:
            assert len(await rig.read(f"f{number}")) == sizes[number]
        reads = rig.service.status()["reads"]
        assert isinstance(reads, dict)

    found = simulated(trace, policy, limit)

    assert reads["opens"] == found.opens == opens
    measured = reads["opens_cached"] / opens
    assert 0.2 < measured < 0.9
    assert abs(measured - found.hit_ratio) <= 0.01
