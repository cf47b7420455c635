"""``cachefs cache check`` beside a mount: what rotted is told and given up, and what waits for upload stays."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.mount import programs
from tests.mount.harness import Mount, cachefs
from tests.mount.stores import LiveStore
from tests.mount.test_verify_cache import cached_file, flip

Mounting = Callable[..., Mount]


def check(mount: Mount, *words: str) -> tuple[int, dict[str, Any]]:
    done = cachefs("cache", "check", mount.mountpoint, "--json", *words, env=mount.env)
    (document,) = json.loads(done.stdout)["caches"]
    assert isinstance(document, dict)
    return done.returncode, document


@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_a_cache_is_checked_and_mended_while_the_mount_serves(
    store: LiveStore, mounting: Mounting
) -> None:
    contents = {f"d/file{i}": programs.pattern(f"{i}", 0, 50_000) for i in range(4)}
    for key, content in contents.items():
        store.put(key, content)
    options = ("--upload", "background", "--upload-delay", "1h")
    with mounting(store.target(), *options) as mount:
        for key, content in contents.items():
            assert mount.do(programs.read_file, mount / key) == content
        mount.do(programs.write_file, mount / "waits", b"dirty" * 100)
        assert check(mount) == (
            0,
            {
                "cache_dir": str(mount.cache_dir),
                "is_served": True,
                "names": 7,
                "files": 5,
                "bytes": 200_500,
                "flaws": [],
                "left": 0,
            },
        )
        flip(cached_file(mount, "d/file1"), 7)
        flip(cached_file(mount, "waits"), 7)
        code, told = check(mount)
        assert code == 1
        assert [(each["kind"], each["path"]) for each in told["flaws"]] == [
            ("rotted", "d/file1"),
            ("rotted", "waits"),
        ]
        code, told = check(mount, "--repair")
        assert code == 1
        repaired, kept = told["flaws"]
        assert (repaired["repair"], kept["repair"]) == ("dropped", None)
        assert "cachefs recover" in kept["advice"]
        assert mount.do(programs.read_file, mount / "d/file1") == contents["d/file1"]
        flip(cached_file(mount, "waits"), 7)  # as it was
        assert check(mount)[0] == 0
