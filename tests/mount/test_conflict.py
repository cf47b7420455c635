"""Two mounts that write one key: nothing is lost without a word."""

import os
import re
from collections.abc import Callable

import pytest

from tests.mount import programs
from tests.mount.harness import Mount
from tests.mount.proxy import HoldRequest
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]

CONFLICT_NAME = re.compile(
    r"\.conflict-[^/]+-\d{4}-?\d{2}-?\d{2}T\d{2}[:-]?\d{2}[:-]?\d{2}[\d.]*Z?"
)


def copies(store: LiveStore, name: str) -> dict[str, bytes]:
    """The objects that are that file or its conflict copies."""
    view = store.view()
    strange = [k for k in view if k != name and not CONFLICT_NAME.fullmatch(k.removeprefix(name))]
    assert strange == []
    return view


@pytest.mark.parametrize(
    ("store", "upload"),
    [
        ("radosgw", "close"),
        ("swift", "close"),
        ("moto", "background"),
        *(
            pytest.param(*each, marks=pytest.mark.soak)
            for each in (
                *((name, "background") for name in ("file", "radosgw", "swift")),
                *((name, "close") for name in ("file", "moto")),
            )
        ),
    ],
    indirect=["store"],
)
def test_the_later_of_two_writers_keeps_both_contents(
    store: LiveStore, mounting: Mounting, upload: str
) -> None:
    store.put("file", b"base")
    options = ("--upload", upload, "--upload-delay", "0s", "--metadata-ttl", "0")
    with (
        mounting(store.target(), *options, name="first") as first,
        mounting(store.target(), *options, name="second") as second,
    ):
        one = first.do(os.open, first / "file", os.O_RDWR)
        two = second.do(os.open, second / "file", os.O_RDWR)
        first.do(os.pwrite, one, b"from the first", 0)
        second.do(os.pwrite, two, b"from the second", 0)
        second.do(os.close, two)
        second.wait_clean()
        first.do(os.close, one)
        first.wait_clean()

        both = copies(store, "file")
        assert sorted(both.values()) == [b"from the first", b"from the second"]
        assert both["file"] == b"from the second", "who stored first keeps the name"
        assert first.do(programs.read_file, first / "file") == b"from the second"
        assert set(first.do(os.listdir, first.mountpoint)) == set(both)
        assert len(first.status()["conflicts"]) == 1
        assert not second.status()["conflicts"]
    assert "conflict" in first.log_text()
    assert "conflict" not in second.log_text()


@pytest.mark.parametrize(
    "store",
    ["moto", "swift", *(pytest.param(n, marks=pytest.mark.soak) for n in ("file", "radosgw"))],
    indirect=True,
)
def test_two_mounts_that_create_one_name_keep_both_contents(
    store: LiveStore, mounting: Mounting
) -> None:
    with (
        mounting(store.target(), name="first") as first,
        mounting(store.target(), name="second") as second,
    ):
        flags = os.O_CREAT | os.O_WRONLY
        one = first.do(os.open, first / "file", flags, 0o644)
        two = second.do(os.open, second / "file", flags, 0o644)
        first.do(os.write, one, b"from the first")
        second.do(os.write, two, b"from the second")
        second.do(os.close, two)
        first.do(os.close, one)
        first.wait_clean()

    assert sorted(copies(store, "file").values()) == [b"from the first", b"from the second"]


@pytest.mark.parametrize("store", ["moto", "radosgw"], indirect=True)
def test_an_upload_that_arrives_late_overwrites_nothing(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("file", b"base")
    with (
        store.proxy() as proxy,
        mounting(store.target(proxy), name="first") as first,
        mounting(store.target(), name="second") as second,
    ):
        rule = proxy.on(lambda e: store.is_object(e, "PUT", "file"), HoldRequest(), times=1)
        late = first.hands()
        late.begin(programs.write_file, first / "file", b"from the first")
        rule.wait_reached()
        second.do(programs.write_file, second / "file", b"from the second")
        rule.lift()
        late.finish(30)
        first.wait_clean()

    assert sorted(copies(store, "file").values()) == [b"from the first", b"from the second"]


@pytest.mark.parametrize("store", ["moto", "swift"], indirect=True)
def test_a_write_to_a_file_that_another_removed_is_not_lost(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("file", b"base")
    with mounting(store.target()) as mount:
        fd = mount.do(os.open, mount / "file", os.O_RDWR)
        mount.do(os.pwrite, fd, b"mine", 0)
        store.delete("file")
        mount.do(os.close, fd)
        mount.wait_clean()

    assert list(copies(store, "file").values()) == [b"mine"]


@pytest.mark.parametrize("store", ["moto"], indirect=True)
@pytest.mark.parametrize(
    ("policy", "expected"),
    [("ours", {"file": b"mine"}), ("theirs", {"file": b"theirs"}), ("fail", {"file": b"theirs"})],
)
def test_a_conflict_ends_as_the_policy_says(
    store: LiveStore, mounting: Mounting, policy: str, expected: dict[str, bytes]
) -> None:
    store.put("file", b"base!!")
    options = ("--conflict", policy, "--metadata-ttl", "0", "--timeout", "5s")
    with mounting(store.target(), *options) as mount:
        fd = mount.do(os.open, mount / "file", os.O_RDWR)
        mount.do(os.pwrite, fd, b"mine", 0)
        mount.do(os.ftruncate, fd, 4)
        store.put("file", b"theirs")
        failed = mount.do(programs.errno_of_close, fd)

        assert store.view() == expected
        assert (failed != 0) == (policy == "fail")
        status = mount.status()
        if policy == "fail":
            assert [one["state"] for one in status["dirty"]] == ["parked"], "it is kept"
        else:
            assert len(status["conflicts"]) == 1
            assert mount.do(programs.read_file, mount / "file") == expected["file"]
