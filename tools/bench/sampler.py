"""Runs a module and notes, by the kernel's profiling timer, where the CPU time of each thread goes.

``sampler.py WINDOW OUT MODULE ARGS…``: while the file WINDOW exists, each thread's CPU time since the last tick is
booked on the stack that it is found in; when WINDOW goes, the sums are written to OUT as JSON. What a thread
spends waiting costs no CPU, so it does not show; what it spends in C shows under the Python that called it.
The ticks interrupt the main thread wherever it is, so its stacks are true. The other threads are only seen
where they have let go of the interpreter's lock, so among their own lines the shares are rough.
On the standard library alone, because it lives in the process that it looks at.
"""

import json
import os
import runpy
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final

TICK_S: Final = 0.002
LOOK_S: Final = 0.01


class Sampler:
    """The sums so far."""

    def __init__(self) -> None:
        self._sums: Counter[tuple[str, ...]] = Counter()
        self._spent: dict[int | None, int] = {}
        self._threads: Sequence[threading.Thread] = ()

    def tick(self, _signal: int, main: FrameType | None) -> None:
        """Book what each thread has spent since the last tick. A signal handler, so in the main thread."""
        frames = sys._current_frames()
        for thread in self._threads:
            is_main = thread is threading.main_thread()
            frame = main if is_main else frames.get(thread.ident or 0)
            now = _cpu_ns(thread.native_id)
            new = now - self._spent.get(thread.native_id, now if is_main else 0)
            self._spent[thread.native_id] = now
            if frame is not None and new > 0:
                self._sums[(_kind(thread), *_stack(frame))] += new

    def watch(self, window: Path, out: Path) -> None:
        """Let it tick from the moment that *window* appears until it goes; then write."""
        pause = threading.Event()
        while not window.exists():
            pause.wait(LOOK_S)
        # Looked up here: it takes a lock, which the thread that a tick interrupts may hold.
        self._threads = threading.enumerate()
        self._spent = {each.native_id: _cpu_ns(each.native_id) for each in self._threads}
        signal.setitimer(signal.ITIMER_PROF, TICK_S, TICK_S)
        while window.exists():
            pause.wait(LOOK_S)
            self._threads = threading.enumerate()
        signal.setitimer(signal.ITIMER_PROF, 0)
        document = [{"stack": stack, "seconds": ns / 1e9} for stack, ns in self._sums.items()]
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(document))
        partial.rename(out)


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
    sampler = Sampler()
    signal.signal(signal.SIGPROF, sampler.tick)
    where = (Path(window), Path(out))
    threading.Thread(target=sampler.watch, args=where, name="sampler", daemon=True).start()
    sys.path[0] = os.getcwd()
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
