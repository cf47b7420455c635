"""What ``cachefs verify`` writes: a line for each finding, in the form that was asked for, and the sum."""

import sys
from collections.abc import Mapping
from typing import Final

from cachefs.cli.command import Call
from cachefs.cli.failures import EXIT_DONE, EXIT_FAILURES, EXIT_WAITING
from cachefs.cli.output import counted, human_size, printable, say, say_json
from cachefs.ops.compare import Counts
from cachefs.ops.findings import FINE, SYMBOLS, Finding, State, Tally

_WORDS: Final = {
    State.SAME: "the same",
    State.PARTIAL: "cached in part",
    State.STALE: "newer at the store",
    State.QUEUED: "queued for upload",
    State.UPLOADING: "uploading",
    State.PARKED: "not uploaded",
    State.DIFFERS: "differ",
    State.MISSING_REMOTE: "missing at the store",
    State.MISSING_LOCAL: "missing here",
    State.ROTTED: "rotted",
    State.UNVERIFIABLE: "not verifiable",
    State.ERROR: "not found out",
}


class Report:
    """What was found so far, written as it comes."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._tally = Tally()

    def tell(self, finding: Finding) -> None:
        """Count *finding*, and write it unless there is nothing to say of it."""
        self._tally.count(finding)
        if finding.state in FINE and not self._call.arguments.all:
            return
        if self._call.as_json:
            say_json(self._row(finding), stream=True)
        elif self._call.arguments.combined:
            say(f"{SYMBOLS[finding.state]} {_flat(finding.path)}")
        elif not self._call.quiet:
            say(self._line(finding))

    def _row(self, finding: Finding) -> dict[str, object]:
        mtime = None if finding.mtime_ns is None else finding.mtime_ns / 10**9
        row: dict[str, object] = {
            "path": finding.path,
            "state": str(finding.state),
            "reason": self._call.redactor(finding.reason) or None,
            "local_md5": finding.local_md5,
            "remote_md5": finding.remote_md5,
            "size": finding.size,
            "mtime": mtime,
        }
        return row if finding.repair is None else {**row, "repair": str(finding.repair)}

    def _line(self, finding: Finding) -> str:
        reason = self._call.redactor(finding.reason)
        line = f"{finding.state:14} {_flat(finding.path)}" + (f": {reason}" if reason else "")
        return line if finding.repair is None else f"{line} — {finding.repair}"

    def sum_up(
        self, counts: Counts, requests: Mapping[str, int], *, is_interrupted: bool = False
    ) -> None:
        """Write what was found in all, and what it has cost."""
        if self._call.quiet:
            return
        states = ", ".join(
            f"{number} {_WORDS[state]}" for state in State if (number := self._tally.states[state])
        )
        lines = [f"{counted(self._tally.files, 'file')}: {states or 'nothing to verify'}"]
        if self._tally.repairs:
            done = ", ".join(
                f"{number} {repair}" for repair, number in self._tally.repairs.items()
            )
            lines[0] += f"; repaired: {done}"
        lines.append(_cost(counts, requests))
        if is_interrupted:
            lines[0] = f"interrupted after {lines[0]}"
        elsewhere = self._call.as_json or self._call.arguments.combined or is_interrupted
        print("\n".join(lines), file=sys.stderr if elsewhere else sys.stdout, flush=True)

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        if self._tally.out_of_sync:
            return EXIT_FAILURES
        return EXIT_WAITING if self._tally.waiting else EXIT_DONE


def _flat(path: str) -> str:
    """Return *path* on one line."""
    return printable(path).replace("\n", "\\n")


def _cost(counts: Counts, requests: Mapping[str, int]) -> str:
    read = f", {human_size(counts.downloaded_bytes)} downloaded" if counts.downloaded_bytes else ""
    return (
        f"{counted(counts.hashed_files, 'file')} hashed ({human_size(counts.hashed_bytes)}){read}; the store was asked"
        f" for {counted(requests.get('list', 0), 'page')} of its listing and about"
        f" {counted(requests.get('fingerprint', 0), 'single object')}"
    )
