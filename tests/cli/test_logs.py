"""The daemon's log, where it cannot be written for a while."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs.cli.logs import log_of_daemon
from cachefs.config import LogFormat


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, which afterwards is as it was."""
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    logger.handlers = []
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers = handlers
    logger.setLevel(level)


@pytest.mark.parametrize("is_own", [True, False])
def test_a_log_whose_directory_is_taken_away_troubles_nobody_and_goes_on_when_it_is_back(
    root: logging.Logger, tmp_path: Path, *, is_own: bool
) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    file = directory / "the.log"
    log_of_daemon(
        str,
        LogFormat.TEXT,
        file=None if is_own else file,
        own_file=file if is_own else None,
        verbose=False,
    )
    root.info("first")
    moved = directory.rename(tmp_path / "moved")
    if is_own:  # which is opened anew only when a line was lost
        (handler,) = root.handlers
        assert isinstance(handler, logging.FileHandler)
        assert handler.stream is not None
        handler.stream.close()
    for _ in range(3):
        root.warning("lost")
    moved.rename(directory)
    root.info("last")

    said = [line.partition(": ")[2] for line in file.read_text().splitlines()]
    assert said[0] == "first"
    assert said[1:] == ["3 lines could not be logged", "last"]
