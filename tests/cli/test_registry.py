"""Which mounts run: known while their daemons live, forgotten afterwards."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cachefs.core.errors import UsageError
from cachefs.registry import Registration, Registry, process_start


def registration(mountpoint: str, pid: int | None = None) -> Registration:
    pid = os.getpid() if pid is None else pid
    return Registration(
        mountpoint=mountpoint,
        source="s3://photos",
        cache_dir="/cache",
        socket="/cache/control.sock",
        pid=pid,
        started=process_start(pid) or 0,
    )


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "run", os.geteuid())


def test_what_was_added_is_found_until_it_is_removed(registry: Registry) -> None:
    registry.add(registration("/mnt/b"), "")
    registry.add(registration("/mnt/a"), "")

    assert [each.mountpoint for each in registry.running()] == ["/mnt/a", "/mnt/b"]
    assert registry.at(Path("/mnt/a")) == registration("/mnt/a")

    registry.remove("/mnt/a", os.getpid())

    assert registry.at(Path("/mnt/a")) is None
    assert registry.at(Path("/mnt/b")) is not None


def test_the_number_of_a_daemon_before_is_not_its_successors(registry: Registry) -> None:
    registry.add(registration("/mnt/a"), "0:52")
    registry.add(registration("/mnt/a"), "0:53")

    assert registry.serving("0:52") is None
    assert registry.serving("0:53") == registration("/mnt/a")
    assert registry.devices_of(registration("/mnt/a")) == ["0:53"]


def test_what_a_newer_cachefs_tells_beside_is_no_reason_to_forget_its_mount(
    registry: Registry, tmp_path: Path
) -> None:
    registry.add(registration("/mnt/a"), "")
    (file,) = tmp_path.glob("**/*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "more": [1]}))

    assert registry.running() == [registration("/mnt/a")]


def test_no_directory_means_no_mounts(registry: Registry, tmp_path: Path) -> None:
    assert registry.running() == []
    assert list(tmp_path.iterdir()) == []


def test_the_directory_is_for_its_user_alone(registry: Registry, tmp_path: Path) -> None:
    registry.add(registration("/mnt/a"), "")

    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


def test_a_mount_whose_daemon_is_dead_is_forgotten(registry: Registry, tmp_path: Path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        registry.add(registration("/mnt/a", process.pid), "")
        assert registry.at(Path("/mnt/a")) is not None
        process.communicate()

    assert registry.running() == []
    assert list((tmp_path / "run").iterdir()) == []


def test_another_process_with_the_same_pid_is_not_taken_for_the_daemon(registry: Registry) -> None:
    registry.add(replace(registration("/mnt/a"), started=1), "")

    assert registry.running() == []


def test_a_file_that_is_no_registration_is_taken_away(registry: Registry, tmp_path: Path) -> None:
    registry.add(registration("/mnt/a"), "")
    for name, text in (("x.json", "{}"), ("y.json", "nonsense"), ("z.json", "[1]")):
        (tmp_path / "run" / name).write_text(text)

    assert [each.mountpoint for each in registry.running()] == ["/mnt/a"]
    assert len(list((tmp_path / "run").iterdir())) == 1


def test_a_successor_at_the_same_place_is_not_forgotten_with_its_predecessor(
    registry: Registry,
) -> None:
    registry.add(registration("/mnt/a"), "")

    registry.remove("/mnt/a", os.getpid() + 1)

    assert registry.at(Path("/mnt/a")) is not None


def test_a_directory_that_somebody_else_may_write_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    registry = Registry(tmp_path / "run", os.geteuid())

    with pytest.raises(UsageError, match="open to other users"):
        registry.running()
    with pytest.raises(UsageError, match="open to other users"):
        registry.add(registration("/mnt/a"), "")


def test_a_name_that_is_not_utf_8_survives(registry: Registry) -> None:
    name = os.fsdecode(b"/mnt/\xff")
    registry.add(registration(name), "")

    assert registry.at(Path(name)) is not None
