"""Programs cannot tell the mount from a local directory: whatever they do, both show the same.

``--hypothesis-seed=N`` begins with another seed. A failure tells every step of its example, and the seed.
"""

import mmap
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.mount.harness import Mount
from tests.mount.oracle.bench import Bench, Settings
from tests.mount.oracle.machine import OneFile, Steps, Tree
from tests.mount.stores import FileBucket, LiveStore

CLOSE: Final = Settings(upload="close")
BACKGROUND: Final = Settings(upload="background", fetch="demand")
CLOSE_REMEMBERING: Final = Settings(upload="close", fetch="demand", metadata_ttl="600s")
BACKGROUND_REMEMBERING: Final = Settings(upload="background", metadata_ttl="600s")

MACHINES: Final = pytest.mark.parametrize("machine", [Tree, OneFile], ids=["tree", "one-file"])


def run(machine: type[Steps], bench: Bench, *, number: int, examples: int, length: int) -> None:
    """Run about that many examples, of at most that many rules each."""
    kind = type(machine.__name__, (machine,), {"bench": bench})
    run_state_machine_as_test(
        seed(number)(kind),
        settings=settings(
            max_examples=examples,
            stateful_step_count=length,
            database=None,
            deadline=None,
            print_blob=True,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )


def first_seed(config: pytest.Config, default: int) -> int:
    """The seed that was asked for, or *default*."""
    given = config.getoption("hypothesis_seed")
    return default if given is None else int(given)


@pytest.mark.parametrize(
    ("store", "how", "machine"),
    [
        pytest.param("file", CLOSE, Tree, id="file-close"),
        pytest.param("file", BACKGROUND, OneFile, id="file-background"),
        pytest.param("moto", BACKGROUND_REMEMBERING, Tree, id="moto-background"),
    ],
    indirect=["store"],
)
def test_a_mount_and_a_directory_show_the_same(
    store: LiveStore,
    how: Settings,
    machine: type[Steps],
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    number = first_seed(pytestconfig, 2)
    with Bench(store, tmp_path, how) as bench:
        print(f"seed {number}")
        run(machine, bench, number=number, examples=3, length=50)
        print(bench.summary())


@pytest.mark.soak
@pytest.mark.timeout(3600)
@MACHINES
@pytest.mark.parametrize(
    ("store", "how", "steps"),
    [
        pytest.param("file", CLOSE, 5000, id="file-close"),
        pytest.param("file", CLOSE_REMEMBERING, 5000, id="file-close-remembering"),
        pytest.param("file", BACKGROUND, 5000, id="file-background"),
        pytest.param("file", BACKGROUND_REMEMBERING, 5000, id="file-background-remembering"),
        pytest.param("moto", CLOSE, 1500, id="moto-close"),
        pytest.param("moto", BACKGROUND, 1500, id="moto-background"),
        pytest.param("radosgw", CLOSE, 1000, id="radosgw-close"),
        pytest.param("radosgw", BACKGROUND_REMEMBERING, 1000, id="radosgw-background-remembering"),
    ],
    indirect=["store"],
)
def test_a_mount_and_a_directory_show_the_same_for_long(
    store: LiveStore,
    how: Settings,
    steps: int,
    machine: type[Steps],
    tmp_path: Path,
    pytestconfig: pytest.Config,
    capsys: pytest.CaptureFixture[str],
) -> None:
    number = first_seed(pytestconfig, random.SystemRandom().randrange(2**32))
    seeds: list[int] = []
    began = time.monotonic()
    with Bench(store, tmp_path, how, watchdog_s=3600) as bench:
        while bench.count < steps:
            seeds.append(number + len(seeds))
            print(f"seed {seeds[-1]}")
            run(machine, bench, number=seeds[-1], examples=20, length=100)
        assert bench.evicted > 0
        took_s = time.monotonic() - began
        with capsys.disabled():
            print(f"\n{machine.__name__}, {store.name}, {how}: {bench.summary()}")
            print(f"seeds {seeds}, {took_s:.0f} s", flush=True)


def change_through_a_mapping(path: Path) -> bytes:
    """Map a file that is open to append, change its first bytes, and append."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        with mmap.mmap(fd, 10_000) as mapping:
            mapping[:5] = b"first"
            mapping.flush()
        os.write(fd, b"last")
    finally:
        os.close(fd)
    return path.read_bytes()


def test_a_mapping_of_a_file_that_is_open_to_append_is_written_back_in_its_place(
    mounting: Callable[..., Mount], tmp_path: Path
) -> None:
    store = FileBucket(tmp_path / "store")
    store.put("a", b"x" * 10_000)
    with mounting(store.target()) as mount:
        read = mount.do(change_through_a_mapping, mount / "a")

    assert read == store.get("a") == b"first" + b"x" * 9995 + b"last"
