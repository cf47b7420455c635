"""The object store under the mounts: a real radosgw that keeps its data in memory, on loopback."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.servers import radosgw
from tools.bench.bucket import Bucket


class NoGateway(Exception):
    """radosgw is not installed, or did not start."""


@contextlib.contextmanager
def gateway(directory: Path) -> Iterator[Bucket]:
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
        yield Bucket(server.url, server.access, server.secret)
