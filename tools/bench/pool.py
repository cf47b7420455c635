"""Many clients that pull objects from a pool, beside the same by boto3 without a cache. ``tools/bench/pool --help``."""

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

import cachefs.poolclient as poolclient
from cachefs.client import ControlClient
from tools.bench.bucket import NAME, Bucket
from tools.bench.gateway import Gateway, gateway
from tools.bench.mounts import ROOT, START_LIMIT_S, remove
from tools.bench.work import small_body

_PROCESSES: Final = 4
"""Clients share these: threads of one process alone would wait for each other more than for the pool."""
_ALONE: Final = 2000
"""Pulls of one client, for the time that one takes."""

Get = Callable[[int], int]
"""Gets an object by its number; returns the bytes it had, or less than none where its path was gone before it was opened."""


@dataclass(frozen=True, slots=True)
class Row:
    """What all clients together did."""

    what: str
    done: int
    different: int
    lost: int
    seconds: float
    fetched: int | None = None
    over: int | None = None

    def line(self) -> str:
        """The row as text."""
        cells = [f"{self.what:<40}{self.done / self.seconds:9.0f} objects/s"]
        if self.fetched is not None:
            cells.append(f"{self.fetched:6d} fetched of {self.different}")
            cells.append(f"{self.lost:3d} paths gone before they were opened")
            cells.append(f"at most {self.over} bytes above the limit")
        return "  ".join(cells)


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupted)
    base = Path(tempfile.mkdtemp(prefix="cachefs-bench-", dir=options.dir)).resolve()
    try:
        with gateway(base / "gateway") as server:
            _fill(server.bucket, options.keys, options.bytes)
            for row in _rows(server, base, options):
                print(row, flush=True)
    finally:
        remove(base)
    return 0


def _rows(server: Gateway, base: Path, options: argparse.Namespace) -> Iterator[str]:
    keys, size, clients = options.keys, options.bytes, options.clients
    direct = partial(_by_boto3, server.bucket)
    yield _crowd("boto3, no cache", direct, options).line()
    whole = 2 * keys * (size + 4096)
    with _pool(server.bucket, base / "whole", whole) as pool:
        yield pool.watched("pool, nothing cached at first", whole, options).line()
        yield pool.watched("pool, all cached", whole, options).line()
        taken = _alone(partial(_by_pool, pool.home), keys)
        yield f"one client, all cached: median {taken[0] * 1e3:.3f} ms, of a hundred the slowest {taken[1] * 1e3:.3f} ms"
    small = max(keys * (size + 4096) // 3, 4 * clients * (size + 4096))
    # So short a lease that what was pulled a moment ago may go: what is leased is never evicted.
    with _pool(server.bucket, base / "small", small, "--lease", "1s") as pool:
        yield pool.watched("pool, a cache for a third of it", small, options).line()


@dataclass(frozen=True)
class _Running:
    """A pool that runs."""

    home: Path

    def watched(self, what: str, limit: int, options: argparse.Namespace) -> Row:
        """Have all clients pull, and look at the cache all the while."""
        before, over, is_over = self._status(), 0, threading.Event()

        def watch() -> None:
            nonlocal over
            while not is_over.wait(0.05):
                over = max(over, int(self._status()["cache"]["used"]) - limit)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            row = _crowd(what, partial(_by_pool, self.home), options)
        finally:
            is_over.set()
            watching.join()
        fetched = _fetches(self._status()) - _fetches(before)
        return replace(row, fetched=fetched, over=over)

    def _status(self) -> dict[str, Any]:
        with ControlClient(self.home / "cache" / "control.sock") as client:
            told: Any = client.ask("status")
        return dict(told)


@contextlib.contextmanager
def _pool(bucket: Bucket, home: Path, limit: int, *more: str) -> Iterator[_Running]:
    words = ("pool", "-n", "-D", home, "s3://", "--cache-dir", home / "cache")
    settings = ("--cache-size", limit, "--min-free", 0, "--endpoint-url", bucket.endpoint)
    process = subprocess.Popen(
        [sys.executable, "-m", "cachefs", *map(str, words + settings), *more],
        env={
            **os.environ,
            "AWS_ACCESS_KEY_ID": bucket.access_key,
            "AWS_SECRET_ACCESS_KEY": bucket.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        },
        cwd=ROOT,
    )
    try:
        end = time.monotonic() + START_LIMIT_S
        while not (home / "pool.sock").exists():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the pool did not start: {process.returncode}")
            time.sleep(0.05)
        yield _Running(home)
    finally:
        process.terminate()
        process.wait(60)


def _crowd(what: str, make: Callable[[], Get], options: argparse.Namespace) -> Row:
    """Have all clients get what each of them chooses, all at the same time."""
    context = multiprocessing.get_context("fork")
    start, told = context.Barrier(_PROCESSES + 1), context.Queue()
    threads = max(1, options.clients // _PROCESSES)
    each = options.gets // (threads * _PROCESSES)
    processes = [
        context.Process(
            target=_clients, args=(number, threads, each, options.keys, make, start, told)
        )
        for number in range(_PROCESSES)
    ]
    for process in processes:
        process.start()
    start.wait(60)
    began = time.monotonic()
    found = []
    for _ in processes:
        counts = told.get(timeout=3600)
        if isinstance(counts, Exception):
            raise counts
        found.append(counts)
    seconds = time.monotonic() - began
    for process in processes:
        process.join()
    chosen = (
        each_one
        for number in range(threads * _PROCESSES)
        for each_one in _chosen(number, each, options.keys)
    )
    done, lost = sum(done for done, _ in found), sum(lost for _, lost in found)
    return Row(what, done, len(set(chosen)), lost, seconds)


def _chosen(client: int, count: int, keys: int) -> Iterator[int]:
    """Which objects a client gets, one after the other."""
    chosen = random.Random(client)
    for _ in range(count):
        yield chosen.randrange(keys)


def _clients(
    number: int,
    threads: int,
    each: int,
    keys: int,
    make: Callable[[], Get],
    start: Barrier,
    told: "Queue[tuple[int, int] | Exception]",
) -> None:
    gets = [make() for _ in range(threads)]
    start.wait(60)

    def run(thread: int) -> tuple[int, int]:
        done = lost = 0
        for wanted in _chosen(number * threads + thread, each, keys):
            is_there = gets[thread](wanted) >= 0
            done, lost = done + is_there, lost + (not is_there)
        return done, lost

    with ThreadPoolExecutor(threads) as pool:
        try:
            rows = list(pool.map(run, range(threads)))
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            told.put(error)
            return
    told.put((sum(done for done, _ in rows), sum(lost for _, lost in rows)))


def _by_pool(home: Path) -> Get:
    connection = poolclient.Pool(home=home)

    def get(number: int) -> int:
        (path,) = connection.pull(NAME, _key(number))
        try:
            return len(path.read_bytes())
        except FileNotFoundError:
            return -1

    return get


def _by_boto3(bucket: Bucket) -> Get:
    client = bucket.new_client()

    def get(number: int) -> int:
        return len(client.get_object(Bucket=NAME, Key=_key(number))["Body"].read())

    return get


def _alone(make: Callable[[], Get], keys: int) -> tuple[float, float]:
    """How long one client waits for an object: the median, and what one in a hundred exceeds."""
    get, taken = make(), []
    for number in range(_ALONE):
        began = time.perf_counter()
        get(number % keys)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken), statistics.quantiles(taken, n=100)[-1]


def _fill(bucket: Bucket, keys: int, size: int) -> None:
    bucket.make()
    client = bucket.new_client()

    def put(number: int) -> None:
        client.put_object(Bucket=NAME, Key=_key(number), Body=small_body(number, size))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(keys)))


def _key(number: int) -> str:
    return f"d{number % 10}/{number:06d}"


def _fetches(status: dict[str, Any]) -> int:
    return int(status["requests"].get("get_range", 0))


def _interrupted(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/bench/pool",
        description="Measures what many clients of a pool get of it, beside boto3 without a cache.",
    )
    add = parser.add_argument
    add("--clients", type=int, default=64, help="how many at a time (64)")
    add("--keys", type=int, default=10_000, help="objects in the bucket (10000)")
    add("--bytes", type=int, default=16_384, help="of each object (16384)")
    add("--gets", type=int, default=40_000, help="objects that all clients get together (40000)")
    add("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where the caches are")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
