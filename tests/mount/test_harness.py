"""What the tests of the mount stand on: a watchdog that frees, a relay that changes nothing."""

import os
import signal
from collections.abc import Callable

import pytest

from tests.mount import programs
from tests.mount.harness import Mount, mounted
from tests.mount.stores import LiveStore, S3Bucket
from tests.servers.moto import moto
from tests.servers.s3 import S3Server

Mounting = Callable[..., Mount]


def test_the_watchdog_frees_whoever_waits_for_a_daemon_that_stands_still(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    mount = mounting(new_store("file").target(), watchdog_s=4)
    with pytest.raises(AssertionError, match="watchdog"):
        _wait_for_nothing(mount)

    assert mounted(mount.mountpoint) is None
    assert os.listdir(mount.mountpoint) == []


def _wait_for_nothing(mount: Mount) -> None:
    with mount:
        assert mount.process is not None
        mount.process.send_signal(signal.SIGSTOP)
        waiting = mount.hands()
        waiting.begin(programs.outcome_of_stat, mount / "anything")
        assert waiting.finish(20) != 0


def test_the_relay_counts_and_changes_nothing() -> None:
    content = programs.pattern("relayed", 0, 3_000_000)
    with moto() as server:
        bucket = S3Bucket("moto", server)
        with bucket.proxy() as proxy:
            near = S3Server(proxy.url, server.access, server.secret)
            client = near.sdk()
            client.put_object(Bucket=bucket.bucket, Key="a b/ü", Body=content)
            got = client.get_object(Bucket=bucket.bucket, Key="a b/ü")["Body"].read()
            client.head_object(Bucket=bucket.bucket, Key="a b/ü")
            client.list_objects_v2(Bucket=bucket.bucket)
            client.close()
            seen = [(e.method, bucket.key_in(e.path), e.status) for e in proxy.exchanges()]
            passed = [(e.sent, e.received) for e in proxy.exchanges()[:3]]
        assert bucket.view() == {"a b/ü": content}
        bucket.close()

    assert got == content
    assert seen == [
        ("PUT", "a b/ü", 200),
        ("GET", "a b/ü", 200),
        ("HEAD", "a b/ü", 200),
        ("GET", None, 200),
    ]
    assert passed == [(len(content), 0), (0, len(content)), (0, 0)]
