"""``cachefs explain`` and ``cachefs refresh`` on a mount whose kernel believes what it was told."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.harness import Mount, cachefs
from tests.mount.stores import LiveStore

TTL = ("--metadata-ttl", "1h", "--negative-ttl", "1h")


@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_the_kernel_asks_anew_after_a_refresh(
    store: LiveStore, mounting: Callable[..., Mount]
) -> None:
    for key in ("d/changed", "d/removed", "other/changed"):
        store.put(key, b"old")
    with mounting(store.target(), *TTL) as mount:

        def seen() -> dict[str, bytes | int]:
            names = ("d/changed", "d/removed", "d/new", "other/changed")
            return mount.do(programs.read_each, {name: mount / name for name in names})

        before = seen()
        store.put("d/changed", b"newer")
        store.put("d/new", b"new")
        store.put("other/changed", b"newer")
        store.delete("d/removed")
        assert seen() == before

        done = cachefs("refresh", mount / "d", env=mount.env)

        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{mount.mountpoint}/d: 3 names forgotten\n"
        after = seen()
    assert before["d/changed"] == before["d/removed"] == before["other/changed"] == b"old"
    assert (after["d/changed"], after["d/new"]) == (b"newer", b"new")
    assert isinstance(after["d/removed"], int)
    assert after["other/changed"] == b"old"


@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_a_file_is_explained(store: LiveStore, mounting: Callable[..., Mount]) -> None:
    store.put("d/file", b"content")
    with mounting(store.target()) as mount:
        path = mount / "d/file"
        assert mount.do(programs.read_file, path) == b"content"

        told = cachefs("explain", path, env=mount.env)
        as_json = cachefs("explain", path, "--json", env=mount.env)
        none = cachefs("explain", mount / "none", env=mount.env)
        outside = cachefs("explain", mount.base, env=mount.env)

    assert told.stdout.startswith(f"{path}\n")
    lines = dict(line.strip().split("  ", 1) for line in told.stdout.splitlines()[1:])
    assert lines["state"].strip() == "cached"
    assert lines["cached"].strip() == "all of it"
    assert lines["at the store"].strip() == "the same version"
    assert lines["size"].strip() == "7 B (7 bytes)"
    document = json.loads(as_json.stdout)
    assert document["ranges"] == [[0, 7]]
    assert Path(document["file"]).parent == mount.cache_dir / "data"
    assert (none.returncode, none.stdout) == (1, "")
    assert none.stderr == f"cachefs: cannot explain {mount / 'none'}: no such file or directory\n"
    assert outside.returncode == 2
    assert "in no running cachefs mount" in outside.stderr


@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_the_audit_log_tells_which_call_of_a_program_was_the_cause(
    store: LiveStore, mounting: Callable[..., Mount], tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    store.put("read", b"content")
    with mounting(store.target(), "--audit", str(log)) as mount:
        mount.do(programs.read_file, mount / "read")
        mount.do(programs.write_file, mount / "written", b"bytes")
        mount.do(os.rename, mount / "written", mount / "renamed")
        mount.do(os.remove, mount / "renamed")
        assert mount.umount().returncode == 0

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    told = {(line["event"], line["key"], line["cause"]) for line in lines}
    assert ("fetch", "read", "open") in told
    assert ("upload", "written", "flush") in told
    assert ("copy", "renamed", "rename") in told
    assert ("delete", "written", "rename") in told
    assert ("delete", "renamed", "unlink") in told
