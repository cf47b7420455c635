"""The command in a process of its own, as users run it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def surroundings(home: Path, **variables: str) -> dict[str, str]:
    """An environment that holds nothing but *home* and *variables*."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "CACHEFS_CONFIG": "",
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_STATE_HOME": str(home / "state"),  # root's would be the machine's
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONWARNINGS": "error",
        "COLUMNS": "100",
        **variables,
    }


def cachefs(*words: str | Path, home: Path, **variables: str) -> Done:
    """Run ``cachefs`` *words* in surroundings that hold nothing but *home* and *variables*."""
    done = subprocess.run(
        [sys.executable, "-m", "cachefs", *map(str, words)],
        env=surroundings(home, **variables),
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def contents(directory: Path) -> list[str]:
    """Every path below *directory*, to see that nothing was created."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
