"""The trace of opens, for ``simulate``: one line for each handle that is given back."""

from pathlib import Path

from cachefs.core.traceline import HEADER, TraceLine
from cachefs.engine.linefile import LineFile
from cachefs.engine.threads import Threads


class Trace(LineFile[TraceLine]):
    """The file that ``--trace`` names; None: nothing is traced."""

    def __init__(self, path: Path | None, threads: Threads) -> None:
        super().__init__(
            path, threads, name="trace", of="opens", encode=TraceLine.encode, header=HEADER
        )
