"""Runs a module with a thread beside it that notes where the CPU time of every other thread goes.

``sampler.py WINDOW OUT MODULE ARGS…``: while the file WINDOW exists, each thread's CPU time since the last look is
booked on the stack that it is found in; when WINDOW goes, the sums are written to OUT as JSON. What a thread
spends waiting costs no CPU, so it does not show; what it spends in C shows under the Python that called it.
On the standard library alone, because it lives in the process that it looks at.
"""

import json
import os
import runpy
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Final

INTERVAL_S: Final = 0.004
IDLE_LOOK_S: Final = 0.01


def watch(window: Path, out: Path) -> None:
    """Look, from the moment that *window* appears until it goes."""
    pause = threading.Event()
    while not window.exists():
        pause.wait(IDLE_LOOK_S)
    sums: Counter[tuple[str, ...]] = Counter()
    spent = {thread.native_id: _cpu_ns(thread.native_id) for thread in threading.enumerate()}
    while window.exists():
        pause.wait(INTERVAL_S)
        _look(sums, spent)
    document = [{"stack": stack, "seconds": ns / 1e9} for stack, ns in sums.items()]
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(document))
    partial.rename(out)


def _look(sums: Counter[tuple[str, ...]], spent: dict[int | None, int]) -> None:
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if frame is None or thread is threading.current_thread():
            continue
        now = _cpu_ns(thread.native_id)
        new = now - spent.get(thread.native_id, 0)
        spent[thread.native_id] = now
        if new > 0:
            sums[(_kind(thread), *_stack(frame))] += new


def _kind(thread: threading.Thread) -> str:
    return "main thread" if thread is threading.main_thread() else "other threads"


def _stack(frame: FrameType | None) -> list[str]:
    names = []
    while frame is not None:
        code = frame.f_code
        names.append(f"{code.co_qualname} ({_short(code.co_filename)}:{code.co_firstlineno})")
        frame = frame.f_back
    return names[::-1]


def _short(path: str) -> str:
    return "/".join(path.rsplit("/", 3)[-3:])


def _cpu_ns(native_id: int | None) -> int:
    try:
        with open(f"/proc/self/task/{native_id}/schedstat", "rb", buffering=0) as file:
            return int(file.read().split()[0])
    except OSError:
        return 0


def main(argv: list[str]) -> None:
    window, out, module, *rest = argv
    threading.Thread(
        target=watch, args=(Path(window), Path(out)), name="sampler", daemon=True
    ).start()
    sys.path[0] = os.getcwd()
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
