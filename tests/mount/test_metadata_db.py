"""MetadataDB in other processes beside a mount that is used: nobody is turned away, and nobody is told half of anything."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from cachefs import MetadataDB
from tests.mount.harness import ROOT, Mount, environment, wait_until
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]

CELLS = [
    pytest.param("file", 2, 4, 3.0, id="short"),
    pytest.param("file", 4, 16, 60.0, marks=pytest.mark.soak, id="long"),
]

pytestmark = pytest.mark.timeout(300)

_PROGRAM: Final = """
import hashlib, json, sys, threading, time
from pathlib import Path
from cachefs import MetadataDB

directory, bucket, own, threads, seconds = sys.argv[1:]
end = time.monotonic() + float(seconds)
counts = {"read": 0, "written": 0, "torn": [], "errors": []}
lock = threading.Lock()

def md5_of(text):
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

def work(db, number):
    turn = read = written = 0
    mine = f"{own}/{number}"
    while time.monotonic() < end:
        turn += 1
        etag = f"{turn}-2"
        # Size, version and MD5 say the same number, so that a mixture of two would show.
        for key in (mine, "shared"):
            db.set_md5(bucket_name=bucket, object_key=key, etag=etag, file_size=turn, md5_hash=md5_of(etag))
            written += 1
        found = db.find(bucket, mine)
        if found is None or (found.etag, found.size, found.md5) != (etag, turn, md5_of(etag)):
            counts["torn"].append(f"{mine}: {found}")
        shared = db.find(bucket, "shared")
        if shared is None or shared.etag != f"{shared.size}-2" or shared.md5 != md5_of(shared.etag):
            counts["torn"].append(f"shared: {shared}")
        if db.get_md5_by_key(bucket, mine) != md5_of(etag):
            counts["torn"].append(mine)
        if turn % 20 == 0:
            stats = db.get_stats()
            if stats["total_files"] != sum(each["total_files"] for each in stats["buckets"]):
                counts["torn"].append("stats")
        if turn % 7 == 0 and not db.remove_md5(bucket, mine):
            counts["torn"].append(f"{mine} was not there")
        read += 3
    with lock:
        counts["read"] += read
        counts["written"] += written

def guarded(db, number):
    try:
        work(db, number)
    except Exception as error:
        counts["errors"].append(repr(error))

with MetadataDB(Path(directory)) as db:
    workers = [threading.Thread(target=guarded, args=(db, number)) for number in range(int(threads))]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
print(json.dumps(counts))
"""


def keep_busy(directory: str, stop: str) -> tuple[int, float]:
    """Write, rename, read and remove files until *stop* is there. Return how many, and the longest of them in seconds."""
    number, longest = 0, 0.0
    while not os.path.exists(stop):
        number += 1
        began = time.monotonic()
        path = os.path.join(directory, f"f{number % 50}")
        content = str(number).encode() * 50
        with open(path, "wb") as file:
            file.write(content)
        os.rename(path, f"{path}.new")
        with open(f"{path}.new", "rb") as file:
            assert file.read() == content
        told = os.getxattr(f"{path}.new", "user.cachefs.md5").decode()
        assert told == hashlib.md5(content, usedforsecurity=False).hexdigest()
        os.unlink(f"{path}.new")
        longest = max(longest, time.monotonic() - began)
        Path(f"{stop}.begun").touch()
    return number, longest


@pytest.mark.parametrize(("store", "processes", "threads", "seconds"), CELLS, indirect=["store"])
def test_threads_in_other_processes_beside_a_busy_mount_are_neither_locked_out_nor_misled(
    store: LiveStore,
    processes: int,
    threads: int,
    seconds: float,
    mounting: Mounting,
    tmp_path: Path,
) -> None:
    stop = tmp_path / "stop"
    with mounting(store.target(), watchdog_s=280) as mount:
        env = environment(tmp_path, {})
        words = [sys.executable, "-c", _PROGRAM, str(mount.cache_dir), store.bucket]
        program = mount.hands()
        program.begin(keep_busy, str(mount.mountpoint), str(stop))
        wait_until(Path(f"{stop}.begun").exists, "the mount is used", 60)
        try:
            running = [
                subprocess.Popen(
                    [*words, f"p{number}", str(threads), str(seconds)],
                    env=env,
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for number in range(processes)
            ]
            answers = [json.loads(each.communicate(timeout=280)[0]) for each in running]
        finally:
            stop.touch()
        files, longest_s = program.finish(60)
        status = mount.status()
        log = mount.log_text()

    told = {
        "files": files,
        "slowest_s": round(longest_s, 2),
        **{name: sum(each[name] for each in answers) for name in ("read", "written")},
    }
    print(told)
    assert [each["errors"] for each in answers] == [[]] * processes
    assert [each["torn"] for each in answers] == [[]] * processes
    assert told["files"] > 0
    assert told["written"] > 0
    assert "locked" not in log
    assert status["failed_tasks"] == 0


@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_what_is_recorded_while_the_mount_comes_and_goes_is_all_there(
    store: LiveStore, mounting: Mounting
) -> None:
    mount = mounting(store.target())
    kept = 0
    with mount, MetadataDB(mount.cache_dir) as db:
        for _ in range(3):
            for is_running in (True, False):
                if not is_running:
                    mount.stop()
                for _ in range(5):
                    kept += 1
                    db.set_md5(
                        bucket_name=store.bucket,
                        object_key=f"{kept}",
                        etag=f"{kept}-2",
                        file_size=1,
                        md5_hash="0" * 32,
                    )
            mount.start()

        assert db.get_stats()["with_md5"] == kept
