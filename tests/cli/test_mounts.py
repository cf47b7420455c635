"""Finding a mountpoint without touching what may never answer."""

import errno
import os
from pathlib import Path

import pytest

from cachefs.core.errors import UsageError
from cachefs.mounts import answer_of, locate, mount_at, mount_of, mounted, unmount


def test_the_kernels_table_is_read() -> None:
    found = mount_at(Path("/proc"))

    assert found is not None
    assert found.kind == "proc"
    assert not found.is_cachefs
    assert len(list(mounted())) > 1
    assert mount_at(Path("/no/such/place")) is None


def test_a_path_lies_in_the_deepest_mount_above_it() -> None:
    found = mount_of(Path("/proc/self/status"))

    assert found is not None
    assert found.mountpoint == Path("/proc")


def test_links_are_followed_and_missing_names_kept(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "absolute").symlink_to(tmp_path / "link")

    assert locate(tmp_path / "link" / "x" / "y") == tmp_path / "a" / "x" / "y"
    assert locate(tmp_path / "absolute" / "z") == tmp_path / "a" / "z"
    assert locate(Path("/")) == Path("/")


def test_a_circle_of_links_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    with pytest.raises(UsageError, match="too many symbolic links"):
        locate(tmp_path / "a")


def test_a_place_answers_by_its_errno(tmp_path: Path) -> None:
    assert answer_of(tmp_path) == 0
    assert answer_of(tmp_path / "none") == errno.ENOENT


def test_a_refused_unmount_gives_its_reason(tmp_path: Path) -> None:
    reason = unmount(tmp_path, as_root=os.geteuid() == 0)

    assert reason
    assert "\n" not in reason
