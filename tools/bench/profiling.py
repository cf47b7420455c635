"""``tools/bench/run profile ROW``: where the CPU time of the cachefs daemon goes in one row."""

import argparse
import contextlib
import json
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from tools.bench import peers, runner
from tools.bench.gateway import Gateway
from tools.bench.mounts import Failed, Mount
from tools.bench.plan import Scene
from tools.bench.runner import Run, Sample

Stacks = Mapping[tuple[str, ...], float]

SAMPLER: Final = Path(__file__).with_name("sampler.py")
RATE: Final = 200
WAIT_S: Final = 30


class Profiler(Protocol):
    """Books CPU seconds on stacks, outermost function first."""

    def wrap(self, argv: list[str]) -> list[str]:
        """The daemon's command line, with what the profiler needs in it."""

    def window(self, pid: int) -> contextlib.AbstractContextManager[None]:
        """Look while the block runs."""

    def stacks(self) -> Stacks:
        """What was seen."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """Ours: a thread in the daemon; see ``sampler.py``."""

    directory: Path

    def wrap(self, argv: list[str]) -> list[str]:
        python, dash_m, module, *rest = argv
        if dash_m != "-m":
            raise Failed(f"cannot profile {argv[0]}: not a python module")
        window, out = str(self._window), str(self._out)
        return [python, str(SAMPLER), window, out, module, *rest]

    @contextlib.contextmanager
    def window(self, pid: int) -> Iterator[None]:
        del pid
        self._window.touch()
        try:
            yield
        finally:
            self._window.rename(self._window.with_suffix(".closed"))
            _wait(self._out.exists, "the sampler's figures")

    def stacks(self) -> Stacks:
        found: dict[tuple[str, ...], float] = defaultdict(float)
        for entry in json.loads(self._out.read_text()):
            found[tuple(entry["stack"])] += entry["seconds"]
        return found

    @property
    def _window(self) -> Path:
        return self.directory / "window"

    @property
    def _out(self) -> Path:
        return self.directory / "stacks.json"


@dataclass(frozen=True, slots=True)
class PySpy:
    """py-spy, from outside the daemon: sees threads that hold the GIL for long, and what is idle."""

    directory: Path
    program: str

    def wrap(self, argv: list[str]) -> list[str]:
        return argv

    @contextlib.contextmanager
    def window(self, pid: int) -> Iterator[None]:
        argv = [self.program, "record", "--pid", str(pid), "--rate", str(RATE)]
        argv += ["--format", "raw", "--output", str(self._out), "--function"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            try:
                _await_line(process, b"Sampling process")
                yield
            finally:
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=WAIT_S)

    def stacks(self) -> Stacks:
        found: dict[tuple[str, ...], float] = defaultdict(float)
        for line in self._out.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            found[tuple(stack.split(";"))] += int(count) / RATE
        return found

    @property
    def _out(self) -> Path:
        return self.directory / "stacks.txt"


def profiler(name: str, directory: Path) -> Profiler:
    """The one of that name."""
    if name == "sampler":
        return Sampler(directory)
    program = py_spy()
    if program is None:
        raise Failed("py-spy is not installed (pip install py-spy), or use --with sampler")
    return PySpy(directory, program)


def py_spy() -> str | None:
    """The program, beside this python or on the path."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


def profile(run: Run, scene: Scene, chosen: Profiler) -> Sample:
    """Do the scene with cachefs, and look during its last step."""
    base = run.base / "profiled"
    *before, last = [runner.placed(step, "new-profiled") for step in scene.steps]
    with Mount(peers.ALL["cachefs"], run.gateway.bucket, base, chosen.wrap) as mount:
        for step in before:
            runner.say(run.step(mount, step)[0])
        run.prepare(mount, last)
        with chosen.window(mount.pid):
            sample = run.measure(mount, last)[0]
    return sample


def report(stacks: Stacks, top: int) -> str:
    """The functions that cost most by themselves, and those that cost most with what they call."""
    total = sum(stacks.values()) or 1.0
    own: dict[str, float] = defaultdict(float)
    below: dict[str, float] = defaultdict(float)
    for stack, seconds in stacks.items():
        own[stack[-1]] += seconds
        for name in set(_below_the_loop(stack)):
            below[name] += seconds
    return "\n".join(
        [
            f"{total:.2f} CPU s seen",
            *_top("by itself", own, total, top),
            *_top("with what it calls", below, total, top),
        ]
    )


def _below_the_loop(stack: tuple[str, ...]) -> tuple[str, ...]:
    """Without what every stack of the event loop begins with."""
    inner = [i for i, name in enumerate(stack) if name.startswith("unrolled_run ")]
    return stack[inner[-1] + 1 :] if inner else stack


def add_options(parser: argparse.ArgumentParser) -> None:
    """What only this mode has."""
    parser.add_argument(
        "--with", dest="profiler", choices=("sampler", "py-spy"), default="sampler"
    )
    parser.add_argument("--top", type=int, default=25, help="how many functions (25)")


def run_profile(options: argparse.Namespace, server: Gateway, scene: Scene, base: Path) -> None:
    """Measure and print."""
    run = Run(server, base, options.limit)
    chosen = profiler(options.profiler, base)
    sample = profile(run, scene, chosen)
    print(
        f"{sample.row}: {sample.seconds:.3f} s, {sample.cpu_s:.2f} CPU s, under {options.profiler}"
    )
    print(report(chosen.stacks(), options.top))


def _top(title: str, sums: Mapping[str, float], total: float, top: int) -> list[str]:
    ordered = sorted(sums.items(), key=lambda item: -item[1])[:top]
    return [f"\n{title}", *(f"{s:8.3f} s {100 * s / total:5.1f} %  {name}" for name, s in ordered)]


def _wait(condition: Callable[[], bool], what: str) -> None:
    pause = threading.Event()
    end = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"no {what} within {WAIT_S} s")
        pause.wait(0.02)


def _await_line(process: subprocess.Popen[bytes], text: bytes) -> None:
    assert process.stdout is not None
    said = b""
    while text not in said:
        ready, _, _ = select.select([process.stdout], [], [], WAIT_S)
        more = process.stdout.read1(4096) if ready else b""  # type: ignore[attr-defined]
        if not more:
            raise Failed(f"py-spy: {said.decode(errors='replace').strip()[-500:]}")
        said += more
