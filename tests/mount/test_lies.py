"""Answers that are not what they say: found out, asked for again, and never served or kept."""

import errno
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.mount import programs
from tests.mount.harness import Mount
from tests.mount.lies import LIES, PARTIAL_LIES, Lying
from tests.mount.proxy import Answer, FlipBit, FlipSentBit, WrongLength
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]
STORES = ("moto", "radosgw", "swift")


def on(*often: str) -> pytest.MarkDecorator:
    """On every store; on those that are not named, only where there is time."""
    return pytest.mark.parametrize(
        "store",
        [name if name in often else pytest.param(name, marks=pytest.mark.soak) for name in STORES],
        indirect=True,
    )


PART = 5 * 2**20
IN_PARTS = 64 * 2**20
LARGE = programs.pattern("large", 0, PART + 2**20)


def contents(lies: dict[str, object]) -> dict[str, bytes]:
    """An object for each lie."""
    return {name.replace(" ", "-"): programs.pattern(name, 0, 50_000) for name in lies}


@on("moto")
def test_a_lie_about_an_object_is_found_out_and_the_truth_asked_for(
    store: LiveStore, mounting: Mounting
) -> None:
    files = contents(dict(LIES))
    for key, content in files.items():
        store.put(key, content)
    with (
        store.proxy() as proxy,
        ExitStack() as lifting,
        mounting(store.target(proxy), "--timeout", "8s") as mount,
    ):
        names = {key: mount / key for key in files}
        for (key, content), lie in zip(files.items(), LIES.values(), strict=True):
            lifting.enter_context(
                proxy.during(
                    lambda e, key=key: store.is_object(e, "GET", key),  # type: ignore[misc]
                    Lying(content, lie),
                    times=1,
                )
            )
        assert mount.do(programs.read_each, names) == files

        mount.remount()
        assert mount.do(programs.read_each, names) == files


@on()
def test_a_lie_that_lasts_is_an_error_and_nothing_of_it_is_kept(
    store: LiveStore, mounting: Mounting
) -> None:
    files = contents(dict(LIES))
    for key, content in files.items():
        store.put(key, content)
    with (
        store.proxy() as proxy,
        mounting(store.target(proxy), "--timeout", "2s") as mount,
    ):
        names = {key: mount / key for key in files}
        with ExitStack() as lies:
            for (key, content), lie in zip(files.items(), LIES.values(), strict=True):
                lies.enter_context(
                    proxy.during(
                        lambda e, key=key: store.is_object(e, "GET", key),  # type: ignore[misc]
                        Lying(content, lie),
                    )
                )
            assert mount.do(programs.read_each, names) == dict.fromkeys(files, errno.EIO)
        assert mount.do(programs.read_each, names) == files

        mount.remount()
        assert mount.do(programs.read_each, names) == files


@on()
def test_a_lie_about_a_part_is_found_out_and_the_truth_asked_for(
    store: LiveStore, mounting: Mounting
) -> None:
    keys = [name.replace(" ", "-") for name in PARTIAL_LIES]
    for key in keys:
        store.put(key, LARGE)
    options = ("--part-size", str(PART), "--timeout", "8s")
    with (
        store.proxy() as proxy,
        ExitStack() as lifting,
        mounting(store.target(proxy), *options) as mount,
    ):
        names = {key: mount / key for key in keys}
        assert mount.do(programs.read_each, {"": mount / keys[-1]}) == {"": LARGE}
        for key, lie in zip(keys, PARTIAL_LIES.values(), strict=True):
            lifting.enter_context(
                proxy.during(
                    lambda e, key=key: store.is_object(e, "GET", key),  # type: ignore[misc]
                    Lying(LARGE, lie),
                    times=2,
                )
            )
        assert mount.do(programs.read_each, names) == dict.fromkeys(keys, LARGE)

        mount.remount()
        assert mount.do(programs.read_each, names) == dict.fromkeys(keys, LARGE)


@on()
def test_a_flipped_bit_in_a_part_is_an_error_before_the_end_and_then_fetched_again(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("large", LARGE)
    options = ("--part-size", str(PART), "--metadata-ttl", "0")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        proxy.on(lambda e: store.is_object(e, "GET", "large"), FlipBit(1234), times=1)
        assert mount.do(programs.read_each, {"": mount / "large"}) == {"": errno.EIO}

        assert mount.do(programs.read_each, {"": mount / "large"}) == {"": LARGE}
        assert "is not the object that its ETag stands for" in mount.log_text()
        mount.remount()
        assert mount.do(programs.read_each, {"": mount / "large"}) == {"": LARGE}


@on("swift")
def test_a_bit_that_flips_on_the_way_to_the_store_is_refused_and_sent_again(
    store: LiveStore, mounting: Mounting
) -> None:
    content = programs.pattern("new", 0, 300_000)
    with store.proxy() as proxy, mounting(store.target(proxy)) as mount:
        flip = proxy.on(lambda e: store.is_object(e, "PUT"), FlipSentBit(1234), times=1)
        mount.do(programs.write_file, mount / "new", content)
        flip.wait_reached(0)
        assert store.view() == {"new": content}
        assert mount.status()["dirty"] == []

        assert mount.status()["conflicts"] == []


SUCCESS = {
    "an error that calls itself a success": Answer(
        200, {"Content-Type": "application/xml"}, b"<Error><Code>InternalError</Code></Error>"
    ),
    "success without an ETag": Answer(200, {}, b""),
    "success with another ETag": Answer(200, {"ETag": f'"{"0" * 32}"'}, b""),
}


@on()
def test_a_success_that_is_none_marks_nothing_clean(store: LiveStore, mounting: Mounting) -> None:
    options = ("--timeout", "2s", "--upload", "close")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        for number, lie in enumerate(SUCCESS.values()):
            old, new = (programs.pattern(f"{seed}{number}", 0, 5000) for seed in ("old", "new"))
            path = mount / f"file{number}"
            mount.do(programs.write_file, path, old)
            with proxy.during(lambda e: store.is_object(e, "PUT"), lie, times=1) as rule:
                mount.do(programs.write_file, path, new)
                rule.wait_reached(0)
            assert store.get(f"file{number}") == new
            with proxy.during(lambda e: store.is_object(e, "PUT"), lie) as rule:
                with pytest.raises(OSError, match=r"Input/output"):
                    mount.do(programs.write_file, path, old)
                assert [file["path"] for file in mount.status()["dirty"]] == [f"file{number}"]
            assert store.get(f"file{number}") == new
            mount.flush()
            mount.wait_clean()
            assert store.get(f"file{number}") == old
        assert mount.status()["conflicts"] == []


@pytest.mark.soak
@pytest.mark.timeout(120)
@pytest.mark.parametrize("store", ["moto", "radosgw"], indirect=True)
def test_what_goes_wrong_with_an_upload_in_parts_marks_nothing_clean(
    store: LiveStore, mounting: Mounting
) -> None:
    lie = SUCCESS["an error that calls itself a success"]
    with store.proxy() as proxy, mounting(store.target(proxy), watchdog_s=110) as mount:
        flip = proxy.on(lambda e: "partNumber=2" in e.query, FlipSentBit(1234), times=1)
        with proxy.during(
            lambda e: e.method == "POST" and "uploadId" in e.query, lie, times=1
        ) as rule:
            mount.do(programs.write_pattern, mount / "parts", "parts", IN_PARTS)
            rule.wait_reached(0)
            flip.wait_reached(0)
        assert store.get("parts") == programs.pattern("parts", 0, IN_PARTS)
        assert mount.status()["dirty"] == []
        assert mount.status()["conflicts"] == []


@on()
def test_a_size_that_two_answers_tell_differently_is_an_error(
    store: LiveStore, mounting: Mounting
) -> None:
    content = programs.pattern("file", 0, 50_000)
    store.put("file", content)
    options = ("--timeout", "2s", "--metadata-ttl", "0")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        for said in (len(content) - 1, len(content) + 1):
            lie = WrongLength(said)
            with proxy.during(lambda e: store.is_object(e, "HEAD", "file"), lie):
                assert mount.do(programs.read_each, {"": mount / "file"}) == {"": errno.EIO}
            assert mount.do(programs.read_each, {"": mount / "file"}) == {"": content}
