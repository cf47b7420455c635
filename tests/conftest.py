"""What every test shares. A fixture with one user lives beside that user."""

import faulthandler
import os
import re
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import hypothesis
import pytest

_LONGEST_SOAK_S: Final = 6 * 3600


def pytest_configure() -> None:
    """Let `kill -USR1` show where a hanging run stands, and time no example: machines are shared.

    What a shell starts in the background ignores SIGINT, and so would every program that a test starts and interrupts.
    """
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    hypothesis.settings.register_profile("untimed", parent=hypothesis.settings(), deadline=None)
    hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a soak hours, unless it says itself how long it may take: the time for a test is for quick ones."""
    for item in items:
        if item.get_closest_marker("soak") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_LONGEST_SOAK_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail, in CI, what would be skipped because the machine lacks something: there, it must not.

    Such a skip says "not installed" or "needs …"; others say why the test means nothing here.
    """
    report = yield
    if report.skipped and os.environ.get("CI") and call.excinfo:
        reason = str(call.excinfo.value)
        if re.search(r"\b(not installed|needs)\b", reason):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} would be skipped in CI: {reason}"
    return report


def mounts_below(directory: Path) -> list[str]:
    """The FUSE mounts in *directory*, as the kernel names them; asks nothing of the mounts."""
    table = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    rows = [line.split() for line in table.splitlines()]
    return [
        row[1] for row in rows if row[2].startswith("fuse") and row[1].startswith(f"{directory}/")
    ]


@pytest.fixture(scope="session", autouse=True)
def _no_mount_outlives_the_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # A mount left behind hangs whoever touches it next, the removal of old temporary
    # directories by the next run included.
    base = tmp_path_factory.getbasetemp()
    yield
    left = mounts_below(base)
    assert not left, f"mounts left behind by this run: {', '.join(left)}"
