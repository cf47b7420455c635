"""One run: every scene, every round, the tools in rotated order; a failure costs its row and nothing else."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tools.bench import plan, usage
from tools.bench.bucket import Seen
from tools.bench.gateway import Gateway
from tools.bench.mounts import Failed, Mount
from tools.bench.peers import Tool
from tools.bench.plan import Before, Row, Scene, Step

DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure, or why there is none."""

    row: str
    tool: str
    round: int
    seconds: float | None
    cpu_s: float | None = None
    peak_mib: float | None = None
    requests: int | None = None
    fetched_mib: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """What stays the same during a run."""

    gateway: Gateway
    base: Path
    limit_s: float

    def samples(
        self, scenes: Sequence[Scene], tools: Sequence[Tool], rounds: int
    ) -> Iterator[Sample]:
        """All figures as they come. Tools follow each other closely, each first as often as the others."""
        for number in range(rounds):
            for scene in scenes:
                for place in range(len(tools)):
                    tool = tools[(number + place) % len(tools)]
                    yield from self.scene(scene, tool, number)

    def scene(self, scene: Scene, tool: Tool, number: int) -> Iterator[Sample]:
        """One fresh mount with a fresh cache, and the scene's steps in it."""
        new = f"new-{tool.name}-{scene.name}-{number}"
        base = self.base / f"{tool.name}-{scene.name}-{number}"
        left = scene.rows()
        try:
            with Mount(tool, self.gateway.bucket, base) as mount:
                yield Sample(plan.MOUNT.name, tool.name, number, mount.answered - mount.begun)
                for step in scene.steps:
                    if not possible(step):
                        continue
                    for sample in self.step(mount, placed(step, new)):
                        yield replace(sample, round=number)
                        left = [row for row in left if row.name != sample.row]
        except Failed as failure:
            for row in left:
                yield Sample(row.name, tool.name, number, None, error=str(failure))
        if any(step.stored for step in scene.steps):
            self.gateway.bucket.remove(f"{new}/")

    def step(self, mount: Mount, step: Step) -> list[Sample]:
        """Prepare, then measure one step."""
        self.prepare(mount, step)
        return self.measure(mount, step)

    def prepare(self, mount: Mount, step: Step) -> None:
        """What is done before the clock runs."""
        _settle(self.base)
        if step.before is not Before.NOTHING:
            mount.work("forget", self.limit_s, path=str(mount.place.mountpoint / step.path))
        if step.before is Before.DROP:
            DROP_CACHES.write_text("1")

    def measure(self, mount: Mount, step: Step) -> list[Sample]:
        """The step itself, and the time until what it wrote is stored."""
        path = str(mount.place.mountpoint / step.path)
        usage.reset_peak(mount.pid)
        asked, start = self.gateway.count(), mount.use()
        result = mount.work(step.do, self.limit_s, path=path, **step.arguments)
        begin, closed = result["begin"], result["end"]
        stored = self._stored(step, closed)
        end, answered = mount.use(), self.gateway.count()
        tool = mount.tool.name
        whole = Sample(
            step.row.name,
            tool,
            0,
            stored.at - begin,
            cpu_s=end.cpu_s - start.cpu_s,
            peak_mib=end.peak_mib,
            requests=answered.requests - asked.requests - stored.requests,
            fetched_mib=(answered.bytes_sent - asked.bytes_sent) / plan.MIB,
        )
        samples = [whole]
        if step.closed_row is not None:
            samples.append(Sample(step.closed_row.name, tool, 0, closed - begin))
        return samples

    def _stored(self, step: Step, closed: float) -> Seen:
        if step.stored is None:
            return Seen(closed, 0)
        prefix, count, size = step.stored
        try:
            return self.gateway.bucket.wait_for(
                prefix, count, size, closed=closed, limit_s=self.limit_s
            )
        except TimeoutError as error:
            raise Failed(str(error)) from None


def possible(step: Step) -> bool:
    """Whether this user may do what the step needs."""
    return step.before is not Before.DROP or os.access(DROP_CACHES, os.W_OK)


def placed(step: Step, new: str) -> Step:
    """The step with its own prefix for what it creates."""
    stored = step.stored
    if stored is not None:
        stored = stored[0].format(new=new), stored[1], stored[2]
    return replace(step, path=step.path.format(new=new), stored=stored)


def named(scenes: Sequence[Scene], wanted: Sequence[str]) -> list[Scene]:
    """The scenes cut down to the rows (or whole scenes) named; the steps before a row stay, for they prepare it."""
    kept = []
    for scene in scenes:
        hits = [i for i, step in enumerate(scene.steps) if names(step).intersection(wanted)]
        steps = scene.steps if scene.name in wanted else scene.steps[: max(hits, default=-1) + 1]
        if steps:
            kept.append(replace(scene, steps=steps))
    return kept


def names(step: Step) -> set[str]:
    """The rows of a step."""
    return {row.name for row in (step.row, step.closed_row) if row is not None}


def prefixes(scenes: Sequence[Scene]) -> set[str]:
    """What the bucket must hold for these scenes."""
    return {step.path.partition("/")[0] for scene in scenes for step in scene.steps}


def rows(scenes: Sequence[Scene]) -> list[Row]:
    """The lines of the table, in order."""
    return [plan.MOUNT, *(row for scene in scenes for row in scene.rows())]


def say(sample: Sample) -> None:
    """One line of progress."""
    figure = (
        f"{sample.seconds:9.3f} s" if sample.seconds is not None else f"failed: {sample.error}"
    )
    print(
        f"round {sample.round + 1}  {sample.tool:<14} {sample.row:<14} {figure}",
        file=sys.stderr,
        flush=True,
    )


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    uname = os.uname()
    return {
        "kernel": uname.release,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": [round(figure, 2) for figure in os.getloadavg()],
    }


def _settle(directory: Path) -> None:
    """Let what the last step left unwritten go to the disk, so that it does not cost the next."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["sync", "-f", str(directory)], timeout=60, check=False)
