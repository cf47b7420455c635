"""File-system exercisers of Debian run clean on the mount, and what they wrote is in the store.

Each writes what it can check again: ``fio`` a checksum into every block, ``stress-ng --verify`` patterns,
``bonnie++`` numbers in names and blocks. The short forms run always, the long ones with the soak.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.mount import programs
from tests.mount.harness import Mount
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]


def soak(*values: object) -> Any:  # noqa: ANN401
    return pytest.param(*values, marks=pytest.mark.soak)


LONG = [
    soak(store, upload)
    for store in ("file", "moto", "radosgw", "swift")
    for upload in ("close", "background")
]


@pytest.fixture(autouse=True)
def _exercisers() -> None:
    names = ("fio", "stress-ng", "bonnie++", "dbench")
    missing = [name for name in names if shutil.which(name, path="/usr/bin:/usr/sbin") is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")


def assert_stored(mount: Mount, store: LiveStore) -> int:
    """Compare the mount with the store, by the store's own SDK. Returns how many files there are."""
    mount.wait_clean(120)
    seen = mount.do(programs.content_digests, mount.mountpoint)
    assert {k: hashlib.sha256(v).hexdigest() for k, v in store.view().items()} == seen
    status = mount.status()
    assert status["conflicts"] == []
    assert status["failed_tasks"] == 0
    return len(seen)


# ---- fio ------------------------------------------------------------------------------------

# Every write of "direct" is an upload of the whole file: that is what O_SYNC asks for here.
FIO = """
    --verify=crc32c --verify_fatal=1 --verify_state_save=0 --output-format=json --size={size}
    --name=random --rw=randwrite --bs=4k --ioengine=psync --numjobs=2
    --name=mapped --rw=randwrite --bs=4k --ioengine=mmap --numjobs=1
    --name=synced --rw=randwrite --bsrange=512-64k --ioengine=psync --fsync=256 --numjobs=1
    --name=direct --rw=randwrite --bs=64k --ioengine=libaio --iodepth=8 --direct=1 --sync=1 --size=256k
"""
FIO_ONCE = """
    --name=backlog --rw=randrw --bs=8k --ioengine=psync --verify_backlog=64 --numjobs=1
    --name=appended --rw=write --bs=9000 --ioengine=sync --file_append=1 --numjobs=1
"""
"""What fio cannot verify in a second run, on any file system."""


def fio(mount: Mount, size: str, *options: str) -> None:
    """Run all jobs at once, which write and then read again all that they wrote."""
    done = mount.run("fio", *FIO.format(size=size).split(), *options, timeout_s=900)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    for job in report["jobs"]:
        assert job["error"] == 0, job["jobname"]
        assert job["read"]["io_bytes"] > 0, f"{job['jobname']} has verified nothing"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("store", "upload", "size", "cache_size"),
    [
        ("moto", "background", "512k", "16MiB"),
        *(soak(*each.values, "32m", "320MiB") for each in LONG),
    ],
    indirect=["store"],
)
def test_fio_finds_in_the_mount_and_in_the_store_what_it_wrote(
    store: LiveStore, upload: str, size: str, cache_size: str, mounting: Mounting
) -> None:
    options = ("--upload", upload, "--cache-size", cache_size)
    with mounting(store.target(), *options, watchdog_s=1700) as mount:
        fio(mount, size, *FIO_ONCE.split())
        assert assert_stored(mount, store) == 7
        written = mount.do(programs.content_digests, mount.mountpoint)

    with mounting(store.target(), *options, name="other", watchdog_s=1700) as other:
        fio(other, f"{size} --verify_only")
        assert other.do(programs.content_digests, other.mountpoint) == written


# ---- stress-ng ------------------------------------------------------------------------------

STRESSORS = {
    "access": "",
    "aio": "",
    "aiol": "",
    "chdir": "--chdir-dirs 64",
    "chmod": "",
    "chown": "",
    "copy-file": "--copy-file-bytes 128m",
    "dentry": "--dentries 64",
    "dir": "--dir-dirs 64",
    "dirdeep": "--dirdeep-inodes 500",
    "dirmany": "",
    "dnotify": "",
    "dup": "",
    "fallocate": "--fallocate-bytes 1m",
    "fanotify": "",
    "fcntl": "",
    "file-ioctl": "",
    "filename": "",
    "flock": "",
    "fpunch": "",
    "fstat": "",
    "getdent": "",
    "handle": "",
    "hdd": "--hdd-bytes 16m --hdd-opts wr-rnd,rd-rnd,fsync",
    "inotify": "",
    "io": "",
    "io-uring": "",
    "iomix": "--iomix-bytes 4m",
    "lease": "",
    "locka": "",
    "lockf": "",
    "lockofd": "",
    "mknod": "",
    "mmap": "--mmap-file --mmap-bytes 4m",
    "msync": "--msync-bytes 4m",
    "msyncmany": "",
    "open": "",
    "readahead": "--readahead-bytes 4m",
    "rename": "",
    "revio": "--revio-bytes 4m",
    "seek": "--seek-size 4m",
    "sendfile": "--sendfile-size 1m",
    "symlink": "",
    "sync-file": "--sync-file-bytes 4m",
    "touch": "",
    "utime": "",
    "xattr": "",
}
"""Every stressor that works on files in the current directory, but for those below."""

BEYOND = {
    "fiemap": "FS_IOC_FIEMAP not supported",  # where blocks lie on a disk: there is no disk
    "fsize": "fallocate unexpectedly succeeded",  # by its own emulation: fallocate(2) is not there
    "link": "link calls not allowed",  # no hard links: EPERM
    "verity": "verity is not supported",  # the kernel's own, on its own file systems
}
"""What stress-ng itself finds that the mount cannot, and says."""

QUICK = {
    "chmod": 1,
    "dentry": 64,
    "dir": 32,
    "fcntl": 20,
    "flock": 20,
    "hdd": 100,
    "iomix": 200,
    "mmap": 1,
    "open": 100,
    "rename": 20,
    "seek": 200,
    "utime": 50,
    "xattr": 1,
}
"""How often each does its work in the short form."""


def stress_ng(mount: Mount, report: Path, *options: str, timeout_s: float = 300) -> dict[str, int]:
    """Run stressors, which must neither fail nor skip themselves. Returns how often each did its work."""
    argv = f"stress-ng --temp-path . --verify --metrics-brief --yaml {report}".split()
    done = mount.run(*argv, *options, timeout_s=timeout_s)
    said = done.stdout + done.stderr
    assert "skipp" not in said
    assert not [line for line in said.splitlines() if "fail:" in line or "error:" in line], said
    metrics = yaml.safe_load(report.read_text())["metrics"]
    return {each["stressor"]: each["bogo-ops"] for each in metrics if "bogo-ops" in each}


@pytest.mark.parametrize(("store", "upload"), [("moto", "background")], indirect=["store"])
def test_stress_ng_at_once(
    store: LiveStore, upload: str, mounting: Mounting, tmp_path: Path
) -> None:
    options = [f"--{name} 1 --{name}-ops {ops} {STRESSORS[name]}" for name, ops in QUICK.items()]
    with mounting(store.target(), "--upload", upload) as mount:
        did = stress_ng(mount, tmp_path / "report", "-t", "30", *" ".join(options).split())
        assert {name for name, ops in did.items() if ops} == QUICK.keys()
        assert assert_stored(mount, store) == 0


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("store", "upload"), LONG, indirect=["store"])
def test_stress_ng_one_by_one(
    store: LiveStore, upload: str, mounting: Mounting, tmp_path: Path
) -> None:
    idle = []
    with mounting(store.target(), "--upload", upload, watchdog_s=1700) as mount:
        for name, options in STRESSORS.items():
            did = stress_ng(mount, tmp_path / name, "-t", "3", f"--{name}", "2", *options.split())
            idle += [name] if not did[name] else []
            assert assert_stored(mount, store) == 0, name
    assert idle == []


@pytest.mark.soak
@pytest.mark.parametrize("store", ["file"], indirect=True)
@pytest.mark.parametrize("name", BEYOND)
def test_stress_ng_says_what_the_mount_cannot(
    store: LiveStore, name: str, mounting: Mounting
) -> None:
    with mounting(store.target()) as mount:
        done = mount.run("stress-ng", "--temp-path", ".", "-t", "1", f"--{name}", "1", check=False)
    assert BEYOND[name] in done.stdout + done.stderr


# ---- bonnie++ and dbench --------------------------------------------------------------------


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("store", "upload", "amount"),
    [
        # Without the single bytes (-f): every one of them is a request of its own to any FUSE.
        ("file", "close", "-f -s 4m -r 2m -n 0"),
        *(soak(*each.values, "-f -s 64m -r 32m -n 1:20000:0:8") for each in LONG),
    ],
    indirect=["store"],
)
def test_bonnie(store: LiveStore, upload: str, amount: str, mounting: Mounting) -> None:
    options = ("--upload", upload, "--cache-size", "192MiB")
    with mounting(store.target(), *options, watchdog_s=1700) as mount:
        done = mount.run(*f"bonnie++ -d . -q -u root {amount}".split(), timeout_s=1700)
        assert "Version" in done.stderr
        assert assert_stored(mount, store) == 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("store", "upload", "seconds", "clients"),
    [
        ("moto", "close", 2, 2),
        *(soak(*each.values, 30, 8) for each in LONG),
    ],
    indirect=["store"],
)
def test_dbench(
    store: LiveStore, upload: str, seconds: int, clients: int, mounting: Mounting
) -> None:
    load = "/usr/share/dbench/client.txt"
    with mounting(store.target(), "--upload", upload, watchdog_s=500) as mount:
        done = mount.run(
            *f"dbench -D . -t {seconds} --loadfile={load} {clients}".split(), timeout_s=400
        )
        assert "Throughput" in done.stdout
        # Names that the load expects and a run of seconds has not made yet: no failures of ours.
        wrong = [line for line in done.stdout.splitlines() if "failed" in line]
        assert [line for line in wrong if "barrier semaphore" not in line] == []
        assert_stored(mount, store)
