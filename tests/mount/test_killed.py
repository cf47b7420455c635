"""A daemon that is killed in the middle of anything: the tree is as the last acknowledgement left it, or one
step further, and the next mount comes up by itself.
"""

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount import life
from tests.mount.harness import Mount, wait_until
from tests.mount.life import Tree
from tests.mount.sampler import Sampler
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]

SEED = 20_261_127
_CACHE = 1 << 20
_GONE = {errno.ENOTCONN, errno.ECONNABORTED}
"""What a program is told by a mount whose daemon was killed."""


@pytest.mark.timeout(7_200)
@pytest.mark.parametrize(
    ("store", "upload", "kills"),
    [
        ("file", "close", 4),
        ("moto", "background", 6),
        *(
            pytest.param(name, upload, 125, marks=pytest.mark.soak)
            for name in ("file", "moto", "radosgw", "swift")
            for upload in ("close", "background")
        ),
    ],
    indirect=["store"],
)
def test_killed_in_the_middle_of_anything_the_tree_is_as_it_was_acknowledged(
    store: LiveStore, upload: str, kills: int, mounting: Mounting, tmp_path: Path
) -> None:
    chance = random.Random(f"{SEED}{store.name}{upload}")
    options = ("--upload", upload, "--upload-delay", "0.2s", "--cache-size", "1MiB")
    tree = Tree({}, set())
    steps = over = samples = 0
    with mounting(store.target(), *options, watchdog_s=7_000, fresh=True) as mount:
        for kill in range(kills):
            journal = tmp_path / f"journal{kill}"
            journal.touch()
            assert mount.process is not None
            with Sampler(mount.cache_dir, mount.process.pid, every_s=0.03) as sampler:
                program = mount.hands()
                program.begin(life.live, mount.mountpoint, journal, tree, f"{SEED}.{kill}")
                wait_until(lambda journal=journal: "done" in journal.read_text(), "it works")  # type: ignore[misc]
                program.wait_ended(chance.uniform(0, 0.7))
                mount.kill()
            over = max(over, sampler.peak - _CACHE - sampler.slack)
            samples += sampler.samples
            mount.start()
            if chance.random() < 0.3:  # and once more while it mends
                program.wait_ended(chance.uniform(0, 0.3))
                mount.kill()
                mount.start()
            # Bytes that were never acknowledged are kept for the operator, and are not the file.
            mount.wait_clean(60, but_parked=True)
            allowed, count, errors = life.replayed(tree, journal.read_text())
            steps += count
            assert [e for e in errors if int(e.split()[0]) not in _GONE] == [], f"kill {kill}"
            tree = mount.do(life.seen, mount.mountpoint)
            assert tree in allowed, f"kill {kill}: {life.difference(tree, allowed)}"
            assert store.view() == tree.files, f"kill {kill}: the store has something else"

    print(
        f"{store.name} {upload}: {kills} kills, {steps} acknowledged steps; {samples} samples,"
        f" at most {max(over, 0)} bytes above the limit"
    )
    assert over <= 0
    assert steps > kills
