"""What a mount's eviction achieves is what ``cachefs simulate`` says of the trace that it wrote."""

import json
import random
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.harness import Mount, cachefs
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]
FILES = 1000
OPENS = 6000


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("policy", ["gdsf", "lru", "s3fifo"])
@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_the_measured_hit_ratio_is_within_a_point_of_the_simulated_one(
    store: LiveStore, policy: str, mounting: Mounting, tmp_path: Path
) -> None:
    chance = random.Random(23)
    for number in range(FILES):
        size = int(min(2**20, 4096 * chance.paretovariate(0.7)))
        store.put(f"f{number}", chance.randbytes(size))
    weights = list(accumulate(1 / (rank + 1) ** 0.8 for rank in range(FILES)))
    wanted = chance.choices(range(FILES), cum_weights=weights, k=OPENS)
    trace = tmp_path / "trace.csv"
    options = (
        *("--policy", policy, "--cache-size", "16MiB", "--min-free", "0"),
        *("--metadata-ttl", "3600", "--trace", str(trace)),
    )
    with mounting(store.target(), *options, watchdog_s=550) as mount:
        mount.do(programs.read_in_order, [mount / f"f{number}" for number in wanted])
        reads = mount.status()["reads"]
        assert mount.umount().returncode == 0
        done = cachefs(
            *("simulate", trace, "--policy", policy, "--sizes", "16MiB", "--json"), env=mount.env
        )
    (simulated,) = json.loads(done.stdout)["results"]
    measured = reads["opens_cached"] / reads["opens"]
    print(f"{policy}: measured {measured:.4f}, simulated {simulated['hit_ratio']:.4f}")

    assert simulated["opens"] == reads["opens"] == OPENS
    assert 0.2 < measured < 0.9
    assert abs(measured - simulated["hit_ratio"]) <= 0.01
