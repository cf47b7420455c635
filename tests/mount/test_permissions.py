"""Who owns what, and who may do what: the options for it, and the kernel's checks for other users."""

import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.harness import Hands, Mount
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]


def _become_nobody() -> None:
    """Give up being root, as a daemon does, and with it every privilege."""
    nobody = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setresgid(nobody.pw_gid, nobody.pw_gid, nobody.pw_gid)
    os.setresuid(nobody.pw_uid, nobody.pw_uid, nobody.pw_uid)


def _open_fails(hands: Hands, path: Path) -> bool:
    with pytest.raises(PermissionError):
        hands.do(programs.read_file, path)
    return True


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_objects_of_nobody_get_the_owner_and_modes_of_the_options(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("dir/file", b"x")
    options = ("--uid", "1234", "--gid", "4321", "--file-mode", "0666", "--dir-mode", "0777")

    with mounting(store.target(), *options, "--umask", "027") as mount:
        file, directory = mount.do(os.stat, mount / "dir/file"), mount.do(os.stat, mount / "dir")
        assert (file.st_uid, file.st_gid, stat.S_IMODE(file.st_mode)) == (1234, 4321, 0o640)
        assert (directory.st_uid, directory.st_gid) == (1234, 4321)
        assert stat.S_IMODE(directory.st_mode) == 0o750
        old = mount.do(os.umask, 0o077)
        mount.do(programs.write_file, mount / "dir/new", b"x")
        mount.do(os.umask, old)
        new = mount.do(os.stat, mount / "dir/new")
        assert stat.S_IMODE(new.st_mode) == 0o600, "what is made has the mode that its maker gave"
        assert (new.st_uid, new.st_gid) == (os.geteuid(), os.getegid())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_another_user_may_what_modes_say(store: LiveStore, tmp_path: Path) -> None:
    base = Path(os.path.realpath(tmp_path)) / "shared"
    with Mount(store.target(), base, ("--allow-other",)) as mount:
        mount.do(os.mkdir, mount / "closed")
        mount.do(os.mkdir, mount / "open")
        for name in ("secret", "public", "closed/inner", "open/inner"):
            mount.do(programs.write_file, mount / name, b"content")
        mount.do(os.chmod, mount / "secret", 0o600)
        mount.do(os.chmod, mount / "closed", 0o744)
        mount.do(os.chmod, mount / "open", 0o777)
        nobody = mount.hands()
        nobody.do(os.chdir, mount.mountpoint)  # the way to it belongs to root alone
        nobody.do(_become_nobody)

        assert nobody.do(programs.read_file, Path("public")) == b"content"
        assert _open_fails(nobody, Path("secret"))
        assert nobody.do(os.listdir, "closed") == ["inner"], "it may be read"
        assert _open_fails(nobody, Path("closed/inner")), "and not entered"
        with pytest.raises(PermissionError):
            nobody.do(programs.write_file, Path("new"), b"x")
        with pytest.raises(PermissionError):
            nobody.do(os.chmod, "public", 0o666)
        nobody.do(programs.write_file, Path("open/new"), b"theirs")
        assert mount.do(os.stat, mount / "open/new").st_uid == pwd.getpwnam("nobody").pw_uid
        mount.do(os.chmod, mount / "open", 0o1777)
        with pytest.raises(PermissionError):
            nobody.do(os.remove, "open/inner")
        nobody.do(os.remove, "open/new")


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_numbers_of_inodes_outlive_the_mount(store: LiveStore, mounting: Mounting) -> None:
    store.put("theirs/file", b"x")
    with mounting(store.target()) as mount:
        mount.do(os.mkdir, mount / "ours")
        mount.do(programs.write_file, mount / "ours/file", b"x")
        mount.do(os.rename, mount / "ours/file", mount / "ours/renamed")
        paths = ("theirs", "theirs/file", "ours", "ours/renamed")
        before = [mount.do(os.stat, mount / path).st_ino for path in paths]
        assert len(set(before)) == len(before)
        mount.remount()
        mount.do(programs.write_file, mount / "ours/file", b"new")
        assert [mount.do(os.stat, mount / path).st_ino for path in paths] == before
        assert mount.do(os.stat, mount / "ours/file").st_ino not in before


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_find_and_rsync_are_not_confused_by_directories(
    store: LiveStore, mounting: Mounting, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    for number in range(3):
        inner = tree / f"d{number}" / "inner" / "deeper"
        inner.mkdir(parents=True)
        (inner / "file").write_bytes(b"x")
    os.utime(tree / "d1", ns=(1_000_000_000_123_456_789, 1_000_000_000_123_456_789))

    with mounting(store.target(), name="one") as mount:
        mount.run("rsync", "-a", f"{tree}/", mount / "copy/")
        # find stops to look for directories where the links say that there are no more.
        assert mount.run("find", "copy", "-name", "file").stdout.count("\n") == 3
        assert mount.run("find", "copy", "-type", "d").stdout.count("\n") == 10
    with mounting(store.target(), name="other") as mount:
        assert mount.run("rsync", "-a", "-i", f"{tree}/", mount / "copy/").stdout == ""
        newer = mount.run("find", "copy", "-newer", "copy/d1", "-type", "d").stdout
        assert "copy/d0\n" in newer
        assert "copy/d1\n" not in newer
