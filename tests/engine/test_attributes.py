"""Attributes of stored files: what the mount knows of them is what the store has."""

from pathlib import Path

import pytest

from cachefs.core.errors import CachefsError, Fault
from cachefs.core.types import Key
from cachefs.engine.filesystem import Changes
from tests.engine.rig import FOREVER_ASKING, serving


async def test_what_is_known_after_a_change_is_what_the_store_has(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        rig.store("file", b"content", {"color": "red"})
        ino = await rig.ino("file")

        await rig.fs.setxattr(ino, b"user.a", b"1")
        await rig.fs.setattr(ino, Changes(mode=0o600))
        await rig.fs.setxattr(ino, b"user.color", b"blue")

        inode = rig.service._disk.inodes.get(ino)
        assert inode is not None
        assert inode.meta == rig.memory.head(Key("file")).meta
        assert (inode.meta or {})["color"] == "blue"


async def test_a_change_that_the_store_did_not_take_is_not_shown(tmp_path: Path) -> None:
    async with serving(tmp_path, **FOREVER_ASKING) as rig:
        rig.store("file", b"content", {"mode": str(0o100644)})
        ino = await rig.ino("file")
        rig.watched.fail("before", "set_meta", Fault("down"), times=10**6)

        with pytest.raises(CachefsError):
            await rig.fs.setattr(ino, Changes(mode=0o600))
        with pytest.raises(CachefsError):
            await rig.fs.setxattr(ino, b"user.a", b"1")

        assert (await rig.fs.getattr(await rig.ino("file"))).attrs.mode == 0o644
        assert await rig.fs.attributes.listxattr(ino) == []


async def test_metadata_that_another_client_changed_is_taken_over_although_the_bytes_are_the_same(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, **FOREVER_ASKING) as rig:
        rig.store("file", b"content", {"mode": str(0o100644)})
        assert (await rig.fs.getattr(await rig.ino("file"))).attrs.mode == 0o644

        rig.store("file", b"content", {"mode": str(0o100600)})

        assert (await rig.fs.getattr(await rig.ino("file"))).attrs.mode == 0o600
