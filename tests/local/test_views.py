"""What clients of the pool see: whole files under the names of their keys, and nothing that is left over."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cachefs.core.errors import CachefsError, InUse
from cachefs.local.views import Views, sweep_left


@pytest.fixture
def views(tmp_path: Path) -> Iterator[Views]:
    with closing(Views(tmp_path / "home", umask=0o022)) as views:
        yield views


@pytest.fixture
def lent(tmp_path: Path) -> Path:
    path = tmp_path / "lent"
    path.write_bytes(b"content")
    return path


@pytest.mark.parametrize(
    "key", ["a", "a/b", "a//b", "../up", "x\ny", "__list__", "n" * 255, "k__meta__"]
)
def test_every_key_has_a_view_within_its_bucket_and_goes_without_a_trace(
    views: Views, lent: Path, key: str
) -> None:
    path = views.place("bucket", key, lent, b"{}")

    assert path.read_bytes() == b"content"
    assert path.stat().st_ino == lent.stat().st_ino
    assert path.with_name(path.name + "__meta__").read_bytes() == b"{}"
    assert path.resolve().is_relative_to(views.data / "bucket")
    views.remove(path)
    assert list((views.data / "bucket").iterdir()) == []


def test_a_key_and_one_below_it_are_seen_beside_each_other(views: Views, lent: Path) -> None:
    paths = {views.place("bucket", key, lent, b"{}") for key in ("a", "a/b", "a/b/c")}
    assert len(paths) == 3
    assert all(path.read_bytes() == b"content" for path in paths)


def test_a_list_that_breaks_off_leaves_the_one_that_was(views: Views) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half\n"
        raise ZeroDivisionError

    views.write_list("bucket", [b"a\n", b"b\n"])
    with pytest.raises(ZeroDivisionError):
        views.write_list("bucket", broken())

    assert views.list_path("bucket").read_bytes() == b"a\nb\n"
    assert {path.name for path in views.data.iterdir()} == {"bucket", ".cachefs-pool"}


def test_a_list_that_is_read_stays_as_it_is_and_one_that_is_gone_is_told_of(views: Views) -> None:
    views.write_list("bucket", [b"a\n"])
    with views.open_list("bucket") as file:
        views.write_list("bucket", [b"b\n"])
        views.list_path("bucket").unlink()
        assert file.read() == b"a\n"

    with pytest.raises(CachefsError):
        views.open_list("bucket")


def test_what_the_disk_refuses_is_told_of(views: Views, lent: Path, tmp_path: Path) -> None:
    (views.data / "bucket").write_bytes(b"in the way")
    with pytest.raises(CachefsError):
        views.write_list("bucket", [b"a\n"])
    with pytest.raises(CachefsError):
        views.place("other", "a", tmp_path / "nothing", b"{}")


def test_two_pools_do_not_sweep_what_the_other_shows(
    views: Views, lent: Path, tmp_path: Path
) -> None:
    path = views.place("bucket", "a", lent, b"{}")
    with pytest.raises(InUse, match="another pool"):
        Views(tmp_path / "home", umask=0o022)
    assert path.exists()

    views.close()
    with closing(Views(tmp_path / "home", umask=0o022)):
        assert not path.exists()


def test_what_a_killed_pool_shows_is_swept_by_whoever_opens_the_cache_next(
    views: Views, lent: Path, tmp_path: Path
) -> None:
    path = views.place("bucket", "a", lent, b"{}")
    sweep_left(tmp_path)  # nothing is noted
    views.note_in(tmp_path)
    sweep_left(tmp_path)  # it lives, under another cache by now
    assert path.exists()

    views.note_in(tmp_path)
    views.close()
    sweep_left(tmp_path)
    assert not path.exists()
    assert not (tmp_path / "shown").exists()
