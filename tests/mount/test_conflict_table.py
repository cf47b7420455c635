"""Every way in which a file is another at the store than a program last saw it, under every policy.

The table says for each what the store has afterwards, what the program was told, and what ``status`` and the
extended attributes say.
"""

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from tests.mount import programs
from tests.mount.harness import Mount, cachefs
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]

BASE, MINE, THEIRS = b"base", b"mine", b"theirs"
COPY = ".conflict"
"""In the table: the conflict copy of the name before it."""


@dataclass(frozen=True)
class Ending:
    """What is left of one situation. Keys are relative to the name ``f``."""

    objects: Mapping[str, bytes]
    told: int = 0
    """The number of the error that the program got."""
    conflicts: int = 1
    is_parked: bool = False
    states: Mapping[str, str] = field(default_factory=dict)
    """``user.cachefs.state`` of some of the names."""


@dataclass(frozen=True)
class Scene:
    """A mount, its store, and the directory in which one situation is played."""

    mount: Mount
    store: LiveStore
    directory: str

    def key(self, name: str) -> str:
        return f"{self.directory}/{name}"

    def do(self, function: Callable[..., object], *arguments: object) -> object:
        return self.mount.do(function, *arguments)

    def path(self, name: str = "f") -> str:
        return str(self.mount / self.key(name))

    def put(self, name: str, content: bytes) -> None:
        self.store.put(self.key(name), content)

    def delete(self, name: str) -> None:
        self.store.delete(self.key(name))

    def see(self, *names: str) -> None:
        """Have the mount know these files as they are."""
        for name in names:
            assert self.do(programs.read_file, self.mount / self.key(name)) is not None

    def objects(self) -> dict[str, bytes]:
        """What the store has, the name of a conflict copy cut to what the table has."""
        found = {}
        for key in self.store.keys():  # noqa: SIM118 - a method, not a dict's
            if key.startswith(f"{self.directory}/"):
                head, mark, _ = key.removeprefix(f"{self.directory}/").partition(".conflict-")
                found[head + (COPY if mark else "")] = self.store.get(key)
        return found


def outcome(scene: Scene, function: Callable[..., object], *arguments: object) -> int:
    """The number of the error that the program gets, zero for none."""
    try:
        scene.do(function, *arguments)
    except OSError as error:
        return error.errno or -1
    return 0


# ---- the situations ---------------------------------------------------------------------------


def _write_while(scene: Scene, happens: Callable[[], None]) -> int:
    """Open, write, let something happen at the store, close."""
    scene.see("f")
    fd = scene.mount.do(os.open, scene.path(), os.O_RDWR)
    scene.mount.do(os.pwrite, fd, MINE, 0)
    happens()
    return scene.mount.do(programs.errno_of_close, fd)


def changed(scene: Scene) -> int:
    return _write_while(scene, lambda: scene.put("f", THEIRS))


def deleted(scene: Scene) -> int:
    return _write_while(scene, lambda: scene.delete("f"))


def replaced_by_a_directory(scene: Scene) -> int:
    def happens() -> None:
        scene.delete("f")
        scene.put("f/below", THEIRS)

    return _write_while(scene, happens)


def joined_by_a_directory(scene: Scene) -> int:
    return _write_while(scene, lambda: scene.put("f/below", THEIRS))


def created_by_both(scene: Scene) -> int:
    scene.do(os.listdir, scene.path("."))
    fd = scene.mount.do(os.open, scene.path("g"), os.O_CREAT | os.O_WRONLY, 0o644)
    scene.mount.do(os.write, fd, MINE)
    scene.put("g", THEIRS)
    return scene.mount.do(programs.errno_of_close, fd)


def emptied_and_written(scene: Scene) -> int:
    scene.see("f")
    scene.put("f", THEIRS)
    return outcome(scene, programs.write_file, scene.mount / scene.key("f"), MINE)


def cut(scene: Scene) -> int:
    scene.see("f")
    fd = scene.mount.do(os.open, scene.path(), os.O_RDWR)
    scene.mount.do(os.ftruncate, fd, 2)
    scene.put("f", THEIRS)
    return scene.mount.do(programs.errno_of_close, fd)


def unlinked(scene: Scene) -> int:
    scene.see("f")
    scene.put("f", THEIRS)
    return outcome(scene, os.unlink, scene.path())


def renamed_onto(scene: Scene) -> int:
    scene.put("src", MINE)
    scene.see("f", "src")
    scene.put("f", THEIRS)
    return outcome(scene, os.rename, scene.path("src"), scene.path())


def renamed_onto_what_appeared(scene: Scene) -> int:
    scene.put("src", MINE)
    scene.do(os.listdir, scene.path("."))
    scene.put("g", THEIRS)
    return outcome(scene, os.rename, scene.path("src"), scene.path("g"))


def renamed_away(scene: Scene) -> int:
    """The name is what is renamed, whatever it stands for by now."""
    scene.do(os.stat, scene.path())
    scene.put("f", THEIRS)
    return outcome(scene, os.rename, scene.path(), scene.path("g"))


def renamed_when_just_made(scene: Scene) -> int:
    """What is small and new is stored anew from the cache, and not copied at the store."""
    scene.put("new", BASE)
    scene.do(os.listdir, scene.path("."))
    scene.see("new")
    scene.put("new", THEIRS)
    return outcome(scene, os.rename, scene.path("new"), scene.path("g"))


def renamed_while_written(scene: Scene) -> int:
    scene.see("f")
    fd = scene.mount.do(os.open, scene.path(), os.O_RDWR)
    scene.mount.do(os.pwrite, fd, MINE, 0)
    scene.put("f", THEIRS)
    first = outcome(scene, os.rename, scene.path(), scene.path("g"))
    return first or scene.mount.do(programs.errno_of_close, fd)


def renamed_with_its_directory(scene: Scene) -> int:
    scene.put("d/f", BASE)
    scene.see("d/f", "f")
    scene.put("d/f", THEIRS)
    return outcome(scene, os.rename, scene.path("d"), scene.path("e"))


def given_another_mode(scene: Scene) -> int:
    scene.see("f")
    scene.put("f", THEIRS)
    told = outcome(scene, os.chmod, scene.path(), 0o600)
    assert scene.mount.do(programs.read_file, scene.mount / scene.key("f")) == THEIRS
    return told


def given_an_attribute(scene: Scene) -> int:
    scene.see("f")
    scene.put("f", THEIRS)
    return outcome(scene, os.setxattr, scene.path(), "user.a", b"b")


# ---- the table --------------------------------------------------------------------------------


def written(
    name: str = "f", mine: bytes = MINE, left: Mapping[str, bytes] | None = None
) -> dict[str, Ending]:
    """Ours and theirs of one name, where ours comes later, with what else the store has."""
    theirs = {name: THEIRS, **(left or {})}
    return {
        "keep-both": Ending({**theirs, name + COPY: mine}, states={name + COPY: "conflict"}),
        "ours": Ending({**theirs, name: mine}, states={name: "cached"}),
        "theirs": Ending(theirs),
        "fail": Ending(theirs, errno.EIO, is_parked=True, states={name: "conflict"}),
    }


def gone(left: Mapping[str, bytes]) -> dict[str, Ending]:
    """Ours of a name that the store has no more, with what else it has."""
    stored = Ending({"f": MINE, **left})
    return {
        "keep-both": stored,
        "ours": stored,
        "theirs": Ending(left),
        "fail": Ending(left, errno.EIO, is_parked=True),
    }


def replaced(name: str, left: Mapping[str, bytes]) -> dict[str, Ending]:
    """A rename onto something that was not seen."""
    untouched = Ending({"src": MINE, name: THEIRS, **left}, errno.EBUSY)
    return {
        "keep-both": Ending(
            {name: MINE, name + COPY: THEIRS, **left}, states={name + COPY: "conflict"}
        ),
        "ours": Ending({name: MINE, **left}),
        "theirs": untouched,
        "fail": untouched,
    }


def always(ending: Ending) -> dict[str, Ending]:
    return dict.fromkeys(("keep-both", "ours", "theirs", "fail"), ending)


TABLE: Sequence[tuple[Callable[[Scene], int], Mapping[str, Ending]]] = (
    (changed, written()),
    (deleted, gone({})),
    (replaced_by_a_directory, gone({"f/below": THEIRS})),
    (joined_by_a_directory, always(Ending({"f": MINE, "f/below": THEIRS}, conflicts=0))),
    (created_by_both, written("g", left={"f": BASE})),
    (emptied_and_written, written()),
    (cut, written(mine=BASE[:2])),
    (
        unlinked,
        {
            "keep-both": Ending({"f" + COPY: THEIRS}, states={"f" + COPY: "conflict"}),
            "ours": Ending({}),
            "theirs": Ending({"f": THEIRS}, errno.EBUSY),
            "fail": Ending({"f": THEIRS}, errno.EBUSY),
        },
    ),
    (renamed_onto, replaced("f", {})),
    (renamed_onto_what_appeared, replaced("g", {"f": BASE})),
    (renamed_away, always(Ending({"g": THEIRS}, conflicts=0))),
    (
        renamed_when_just_made,
        always(Ending({"f": BASE, "new": THEIRS, "g": BASE})),
    ),
    (renamed_while_written, always(Ending({"f": THEIRS, "g": MINE}))),
    (
        renamed_with_its_directory,
        always(Ending({"e/f": THEIRS, "f": BASE}, conflicts=0)),
    ),
    (given_another_mode, always(Ending({"f": THEIRS}, conflicts=0))),
    (given_an_attribute, always(Ending({"f": THEIRS}, conflicts=0))),
)

NOT_ON_FILE = {replaced_by_a_directory, joined_by_a_directory, renamed_when_just_made}
"""A directory cannot show a file beside it of the same name, and what is renamed in it is never stored anew."""


def cases() -> list[object]:
    """Policies and modes on every store; the default run has each policy, each mode and each store once."""
    chosen = {
        ("moto", "close", "keep-both"),
        ("swift", "close", "theirs"),
        ("file", "close", "ours"),
        ("radosgw", "background", "fail"),
    }
    return [
        pytest.param(
            name,
            upload,
            policy,
            marks=() if (name, upload, policy) in chosen else pytest.mark.soak,
        )
        for name in ("moto", "radosgw", "swift", "file")
        for upload in ("close", "background")
        for policy in ("keep-both", "ours", "theirs", "fail")
    ]


@pytest.mark.parametrize(("store", "upload", "policy"), cases(), indirect=["store"])
def test_a_conflict_ends_as_the_table_says(
    store: LiveStore, mounting: Mounting, upload: str, policy: str
) -> None:
    rows = [row for row in TABLE if not (store.name == "file" and row[0] in NOT_ON_FILE)]
    for situation, _ in rows:
        store.put(f"{situation.__name__}/f", BASE)
    options = ("--conflict", policy, "--upload", upload, "--upload-delay", "0s")
    with mounting(store.target(), *options) as mount:
        scenes = [Scene(mount, store, situation.__name__) for situation, _ in rows]
        told = [row[0](scene) for row, scene in zip(rows, scenes, strict=True)]
        mount.wait_clean(but_parked=True)
        status = mount.status()
        found = {
            scene.directory: _ending(scene, number, status, endings[policy])
            for (_, endings), scene, number in zip(rows, scenes, told, strict=True)
        }
        log = mount.log_text()
    assert found == {
        situation.__name__: _expected(endings[policy], upload) for situation, endings in rows
    }
    for situation, endings in rows:
        assert (f"conflict: '{situation.__name__}/" in log) == bool(endings[policy].conflicts)


def _expected(ending: Ending, upload: str) -> Ending:
    """A close in the background has been answered before anything is known."""
    told = 0 if ending.is_parked and upload == "background" else ending.told
    return Ending(ending.objects, told, ending.conflicts, ending.is_parked, ending.states)


def _ending(scene: Scene, told: int, status: dict[str, object], expected: Ending) -> Ending:
    own = f"{scene.directory}/"

    def count(label: str) -> int:
        rows = status[label]
        assert isinstance(rows, list)
        return sum(each["key"].startswith(own) for each in rows)

    return Ending(
        scene.objects(),
        told,
        count("conflicts"),
        count("dirty") == 1,
        {name: _state(scene, name) for name in expected.states},
    )


def _state(scene: Scene, name: str) -> str:
    """The state of a name of the table."""
    shown = scene.mount.do(os.listdir, scene.path("."))
    head, is_copy, _ = name.partition(COPY)
    (real,) = [
        each
        for each in shown
        if (each.startswith(f"{head}.conflict-") if is_copy else each == name)
    ]
    found: bytes = scene.mount.do(os.getxattr, scene.path(real), "user.cachefs.state")
    return found.decode()


@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_a_file_that_a_directory_replaced_keeps_its_bytes_under_the_escaped_name(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("d/f", BASE)
    with mounting(store.target(), "--metadata-ttl", "0") as mount:
        scene = Scene(mount, store, "d")
        assert replaced_by_a_directory(scene) == 0
        assert mount.do(programs.read_tree, mount / "d") == {
            "f~cachefs~object": MINE,
            "f/below": THEIRS,
        }
        assert len(mount.status()["conflicts"]) == 1


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_what_the_operator_is_to_decide_can_be_stored_beside(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("d/f", BASE)
    with mounting(store.target(), "--conflict", "fail") as mount:
        scene = Scene(mount, store, "d")
        assert changed(scene) == errno.EIO
        for _ in range(2):  # tried again, it meets the same, and is not told twice
            mount.flush()
            assert len(mount.status()["conflicts"]) == 1
        recover(mount, "upload")
        mount.wait_clean()
        assert scene.objects() == {"f": THEIRS, "f" + COPY: MINE}
        assert mount.do(programs.read_file, mount / "d/f") == THEIRS
        assert len(mount.do(os.listdir, mount / "d")) == 2


def recover(mount: Mount, action: str) -> None:
    done = cachefs("recover", action, "--cache-dir", mount.cache_dir, env=mount.env)
    assert done.returncode == 0, done.stderr
