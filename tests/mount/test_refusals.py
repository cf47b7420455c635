"""What cannot be mounted: one line that says why, the right exit code, nothing left behind, in bounded time."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.harness import Mount, MountFailed, cachefs, environment, mounted
from tests.mount.proxy import Answer, BlackHole
from tests.mount.stores import LiveStore, Target

Mounting = Callable[..., Mount]


class Attempt:
    """A mount that is not expected to succeed."""

    def __init__(self, base: Path) -> None:
        self.mountpoint = base / "mnt"
        self.mountpoint.mkdir()
        self.cache_dir = base / "cache"
        self.home = base / "home"
        self.home.mkdir()
        self.before: tuple[str, ...] = ()

    def argv(self, target: Target, *options: str) -> tuple[str, ...]:
        return (
            *("mount", target.source, str(self.mountpoint), "--cache-dir", str(self.cache_dir)),
            *(*target.options, *options),
        )

    def refused(self, target: Target, *options: str, code: int, within_s: float = 15) -> str:
        """Try to mount; check all that a refusal promises; return its line without the prefix."""
        return self.check(
            lambda: cachefs(
                *self.argv(target, *options),
                env=environment(self.home, target.environment),
                timeout_s=within_s + 30,
            ),
            code,
            within_s,
        )

    def check(
        self, run: Callable[[], subprocess.CompletedProcess[str]], code: int, within_s: float
    ) -> str:
        was_mounted, had_cache = mounted(self.mountpoint), os.path.lexists(self.cache_dir)
        start = time.monotonic()
        done = run()
        took = time.monotonic() - start

        assert "Traceback" not in done.stderr, done.stderr
        line = re.fullmatch(r"cachefs: ([^\n]+)\n", done.stderr)
        assert line is not None, f"not one line: {done.stderr!r}"
        assert done.stdout == ""
        assert done.returncode == code, done.stderr
        assert took < within_s
        assert mounted(self.mountpoint) == was_mounted
        assert os.path.lexists(self.cache_dir) == had_cache, "nothing is created"
        assert self.leftovers() == set(), "nothing is created"
        return line[1]

    def leftovers(self) -> set[str]:
        return {path.name for path in self.home.rglob("*") if path.is_file()}


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Attempt]:
    one = Attempt(tmp_path)
    yield one
    while mounted(one.mountpoint):
        subprocess.run(["umount", "-l", one.mountpoint], check=True, timeout=20)


@pytest.fixture(params=["-f", None], ids=["foreground", "daemon"])
def how(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """In the foreground, and by a parent that has to tell what its child said."""
    return () if request.param is None else (request.param,)


@pytest.fixture
def target(new_store: Callable[[str], LiveStore]) -> Target:
    return new_store("file").target()


def test_a_mountpoint_that_is_missing(
    attempt: Attempt, target: Target, how: tuple[str, ...]
) -> None:
    attempt.mountpoint.rmdir()

    said = attempt.refused(target, *how, code=2)

    assert str(attempt.mountpoint) in said
    assert not attempt.mountpoint.exists()


def test_a_mountpoint_that_is_a_file(
    attempt: Attempt, target: Target, how: tuple[str, ...]
) -> None:
    attempt.mountpoint.rmdir()
    attempt.mountpoint.write_bytes(b"mine")

    assert "directory" in attempt.refused(target, *how, code=2)

    assert attempt.mountpoint.read_bytes() == b"mine"


def test_a_mountpoint_that_is_not_empty(
    attempt: Attempt, target: Target, how: tuple[str, ...]
) -> None:
    (attempt.mountpoint / "precious").write_bytes(b"mine")

    assert "empty" in attempt.refused(target, *how, code=2)

    assert os.listdir(attempt.mountpoint) == ["precious"]


def test_a_mountpoint_that_is_mounted_already(
    new_store: Callable[[str], LiveStore], attempt: Attempt, mounting: Mounting
) -> None:
    store = new_store("file")
    with mounting(store.target(), name="first") as first:
        attempt.mountpoint.rmdir()
        attempt.mountpoint = first.mountpoint

        assert "already a mount" in attempt.refused(store.target(), "-f", code=2)

        assert first.do(os.listdir, first.mountpoint) == []


def test_a_second_daemon_on_one_cache_directory_is_told_the_pid_of_the_first(
    new_store: Callable[[str], LiveStore],
    attempt: Attempt,
    mounting: Mounting,
    how: tuple[str, ...],
) -> None:
    store = new_store("file")
    with mounting(store.target(), name="first") as first:
        assert first.process is not None
        attempt.cache_dir = first.cache_dir

        said = attempt.refused(store.target(), *how, code=2)

        assert re.search(rf"\b{first.process.pid}\b", said)
        assert first.do(os.listdir, first.mountpoint) == []


def test_a_bucket_that_is_missing(
    new_store: Callable[[str], LiveStore], attempt: Attempt, how: tuple[str, ...]
) -> None:
    target = new_store("moto").target()
    missing = Target("s3://no-such-bucket-here", target.options, target.environment)

    said = attempt.refused(missing, *how, code=3)

    assert "no-such-bucket-here" in said
    assert target.options[1] in said, "the line names the endpoint"


def test_a_container_that_is_missing(
    new_store: Callable[[str], LiveStore], attempt: Attempt
) -> None:
    target = new_store("swift").target()
    missing = Target("swift://no-such-container-here", target.options, target.environment)

    assert "no-such-container-here" in attempt.refused(missing, "-f", code=3)


def test_a_directory_that_is_missing(attempt: Attempt, tmp_path: Path) -> None:
    assert "nowhere" in attempt.refused(Target(f"file://{tmp_path}/nowhere"), "-f", code=3)

    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_a_wrong_key(
    new_store: Callable[[str], LiveStore], attempt: Attempt, how: tuple[str, ...], variable: str
) -> None:
    target = new_store("radosgw").target()
    wrong = Target(target.source, target.options, {**target.environment, variable: "wr0ngk3y"})

    said = attempt.refused(wrong, *how, code=3)

    assert "wr0ngk3y" not in said or variable == "AWS_ACCESS_KEY_ID", "a secret is never shown"


def test_a_wrong_swift_password(
    new_store: Callable[[str], LiveStore], attempt: Attempt, how: tuple[str, ...]
) -> None:
    target = new_store("swift").target()
    wrong = Target(target.source, target.options, {**target.environment, "ST_KEY": "wr0ngk3y"})

    assert "wr0ngk3y" not in attempt.refused(wrong, *how, code=3)


def test_no_credentials_at_all(new_store: Callable[[str], LiveStore], attempt: Attempt) -> None:
    target = new_store("moto").target()

    assert "credentials" in attempt.refused(Target(target.source, target.options), "-f", code=3)


@pytest.mark.parametrize("fault", ["refused", "black hole", "500"])
def test_an_endpoint_that_cannot_be_reached(
    new_store: Callable[[str], LiveStore], attempt: Attempt, how: tuple[str, ...], fault: str
) -> None:
    store = new_store("moto")
    with store.proxy() as proxy:
        target = store.target(proxy)
        if fault == "refused":
            proxy.refuse()
        else:
            proxy.on(lambda _: True, BlackHole() if fault == "black hole" else Answer(500))

        said = attempt.refused(target, *how, "--timeout", "3s", code=4)

        assert proxy.url in said


def test_a_host_that_does_not_exist(
    new_store: Callable[[str], LiveStore], attempt: Attempt
) -> None:
    target = new_store("moto").target()
    options = ("--endpoint-url", "http://no-such-host.invalid:9000")

    said = attempt.refused(
        Target(target.source, options, target.environment), "-f", "--timeout", "3s", code=4
    )

    assert "no-such-host.invalid" in said


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--cache-sise", "1GiB"), "--cache-size"),
        (("--cache-size", "ten"), "ten"),
        (("--upload", "sometimes"), "sometimes"),
        (("-o", "nonsense=1"), "nonsense"),
        (("--timeout", "-1"), "-1"),
    ],
)
def test_options_that_mean_nothing(
    attempt: Attempt, target: Target, options: tuple[str, ...], word: str
) -> None:
    assert word in attempt.refused(target, *options, "-f", code=2)


@pytest.mark.parametrize(
    "source", ["ftp://bucket", "bucket", "s4://x/y", "file://relative/dir", ""]
)
def test_a_source_that_is_none(attempt: Attempt, source: str) -> None:
    attempt.refused(Target(source), "-f", code=2)


def test_a_cache_directory_that_is_shared_with_others(attempt: Attempt, target: Target) -> None:
    attempt.cache_dir.mkdir()
    attempt.cache_dir.chmod(0o777)

    assert str(attempt.cache_dir) in attempt.refused(target, "-f", code=2)

    assert os.listdir(attempt.cache_dir) == []


def test_a_cache_directory_that_is_a_file(attempt: Attempt, target: Target) -> None:
    attempt.cache_dir.write_bytes(b"mine")

    assert str(attempt.cache_dir) in attempt.refused(target, "-f", code=2)

    assert attempt.cache_dir.read_bytes() == b"mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a mount namespace of its own")
def test_a_machine_without_dev_fuse(attempt: Attempt, target: Target, tmp_path: Path) -> None:
    # A /dev of our own, in a mount namespace of our own, with all but the one that is missing.
    script = (
        'mkdir "$0/dev" && cp -a /dev/null /dev/zero /dev/random /dev/urandom "$0/dev/"'
        ' && mount --bind "$0/dev" /dev && exec "$@"'
    )

    said = attempt.check(lambda: _in_namespace(attempt, target, script, tmp_path), 2, 15)

    assert "/dev/fuse" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a mount namespace of its own")
def test_a_machine_without_fusermount3(target: Target) -> None:
    # Covered by an empty file that nobody can execute, for a user who cannot mount without it.
    script = (
        'touch "$0/covered" && mount --bind "$0/covered" "$(command -v fusermount3)"'
        ' && chmod 711 "$0" && chown -R nobody "$0/mnt" "$0/home"'
        ' && exec setpriv --reuid nobody --regid nogroup --clear-groups "$@"'
    )
    # Not below tmp_path, which only its owner may enter.
    with tempfile.TemporaryDirectory() as directory:
        attempt = Attempt(Path(directory))
        attempt.cache_dir = attempt.home / "cache"

        said = attempt.check(
            lambda: _in_namespace(attempt, target, script, Path(directory)), 2, 15
        )

    assert "fusermount3" in said


def _in_namespace(
    attempt: Attempt, target: Target, script: str, directory: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
                str(directory),
            ),
            *(sys.executable, "-m", "cachefs", *attempt.argv(target, "-f")),
        ],
        env=environment(attempt.home, target.environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_mount_that_is_refused_in_the_foreground_is_no_mount(
    mounting: Mounting, tmp_path: Path
) -> None:
    with pytest.raises(MountFailed) as failure, mounting(Target(f"file://{tmp_path}/nowhere")):
        pass

    assert failure.value.returncode == 3


def test_the_command_returns_when_the_mount_answers(
    new_store: Callable[[str], LiveStore], attempt: Attempt
) -> None:
    store = new_store("file")
    store.put("file", b"content")
    env = environment(attempt.home, {})

    done = cachefs(*attempt.argv(store.target()), env=env, timeout_s=30)

    assert done.returncode == 0, done.stderr
    assert mounted(attempt.mountpoint) is not None
    listing = subprocess.run(
        ["ls", attempt.mountpoint], capture_output=True, timeout=20, check=True
    )
    assert listing.stdout == b"file\n"
    done = cachefs("umount", attempt.mountpoint, env=env)
    assert done.returncode == 0, done.stderr
    assert mounted(attempt.mountpoint) is None
