"""Everything at once in a cache that is much too small: the eviction races all that programs do."""

import hashlib
import random
from collections.abc import Callable

import pytest

from tests.mount import programs
from tests.mount.harness import Mount
from tests.mount.sampler import Sampler
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]
MIB = 1 << 20


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "upload", "seconds"),
    [
        pytest.param("file", "close", 4, id="some"),
        *(
            pytest.param(kind, upload, 120, id=f"{kind}-{upload}", marks=pytest.mark.soak)
            for kind in ("file", "moto", "swift")
            for upload in ("close", "background")
        ),
    ],
)
def test_every_byte_is_right_while_eviction_races_all_that_programs_do(
    new_store: Callable[[str], LiveStore],
    mounting: Mounting,
    kind: str,
    upload: str,
    seconds: float,
) -> None:
    store, limit, seed = new_store(kind), 4 * MIB, random.randrange(1 << 30)
    print(f"seed {seed}")
    shared = {f"shared{i}": 300_000 + 170_000 * i for i in range(8)}
    for name, size in shared.items():
        store.put(name, programs.pattern(name, 0, size))
    options = ("--cache-size", "4MiB", "--part-size", "5MiB", "--upload", upload)
    with mounting(
        store.target(), *options, "--upload-delay", "0s", watchdog_s=500, fresh=True
    ) as mount:
        assert mount.process is not None
        workers = [mount.hands() for _ in range(4)]
        with Sampler(mount.cache_dir / "data", mount.process.pid, every_s=0.02) as sampler:
            for number, one in enumerate(workers):
                one.begin(programs.churn, mount.mountpoint, f"w{number}", shared, seed, seconds)
            results = [one.finish(seconds + 120) for one in workers]
        expected: dict[str, str] = {}
        for left, done, wrong in results:
            assert wrong == []
            assert done > seconds
            expected |= left
        mount.flush()
        mount.wait_clean()
        status = mount.status()
        assert status["cache"]["evicted"] > 0
        assert (status["failed_tasks"], status["conflicts"]) == (0, [])
        seen = mount.do(programs.content_digests, mount.mountpoint)
        assert {name: seen.get(name) for name in expected} == expected

    print(f"{[done for _, done, _ in results]} steps, peak {sampler.peak / MIB:.2f} MiB")
    assert sampler.peak - sampler.slack <= limit
    objects = {key: hashlib.sha256(held).hexdigest() for key, held in store.view().items()}
    assert objects == seen
    own = {key for key in objects if key.startswith("w") and not key.endswith((".public", ".tmp"))}
    assert own == set(expected)
