"""What the tests of the mount stand on: a watchdog that frees, a relay that changes nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount import forks, programs
from tests.mount.harness import Mount, cachefs, environment, mounted
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


@pytest.mark.parametrize(
    "words",
    [
        ["status", "/nowhere/at/all"],
        ["mount", "s3://bucket", "/nowhere/at/all"],
        ["mount", "s3://bucket", "/nowhere/at/all", "--no-such-option"],
        ["recover", "--help"],
    ],
    ids=" ".join,
)
def test_a_fork_says_and_returns_what_a_process_of_its_own_does(
    words: list[str], tmp_path: Path
) -> None:
    env = environment(tmp_path, {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"})
    assert forks.can_fork([sys.executable, "-m", "cachefs"], env) != bool(
        os.environ.get("CACHEFS_TEST_FRESH")
    )

    own, forked = (cachefs(*words, env=env, fresh=fresh) for fresh in (True, False))

    assert (own.returncode, own.stdout, own.stderr) == (
        forked.returncode,
        forked.stdout,
        forked.stderr,
    )


def test_a_fork_dies_of_a_signal_as_any_process_does(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.mount.child"]
    with (tmp_path / "out").open("wb") as out:
        env = environment(tmp_path, {})
        if not forks.can_fork(argv, env):
            pytest.skip("every process is started as users start theirs")
        process = forks.fork(argv, env, stdout=out.fileno(), stderr=out.fileno())
        assert process.wait(20) == 0, "its standard input has ended"
        process = forks.fork(
            [sys.executable, "-m", "cachefs", "status", "--watch"],
            env,
            stdout=out.fileno(),
            stderr=out.fileno(),
        )
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.kill()
    assert process.wait(20) == -signal.SIGKILL == process.poll()
    process.kill()  # of what has ended, nothing comes


def test_what_the_interpreter_reads_at_its_start_wants_a_process_of_its_own(
    tmp_path: Path,
) -> None:
    argv = [sys.executable, "-m", "cachefs"]
    for name in ("LD_PRELOAD", "LC_ALL", "PYTHONHASHSEED", "TZ"):
        assert not forks.can_fork(argv, environment(tmp_path, {name: "1"}))
    assert not forks.can_fork(["unshare", *argv], environment(tmp_path, {}))


def test_a_fork_that_has_ended_before_anybody_looks_is_told_of_as_any_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def gone(pid: int) -> int:
        raise ProcessLookupError(pid)

    monkeypatch.setattr(os, "pidfd_open", gone)
    argv, env = [sys.executable, "-m", "cachefs", "--version"], environment(tmp_path, {})
    if not forks.can_fork(argv, env):
        pytest.skip("every process is started for real")
    done = forks.run(argv, env, timeout_s=60)
    assert done.returncode == 0
    assert done.stdout.startswith("cachefs ")
