"""The file systems that are compared, each with settings of equal meaning.

Equal means: a cache on the same disk that holds everything, names trusted for 60 s, uploads that start at
close, no access for other users. What differs by design is said in the notes under the table.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.bench import bucket
from tools.bench.bucket import Bucket

CACHE_SIZE: Final = "8GiB"
NAMES_TRUSTED_S: Final = 60


@dataclass(frozen=True, slots=True)
class Place:
    """Where one mount keeps its things."""

    mountpoint: Path
    cache_dir: Path
    home: Path


@dataclass(frozen=True, slots=True)
class Tool:
    """How one file system is mounted in the foreground, and how it says its version."""

    name: str
    argv: Callable[[Bucket, Place], list[str]]
    environment: Callable[[Bucket], dict[str, str]]
    version: tuple[str, ...]
    note: str

    def version_line(self, root: Path) -> str:
        """The first line of what it says, or why it cannot be run."""
        try:
            done = subprocess.run(
                self.version, capture_output=True, text=True, timeout=30, check=False, cwd=root
            )
        except (OSError, subprocess.SubprocessError) as error:
            return f"cannot be run: {error}"
        return ((done.stdout or done.stderr).strip().splitlines() or [f"exit {done.returncode}"])[
            0
        ]


def _cachefs(store: Bucket, place: Place) -> list[str]:
    return [
        *(sys.executable, "-m", "cachefs", "mount", f"s3://{bucket.NAME}", str(place.mountpoint)),
        *("--endpoint-url", store.endpoint, "--force-path-style", "--foreground"),
        *("--cache-dir", str(place.cache_dir), "--cache-size", CACHE_SIZE),
        *("--metadata-ttl", f"{NAMES_TRUSTED_S}s", "--upload", "close"),
    ]


def _s3fs(store: Bucket, place: Place) -> list[str]:
    passwd = place.home / "passwd-s3fs"
    passwd.touch(mode=0o600)
    passwd.write_text(f"{store.access_key}:{store.secret_key}\n")
    options = [
        f"url={store.endpoint}",
        "use_path_request_style",
        f"passwd_file={passwd}",
        f"use_cache={place.cache_dir}",
        f"stat_cache_expire={NAMES_TRUSTED_S}",
        "umask=0022",  # objects of other programs carry no mode, which s3fs shows as 0000
    ]
    words = [word for option in options for word in ("-o", option)]
    return ["s3fs", bucket.NAME, str(place.mountpoint), "-f", *words]


def _rclone(store: Bucket, place: Place) -> list[str]:
    return [
        *("rclone", "mount", f"bench:{bucket.NAME}", str(place.mountpoint)),
        *("--config", str(place.home / "rclone.conf"), "--cache-dir", str(place.cache_dir)),
        *("--vfs-cache-mode", "full", "--vfs-cache-max-size", CACHE_SIZE.removesuffix("B")),
        *("--vfs-write-back", "0s", "--dir-cache-time", f"{NAMES_TRUSTED_S}s"),
    ]


def _rclone_listing(store: Bucket, place: Place) -> list[str]:
    return [*_rclone(store, place), "--use-server-modtime"]


def _aws(store: Bucket) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key}


def _rclone_environment(store: Bucket) -> dict[str, str]:
    remote = {
        "TYPE": "s3",
        "PROVIDER": "Ceph",
        "ENV_AUTH": "true",
        "ENDPOINT": store.endpoint,
        "FORCE_PATH_STYLE": "true",
    }
    return _aws(store) | {f"RCLONE_CONFIG_BENCH_{key}": value for key, value in remote.items()}


def _nothing(_: Bucket) -> dict[str, str]:
    return {}


ALL: Final = {
    tool.name: tool
    for tool in (
        Tool(
            "cachefs",
            _cachefs,
            _aws,
            (sys.executable, "-m", "cachefs", "--version"),
            "--upload close: stored when close returns",
        ),
        Tool("s3fs", _s3fs, _nothing, ("s3fs", "--version"), "stored when close returns"),
        Tool(
            "rclone",
            _rclone,
            _rclone_environment,
            ("rclone", "version"),
            "close returns before the upload; `until stored` waits for the object to be seen by the S3 API",
        ),
        Tool(
            "rclone-listing",
            _rclone_listing,
            _rclone_environment,
            ("rclone", "version"),
            "as rclone, with --use-server-modtime: times from the listing, no HEAD per file",
        ),
    )
}
STANDARD: Final = ("cachefs", "s3fs", "rclone")
