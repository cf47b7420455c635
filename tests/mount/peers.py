"""The other tools that share a bucket with us, run for real; and what objects they document, made by hand."""

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar
from urllib.parse import unquote

import pytest

from tests.mount.harness import CONNECTIONS, Hands, environment, mounted, wait_until
from tests.servers.s3 import S3Server
from tests.servers.swift import SwiftServer

P = ParamSpec("P")
T = TypeVar("T")


def require(*programs: str) -> None:
    """Skip where one of *programs* is missing."""
    if missing := [program for program in programs if shutil.which(program) is None]:
        pytest.skip(f"{', '.join(missing)}: not installed")


def look(path: Path) -> dict[str, Any]:
    """What programs are told of *path*: to be called where it is mounted."""
    found = path.lstat()
    seen: dict[str, Any] = {
        "kind": stat.S_IFMT(found.st_mode),
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
        "mtime_ns": found.st_mtime_ns,
        "size": found.st_size,
    }
    if stat.S_ISLNK(found.st_mode):
        seen["target"] = os.fsdecode(os.readlink(os.fsencode(path)))
    else:
        with contextlib.suppress(OSError):  # rclone's mounts bear none
            seen["xattrs"] = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    if stat.S_ISREG(found.st_mode):
        seen["content"] = path.read_bytes()
    if stat.S_ISDIR(found.st_mode):
        seen["names"] = sorted(os.listdir(path))
    return seen


@dataclass(eq=False)
class PeerMount:
    """A mount that another tool's process serves in the foreground."""

    mountpoint: Path
    log: Path
    process: "subprocess.Popen[bytes]"
    _hands: Hands | None = None

    def __truediv__(self, name: str) -> Path:
        return self.mountpoint / name

    def do(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call *function* in a process that is kept for that."""
        if self._hands is None:
            self._hands = Hands(self.abort)
        return self._hands.do(function, *args, **kwargs)

    def abort(self) -> None:
        """Cut the connection, so that nobody waits for it any more."""
        found = mounted(self.mountpoint)
        if found is not None:
            with contextlib.suppress(OSError):
                (CONNECTIONS / str(found[0]) / "abort").write_text("1")

    def close(self) -> None:
        """Unmount, whatever became of the tool."""
        if self._hands is not None:
            self._hands.kill()
        for options in ([], ["-l"]):
            if mounted(self.mountpoint) is not None:
                subprocess.run(
                    ["umount", *options, str(self.mountpoint)],
                    check=False,
                    capture_output=True,
                    timeout=30,
                )
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        self.process.wait(10)


@contextlib.contextmanager
def _mounted_by(argv: Sequence[str], base: Path, env: Mapping[str, str]) -> Iterator[PeerMount]:
    mountpoint = base / "mnt"
    mountpoint.mkdir(parents=True)
    log = base / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *argv],
            env=environment(base, env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    peer = PeerMount(mountpoint, log, process)
    timer = threading.Timer(120, peer.abort)
    timer.daemon = True
    timer.start()
    try:
        wait_until(
            lambda: mounted(mountpoint) or process.poll() is not None, f"{argv[0]} has mounted"
        )
        assert mounted(mountpoint) is not None, log.read_text(errors="replace")
        yield peer
    finally:
        timer.cancel()
        peer.close()


@contextlib.contextmanager
def s3fs(server: S3Server, bucket: str, base: Path, *options: str) -> Iterator[PeerMount]:
    """A mount by s3fs that keeps extended attributes and sends large files in parts."""
    require("s3fs")
    base.mkdir(parents=True)
    keys = {"AWSACCESSKEYID": server.access, "AWSSECRETACCESSKEY": server.secret}
    said = [
        f"url={server.url}",
        "use_path_request_style",
        "use_xattr",
        "multipart_size=5",
        *options,
    ]
    words = [word for option in said for word in ("-o", option)]
    with _mounted_by(["s3fs", bucket, str(base / "mnt"), "-f", *words], base, keys) as peer:
        yield peer


def rclone_environment(server: S3Server | SwiftServer) -> dict[str, str]:
    """What makes the server the remote ``peer:`` of rclone."""
    if isinstance(server, S3Server):
        said = {
            "TYPE": "s3",
            "PROVIDER": "Ceph",
            "ACCESS_KEY_ID": server.access,
            "SECRET_ACCESS_KEY": server.secret,
            "ENDPOINT": server.url,
            "FORCE_PATH_STYLE": "true",
        }
    else:
        said = {"TYPE": "swift", "AUTH": server.auth, "USER": server.user, "KEY": server.key}
    return {
        "RCLONE_CONFIG": "/dev/null",
        **{f"RCLONE_CONFIG_PEER_{name}": value for name, value in said.items()},
    }


def rclone(server: S3Server | SwiftServer, base: Path, *words: str) -> str:
    """Run rclone to its end; returns what it printed."""
    require("rclone")
    return _run(["rclone", *words], base, rclone_environment(server))


@contextlib.contextmanager
def rclone_mount(
    server: S3Server | SwiftServer, bucket: str, base: Path, *options: str
) -> Iterator[PeerMount]:
    """A mount by rclone."""
    require("rclone")
    base.mkdir(parents=True)
    argv = ["rclone", "mount", f"peer:{bucket}", str(base / "mnt"), "--cache-dir", str(base / "c")]
    with _mounted_by([*argv, *options], base, rclone_environment(server)) as peer:
        yield peer


def swift_command(server: SwiftServer, below: Path, *words: str) -> str:
    """Run python-swiftclient's ``swift`` in a directory, to its end; returns what it printed."""
    program = Path(sys.executable).with_name("swift")
    return _run([str(program), *words], below, server.environment())


def _run(argv: Sequence[str], below: Path, env: Mapping[str, str]) -> str:
    done = subprocess.run(
        list(argv),
        cwd=below,
        env=environment(below, env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# ---- what tools that are in no package document that they store -----------------------------


@dataclass(frozen=True)
class ByHand:
    """An object as a tool would store it, and what must be seen of it."""

    tool: str
    name: str
    body: bytes = b""
    content_type: str = "application/octet-stream"
    meta: Mapping[str, str] = field(default_factory=dict)
    seen: Mapping[str, object] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Each tool has a directory of its own."""
        return f"{self.tool}/{self.name}"


SECOND_NS: Final = 1_577_934_245_000_000_000
EXACT_NS: Final = 1_577_934_245_123_456_789
"""A time with nine digits after the point."""
_SOMEBODY: Final = {"uid": "1234", "gid": "2345"}
_OWNED: Final = {"mode": 0o640, "uid": 1234, "gid": 2345}
_FILE: Final = {"kind": stat.S_IFREG, **_OWNED, "content": b"x"}


def _link(target: str) -> dict[str, object]:
    return {"kind": stat.S_IFLNK, "target": target, "size": len(target.encode())}


S3_BY_HAND: Final = [
    # geesefs: decimal modes as far as they are not the default, whole seconds, values percent-encoded.
    ByHand(
        *("geesefs", "file", b"x"),
        meta={"mode": str(0o100640), **_SOMEBODY, "mtime": "1577934245", "color": "dark%20red%25"},
        seen={**_FILE, "mtime_ns": SECOND_NS, "xattrs": {"user.color": b"dark red%"}},
    ),
    ByHand(
        *("geesefs", "link"),
        meta={"--symlink-target": "../50%25 of it"},
        seen=_link("../50% of it"),
    ),
    ByHand(
        *("geesefs", "moded-link"),
        meta={"--symlink-target": "to", "mode": str(0o120777), **_SOMEBODY},
        seen={**_link("to"), "uid": 1234},
    ),
    ByHand(
        *("geesefs", "fifo"),
        meta={"mode": str(0o010600)},
        seen={"kind": stat.S_IFIFO, "mode": 0o600},
    ),
    ByHand(
        *("geesefs", "directory/"),
        content_type="application/x-directory",
        meta={"mode": str(0o040750), **_SOMEBODY, "mtime": "1577934245"},
        seen={
            "kind": stat.S_IFDIR,
            "mode": 0o750,
            "uid": 1234,
            "mtime_ns": SECOND_NS,
            "names": [],
        },
    ),
    ByHand(*("geesefs", "implicit/file", b"x"), seen={"kind": stat.S_IFREG, "content": b"x"}),
    # rclone since 1.63, --s3-directory-markers.
    ByHand(
        *("rclone-markers", "directory/"),
        meta={"mtime": "1577934245.123456789"},
        seen={"kind": stat.S_IFDIR, "mtime_ns": EXACT_NS, "names": []},
    ),
    # s3sync.rb
    ByHand(
        *("s3sync", "file", b"x"),
        meta={"permissions": str(0o100640), "owner": "1234", "group": "2345"},
        seen=_FILE,
    ),
    # gsutil cp -P, gcloud storage --preserve-posix
    ByHand(
        *("gsutil", "file", b"x"),
        meta={
            "goog-reserved-posix-mode": "640",
            "goog-reserved-posix-uid": "1234",
            "goog-reserved-posix-gid": "2345",
            "goog-reserved-file-mtime": "1577934245",
        },
        seen={**_FILE, "mtime_ns": SECOND_NS},
    ),
    # gcsfuse
    ByHand(
        *("gcsfuse", "file", b"x"),
        meta={"gcsfuse_mtime": "2020-01-02T03:04:05.123456789Z"},
        seen={"kind": stat.S_IFREG, "mtime_ns": EXACT_NS, "content": b"x"},
    ),
    ByHand(*("gcsfuse", "link"), meta={"gcsfuse_symlink_target": "50%25"}, seen=_link("50%25")),
    ByHand(
        *("gcsfuse", "new-link", b"../target"),
        meta={"goog-reserved-file-is-symlink": "true"},
        seen=_link("../target"),
    ),
    # yas3fs
    ByHand(
        *("yas3fs", "file", b"x"),
        meta={
            "attr": '{"st_mode": 33184, "st_uid": 1234, "st_gid": 2345, "st_mtime": 1577934245.5}',
            "xattr": '{"user.color": "red"}',
        },
        seen={
            **_FILE,
            "mtime_ns": SECOND_NS + 500_000_000,
            "xattrs": {"user.color": b"red"},
        },
    ),
    ByHand(
        *("yas3fs", "link", b"target", "application/x-symlink"),
        meta={"attr": '{"st_mode": 41471, "st_uid": 1234}'},
        seen={**_link("target"), "uid": 1234},
    ),
    ByHand(
        *("yas3fs", "directory/"),
        content_type="application/x-directory",
        meta={"attr": '{"st_mode": 16872, "st_mtime": 1577934245}'},
        seen={"kind": stat.S_IFDIR, "mode": 0o750, "mtime_ns": SECOND_NS},
    ),
    # Nextcloud, JetS3t and Hadoop's old markers
    ByHand(
        *("nextcloud", "directory/"),
        content_type="httpd/unix-directory",
        seen={"kind": stat.S_IFDIR, "names": []},
    ),
]

SWIFT_BY_HAND: Final = [
    ByHand(
        *("svfs", "file", b"x"),
        meta={"Mtime": "1577934245.123456789"},
        seen={"kind": stat.S_IFREG, "mtime_ns": EXACT_NS, "content": b"x"},
    ),
    ByHand(
        *("svfs", "link", b"", "application/link"),
        meta={"Symlink-Target": "../target"},
        seen=_link("../target"),
    ),
    ByHand(
        *("svfs", "directory", b"", "application/directory"),
        meta={"Mtime": "1577934245"},
        seen={"kind": stat.S_IFDIR, "mtime_ns": SECOND_NS, "names": []},
    ),
    ByHand(
        *("cybera", "file", b"x"),
        meta={
            "Fs-Mode": str(0o100640),
            "Fs-Uid": "1234",
            "Fs-Gid": "2345",
            "Fs-Mtime": "1577934245.123456",
        },
        seen={**_FILE, "mtime_ns": SECOND_NS + 123_456_000},
    ),
    ByHand(
        *("cybera", "link"),
        meta={"Fs-Mode": str(0o120777), "Fs-Link-Source": "../target"},
        seen=_link("../target"),
    ),
]


def geesefs_reads(meta: Mapping[str, str]) -> dict[str, object]:
    """What geesefs makes of an object's metadata (core/handles.go, setMetadata), which is in no package."""
    said = {name.lower(): unquote(value) for name, value in meta.items()}
    read: dict[str, object] = {}
    for name in ("mode", "uid", "gid", "mtime"):
        with contextlib.suppress(ValueError, KeyError):
            value = said[name]
            # As strconv.ParseUint(value, 0, 64): no fraction; a leading 0 means octal.
            octal = len(value) > 1 and value.startswith("0") and value.isdecimal()
            read[name] = int(value, 8 if octal else 10)
    if "--symlink-target" in said:
        read["target"] = said["--symlink-target"]
    return read
