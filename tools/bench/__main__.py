"""The benchmark's command line: ``tools/bench/run --help``."""

import argparse
import contextlib
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tools.bench import peers, plan, profiling, runner, table
from tools.bench.bucket import Bucket
from tools.bench.gateway import NoGateway, gateway
from tools.bench.mounts import ROOT, Failed, remove
from tools.bench.plan import MIB, Scene, Sizes
from tools.bench.runner import Run, Sample

UNITS: Final = {"": 1, "M": MIB, "G": 1024 * MIB}


def main(argv: Sequence[str]) -> int:
    act = _profiled if argv[:1] == ["profile"] else _measured
    options = (
        _profile_parser().parse_args(argv[1:]) if act is _profiled else _parser().parse_args(argv)
    )
    sizes = plan.QUICK if options.quick else Sizes()
    if options.large is not None:
        sizes = replace(sizes, large=options.large)
    scenes = plan.scenes(sizes)
    if options.list:
        print("\n".join(f"{row.name:<16}{row.title}" for row in runner.rows(scenes)))
        return 0
    if options.only:
        scenes = _chosen(scenes, options.only)
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        return act(options, sizes, scenes)
    except (Failed, NoGateway) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _profiled(options: argparse.Namespace, sizes: Sizes, scenes: Sequence[Scene]) -> int:
    with _workplace(options.dir) as base, gateway(base / "gateway") as server:
        _fill(server.bucket, sizes, scenes, base)
        profiling.run_profile(options, server, scenes[0], base)
    return 0


def _measured(options: argparse.Namespace, sizes: Sizes, scenes: Sequence[Scene]) -> int:
    tools = [peers.ALL[name] for name in options.tools]
    begin, load = time.time(), runner.machine()
    samples: list[Sample] = []
    with _workplace(options.dir) as base, gateway(base / "gateway") as server:
        _fill(server.bucket, sizes, scenes, base)
        run = Run(server, base, options.limit)
        try:
            for sample in run.samples(scenes, tools, options.rounds):
                samples.append(sample)
                runner.say(sample)
            whole = True
        except KeyboardInterrupt:  # what has been measured is worth showing
            whole = False
    found = table.tabulate(runner.rows(scenes), options.tools, samples)
    _report(found, tools)
    if options.json is not None:
        document = {
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begin)),
            "took_s": round(time.time() - begin, 1),
            "machine": load,
            "machine_after": runner.machine(),
            "versions": {tool.name: tool.version_line(ROOT) for tool in tools},
            "sizes": asdict(sizes),
            "rounds": options.rounds,
            "whole": whole,
            "rows": found.document(),
            "samples": [asdict(sample) for sample in samples],
            "over_limit": found.over_limit(),
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if not whole:
        return 130
    return 1 if options.check and (found.over_limit() or table.failures(found)) else 0


def _fill(store: Bucket, sizes: Sizes, scenes: Sequence[Scene], base: Path) -> None:
    print(f"bench: filling {store.endpoint}", file=sys.stderr, flush=True)
    store.make()
    store.fill(sizes, runner.prefixes(scenes), base)


def _report(found: table.Table, tools: Sequence[peers.Tool]) -> None:
    print(table.text(found))
    print()
    for tool in tools:
        print(f"{tool.name}: {tool.version_line(ROOT)}; {tool.note}")
    print(
        "warm: the kernel's pages of the mounted files dropped (posix_fadvise), the daemon answers."
    )
    print(
        "warm, from the disk: all clean pages dropped (drop_caches), the cache is read from its disk."
    )
    for line in table.failures(found):
        print(f"failed: {line}")
    for line in found.over_limit():
        print(f"over the limit: {line}")


@contextlib.contextmanager
def _workplace(parent: Path) -> Any:  # noqa: ANN401
    base = Path(tempfile.mkdtemp(prefix="cachefs-bench-", dir=parent)).resolve()
    try:
        yield base
    finally:
        remove(base)


def _chosen(scenes: Sequence[Scene], names: Sequence[str]) -> list[Scene]:
    known = {scene.name for scene in scenes} | {
        row.name for scene in scenes for row in scene.rows()
    }
    unknown = set(names) - known
    if unknown:
        raise SystemExit(f"bench: no such row: {', '.join(sorted(unknown))} (see --list)")
    return runner.named(scenes, names)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/bench/run",
        description="Measures cachefs beside s3fs and rclone mount on one radosgw.",
        epilog="tools/bench/run profile ROW: where the CPU time of cachefs goes in one row.",
    )
    _common(parser)
    add = parser.add_argument
    add("--rounds", type=_positive, default=3, help="rounds; each tool is first in turn (3)")
    add("--tools", type=_tools, default=list(peers.STANDARD), help=", ".join(peers.ALL))
    add("--only", action="append", metavar="ROW", help="only this row or scene; repeatable")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--check", action="store_true", help="exit 1 if a row is over its limit or failed")
    add("--list", action="store_true", help="name the rows, and measure nothing")
    return parser


def _profile_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/bench/run profile",
        description="Where the CPU time of the cachefs daemon goes in one row.",
    )
    _common(parser)
    parser.set_defaults(list=False)
    parser.add_argument("only", nargs=1, metavar="ROW", help="see tools/bench/run --list")
    profiling.add_options(parser)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--quick", action="store_true", help="small sizes: to try the bench, not the tools")
    add("--large", type=_size, metavar="SIZE", help="size of the large object (512M)")
    add("--limit", type=float, default=300, metavar="S", help="time limit of one step (300)")
    add("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where the caches are")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _tools(text: str) -> list[str]:
    names = text.split(",")
    unknown = set(names) - set(peers.ALL)
    if unknown:
        raise argparse.ArgumentTypeError(f"no such tool: {', '.join(sorted(unknown))}")
    return names


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([MG]?)(?:iB)?", text)
    size = int(match[1]) * UNITS[match[2]] if match else 0
    if size < MIB or size % MIB:
        raise argparse.ArgumentTypeError("whole MiB, such as 512M or 1G")
    return size


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
