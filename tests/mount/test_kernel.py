"""What the kernel keeps of a mount: told of changes made here, and rid of what others have changed."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount import calls, programs
from tests.mount.harness import Mount, wait_until
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]

BELIEVING = ("--metadata-ttl", "1h", "--negative-ttl", "1h")
"""So long that nothing which is seen in time is seen by a time-out."""


@pytest.fixture(scope="module")
def kept(
    new_store: Callable[[str], LiveStore], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LiveStore, Mount]]:
    """A store and a mount that believes what it knows for an hour, shared by the tests below."""
    store = new_store("moto")
    base = tmp_path_factory.mktemp("kept") / "mount"
    with Mount(store.target(), base, BELIEVING, watchdog_s=120) as mount:
        yield store, mount


@pytest.fixture
def store(kept: tuple[LiveStore, Mount]) -> LiveStore:
    return kept[0]


@pytest.fixture
def mount(kept: tuple[LiveStore, Mount]) -> Mount:
    return kept[1]


@pytest.fixture
def here(mount: Mount, request: pytest.FixtureRequest) -> Path:
    """A directory for one test."""
    path = mount / str(request.node.originalname)
    mount.do(os.mkdir, path)
    return path


def look_again(mount: Mount, directory: Path) -> None:
    """Have the mount list a directory anew: to remove one, it must know that it is empty."""
    mount.do(programs.write_file, directory / "in the way", b"")
    with pytest.raises(OSError, match="not empty") as refusal:
        mount.do(os.rmdir, directory)
    assert refusal.value.errno == errno.ENOTEMPTY


def test_inotify_tells_of_every_change_made_through_the_mount(mount: Mount, here: Path) -> None:
    listener = mount.hands()
    watch = listener.do(calls.watch, here)

    def told() -> list[tuple[str, str]]:
        return listener.do(calls.events, watch)

    mount.do(programs.write_file, here / "a", b"x")
    assert told() == [("a", "create"), ("a", "modify"), ("a", "close after write")]
    mount.do(os.rename, here / "a", here / "b")
    assert told() == [("a", "moved from"), ("b", "moved to")]
    mount.do(os.chmod, here / "b", 0o600)
    assert told() == [("b", "attributes")]
    mount.do(os.mkdir, here / "d")
    assert told() == [("d", "create")]
    mount.do(os.rename, here / "b", here / "d/b")
    assert told() == [("b", "moved from")]
    mount.do(os.remove, here / "d/b")
    mount.do(os.rmdir, here / "d")
    assert told() == [("d", "delete")]


def test_a_name_that_others_removed_is_forgotten(
    store: LiveStore, mount: Mount, here: Path
) -> None:
    mount.do(programs.write_file, here / "file", b"x")
    store.delete(f"{here.name}/file")
    assert mount.do(programs.outcome_of_stat, here / "file") == 0, "it is believed for an hour"

    look_again(mount, here)

    wait_until(
        lambda: mount.do(programs.outcome_of_stat, here / "file") == errno.ENOENT, "it is gone", 5
    )


def test_a_name_that_others_made_is_no_longer_taken_for_absent(
    store: LiveStore, mount: Mount, here: Path
) -> None:
    assert mount.do(programs.outcome_of_stat, here / "file") == errno.ENOENT
    store.put(f"{here.name}/file", b"theirs")
    assert mount.do(programs.outcome_of_stat, here / "file") == errno.ENOENT, "for an hour"

    look_again(mount, here)

    wait_until(lambda: mount.do(programs.outcome_of_stat, here / "file") == 0, "it is there", 5)
    assert mount.do(programs.read_file, here / "file") == b"theirs"


def test_attributes_and_pages_of_what_others_replaced_are_forgotten(
    store: LiveStore, mount: Mount, here: Path
) -> None:
    mount.do(programs.write_file, here / "file", b"ours, and short")
    assert mount.do(programs.read_file, here / "file") == b"ours, and short"
    number = mount.do(os.stat, here / "file").st_ino
    theirs = programs.pattern("theirs", 0, 10_000)
    store.put(f"{here.name}/file", theirs)

    look_again(mount, here)

    wait_until(
        lambda: mount.do(os.stat, here / "file").st_size == len(theirs), "its size is shown", 5
    )
    assert mount.do(programs.read_file, here / "file") == theirs
    assert mount.do(os.stat, here / "file").st_ino == number


def test_attributes_that_others_changed_are_seen_without_a_name_to_look_up(
    store: LiveStore, mount: Mount, here: Path
) -> None:
    # Nothing but the word of the mount can help: a descriptor is not looked up.
    mount.do(programs.write_file, here / "file", b"x")
    held = mount.do(os.open, here / "file", os.O_PATH)
    was = mount.do(os.fstat, held)
    assert stat.S_IMODE(was.st_mode) == 0o644
    store.put(f"{here.name}/file", b"longer by far")

    look_again(mount, here)

    wait_until(lambda: mount.do(os.fstat, held).st_size == 13, "its size is shown", 5)
    mount.do(os.close, held)


def test_who_has_a_file_open_keeps_the_pages_of_the_version_that_was_opened(
    store: LiveStore, mount: Mount, here: Path
) -> None:
    ours, theirs = programs.pattern("ours", 0, 50_000), programs.pattern("theirs", 0, 60_000)
    mount.do(programs.write_file, here / "file", ours)
    held = mount.do(os.open, here / "file", os.O_RDONLY)
    assert mount.do(os.pread, held, 10, 0) == ours[:10]
    store.put(f"{here.name}/file", theirs)

    look_again(mount, here)

    wait_until(
        lambda: mount.do(programs.read_file, here / "file") == theirs, "the name is theirs", 5
    )
    assert mount.do(programs.read_fd, held) == ours
    mount.do(os.close, held)
