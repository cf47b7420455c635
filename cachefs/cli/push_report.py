"""What a push tells: each thing that was done, and what it all came to."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from cachefs.cli.command import Call
from cachefs.cli.failures import explain
from cachefs.cli.jobs import Bar
from cachefs.cli.output import complain, counted, human_size, on_one_line, say, say_json
from cachefs.core.errors import CachefsError, Changed, Exists
from cachefs.core.source import Source
from cachefs.ops.events import Failed, Progress
from cachefs.ops.globs import Chosen
from cachefs.ops.push import Event, NothingDeleted, Push
from cachefs.ops.pushing import Action, Done, Skipped
from cachefs.ops.tree import Found, Tree


@dataclass(slots=True)
class Total:
    """What there is to look at in all, once that is known."""

    files: int | None = None
    bytes: int | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def count(self, tree: Tree, wanted: Chosen) -> None:
        """Walk down *tree*, beside the job, which says by itself what cannot be read."""
        with suppress(OSError):
            self._count(tree, wanted)

    def _count(self, tree: Tree, wanted: Chosen) -> None:
        files = size = 0
        for each in tree.walk(wanted.may_hold):
            if self.ended.is_set():
                return
            if isinstance(each, Found) and each.path in wanted:
                files += 1
                size += 0 if each.path.endswith("/") else each.status.st_size
        self.files, self.bytes = files, size


@contextmanager
def total_shown(tree: Tree, wanted: Chosen, *, is_wanted: bool) -> Iterator[Total]:
    """Find out beside the block how much there is in *tree*, if anybody wants to know."""
    total = Total()
    if is_wanted:
        counter = threading.Thread(target=total.count, args=(tree, wanted), daemon=True)
        counter.start()
    try:
        yield total
    finally:
        total.ended.set()


class Report:
    """What a run has to tell, and what it adds up to."""

    def __init__(self, call: Call, source: Source, what: str) -> None:
        self._call = call
        self._source = source
        self._what = what
        self._began = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._would = "would be " if call.arguments.dry_run else ""
        self.failures = 0

    def tell(self, event: Event, shown: Bar, total: Total) -> None:
        """Tell one event."""
        match event:
            case Progress():
                shown.show(Progress(event.files, event.bytes, total.files, total.bytes))
            case Done():
                self._counts[event.action] += 1
                self._tell_done(event)
            case Skipped():
                self._counts["skipped"] += 1
                self._note(event.path, "skipped", event.reason)
            case Failed():
                self.failures += 1
                done = "conflict" if isinstance(event.error, Changed) else "failed"
                self._counts[done] += 1
                self._note(event.path, done, self._reason(event.error))
            case NothingDeleted():
                self.failures += 1
                self._counts["kept"] = event.objects
                complain(
                    f"nothing was deleted of {counted(event.objects, 'object')} that only DEST has: {event.reason}"
                )

    def _tell_done(self, done: Done) -> None:
        is_told = self._call.verbose or (
            done.action is not Action.SAME and (self._call.as_json or self._call.arguments.dry_run)
        )
        if not is_told:
            return
        if not self._call.as_json:
            say(f"{done.action:10}  {on_one_line(done.path)}")
            return
        line: dict[str, object] = {"path": done.path, "done": done.action}
        if self._would:
            line["dry_run"] = True
        if done.action is not Action.DELETED:
            line |= {"size": done.size, "md5": done.md5, "etag": done.etag}
        say_json(line, stream=True)

    def _note(self, path: str, done: str, reason: str) -> None:
        if self._call.as_json:
            say_json({"path": path, "done": done, "reason": reason}, stream=True)
        if done != "skipped" or not (self._call.quiet or self._call.as_json):
            word = "" if done == "failed" else f"{done}: "
            complain(f"{on_one_line(path)}: {word}{reason}")

    def _reason(self, error: Exception) -> str:
        if isinstance(error, OSError) and not isinstance(error, CachefsError):
            return error.strerror or str(error)
        if isinstance(error, Changed | Exists):
            return str(error)
        return self._call.redactor(explain(error, source=self._source).line)

    def sum_up(
        self, push: Push, requests: Mapping[str, int], *, interrupted: bool = False
    ) -> None:
        """Tell what the run came to."""
        took_s = time.monotonic() - self._began
        if self._call.as_json:
            names = (*Action, "skipped", "conflict", "failed", "kept")
            summary = {
                **{str(name): self._counts[name] for name in names},
                "bytes_sent": push.sent_bytes,
                "bytes_hashed": push.hashed_bytes,
                "requests": dict(requests),
                "seconds": round(took_s, 1),
                "interrupted": interrupted,
                "dry_run": bool(self._would),
            }
            say_json({"summary": summary}, stream=True)
            return
        if self._call.quiet:
            return
        told = [
            f"{number} {self._would if name in _MADE else ''}{word}"
            for name, word in _WORDS.items()
            if (number := self._counts[name])
        ]
        say(f"{self._what}: {', '.join(told) or 'nothing to push'}")
        made = ", ".join(f"{name} {number}" for name, number in requests.items())
        say(
            f"{human_size(push.sent_bytes)} sent, {human_size(push.hashed_bytes)} hashed, in {took_s:.1f} s"
            f" (requests: {made})" + ("; not finished" if interrupted else "")
        )


_WORDS: Final = {
    Action.NEW: "new",
    Action.CHANGED: "changed",
    Action.ATTRIBUTES: "with other attributes",
    Action.DELETED: "deleted",
    Action.SAME: "unchanged",
    "skipped": "skipped",
    "conflict": "in conflict",
    "failed": "failed",
    "kept": "only at the store",
}
_MADE: Final = (Action.DELETED,)
