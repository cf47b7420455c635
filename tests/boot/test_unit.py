"""The systemd unit, in a container that really boots: up at boot, and nothing is lost at its end.

One boot tells all of it; each test reads its part of what was found.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from tests.boot.container import REPOSITORY, Machine, missing
from tests.mount.proxy import Proxy
from tests.servers.moto import moto
from tests.servers.s3 import S3Server

pytestmark = [pytest.mark.boot, pytest.mark.timeout(400)]

BUCKET: Final = "photos"
CONFIGURATION: Final = """\
[mounts.photos]
source = "file:///srv/store"
mountpoint = "/mnt/photos"
cache_dir = "/var/cache/cachefs/photos"
cache_size = "64MiB"
min_free = "0"
upload = "background"
upload_delay = "1h"
pool = "/var/lib/photos-pool"

[remotes.here]
type = "s3"
endpoint_url = "{url}"

[mounts.bucket]
source = "here:{bucket}/kept"
mountpoint = "/mnt/bucket"
cache_dir = "/var/cache/cachefs/bucket"
upload = "background"
upload_delay = "1h"
timeout = "5s"

[mounts.wrong]
source = "file:///srv/nowhere"
mountpoint = "/mnt/wrong"
cache_dir = "/var/cache/cachefs/wrong"
"""

SCRIPT: Final = """\
unit=cachefs@photos
properties="-p Result -p ExecMainStatus -p ActiveState -p NRestarts"

say active systemctl is-active $unit
say type stat -f -c %T /mnt/photos
say hello cat /mnt/photos/album/hello.txt

echo "written before stop" >/mnt/photos/album/stopped.txt
say waits_before_stop test ! -e /srv/store/album/stopped.txt
say stop systemctl stop $unit
say after_stop systemctl show $unit $properties
say mounted_after_stop grep -c " /mnt/photos " /proc/self/mounts
say stored_by_stop cat /srv/store/album/stopped.txt

say start systemctl start $unit
echo "written before kill" >/mnt/photos/album/killed.txt
systemctl kill --kill-whom=main --signal=KILL $unit
await sh -c "! systemctl -q is-active $unit"
await systemctl -q is-active $unit
say killed cat /mnt/photos/album/killed.txt
say after_kill systemctl show $unit $properties

say pool_of_mount sh -c 'cat "$(cachefs pool pull album hello.txt -D /var/lib/photos-pool)"'
unit=cachefs-pool@9999
say pool_active systemctl is-active $unit
say pulled sh -c 'cat "$(cachefs pool pull album hello.txt -p 9999)"'
say mode_of_pulled stat -c %a /var/lib/cachefs-pool/9999/data/album/hello.txt
systemctl kill --kill-whom=main --signal=KILL $unit
await sh -c "! systemctl -q is-active $unit"
await systemctl -q is-active $unit
say pulled_again sh -c 'cat "$(cachefs pool pull album hello.txt -p 9999)"'
say status_of_pool sh -c 'cachefs status | grep "^pool of"'
say pool_stop systemctl stop $unit
say after_pool_stop systemctl show $unit $properties
say left_by_pool ls -A /var/lib/cachefs-pool/9999/data
say log_of_pool journalctl -q -o cat -u $unit

await sh -c 'test "$(systemctl is-failed cachefs@wrong)" = failed'
say wrong systemctl show cachefs@wrong $properties
say wrong_log journalctl -q -o cat -u cachefs@wrong

echo "written before shutdown" >/mnt/photos/album/shutdown.txt
say waits_before_shutdown test ! -e /srv/store/album/shutdown.txt
unit=cachefs@bucket
say bucket cat /mnt/bucket/hello.txt
echo "written before the outage" >/mnt/bucket/outage.txt
ask outage
systemctl stop $unit
say after_outage systemctl show $unit $properties
say mounted_after_outage grep -c " /mnt/bucket " /proc/self/mounts
ask recovery
say start_again systemctl start $unit
say log_of_bucket journalctl -q -o cat -u $unit
unit=cachefs@photos

say log journalctl -q -o cat -u $unit
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    (store / "album").mkdir()
    (store / "album" / "hello.txt").write_text("hello from the store\n")
    return store


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with moto() as server:
        client = server.sdk()
        client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="kept/hello.txt", Body=b"hello from the bucket\n")
        client.close()
        yield server


@pytest.fixture(scope="module")
def booted(
    store: Path, s3: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    if reason := missing():
        pytest.skip(reason)
    machine = Machine.create(tmp_path_factory.mktemp("boot"))
    where = urlsplit(s3.url)
    try:
        with Proxy(str(where.hostname), int(where.port or 0)) as network:
            machine.shared[store] = "/srv/store"
            prepare(machine, network.url, s3)
            machine.boot(
                SCRIPT,
                enable=[
                    *(f"cachefs@{name}.service" for name in ("photos", "bucket", "wrong")),
                    "cachefs-pool@9999.service",
                ],
                asked={"outage": network.refuse, "recovery": network.relay_again},
            )
        yield machine
    finally:
        shutil.rmtree(machine.root)


def prepare(machine: Machine, url: str, s3: S3Server) -> None:
    configuration = CONFIGURATION.replace("{url}", url).replace("{bucket}", BUCKET)
    machine.write("/etc/cachefs/config.toml", configuration)
    credentials = "".join(f"{name}={value}\n" for name, value in s3.environment().items())
    machine.write("/etc/cachefs/bucket.env", credentials, 0o600)
    for name in ("photos", "bucket", "wrong"):
        (machine.root / "mnt" / name).mkdir()
    machine.write("/etc/cachefs/pool-9999.env", "POOL_OPTIONS=file:///srv/store\n", 0o600)
    for name in ("cachefs@.service", "cachefs-pool@.service"):
        machine.write(f"/etc/systemd/system/{name}", (REPOSITORY / "systemd" / name).read_text())


def test_the_mount_is_up_for_whatever_comes_after_remote_file_systems(booted: Machine) -> None:
    assert booted.said("active") == "active"
    assert "fuse" in booted.said("type")
    assert booted.said("hello") == "hello from the store"


def test_stopping_the_unit_uploads_what_waits_and_unmounts(booted: Machine) -> None:
    assert booted.status("waits_before_stop") == 0, "the test wants a file that waits"
    assert booted.status("stop") == 0
    assert booted.properties("after_stop")["Result"] == "success"
    assert booted.said("mounted_after_stop") == "0"
    assert booted.said("stored_by_stop") == "written before stop"


def test_a_killed_daemon_is_started_again_with_what_was_written(booted: Machine) -> None:
    assert booted.said("killed") == "written before kill"
    assert booted.properties("after_kill")["ActiveState"] == "active"
    assert int(booted.properties("after_kill")["NRestarts"]) >= 1


def test_a_wrong_configuration_fails_once_and_says_why(booted: Machine) -> None:
    wrong = booted.properties("wrong")

    assert wrong["ActiveState"] == "failed"
    assert wrong["ExecMainStatus"] in {"2", "3"}
    assert wrong["NRestarts"] == "0"
    assert "/srv/nowhere" in booted.said("wrong_log")


def test_turning_the_machine_off_uploads_what_waits(booted: Machine, store: Path) -> None:
    assert booted.status("waits_before_shutdown") == 0, "the test wants a file that waits"
    assert (store / "album" / "shutdown.txt").read_text() == "written before shutdown\n"
    assert (store / "album" / "killed.txt").read_text() == "written before kill\n"


def test_credentials_come_from_the_file_beside_the_configuration(booted: Machine) -> None:
    assert booted.said("bucket") == "hello from the bucket"


def test_a_stop_while_the_store_is_away_fails_with_5_and_loses_nothing(
    booted: Machine, s3: S3Server
) -> None:
    after = booted.properties("after_outage")
    assert (after["Result"], after["ExecMainStatus"]) == ("exit-code", "5")
    assert booted.said("mounted_after_outage") == "0"

    assert booted.status("start_again") == 0
    client = s3.sdk()
    stored = client.get_object(Bucket=BUCKET, Key="kept/outage.txt")["Body"].read()
    client.close()
    assert stored == b"written before the outage\n"


def test_a_pool_is_up_at_boot_comes_back_after_a_kill_and_leaves_nothing_when_it_stops(
    booted: Machine,
) -> None:
    assert booted.said("pool_active") == "active"
    assert booted.said("pulled") == booted.said("pulled_again") == "hello from the store"
    assert booted.said("mode_of_pulled") == "444"
    assert booted.said("status_of_pool").startswith("pool of file:///srv/store at /var/lib/")
    assert booted.status("pool_stop") == 0
    after = booted.properties("after_pool_stop")
    assert (after["Result"], after["ActiveState"]) == ("success", "inactive")
    assert booted.said("left_by_pool") == ".cachefs-pool"


def test_a_mount_of_the_configuration_keeps_its_pool_too(booted: Machine) -> None:
    assert booted.said("pool_of_mount") == "hello from the store"


@pytest.mark.parametrize("name", ["log", "log_of_bucket", "log_of_pool", "wrong_log"])
def test_no_log_holds_a_traceback_or_a_secret(booted: Machine, s3: S3Server, name: str) -> None:
    assert "Traceback" not in booted.said(name)
    assert s3.secret not in booted.said(name)
