"""CloudManager on an S3 and a real Swift: one stands in for the other."""

import uuid
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from cachefs import CloudManager
from cachefs.client import ControlClient
from cachefs.core.errors import StoreError
from tests.mount.harness import Mount
from tests.mount.stores import Target
from tests.servers.moto import moto
from tests.servers.s3 import S3Server
from tests.servers.swift import SwiftServer


def set_variables(monkeypatch: pytest.MonkeyPatch, s3: S3Server, swift: SwiftServer) -> None:
    for name, value in {**s3.environment(), **swift.environment()}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)


@pytest.mark.timeout(300)
def test_one_of_two_remotes_is_enough_and_a_damaged_copy_is_not_used(
    swift_server: SwiftServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"cloud-{uuid.uuid4().hex[:8]}"
    contents = {each: each.encode() * 50_000 for each in ("one", "two")}
    for each, content in contents.items():
        (tmp_path / each).write_bytes(content)
    with ExitStack() as stack:
        serving = stack.enter_context(ExitStack())
        s3_server = serving.enter_context(moto())
        set_variables(monkeypatch, s3_server, swift_server)
        s3: Any = stack.enter_context(closing(s3_server.sdk()))
        swift: Any = stack.enter_context(closing(swift_server.sdk()))
        s3.create_bucket(Bucket=name)
        swift.put_container(name)
        manager = stack.enter_context(
            CloudManager(
                tmp_path / "db",
                tmp_path / "storage",
                2**20,
                remotes=[f"s3://{name}/pool", f"swift://{name}"],
                timeout_s=3,
            )
        )
        digests = {each: str(manager.upload(tmp_path / each)) for each in contents}
        assert manager.cloud_sync()
        for each, digest in digests.items():
            there = s3.get_object(Bucket=name, Key=f"pool/{digest}")["Body"].read()
            assert there == swift.get_object(name, digest)[1] == contents[each]

        s3.put_object(Bucket=name, Key=f"pool/{digests['one']}", Body=contents["two"])
        (tmp_path / "storage" / digests["one"]).unlink()
        path = manager.warm_up(digests["one"])
        assert path
        assert Path(path).read_bytes() == contents["one"]
        assert manager.cloud_sync()
        there = s3.get_object(Bucket=name, Key=f"pool/{digests['one']}")["Body"].read()
        assert there == contents["one"]

        serving.close()  # from here on S3 is gone
        (tmp_path / "storage" / digests["two"]).unlink()
        path = manager.warm_up(digests["two"])
        assert path
        assert Path(path).read_bytes() == contents["two"]
        (tmp_path / "new").write_bytes(b"new")
        new = manager.upload(tmp_path / "new")
        assert new
        assert not manager.cloud_sync()
        assert swift.get_object(name, new)[1] == b"new"
        swift.delete_object(name, new)
        (tmp_path / "storage" / new).unlink()
        with pytest.raises(StoreError):
            manager.warm_up(new)


@pytest.mark.timeout(300)
def test_in_the_cache_of_a_mount_another_remote_stands_in_for_its_bucket(
    swift_server: SwiftServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"cloud-{uuid.uuid4().hex[:8]}"
    contents = {each: each.encode() * 50_000 for each in ("one", "two")}
    for each, content in contents.items():
        (tmp_path / each).write_bytes(content)
    with ExitStack() as stack:
        serving = stack.enter_context(ExitStack())
        s3_server = serving.enter_context(moto())
        set_variables(monkeypatch, s3_server, swift_server)
        s3: Any = stack.enter_context(closing(s3_server.sdk()))
        swift: Any = stack.enter_context(closing(swift_server.sdk()))
        s3.create_bucket(Bucket=name)
        swift.put_container(name)
        target = Target(
            f"s3://{name}",
            ("--endpoint-url", s3_server.url, "--force-path-style"),
            s3_server.environment(),
        )
        options = ("--upload", "background", "--timeout", "5s", "--metadata-ttl", "0")
        mount = stack.enter_context(Mount(target, tmp_path / "mount", options))
        manager = stack.enter_context(
            CloudManager(
                tmp_path / "db", mount / "pool", 2**20, remotes=[f"swift://{name}"], timeout_s=3
            )
        )
        digests = {each: str(manager.upload(tmp_path / each)) for each in contents}
        assert manager.cloud_sync()
        for each, digest in digests.items():
            there = s3.get_object(Bucket=name, Key=f"pool/{digest}")["Body"].read()
            assert there == swift.get_object(name, digest)[1] == contents[each]

        def lose(digest: str) -> None:
            with ControlClient(mount.cache_dir / "control.sock") as client:
                client.ask("evict", path=f"pool/{digest}")

        s3.put_object(Bucket=name, Key=f"pool/{digests['one']}", Body=contents["two"])
        lose(digests["one"])
        assert Path(str(manager.warm_up(digests["one"]))).read_bytes() == contents["one"]
        assert manager.cloud_sync()
        there = s3.get_object(Bucket=name, Key=f"pool/{digests['one']}")["Body"].read()
        assert there == contents["one"]

        lose(digests["two"])
        serving.close()  # from here on S3 is gone
        assert Path(str(manager.warm_up(digests["two"]))).read_bytes() == contents["two"]
        (tmp_path / "new").write_bytes(b"new")
        new = manager.upload(tmp_path / "new")
        assert new
        assert not manager.cloud_sync()
        assert swift.get_object(name, new)[1] == b"new"
        assert Path(str(manager.warm_up(new))).read_bytes() == b"new"
        mount.kill()  # what waits for S3 is in its journal
