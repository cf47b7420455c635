"""The object store under the mounts: a real radosgw that keeps its data in memory, on loopback."""

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.servers import radosgw
from tools.bench.bucket import Bucket


@dataclass(frozen=True, slots=True)
class Count:
    """What the gateway has answered so far."""

    requests: int
    bytes_sent: int


@dataclass(frozen=True, slots=True)
class Gateway:
    """The running gateway: its bucket, and its own count of what it was asked."""

    bucket: Bucket
    admin_socket: Path

    def count(self) -> Count:
        """The counters now; asking is not a request."""
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(10)
            asked.connect(str(self.admin_socket))
            asked.sendall(json.dumps({"prefix": "perf dump", "format": "json"}).encode() + b"\0")
            with asked.makefile("rb") as answer:
                (length,) = struct.unpack(">I", answer.read(4))
                counters = json.loads(answer.read(length))["rgw"]
        return Count(counters["req"], counters["get_b"])


class NoGateway(Exception):
    """radosgw is not installed, or did not start."""


@contextlib.contextmanager
def gateway(directory: Path) -> Iterator[Gateway]:
    """A gateway with nothing in it; it ends with the block, and with this process however that ends."""
    missing = radosgw.missing_programs()
    if missing:
        raise NoGateway(
            f"not installed: {', '.join(missing)} "
            "(apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common)"
        )
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(radosgw.radosgw(directory))
        except AssertionError as error:  # how the servers of the tests say that they did not start
            raise NoGateway(f"radosgw did not start: {error}") from None
        (admin_socket,) = (directory / "run").glob("client.rgw.*.asok")
        yield Gateway(Bucket(server.url, server.access, server.secret), admin_socket)
