"""The clock of the daemon's machine is set while the store is mounted, by years or by an hour."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.harness import Mount, MountFailed, environment, wait_until
from tests.mount.stores import LiveStore, Target

Mounting = Callable[..., Mount]


class MachineClock:
    """The clock that a mount goes by: the time of day may be set, and what counts since the boot goes on."""

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self._environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        self.set("+0")

    def set(self, offset: str) -> None:
        """Set it ahead (``+1h``) or back (``-3650d``) of the real time."""
        new = self._file.with_suffix(".new")
        new.write_text(offset)
        new.rename(self._file)

    def of(self, target: Target) -> Target:
        """The same target, mounted by a daemon with this clock."""
        return replace(target, environment={**target.environment, **self._environment})


@pytest.fixture
def clock(tmp_path: Path) -> MachineClock:
    found = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if found is None:
        pytest.skip("faketime is not installed")
    return MachineClock(found, tmp_path / "clock")


@pytest.mark.timeout(170)
@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_jumps_of_ten_years_lose_nothing_and_leave_nothing_stale(
    store: LiveStore, clock: MachineClock, mounting: Mounting
) -> None:
    options = ("--upload", "background", "--upload-delay", "1s", "--metadata-ttl", "1s")
    expected: dict[str, bytes] = {}
    store.put("others", b"before")
    target = clock.of(store.target())
    with mounting(target, *options, "--negative-ttl", "1s", watchdog_s=160) as mount:
        mount.env = environment(mount.base / "home", store.target().environment)
        assert mount.do(programs.read_file, mount / "others") == b"before"
        for number, jump in enumerate(("+3650d", "-3650d")):
            for name in (f"waiting{number}", "again"):
                expected[name] = f"{number} before".encode()
                mount.do(programs.write_file, mount / name, expected[name])
            clock.set(jump)
            for name in (f"after{number}", "again"):
                expected[name] = f"{number} after".encode()
                mount.do(programs.write_file, mount / name, expected[name])
            wait_until(lambda: expected.items() <= store.view().items(), "all is stored")
            expected["others"] = expected[f"new{number}"] = f"{number} by others".encode()
            store.put("others", expected["others"])
            store.put(f"new{number}", expected[f"new{number}"])
            wait_until(
                lambda: mount.do(programs.read_tree, mount.mountpoint) == expected,
                "what others have changed is seen",
            )
        mount.wait_clean()
        status = mount.status()
        assert not status["conflicts"]
        assert 0 <= status["uptime_s"] < 600
    assert store.view() == expected


@pytest.mark.soak
@pytest.mark.parametrize("store", ["radosgw"], indirect=True)
def test_a_clock_that_is_wrong_is_what_the_denials_tell_of_and_what_waits_goes_when_it_is_set(
    store: LiveStore, clock: MachineClock, mounting: Mounting
) -> None:
    with mounting(clock.of(store.target())) as mount:
        mount.do(programs.write_file, mount / "before", b"before")
        clock.set("-2h")
        with pytest.raises(PermissionError):
            mount.do(programs.write_file, mount / "file", b"content")
        assert mount.do(programs.read_file, mount / "file") == b"content"
        (waiting,) = mount.status()["dirty"]
        assert waiting["state"] != "parked"
        assert "RequestTimeTooSkewed" in waiting["error"]
        assert "clock is 2 hours behind the store's — set the time" in waiting["error"]

        clock.set("+0")
        mount.wait_clean()
    assert store.view() == {"before": b"before", "file": b"content"}


@pytest.mark.parametrize("store", ["radosgw"], indirect=True)
def test_a_mount_by_a_machine_whose_clock_is_wrong_says_by_how_much(
    store: LiveStore, clock: MachineClock, mounting: Mounting
) -> None:
    clock.set("+400d")
    mount = mounting(clock.of(store.target()))
    with pytest.raises(MountFailed) as failed:
        mount.start()
    assert failed.value.returncode == 3
    assert "1 year 35 days ahead of the store's — set the time" in failed.value.stderr
    assert failed.value.stderr.count("\n") == 1
