"""A million objects: what walking them costs cachefs, s3fs and rclone mount. ``tools/bench/million --help``."""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tests.servers import radosgw
from tools.bench import bucket, peers, usage
from tools.bench.bucket import Bucket
from tools.bench.crowd import Crowd, large_directory, seed
from tools.bench.gateway import Gateway
from tools.bench.mounts import ROOT, Failed, Mount, remove
from tools.bench.peers import Tool

MIB: Final = 2**20
_GRACE_S: Final = 60


@dataclass(frozen=True, slots=True)
class Figure:
    """What one tool did in one row."""

    tool: str
    row: str
    seconds: float | None = None
    first_s: float | None = None
    lines: int | None = None
    requests: int | None = None
    lists: int | None = None
    rss_mib: float | None = None
    peak_mib: float | None = None
    cpu_s: float | None = None
    note: str = ""


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupted)
    crowd = Crowd(options.objects)
    base = Path(tempfile.mkdtemp(prefix="cachefs-bench-", dir=options.dir)).resolve()
    figures: list[Figure] = []
    try:
        with _gateway(options.gateway, base, crowd) as server:
            for name in options.tools:
                for figure in walks(server, peers.ALL[name], base, crowd, options.limit):
                    figures.append(figure)
                    _say(_line(figure))
                    if options.json is not None:
                        told = [asdict(each) for each in figures]
                        options.json.write_text(json.dumps(told, indent=1) + "\n")
    finally:
        remove(base)
    print(f"{crowd.objects} objects")
    print("\n".join(_line(each) for each in figures))
    return 0


def walks(
    server: Gateway, tool: Tool, base: Path, crowd: Crowd, limit_s: float
) -> Iterator[Figure]:
    """All rows of one tool, with one cache: cold, warm, and after another mount."""
    try:
        with Mount(tool, server.bucket, base / f"{tool.name}-first") as mount:
            yield _first_entry(server, mount, limit_s)
        with Mount(tool, server.bucket, base / tool.name) as mount:
            yield Figure(tool.name, "mount, empty cache", mount.answered - mount.begun)
            cold = _walk(server, mount, "find, cold", crowd, limit_s)
            yield cold
            if cold.note:
                return  # it did not come to the end: no use in doing it again
            yield _walk(server, mount, "find, again", crowd, limit_s)
            yield from _database(mount, crowd)
            mount.remount()
            yield Figure(tool.name, "mount, all known", mount.answered - mount.begun)
            yield _walk(server, mount, "find, after the mount", crowd, limit_s)
            yield _first_entry(server, mount, limit_s)
    except Failed as failure:
        yield Figure(tool.name, "failed", note=str(failure))


def _walk(server: Gateway, mount: Mount, row: str, crowd: Crowd, limit_s: float) -> Figure:
    path = str(mount.place.mountpoint)
    figure, told = _measured(server, mount, row, "walk", limit_s, path=path, within_s=limit_s)
    lines = int(told["lines"])
    is_whole = told["whole"] and lines == crowd.lines
    note = "" if is_whole else f"{lines} of {crowd.lines} lines"
    return replace(figure, lines=lines, note=note)


def _first_entry(server: Gateway, mount: Mount, limit_s: float) -> Figure:
    path = str(mount.place.mountpoint / large_directory())
    figure, _ = _measured(server, mount, "first entry", "first_entry", limit_s, path=path)
    return figure


def _measured(
    server: Gateway,
    mount: Mount,
    row: str,
    do: str,
    patience_s: float,
    **arguments: Any,  # noqa: ANN401
) -> tuple[Figure, dict[str, Any]]:
    usage.reset_peak(mount.pid)
    asked, listed, before = _requests(server, mount), _lists(mount), mount.use()
    told = mount.work(do, patience_s + _GRACE_S, **arguments)
    after, answered, lists = mount.use(), _requests(server, mount), _lists(mount)
    return Figure(
        mount.tool.name,
        row,
        told["end"] - told["begin"],
        requests=answered - asked,
        lists=None if lists is None or listed is None else lists - listed,
        rss_mib=usage.resident_mib(mount.pid),
        peak_mib=after.peak_mib,
        cpu_s=after.cpu_s - before.cpu_s,
    ), told


def _requests(server: Gateway, mount: Mount) -> int:
    """How many requests were made: cachefs tells it itself, of others the gateway does, which nobody else should ask."""
    status = _status(mount)
    return server.count().requests if status is None else sum(status["requests"].values())


def _lists(mount: Mount) -> int | None:
    """How many pages of listings cachefs has asked for; of others nobody can tell."""
    status = _status(mount)
    return None if status is None else int(status["requests"].get("list", 0))


def _status(mount: Mount) -> dict[str, Any] | None:
    if mount.tool.name != "cachefs":
        return None
    words = (sys.executable, "-m", "cachefs", "status", "--json", str(mount.place.mountpoint))
    done = subprocess.run(
        words, capture_output=True, timeout=60, check=False, env=mount.environment, cwd=ROOT
    )
    told = json.loads(done.stdout)
    found: dict[str, Any] = told["mounts"][0] if "mounts" in told else told
    return found


def _database(mount: Mount, crowd: Crowd) -> Iterator[Figure]:
    if mount.tool.name == "cachefs":
        size = sum(each.stat().st_size for each in mount.place.cache_dir.glob("cachefs.sqlite3*"))
        note = f"{size / MIB:.0f} MiB, {size / crowd.objects:.0f} bytes an object"
        yield Figure("cachefs", "database", note=note)


@contextlib.contextmanager
def _gateway(running: Path | None, base: Path, crowd: Crowd) -> Iterator[Gateway]:
    """The gateway in the directory *running*, which has the crowd already, or a new one that is filled first."""
    if running is not None:
        (admin_socket,) = (running / "run").glob("client.rgw.*.asok")
        url = (running / "url").read_text().strip()
        yield Gateway(Bucket(url, "test", "testing"), admin_socket)
        return
    with radosgw.radosgw(base / "gateway") as server:
        (admin_socket,) = (base / "gateway" / "run").glob("client.rgw.*.asok")
        began = time.monotonic()
        seed(server.swift_auth, server.swift_user, server.secret, bucket.NAME, crowd, _say)
        _say(f"filled in {time.monotonic() - began:.0f} s")
        yield Gateway(Bucket(server.url, server.access, server.secret), admin_socket)


def _line(figure: Figure) -> str:
    cells = [f"{figure.tool:<9}{figure.row:<24}"]
    cells.append("" if figure.seconds is None else f"{figure.seconds:9.3f} s")
    if figure.requests is not None:
        cells.append(f"{figure.requests:8d} requests")
    if figure.lists is not None:
        cells.append(f"({figure.lists} lists)")
    if figure.rss_mib is not None:
        cells.append(f"{figure.rss_mib:5.0f} MiB, at most {figure.peak_mib or 0:.0f}")
        cells.append(f"{figure.cpu_s or 0:.1f} s of CPU")
    return "  ".join([*cells, figure.note]).rstrip()


def _say(text: str) -> None:
    print(f"million: {text}", file=sys.stderr, flush=True)


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/bench/million",
        description="Walks very many objects in mounts of cachefs, s3fs and rclone, and measures it.",
    )
    add = parser.add_argument
    add("--objects", type=int, default=10**6, help="how many: a tenth in one directory (1000000)")
    add("--tools", type=lambda text: text.split(","), default=list(peers.STANDARD))
    add("--limit", type=float, default=600, metavar="S", help="time for one walk (600)")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where the caches are")
    add("--gateway", type=Path, metavar="DIR", help="a gateway that runs and has them: its files")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
