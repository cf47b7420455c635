"""Two mounts on one bucket in bad weather: every acknowledged line is in the store afterwards."""

import contextlib
import errno
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount import ledger
from tests.mount.harness import Hands, Mount
from tests.mount.ledger import Deed
from tests.mount.sampler import Sampler
from tests.mount.stores import LiveStore
from tests.mount.weather import weather

Mounting = Callable[..., Mount]

SEED = 20_261_126
_BATCH = 20
_SLICES = [range(first, first + 250) for first in range(1_000_000, 1_000_500, 250)]
"""The schedules of the soak, in slices that can run at the same time."""
_CACHE = 2 << 20
_OPTIONS = ("--cache-size", "2MiB", "--timeout", "2s", "--upload-delay", "0.2s")
_BEARABLE = {errno.EIO, errno.EHOSTUNREACH, errno.ESTALE, errno.ENOSPC, errno.EACCES}
"""What a program may be told in bad weather. That something is absent is not among it."""


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize(
    ("store", "upload", "schedules"),
    [
        ("moto", "close", range(6)),
        ("moto", "background", range(6)),
        ("swift", "close", range(6)),
        *(
            pytest.param(name, upload, schedules, marks=pytest.mark.soak)
            for schedules in _SLICES
            for name in ("moto", "swift")
            for upload in ("close", "background")
        ),
    ],
    indirect=["store"],
)
def test_in_any_weather_two_mounts_lose_nothing_that_was_acknowledged(
    store: LiveStore, upload: str, schedules: range, mounting: Mounting
) -> None:
    counts: Counter[str] = Counter()
    longest = 0.0
    options = (*_OPTIONS, "--upload", upload)
    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(store.proxy()) for _ in range(2)]
        ttls = ("0", "1s")
        mounts = [
            stack.enter_context(
                mounting(
                    store.target(proxy),
                    *options,
                    "--metadata-ttl",
                    ttl,
                    name=ttl,
                    watchdog_s=14_000,
                    fresh=True,
                )
            )
            for proxy, ttl in zip(proxies, ttls, strict=True)
        ]
        programs = [mount.hands() for mount in mounts]
        samplers = [
            stack.enter_context(Sampler(mount.cache_dir, mount.process.pid, every_s=0.05))
            for mount in mounts
            if mount.process is not None
        ]
        for start in range(0, len(schedules), _BATCH):
            numbers = schedules[start : start + _BATCH]
            batch = f"batch{numbers[0]}"
            shared = [f"shared{i}" for i in range(4)]
            for name in (*shared, "own/first"):
                store.put(f"{batch}/{name}", ledger.line(f"base-{name.replace('/', '-')}"))
            for mount, program in zip(mounts, programs, strict=True):
                # Offline, what nobody here has seen may be taken to be absent still.
                assert set(shared) < program.do(ledger.names_below, mount / batch)
            deeds: list[Deed] = []
            for number in numbers:
                chance = random.Random(SEED + number)
                with (
                    weather(proxies[0], chance) as one,
                    weather(proxies[1], chance) as two,
                ):
                    began = time.monotonic()
                    new = _work(mounts, programs, batch, number, shared)
                    longest = max(longest, time.monotonic() - began)
                deeds += new
                strange = [d for d in new if d.error and d.error not in _BEARABLE]
                assert not strange, f"schedule {number} ({one} / {two}): {strange}"
            for mount in mounts:
                mount.flush()
                mount.wait_clean(90)
            _judge(store, batch, deeds, counts, f"schedules {numbers}")
        for mount, sampler in zip(mounts, samplers, strict=True):
            over = max(0, sampler.peak - _CACHE - sampler.slack)
            counts["bytes above the limit"] += over
            counts["samples"] += sampler.samples
            counts["conflicts"] += len(mount.status()["conflicts"])
            assert not over
    print(f"{store.name} {upload}: {schedules}, {dict(counts)}, longest {longest:.1f} s")
    assert counts["acknowledged lines"] > len(schedules)


def _work(
    mounts: list[Mount], programs: list[Hands], batch: str, number: int, shared: list[str]
) -> list[Deed]:
    """Have a program work in each mount at the same time."""
    for at, (program, mount) in enumerate(zip(programs, mounts, strict=True)):
        root = Path(mount.mountpoint, batch)
        program.begin(ledger.work, root, f"m{at}", number, shared, 5)
    return [deed for program in programs for deed in program.finish(90)]


def _judge(
    store: LiveStore, batch: str, deeds: list[Deed], counts: Counter[str], when: str
) -> None:
    keys = [key for key in store.all_keys(f"{batch}/") if not key.endswith("/")]
    stored = {key: store.get(key) for key in keys}
    lost, wrong = ledger.judged(deeds, stored)
    assert not wrong, f"{when}: {wrong}"
    counts["acknowledged lines"] += sum(bool(deed.line and not deed.error) for deed in deeds)
    counts["refused"] += sum(bool(deed.error) for deed in deeds)
    counts["objects beside"] += sum(".conflict-" in key for key in keys)
    assert not lost, f"{when}: {[deed for deed in deeds if deed.line in lost]}"
