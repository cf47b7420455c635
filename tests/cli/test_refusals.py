"""What a store refuses is told in one line with exit code 3, and nothing is created. Asked of real radosgw."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import Done, cachefs
from tests.servers.radosgw import missing_programs, radosgw
from tests.servers.s3 import S3Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    missing = missing_programs()
    if missing and not os.environ.get("CI"):
        pytest.skip(f"not installed: {', '.join(missing)}")
    with radosgw(tmp_path_factory.mktemp("radosgw")) as found:
        client = found.sdk()
        client.create_bucket(Bucket="photos")
        client.close()
        yield found


def mount(server: S3Server, home: Path, bucket: str, *words: str, **variables: str) -> Done:
    (home / "drive").mkdir()
    done = cachefs(
        *("mount", f"s3://{bucket}", home / "drive", "--cache-dir", home / "cache"),
        *("--endpoint-url", server.url, "--force-path-style", "--timeout", "10s", *words),
        home=home,
        **{**server.environment(), **variables},
    )
    assert not (home / "cache").exists()
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert server.secret not in done.err
    return done


def test_a_bucket_that_is_not_there(server: S3Server, tmp_path: Path) -> None:
    done = mount(server, tmp_path, "no-such-bucket")

    assert done.err == (
        f"cachefs: cannot mount s3://no-such-bucket: no such bucket at {server.url} — "
        "check the name, or pass --endpoint-url\n"
    )
    assert done.code == 3


def test_a_secret_key_that_is_wrong(server: S3Server, tmp_path: Path) -> None:
    done = mount(server, tmp_path, "photos", AWS_SECRET_ACCESS_KEY="wrong-horse-battery")

    assert done.err.startswith(
        f"cachefs: cannot mount s3://photos: access denied at {server.url}: "
    )
    assert " — " in done.err
    assert "wrong-horse-battery" not in done.err
    assert done.code == 3


def test_an_access_key_that_nobody_knows(server: S3Server, tmp_path: Path) -> None:
    done = mount(server, tmp_path, "photos", AWS_ACCESS_KEY_ID="nobody")

    assert "access denied" in done.err
    assert done.code == 3


def test_nobody_is_let_into_a_bucket_that_is_not_public(server: S3Server, tmp_path: Path) -> None:
    done = mount(server, tmp_path, "photos", "--no-sign-request")

    assert "access denied" in done.err
    assert done.code == 3


def test_no_credentials_at_all(server: S3Server, tmp_path: Path) -> None:
    done = mount(server, tmp_path, "photos", AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")

    assert "no credentials found" in done.err
    assert done.code == 3
