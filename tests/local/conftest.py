"""A cache directory for each test, checked when the test is over."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.disk import Disk, opened


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with opened(tmp_path) as disk:
        yield disk
        disk.check()
