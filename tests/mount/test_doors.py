"""Who is kept out: other users, whatever they have planted, and whoever reads the log for secrets."""

import contextlib
import json
import os
import pwd
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.harness import Mount, MountFailed, cachefs
from tests.mount.proxy import Answer
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzEXAMPLE01"
NOBODY = pwd.getpwnam("nobody")


def become_nobody() -> None:
    """Give up being root, as a daemon does, and with it every privilege."""
    os.setgroups([])
    os.setresgid(NOBODY.pw_gid, NOBODY.pw_gid, NOBODY.pw_gid)
    os.setresuid(NOBODY.pw_uid, NOBODY.pw_uid, NOBODY.pw_uid)


def refusal(function: Callable[[], object]) -> str:
    """The name of the error that *function* ends with; empty: none."""
    try:
        function()
    except OSError as error:
        return type(error).__name__
    return ""


def tries(names: list[str]) -> dict[str, str]:
    """What a stranger gets who tries to look at, into and behind the files of a mount, by relative names."""

    def connect(name: str) -> None:
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(name)

    return {
        **{f"list {name}": refusal(lambda name=name: os.listdir(name)) for name in names},  # type: ignore[misc]
        "stat": refusal(lambda: os.stat("mnt/file")),
        "read": refusal(lambda: Path("mnt/file").read_bytes()),
        "make": refusal(lambda: os.mkdir("mnt/new")),
        "database": refusal(lambda: Path("cache/cachefs.sqlite3").read_bytes()),
        "lock": refusal(lambda: os.open("cache/lock", os.O_RDWR)),
        "socket": refusal(lambda: connect("cache/control.sock")),
    }


def test_another_user_gets_nothing_of_a_mount_nor_of_its_cache(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("file")
    store.put("file", b"secret")
    with mounting(store.target()) as mount:
        assert mount.do(programs.read_file, mount / "file") == b"secret"
        stranger = mount.hands()
        stranger.do(os.chdir, mount.base)  # the way to it belongs to root alone
        stranger.do(become_nobody)
        outcomes = stranger.do(tries, ["mnt", "cache", "cache/data"])
        assert set(outcomes.values()) == {"PermissionError"}, outcomes
        for path in (mount.cache_dir, *mount.cache_dir.rglob("*")):
            assert not path.lstat().st_mode & 0o077 or path.is_symlink(), path


def test_a_cache_directory_of_another_user_is_refused(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    mount = mounting(new_store("file").target())
    mount.cache_dir.mkdir(mode=0o700)
    os.chown(mount.cache_dir, NOBODY.pw_uid, NOBODY.pw_gid)
    with pytest.raises(MountFailed, match=r"belongs to another user \(uid \d+\)") as refused:
        mount.start()
    assert refused.value.returncode == 2
    assert list(mount.cache_dir.iterdir()) == []


@pytest.mark.parametrize("planted", ["data", "cachefs.sqlite3", "cachefs.sqlite3-wal", "lock"])
def test_a_link_where_bytes_would_be_kept_is_refused(
    new_store: Callable[[str], LiveStore], mounting: Mounting, tmp_path: Path, planted: str
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "1").write_bytes(b"precious")
    mount = mounting(new_store("file").target())
    mount.cache_dir.mkdir(mode=0o700)
    (mount.cache_dir / planted).symlink_to(victim if planted == "data" else victim / "1")
    with pytest.raises(MountFailed) as refused:
        mount.start()
    assert refused.value.returncode in {1, 2}
    said = refused.value.stderr
    assert re.fullmatch(r"cachefs: cannot mount [^\n]+\n", said), said
    assert planted in said
    assert {path.name: path.read_bytes() for path in victim.iterdir()} == {"1": b"precious"}


def test_other_links_in_the_cache_directory_lead_nowhere(
    new_store: Callable[[str], LiveStore], mounting: Mounting, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    store = new_store("file")
    mount = mounting(store.target())
    (mount.cache_dir / "data").mkdir(mode=0o700, parents=True)
    mount.cache_dir.chmod(0o700)
    planted = ("1", "1.promise", "1.sealed", "2.promise", "3.new-5")
    for name in (*(f"data/{each}" for each in planted), "session", "control.sock", "CACHEDIR.TAG"):
        (mount.cache_dir / name).symlink_to(victim)
    with mount:
        mount.do(programs.write_file, mount / "file", b"content")
        assert mount.do(programs.read_file, mount / "file") == b"content"
        assert mount.status()["dirty"] == []
    assert store.view() == {"file": b"content"}
    assert victim.read_bytes() == b"precious"


def test_a_log_file_is_not_written_through_the_link_of_another_user(
    new_store: Callable[[str], LiveStore], mounting: Mounting, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    log = shared / "cachefs.log"
    log.symlink_to(victim)
    os.lchown(log, NOBODY.pw_uid, NOBODY.pw_gid)
    mount = mounting(new_store("file").target(), "--log-file", str(log))
    with pytest.raises(MountFailed, match="symbolic link of another user") as refused:
        mount.start()
    assert refused.value.returncode == 2
    assert victim.read_bytes() == b"precious"

    os.lchown(log, 0, 0)  # the operator's own, however, is followed
    with mount:
        mount.do(os.listdir, mount.mountpoint)
    assert b"mounted" in victim.read_bytes()


@pytest.mark.parametrize("form", ["json", pytest.param("text", marks=pytest.mark.soak)])
def test_no_secret_is_told_by_log_status_or_process_list(
    new_store: Callable[[str], LiveStore], mounting: Mounting, form: str
) -> None:
    store = new_store("moto")
    store.put("file", b"content")
    with store.proxy() as proxy:
        target = store.target(proxy)
        secrets = {"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": f"token-{SECRET}"}
        target = replace(target, environment={**target.environment, **secrets})
        options = ("--log-format", form, "-v", "--timeout", "2s", "--metadata-ttl", "0")
        # Fresh: what its arguments are is looked at.
        with mounting(target, *options, fresh=True) as mount:
            assert mount.do(programs.read_file, mount / "file") == b"content"
            # A store that repeats what it was told, secrets included, in what it refuses.
            echo = f"<Error><Code>SignatureDoesNotMatch</Code><Message>{SECRET}</Message></Error>"
            denial = Answer(403, {"Content-Type": "application/xml"}, echo.encode())
            is_put = lambda e: store.is_object(e, "PUT")  # noqa: E731
            with proxy.during(is_put, denial):
                with contextlib.suppress(OSError):
                    mount.do(programs.write_file, mount / "new", b"x")
                told = [json.dumps(mount.status())]
            with proxy.during(lambda _: True, Answer(500)), contextlib.suppress(OSError):
                mount.do(programs.write_file, mount / "other", b"x")
            assert mount.process is not None
            told += [
                json.dumps(mount.status()),
                cachefs("recover", "list", "--cache-dir", mount.cache_dir, env=mount.env).stdout,
                Path(f"/proc/{mount.process.pid}/cmdline").read_text(),
                cachefs("status", "-v", env=mount.env).stdout,
            ]
            assert proxy.exchanges()
            said = [
                e.headers["authorization"]
                for e in proxy.exchanges()
                if "authorization" in e.headers
            ]
            signatures = {re.sub(r".*Signature=", "", each) for each in said}
            assert signatures
        told.append(mount.log_text())
        for text in told:
            assert SECRET not in text
            assert not any(signature in text for signature in signatures)
        assert "[hidden]" in mount.log_text(), "the store's own words were logged"
        assert "[hidden]" in told[0]


@pytest.mark.parametrize(
    "source",
    [
        f"s3://AKIAIOSFODNN7EXAMPLE:{SECRET}@photos",
        f"s3://AKIAIOSFODNN7EXAMPLE:{SECRET.replace('/', '')}@photos/prefix",
        f"swift://user:{SECRET}@photos",
        f"cachefs#s3://key:{SECRET}@photos",
    ],
)
def test_credentials_in_a_source_are_refused_and_not_repeated(source: str, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    env = {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = cachefs("mount", source, tmp_path / "mnt", "--cache-dir", tmp_path / "c", env=env)
    assert done.returncode == 2
    assert re.fullmatch(r"cachefs: [^\n]+\n", done.stderr)
    assert SECRET not in done.stderr
    assert SECRET.replace("/", "") not in done.stderr
    assert SECRET[:12] not in done.stderr
    assert SECRET[-12:] not in done.stderr
    assert not (tmp_path / "c").exists()
