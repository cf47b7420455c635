"""What a process and its children use, from ``/proc``."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds so far, and the most memory since the last ``reset_peak``."""

    cpu_s: float
    peak_mib: float


def of(pid: int) -> Usage:
    """Of the process and its living descendants together."""
    family = _family(pid)
    return Usage(sum(map(_cpu_s, family)), sum(map(_peak_mib, family)))


def reset_peak(pid: int) -> None:
    """Count the most memory from here on."""
    for each in _family(pid):
        with contextlib.suppress(OSError):
            Path(f"/proc/{each}/clear_refs").write_text("5")


def resident_mib(pid: int) -> float:
    """Memory of the process and its living descendants at this moment."""
    return sum(_status_mib(each, "VmRSS:") for each in _family(pid))


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:  # grows while we walk it
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def _peak_mib(pid: int) -> float:
    return _status_mib(pid, "VmHWM:")


def _status_mib(pid: int, name: str) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
    return 0.0
