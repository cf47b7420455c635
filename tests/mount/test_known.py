"""A mount that knows a million objects is there at once."""

import time
from collections.abc import Callable

import pytest

from tests.local.known import know
from tests.mount.harness import Mount, wait_until
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]
MILLION = 1_000_000


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_a_mount_that_knows_a_million_objects_starts_in_two_seconds(
    store: LiveStore, mounting: Mounting
) -> None:
    mount = mounting(store.target(), watchdog_s=600, fresh=True)
    know(mount.cache_dir, MILLION, source=store.target().source)

    def started() -> float:
        began = time.monotonic()
        mount.start(timeout_s=60)
        return time.monotonic() - began

    took: dict[str, list[float]] = {"end": [], "kill": []}
    with mount:
        wait_until(lambda: mount.status()["database"] == {"state": "sound"}, "it is checked", 300)
        assert mount.status()["known_inodes"] > MILLION
        mount.stop()
        for _ in range(3):  # whatever else the machine does, one of them is undisturbed
            took["end"].append(started())
            mount.kill()
            took["kill"].append(started())
            wait_until(
                lambda: mount.status()["database"] == {"state": "sound"}, "it is checked", 300
            )
            mount.stop()
        mount.start()
    print({what: [f"{each:.2f} s" for each in times] for what, times in took.items()})
    assert min(took["end"]) < 2
    assert min(took["kill"]) < 2.5
