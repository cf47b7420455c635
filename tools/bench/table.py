"""From figures to a table: medians, ratios, and the rows that are over their limit."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tools.bench.plan import MIB, Kind, Row
from tools.bench.runner import Sample

OURS: Final = "cachefs"
LIMIT_PEER: Final = "s3fs"
LIMITS: Final = {Kind.READ: 1.5, Kind.LIST: 1.0}


@dataclass(frozen=True, slots=True)
class Cell:
    """What one tool did in one row."""

    seconds: float | None
    low: float | None
    high: float | None
    cpu_s: float | None
    peak_mib: float | None
    requests: float | None
    fetched_mib: float | None
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """All medians of a run."""

    rows: Sequence[Row]
    tools: Sequence[str]
    cells: dict[tuple[str, str], Cell]

    def ratio(self, row: Row, peer: str) -> float | None:
        """Ours over the peer's: below 1 we are faster."""
        ours, theirs = self.cells.get((row.name, OURS)), self.cells.get((row.name, peer))
        if ours is None or theirs is None or ours.seconds is None or not theirs.seconds:
            return None
        return ours.seconds / theirs.seconds

    def over_limit(self) -> list[str]:
        """One sentence for each row that is slower than it may be."""
        found = []
        for row in self.rows:
            limit, ratio = LIMITS.get(row.kind), self.ratio(row, LIMIT_PEER)
            if limit is not None and ratio is not None and ratio > limit:
                found.append(f"{row.name}: {ratio:.2f} times {LIMIT_PEER}, allowed {limit:g}")
        return found

    def document(self) -> list[dict[str, Any]]:
        """The same for programs."""
        return [
            {
                "row": row.name,
                "title": row.title,
                "kind": row.kind.value,
                "tools": {tool: _plain(self.cells.get((row.name, tool))) for tool in self.tools},
                "ratios": {peer: self.ratio(row, peer) for peer in self.peers()},
            }
            for row in self.rows
        ]

    def peers(self) -> list[str]:
        return [tool for tool in self.tools if tool != OURS] if OURS in self.tools else []


def tabulate(rows: Sequence[Row], tools: Sequence[str], samples: Sequence[Sample]) -> Table:
    """The medians. A row in which nothing was measured (not possible for this user) is left out."""
    cells = {}
    for row in rows:
        for tool in tools:
            mine = [s for s in samples if s.row == row.name and s.tool == tool]
            if mine:
                cells[row.name, tool] = _cell(mine)
    return Table([row for row in rows if any((row.name, t) in cells for t in tools)], tools, cells)


def text(table: Table) -> str:
    """Seconds with ratios; then what they cost: CPU, memory, requests and bytes of the store."""
    heads = ["seconds (median, lower is better)", *table.tools]
    heads += [f"{OURS}/{peer}" for peer in table.peers()]
    lines = [heads]
    for row in table.rows:
        cells = [_seconds(row, table.cells.get((row.name, tool))) for tool in table.tools]
        lines.append([row.title, *cells, *(_ratio(table, row, peer) for peer in table.peers())])
    parts = [_columns(lines)]
    for head, name, digits in (
        ("CPU seconds of the daemon", "cpu_s", 2),
        ("most memory of the daemon, MiB", "peak_mib", 0),
        ("requests to the store", "requests", 0),
        ("MiB fetched from the store", "fetched_mib", 1),
    ):
        parts.append(_columns(_second_table(table, head, name, digits)))
    return "\n\n".join(parts)


def failures(table: Table) -> list[str]:
    """What went wrong: one line for each tool and error, with the rows that it cost."""
    found: dict[tuple[str, str], list[str]] = {}
    for (row, tool), cell in table.cells.items():
        for error in dict.fromkeys(cell.errors):
            found.setdefault((tool, error), []).append(row)
    return [f"{tool}: {', '.join(lost)}: {error}" for (tool, error), lost in found.items()]


def _second_table(table: Table, head: str, name: str, digits: int) -> list[list[str]]:
    lines = [[head, *table.tools]]
    for row in table.rows:
        figures = [getattr(table.cells.get((row.name, t)), name, None) for t in table.tools]
        if any(figure is not None for figure in figures):
            lines.append([row.title, *("-" if f is None else f"{f:.{digits}f}" for f in figures)])
    return lines


def _cell(samples: Sequence[Sample]) -> Cell:
    seconds = [s.seconds for s in samples if s.seconds is not None]
    return Cell(
        statistics.median(seconds) if seconds else None,
        min(seconds, default=None),
        max(seconds, default=None),
        _median([s.cpu_s for s in samples]),
        _median([s.peak_mib for s in samples]),
        _median([s.requests for s in samples]),
        _median([s.fetched_mib for s in samples]),
        tuple(s.error for s in samples if s.error is not None),
    )


def _median(figures: Sequence[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return statistics.median(known) if known else None


def _seconds(row: Row, cell: Cell | None) -> str:
    if cell is None:
        return "-"
    if cell.seconds is None:
        return "failed"
    rate = f" ({row.bytes_moved / MIB / cell.seconds:.0f} MiB/s)" if row.bytes_moved else ""
    return f"{cell.seconds:.3f}{rate}{'!' * bool(cell.errors)}"


def _ratio(table: Table, row: Row, peer: str) -> str:
    ratio = table.ratio(row, peer)
    return "-" if ratio is None else f"{ratio:.2f}"


def _plain(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    return {
        "median_s": cell.seconds,
        "min_s": cell.low,
        "max_s": cell.high,
        "cpu_s": cell.cpu_s,
        "peak_mib": cell.peak_mib,
        "requests": cell.requests,
        "fetched_mib": cell.fetched_mib,
        "errors": list(cell.errors),
    }


def _columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    return "\n".join([texts[0], "  ".join("-" * width for width in widths), *texts[1:]])
