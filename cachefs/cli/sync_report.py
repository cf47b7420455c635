"""What a sync says of itself: a line for each file, into a report and as JSON, and the sum of it all."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from cachefs.cli.command import Call
from cachefs.cli.failures import EXIT_DONE, EXIT_FAILURES, explain
from cachefs.cli.output import complain, counted, human_size, on_one_line, say, say_json
from cachefs.core.source import Source
from cachefs.ops.bucketsync import Deleted, Event, Kept, NothingDeleted
from cachefs.ops.events import Failed, Progress
from cachefs.ops.sync_copy import Copied, Vanished
from cachefs.ops.sync_plan import Difference, Kind, Plan, replacing

_NAME: Final = "report.jsonl"
_WORDS: Final = {Kind.NEW: "new", Kind.MODIFIED: "modified", Kind.DUPLICATE: "duplicate"}
_Line = dict[str, object]


class Report:
    """Takes what happens. The file replaces that of the run before when the block ends, if there was anything to say."""

    def __init__(self, call: Call, out: Path, plan: Plan, of: Source | None) -> None:
        """*of*: a source on a store of the kind that both are; None: they are not of one kind."""
        self._call = call
        self._of = of
        self._path = out / _NAME
        self._plan = plan
        self._counts: Counter[str] = Counter()
        self._bytes = 0
        self._is_told = False

    def __enter__(self) -> Self:
        self._replacing = replacing(self._path)
        self._file = self._replacing.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._replacing.__exit__(None if self._is_told else KeyboardInterrupt)

    @property
    def failed(self) -> int:
        """How many files could not be done."""
        return self._counts["failed"]

    @property
    def has_any(self) -> bool:
        """Whether anything became of any file."""
        return bool(self._counts)

    def take(self, event: Event) -> None:
        """Write down what became of one file."""
        if isinstance(event, NothingDeleted):
            self._counts["not deleted"] = event.files
            return
        if isinstance(event, Progress):
            return
        line = self._line(event)
        shown = on_one_line(str(line["path"]))
        self._counts[str(line["state"])] += 1
        self._write(line)
        if isinstance(event, Failed):
            complain(f"{shown}: {line['reason']}")
        elif self._call.verbose and not self._call.as_json:
            say(f"{line['state']:8} {shown}")

    def planned(self) -> int:
        """Tell what would be done, and return the exit code of a dry run."""
        for found in self._plan.differences(*Kind):
            self._write(_planned(found))
        files, size = self._plan.files, self._plan.bytes
        self._sum_up(
            {"compared": self._plan.listed}
            | {_WORDS[kind]: files[kind] for kind in Kind}
            | {"bytes": size[Kind.NEW] + size[Kind.MODIFIED]},
            f"{files[Kind.NEW]} new ({human_size(size[Kind.NEW])}), {files[Kind.MODIFIED]} modified "
            f"({human_size(size[Kind.MODIFIED])}), {files[Kind.DUPLICATE]} duplicate; "
            f"{counted(self._plan.listed, 'object')} compared\n"
            f"lists: {', '.join(self._shown(kind.value) for kind in Kind)}",
        )
        return EXIT_DONE

    def done(self, *, is_whole: bool = True) -> int:
        """Tell what was done, and return the exit code; *is_whole*: nothing cut it off."""
        counts, plan = self._counts, self._plan
        same = plan.listed - plan.files[Kind.NEW] - plan.files[Kind.MODIFIED]
        words = [
            f"{counted(counts['copied'], 'object')} copied ({human_size(self._bytes)})",
            f"{counts['deleted']} deleted",
            f"{counts['failed']} failed",
        ]
        words += [f"{counts[word]} {word}" for word in ("vanished", "kept") if counts[word]]
        if left := counts["not deleted"]:
            words.append(f"{left} duplicate kept, because not everything was copied")
        self._sum_up(
            {
                "compared": plan.listed,
                "same": same,
                **{
                    word: counts[word]
                    for word in ("copied", "deleted", "failed", "vanished", "kept")
                },
                "not_deleted": left,
                "bytes": self._bytes,
                "interrupted": not is_whole,
            },
            f"{'' if is_whole else 'cut off: '}{', '.join(words)}; {same} were the same\n"
            f"report: {self._shown(_NAME)}",
        )
        return EXIT_FAILURES if self.failed else EXIT_DONE

    def _shown(self, name: str) -> str:
        """Return how *name* in the directory of lists is told: as that was given."""
        return str(Path(self._call.arguments.out) / name)

    def _line(self, event: Copied | Vanished | Deleted | Kept | Failed) -> _Line:
        match event:
            case Copied(key, size, reason, etag):
                self._bytes += size
                return {
                    "path": key,
                    "state": "copied",
                    "reason": reason,
                    "size": size,
                    "etag": etag,
                }
            case Deleted(key, size):
                return {"path": key, "state": "deleted", "reason": "gone", "size": size}
            case Vanished(key):
                return {"path": key, "state": "vanished", "reason": "gone while it was copied"}
            case Kept(key):
                return {"path": key, "state": "kept", "reason": "the source has it again"}
            case Failed(path, error):
                reason = self._call.redactor(explain(error, source=self._of).line)
                return {"path": path, "state": "failed", "reason": reason}

    def _write(self, line: Mapping[str, object]) -> None:
        self._is_told = True
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()  # a run that is killed leaves it, beside the one before
        if self._call.as_json:
            say_json(line, stream=True)

    def _sum_up(self, summary: Mapping[str, object], text: str) -> None:
        self._write({"summary": summary})
        if not self._call.as_json and not self._call.quiet:
            say(text)


def _planned(found: Difference) -> _Line:
    return {
        "path": found.key,
        "state": _WORDS[found.kind],
        "reason": found.reason,
        "size": found.size,
    }
