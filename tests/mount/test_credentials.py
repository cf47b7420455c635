"""Credentials are replaced, and rights and quotas taken and given back, while the store is mounted."""

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import swiftclient
import yaml

from tests.mount import programs
from tests.mount.conftest import Servers
from tests.mount.harness import Mount, cachefs, wait_until
from tests.mount.proxy import Answer
from tests.mount.stores import LiveStore, S3Bucket, SwiftContainer, Target
from tests.servers.radosgw import RadosGateway

Mounting = Callable[..., Mount]

AT_ONCE = ("--upload", "background", "--upload-delay", "0")


class User:
    """Somebody with an account of his own at a radosgw, a bucket there, and the keys to it in a file."""

    def __init__(self, gateway: RadosGateway, directory: Path) -> None:
        self.gateway = gateway
        self.name = f"user-{uuid.uuid4().hex[:12]}"
        self.key = f"{self.name}-0"
        self.file = directory / "credentials"
        self.admin(
            "user", "create", "--display-name=x", f"--access-key={self.key}", "--secret-key=s"
        )
        server = replace(gateway, access=self.key, secret="s")
        self.bucket = S3Bucket("radosgw", server)
        # To look past cachefs at any time.
        self.admin(
            "key", "create", "--key-type=s3", "--access-key=" + self.spare, "--secret-key=s"
        )
        self.bucket._client = replace(gateway, access=self.spare, secret="s").sdk()
        self.write(self.key)

    @property
    def spare(self) -> str:
        return f"{self.name}-spare"

    def admin(self, *words: str) -> None:
        self.gateway.admin(*words, f"--uid={self.name}")

    def target(self) -> Target:
        kept = self.bucket.target()
        named = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        environment = {k: v for k, v in kept.environment.items() if k not in named}
        return replace(
            kept, environment={**environment, "AWS_SHARED_CREDENTIALS_FILE": str(self.file)}
        )

    def write(self, key: str) -> None:
        """Put *key* into the file."""
        new = self.file.with_suffix(".new")
        new.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=s\n")
        new.rename(self.file)

    def rotate(self) -> str:
        """Have the store know another key, and no longer the one before. Return it."""
        old, self.key = self.key, f"{self.name}-{uuid.uuid4().hex[:6]}"
        self.admin("key", "create", "--key-type=s3", f"--access-key={self.key}", "--secret-key=s")
        self.admin("key", "rm", "--key-type=s3", f"--access-key={old}")
        return self.key


@pytest.fixture
def user(servers: Servers, tmp_path: Path) -> Iterator[User]:
    made = User(servers.gateway(), tmp_path)
    with contextlib.closing(made.bucket):
        yield made


def dirty(mount: Mount) -> dict[str, tuple[str, str]]:
    """What waits: its state, and why."""
    found: list[dict[str, str]] = mount.status()["dirty"]
    return {one["path"]: (one["state"], one["error"] or "") for one in found}


@pytest.mark.parametrize("mode", [pytest.param("close", marks=pytest.mark.soak), "background"])
def test_keys_that_are_rotated_are_taken_up_and_what_waited_is_stored(
    mode: str, user: User, mounting: Mounting
) -> None:
    options = ("--upload", mode, "--upload-delay", "0")
    with mounting(user.target(), *options) as mount:
        mount.do(programs.write_file, mount / "before", b"before")
        mount.wait_clean()
        new = user.rotate()
        if mode == "close":
            with pytest.raises(PermissionError):
                mount.do(programs.write_file, mount / "waiting", b"waiting")
        else:
            mount.do(programs.write_file, mount / "waiting", b"waiting")
        wait_until(lambda: "InvalidAccessKeyId" in dirty(mount)["waiting"][1], "why it waits")
        assert dirty(mount)["waiting"][0] != "parked"
        assert mount.do(programs.read_file, mount / "before") == b"before"
        assert mount.do(programs.read_file, mount / "waiting") == b"waiting"

        user.write(new)
        mount.wait_clean()

        assert user.bucket.view() == {"before": b"before", "waiting": b"waiting"}
        mount.do(programs.write_file, mount / "after", b"after")
        mount.wait_clean()
        log = mount.log_text()

    assert user.key not in log
    assert user.bucket.get("after") == b"after"


@pytest.mark.soak
def test_a_flush_stores_at_once_what_the_rotated_keys_have_kept_waiting(
    user: User, mounting: Mounting
) -> None:
    with mounting(user.target(), *AT_ONCE) as mount:
        mount.do(os.listdir, mount.mountpoint)
        new = user.rotate()
        for number in range(5):
            mount.do(programs.write_file, mount / f"file{number}", b"content")
        wait_until(lambda: all(error for _, error in dirty(mount).values()), "all are denied")
        user.write(new)

        done = cachefs("flush", mount.mountpoint, "--wait", env=mount.env)

        assert done.returncode == 0, done.stderr
        assert len(user.bucket.keys()) == 5


@pytest.mark.soak
def test_a_key_that_is_replaced_in_time_is_noticed_by_no_program(
    user: User, mounting: Mounting
) -> None:
    with mounting(user.target(), "--metadata-ttl", "0", "--negative-ttl", "0") as mount:
        mount.do(programs.write_file, mount / "file", b"0")
        for number in range(2):
            user.write(user.rotate())
            assert mount.do(programs.read_file, mount / "file") == b"%d" % number
            mount.do(programs.write_file, mount / "file", b"%d" % (number + 1))
    assert user.bucket.view() == {"file": b"2"}


@pytest.mark.soak
def test_what_waits_for_new_keys_keeps_nobody_from_unmounting_and_is_stored_at_the_next_mount(
    user: User, mounting: Mounting
) -> None:
    with mounting(user.target(), *AT_ONCE) as mount:
        mount.do(os.listdir, mount.mountpoint)
        new = user.rotate()
        mount.do(programs.write_file, mount / "file", b"content")
        assert mount.stop() == 5
        user.write(new)
        mount.start()
        mount.wait_clean()
    assert user.bucket.view() == {"file": b"content"}


@pytest.mark.soak
def test_a_bucket_that_becomes_read_only_keeps_what_is_written_until_it_is_not(
    user: User, mounting: Mounting
) -> None:
    with mounting(user.target()) as mount:
        mount.do(programs.write_file, mount / "before", b"before")
        user.admin("user", "modify", "--op-mask=read")
        with pytest.raises(PermissionError):
            mount.do(programs.write_file, mount / "file", b"content")
        state, why = dirty(mount)["file"]
        assert (state, "AccessDenied" in why or "403" in why) == ("queued", True)
        listed = cachefs("recover", "list", "--of", mount.mountpoint, env=mount.env).stdout
        assert "file" in listed
        assert why in listed

        user.admin("user", "modify", "--op-mask=read, write, delete")
        mount.wait_clean()

    assert user.bucket.get("file") == b"content"


@pytest.mark.soak
def test_what_a_quota_refuses_is_parked_exported_and_stored_when_it_is_lifted(
    user: User, mounting: Mounting, tmp_path: Path
) -> None:
    with mounting(user.target()) as mount:
        mount.do(programs.write_file, mount / "first", b"1")
        user.admin("quota", "set", "--quota-scope=bucket", "--max-objects=1")
        user.admin("quota", "enable", "--quota-scope=bucket")
        for name in ("a", "b"):
            with pytest.raises(OSError, match="quota") as refused:
                mount.do(programs.write_file, mount / name, name.encode())
            assert refused.value.errno == errno.EDQUOT
        _is_parked_and_outlives_a_remount(mount, {"a", "b"}, "QuotaExceeded", tmp_path)
        user.admin("quota", "disable", "--quota-scope=bucket")
        _is_stored_by_recover_and_by_another_write(mount)
    assert user.bucket.view() == {"first": b"1", "a": b"a", "b": b"anew"}


@pytest.mark.soak
@pytest.mark.parametrize("store", ["swift"], indirect=True)
def test_what_a_containers_quota_refuses_is_parked_exported_and_stored_when_it_is_lifted(
    store: LiveStore, mounting: Mounting, tmp_path: Path
) -> None:
    assert isinstance(store, SwiftContainer)
    quota = {"X-Container-Meta-Quota-Count": "1"}
    with mounting(store.target()) as mount:
        mount.do(programs.write_file, mount / "first", b"1")
        store._connection.post_container(store.bucket, quota)
        for name in ("a", "b"):
            with pytest.raises(OSError, match="quota") as refused:
                mount.do(programs.write_file, mount / name, name.encode())
            assert refused.value.errno == errno.EDQUOT
        _is_parked_and_outlives_a_remount(mount, {"a", "b"}, "exceeds quota", tmp_path)
        store._connection.post_container(store.bucket, dict.fromkeys(quota, ""))
        _is_stored_by_recover_and_by_another_write(mount)
    assert store.view() == {"first": b"1", "a": b"a", "b": b"anew"}


@pytest.mark.parametrize(
    ("status", "code", "number"),
    [
        (400, "EntityTooLarge", errno.EFBIG),
        pytest.param(507, "InsufficientStorage", errno.ENOSPC, marks=pytest.mark.soak),
        pytest.param(400, "InvalidArgument", errno.EIO, marks=pytest.mark.soak),
    ],
)
def test_what_is_refused_for_good_is_told_with_the_reason_and_not_sent_again(
    status: int, code: str, number: int, new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    said = f"<Error><Code>{code}</Code><Message>so it is</Message></Error>".encode()
    with store.proxy() as proxy, mounting(store.target(proxy)) as mount:
        mount.do(os.listdir, mount.mountpoint)
        with proxy.during(lambda e: store.is_object(e, "PUT"), Answer(status, {}, said)) as rule:
            with pytest.raises(OSError, match=r".") as refused:
                mount.do(programs.write_file, mount / "file", b"content")
            assert refused.value.errno == number
            assert dirty(mount) == {"file": ("parked", f"{code}: so it is")}
            assert mount.do(programs.read_file, mount / "file") == b"content"
            assert rule.hits == 1
        mount.do(programs.append, mount / "file", b" and more")
        assert store.get("file") == b"content and more"
        assert dirty(mount) == {}


def _is_parked_and_outlives_a_remount(
    mount: Mount, names: set[str], why: str, directory: Path
) -> None:
    assert mount.stop() == 5
    mount.start()

    def is_tried() -> bool:
        return all(state == "parked" for state, _ in dirty(mount).values())

    wait_until(is_tried, "the next mount has tried again")
    assert set(dirty(mount)) == names
    assert all(why in reason for _, reason in dirty(mount).values())
    for name in names:
        assert mount.do(programs.read_file, mount / name) == name.encode()
    listed = cachefs("recover", "list", "--of", mount.mountpoint, env=mount.env).stdout
    assert listed.count(why) == len(names)
    rescued = directory / "rescued"
    done = cachefs(
        *("recover", "export", "--all", "--of", mount.mountpoint, "--to", rescued), env=mount.env
    )
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_text() for path in rescued.iterdir()} == {n: n for n in names}


def _is_stored_by_recover_and_by_another_write(mount: Mount) -> None:
    done = cachefs("recover", "upload", "a", "--of", mount.mountpoint, env=mount.env)
    assert done.returncode == 0, done.stderr
    mount.do(programs.write_file, mount / "b", b"anew")
    assert dirty(mount) == {}


@pytest.mark.soak
def test_a_password_that_is_changed_is_taken_up_from_clouds_yaml(
    servers: Servers, mounting: Mounting, tmp_path: Path
) -> None:
    gateway = servers.gateway()
    name = f"user-{uuid.uuid4().hex[:12]}"
    gateway.admin("user", "create", f"--uid={name}", "--display-name=x")
    gateway.admin("subuser", "create", f"--uid={name}", f"--subuser={name}:swift", "--access=full")

    def set_password(password: str) -> None:
        gateway.admin(
            *(
                "key",
                "create",
                f"--subuser={name}:swift",
                "--key-type=swift",
                f"--secret={password}",
            )
        )

    def write(password: str) -> None:
        said = {"auth_url": gateway.swift_auth, "username": f"{name}:swift", "password": password}
        document = {"clouds": {"mine": {"auth_type": "v1password", "auth": said}}}
        clouds.write_text(yaml.safe_dump(document))

    clouds = tmp_path / "clouds.yaml"
    set_password("first")
    write("first")
    sdk = swiftclient.Connection(gateway.swift_auth, f"{name}:swift", "first", retries=0)
    sdk.put_container(name)
    environment = {"OS_CLOUD": "mine", "OS_CLIENT_CONFIG_FILE": str(clouds)}
    with mounting(Target(f"swift://{name}", (), environment), *AT_ONCE) as mount:
        mount.do(os.listdir, mount.mountpoint)
        set_password("hush-second")
        mount.do(programs.write_file, mount / "file", b"content")
        wait_until(lambda: dirty(mount)["file"][1], "it is denied")
        write("hush-second")
        mount.wait_clean()
        log = mount.log_text()
    assert "hush" not in log
    anew = swiftclient.Connection(gateway.swift_auth, f"{name}:swift", "hush-second", retries=0)
    assert anew.get_object(name, "file")[1] == b"content"
