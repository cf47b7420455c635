"""Servers for tests of the cloud manager, one of each for all of them."""

import os
from collections.abc import Iterator

import pytest

from tests.servers.moto import moto
from tests.servers.s3 import S3Server
from tests.servers.swift import SwiftServer, is_installed, swift


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    with moto() as server:
        yield server


@pytest.fixture
def swift_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    there = is_installed("swift")
    if not there and not os.environ.get("CI"):
        pytest.skip("swift is not installed: tools/setup test")
    with swift(tmp_path_factory.mktemp("swift")) as server:
        yield server
