"""Large uploads and copies that are cut off: what was sent is not sent again, and nothing of it stays for ever."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.harness import cachefs, wait_until
from tests.mount.large import Large, LargeMount, LargeS3, large_of
from tests.mount.proxy import (
    Action,
    Answer,
    BlackHole,
    DropAnswer,
    Exchange,
    HoldAnswer,
    HoldRequest,
    Proxy,
)
from tests.mount.stores import LiveStore

SEED = 20_261_126
PARTS = 5
KILLS = 30
EVERY = ("moto", "radosgw", "swift")

pytestmark = pytest.mark.timeout(180)


def on(*names: str) -> pytest.MarkDecorator:
    """Try it on the stores of these names; on the others where time does not matter."""
    soaked = (pytest.param(name, marks=pytest.mark.soak) for name in EVERY if name not in names)
    return pytest.mark.parametrize("store", [*names, *soaked], indirect=True)


@dataclass
class Scene:
    """A mount in front of a store, a proxy between them, and somebody else who is uploading, too."""

    store: LiveStore
    large: Large
    proxy: Proxy
    mount: LargeMount

    @property
    def content(self) -> bytes:
        return programs.pattern("large", 0, self.large.size)

    def write(self, name: str = "large", seed: str = "large") -> None:
        self.mount.do(programs.write_pattern, self.mount / name, seed, self.large.size)

    def parts_sent(self) -> int:
        """How many parts the store took since the proxy began to count."""
        sent = [e for e in self.proxy.exchanges() if self.large.is_part(e)]
        return len([e for e in sent if e.status is not None and e.status < 300])

    def killed_before_part(self, number: int) -> None:
        """Write the file, and kill the daemon when the parts before *number* are at the store."""
        with self.proxy.during(
            lambda e: self.large.is_part(e, number), BlackHole(), times=1
        ) as rule:
            self.write()
            rule.wait_reached()
            self.mount.kill()
        self.proxy.forget()

    def wait_nothing_left(self) -> None:
        wait_until(lambda: not self.large.left(), f"nothing is left: {self.large.left()}", 30)

    def settle(self, content: dict[str, bytes]) -> None:
        """Wait until all is over; the store has *content*, and nothing else of ours."""
        self.mount.wait_clean(60)
        self.wait_nothing_left()
        assert self.store.view() == content
        assert self.large.has_foreign()
        assert not self.mount.status()["conflicts"]


OPTIONS = ("--upload", "background", "--upload-delay", "0s")


@contextmanager
def staged(
    store: LiveStore, base: Path, *options: str, watchdog_s: float = 100
) -> Iterator[Scene]:
    large = large_of(store)
    with store.proxy() as proxy:
        chosen = options or OPTIONS
        mount = LargeMount(store.target(proxy), base / "mount", chosen, watchdog_s=watchdog_s)
        try:
            large.begin_foreign("large")
            with mount:
                yield Scene(store, large, proxy, mount)
        finally:
            large.end_foreign()


@pytest.fixture
def scene(store: LiveStore, tmp_path: Path) -> Iterator[Scene]:
    with staged(store, tmp_path) as one:
        yield one


@on("moto")
def test_killed_in_the_middle_only_what_is_missing_is_sent(scene: Scene) -> None:
    scene.killed_before_part(4)
    scene.mount.start()
    scene.settle({"large": scene.content})

    assert scene.parts_sent() == PARTS - 3


@on("swift")
def test_killed_when_the_store_has_made_the_object_nothing_is_sent_again(scene: Scene) -> None:
    rule = scene.proxy.on(scene.large.is_finish, HoldAnswer(), times=1)
    scene.write()
    rule.wait_reached()
    scene.mount.kill()
    rule.lift()
    assert scene.store.view() == {"large": scene.content}
    scene.proxy.forget()
    scene.mount.start()
    scene.settle({"large": scene.content})

    assert scene.parts_sent() == 0
    assert not [e for e in scene.proxy.exchanges() if scene.large.is_finish(e) and e.status == 200]


@on()
def test_killed_as_the_object_was_to_be_made_no_part_is_sent_again(scene: Scene) -> None:
    rule = scene.proxy.on(scene.large.is_finish, BlackHole(), times=1)
    scene.write()
    rule.wait_reached()
    scene.mount.kill()
    scene.proxy.forget()
    scene.mount.start()
    scene.settle({"large": scene.content})

    assert scene.parts_sent() == 0


@pytest.mark.soak
@pytest.mark.parametrize("store", ["moto", "radosgw"], indirect=True)
def test_killed_before_the_word_that_an_upload_began_no_bytes_stay(scene: Scene) -> None:
    assert isinstance(scene.large, LargeS3)
    rule = scene.proxy.on(scene.large.is_create, HoldAnswer(), times=1)
    scene.write()
    rule.wait_reached()
    scene.mount.kill()
    rule.lift()
    scene.mount.start()
    scene.mount.wait_clean(60)

    assert scene.store.view() == {"large": scene.content}
    assert scene.large.has_foreign()
    # Nothing tells it from another client's: it stays, and holds nothing.
    (unknown,) = scene.large.left()
    assert scene.large.parts(*unknown.split(" ")) == 0


@on()
def test_killed_as_an_upload_was_taken_back_nothing_of_it_stays(scene: Scene) -> None:
    part = scene.proxy.on(lambda e: scene.large.is_part(e, 3), HoldRequest(), times=1)
    scene.write()
    part.wait_reached()
    with scene.proxy.during(scene.large.is_removal, BlackHole()) as removal:
        scene.mount.hands().begin(os.remove, scene.mount / "large")
        part.lift()
        removal.wait_reached()
        scene.mount.kill()
    scene.mount.start()
    # The removal of the file was under way: it may have come to pass or not.
    scene.mount.wait_clean()
    scene.settle(scene.store.view())


def _rewritten(scene: Scene) -> dict[str, bytes]:
    scene.write(seed="other")
    return {"large": programs.pattern("other", 0, scene.large.size)}


def _made_small(scene: Scene) -> dict[str, bytes]:
    scene.mount.do(programs.write_file, scene.mount / "large", b"small")
    return {"large": b"small"}


def _removed(scene: Scene) -> dict[str, bytes]:
    scene.mount.do(os.remove, scene.mount / "large")
    return {}


def _renamed(scene: Scene) -> dict[str, bytes]:
    scene.mount.do(os.rename, scene.mount / "large", scene.mount / "new")
    return {"new": scene.content}


def _of_an_upload(large: Large) -> Callable[[Exchange], bool]:
    return lambda e: large.is_part(e) or large.is_finish(e) or large.is_removal(e)


@on()
@pytest.mark.parametrize("change", [_rewritten, _made_small, _removed, _renamed])
def test_what_is_changed_between_the_crash_and_its_upload_ends_the_old_one(
    scene: Scene, change: Callable[[Scene], dict[str, bytes]]
) -> None:
    scene.killed_before_part(4)
    with scene.proxy.during(_of_an_upload(scene.large), Answer(503)) as rule:
        scene.mount.start()
        rule.wait_reached()
        content = change(scene)
    scene.settle(content)


@on()
def test_what_gets_other_attributes_between_the_crash_and_its_upload_is_stored_with_them(
    scene: Scene,
) -> None:
    scene.killed_before_part(4)
    with scene.proxy.during(_of_an_upload(scene.large), Answer(503)) as rule:
        scene.mount.start()
        rule.wait_reached()
        scene.mount.do(os.chmod, scene.mount / "large", 0o600)
    scene.settle({"large": scene.content})

    assert int(scene.store.meta("large")["mode"]) & 0o777 == 0o600


@on()
def test_what_is_discarded_while_nothing_is_mounted_is_taken_back(scene: Scene) -> None:
    scene.killed_before_part(4)
    cache = ("--cache-dir", scene.mount.cache_dir)
    done = cachefs("recover", "discard", "--all", "--yes", *cache, env=scene.mount.env)
    assert done.returncode == 0, done.stderr
    assert scene.large.left()
    scene.mount.start()
    scene.settle({})


@on()
def test_who_leaves_in_order_leaves_the_upload_to_the_next_mount(
    store: LiveStore, tmp_path: Path
) -> None:
    with staged(store, tmp_path, *OPTIONS, "--timeout", "6s") as scene:
        with scene.proxy.during(lambda e: scene.large.is_part(e, 4), Answer(503)) as rule:
            scene.write()
            rule.wait_reached()
            assert scene.mount.stop() == 5
        scene.proxy.forget()
        scene.mount.start()
        scene.settle({"large": scene.content})

        assert scene.parts_sent() == PARTS - 3


@on()
def test_a_store_that_cannot_be_asked_is_asked_again_by_a_later_mount(scene: Scene) -> None:
    scene.killed_before_part(3)
    with scene.proxy.during(_of_an_upload(scene.large), Answer(503)) as rule:
        scene.mount.start()
        rule.wait_reached()
        scene.mount.do(os.remove, scene.mount / "large")
        scene.mount.do(programs.write_file, scene.mount / "small", b"served")
        scene.mount.wait_clean()
        assert scene.mount.stop() == 0
        assert scene.large.left()
    scene.mount.start()
    scene.settle({"small": b"served"})


ERROR = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>no</Message></Error>"


def _lost_part(large: Large) -> tuple[Callable[[Exchange], bool], Action]:
    return lambda e: large.is_part(e, 3), DropAnswer()


def _lost_finish(large: Large) -> tuple[Callable[[Exchange], bool], Action]:
    return large.is_finish, DropAnswer()


def _error_in_200(large: Large) -> tuple[Callable[[Exchange], bool], Action]:
    return large.is_finish, Answer(200, {"Content-Type": "application/xml"}, ERROR)


@pytest.mark.parametrize(
    ("store", "fault", "more"),
    [
        ("moto", _lost_finish, 0),
        pytest.param("moto", _error_in_200, 0, marks=pytest.mark.soak),
        pytest.param("moto", _lost_part, 1, marks=pytest.mark.soak),
        pytest.param("swift", _lost_finish, 0, marks=pytest.mark.soak),
        pytest.param("swift", _lost_part, 0, marks=pytest.mark.soak),  # the listing shows it
        *(
            pytest.param("radosgw", fault, more, marks=pytest.mark.soak)
            for fault, more in ((_lost_part, 1), (_lost_finish, 0), (_error_in_200, 0))
        ),
    ],
    indirect=["store"],
)
def test_a_lost_answer_costs_no_more_than_what_it_was_about(
    scene: Scene,
    fault: Callable[[Large], tuple[Callable[[Exchange], bool], Action]],
    more: int,
) -> None:
    matches, action = fault(scene.large)
    with scene.proxy.during(matches, action, times=1) as rule:
        scene.write()
        rule.wait_reached()
        scene.settle({"large": scene.content})

    assert scene.parts_sent() == PARTS + more


@on()
def test_a_lost_answer_to_taking_an_upload_back_leaves_nothing(scene: Scene) -> None:
    part = scene.proxy.on(lambda e: scene.large.is_part(e, 3), HoldRequest(), times=1)
    removal = scene.proxy.on(scene.large.is_removal, DropAnswer(), times=1)
    scene.write()
    part.wait_reached()
    hand = scene.mount.hands()
    hand.begin(os.remove, scene.mount / "large")
    part.lift()
    hand.finish(30)
    removal.wait_reached(0)
    scene.settle({})


@on()
def test_a_rename_that_is_killed_leaves_no_part_of_its_copy(scene: Scene) -> None:
    scene.write()
    scene.settle({"large": scene.content})
    rule = scene.proxy.on(lambda e: scene.large.is_part(e, 2), HoldAnswer(), times=1)
    scene.mount.hands().begin(os.rename, scene.mount / "large", scene.mount / "new")
    rule.wait_reached()
    scene.mount.kill()
    rule.lift()
    assert scene.large.left()
    scene.mount.start()
    scene.settle({"large": scene.content})


@pytest.mark.soak
@pytest.mark.parametrize("store", ["swift"], indirect=True)
@pytest.mark.parametrize("change", [_removed, _rewritten])
def test_segments_of_what_was_replaced_or_removed_go_though_that_was_killed(
    scene: Scene, change: Callable[[Scene], dict[str, bytes]]
) -> None:
    scene.write()
    scene.settle({"large": scene.content})
    rule = scene.proxy.on(scene.large.is_removal, HoldRequest(), times=1)
    hand = scene.mount.hands()
    if change is _removed:
        hand.begin(os.remove, scene.mount / "large")
        content = {}
    else:
        content = change(scene)
    rule.wait_reached()
    scene.mount.kill()
    rule.lift()
    assert scene.large.left()
    scene.mount.start()
    scene.settle(content)


@pytest.mark.timeout(1800)
@on()
def test_killed_at_any_moment_of_large_uploads_nothing_is_left(
    store: LiveStore, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    with staged(store, tmp_path, watchdog_s=1700) as scene:
        content: dict[str, bytes] = {}
        for kill in range(KILLS):
            name = chance.choice(["large", "other"])
            seed = f"{name} {kill}"
            asked = len(scene.proxy.exchanges()) + chance.randrange(2 * PARTS)
            scene.write(name, seed)
            content[name] = programs.pattern(seed, 0, scene.large.size)
            _wait_asked(scene, asked)
            scene.mount.kill()
            scene.mount.start()
            if chance.random() < 0.3:
                scene.mount.do(os.remove, scene.mount / name)
                del content[name]
        scene.settle(content)


def _wait_asked(scene: Scene, count: int) -> None:
    """Return when the proxy has seen so many requests, or nothing is to be asked any more."""

    def is_reached() -> bool:
        if len(scene.proxy.exchanges()) >= count:
            return True
        return not scene.mount.status()["dirty"]

    wait_until(is_reached, "the upload is under way, or over")
