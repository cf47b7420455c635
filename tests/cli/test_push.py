"""``cachefs push`` as an operator runs it: what it says, how it ends."""

import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cachefs.cli import main
from tests.cli.running import Done, contents, surroundings

ROOT = Path(__file__).parents[2]


class Place:
    """A directory to push, and a store to push it to."""

    def __init__(self, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.base = base
        self._capsys = capsys
        self.root = base / "photos"
        self.store = base / "store"
        self.root.mkdir()
        self.store.mkdir()
        self.dest = f"file://{self.store}"

    def write(self, path: str, content: str = "content") -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        os.utime(file, (1_600_000_000, 1_600_000_000))

    def push(self, *words: str) -> Done:
        """Run the command in this process, which is as good and takes less time."""
        code = main(["push", str(self.root), self.dest, *words])
        shown = self._capsys.readouterr()
        return Done(code, shown.out, shown.err)

    def stored(self) -> list[str]:
        return [name for name in contents(self.store) if not name.startswith(".cachefs")]


def lines(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines()]


@pytest.fixture
def place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("CACHEFS_CONFIG", "")
    handlers, level = list(logging.root.handlers), logging.root.level
    yield Place(tmp_path, capsys)
    logging.root.handlers, logging.root.level = handlers, level


def test_what_was_done_is_summed_up(place: Place) -> None:
    place.write("2024/a.jpg")
    place.write("b.jpg")

    first, second = place.push(), place.push()

    assert (first.code, first.err, second.code) == (0, "", 0)
    assert first.out.startswith(f"{place.root} to file://{place.store}: 3 new\n")
    assert "3 unchanged" in second.out
    assert "0 B sent, 0 B hashed" in second.out
    assert place.stored() == ["2024", "2024/a.jpg", "b.jpg"]


def test_json_tells_of_each_file_and_of_all(place: Place) -> None:
    place.write("a\nb", "x")
    os.mkfifo(place.root / "pipe")
    place.write("bad~cachefs~name")

    done = place.push("--json")

    told = {line["path"]: line for line in lines(done) if "path" in line}
    assert done.code == 1
    assert told["a\nb"] | {"etag": ""} == {
        "path": "a\nb",
        "done": "new",
        "size": 1,
        "md5": "9dd4e461268c8034f5c8564e155c67a6",
        "etag": "",
    }
    assert told["pipe"]["done"] == "skipped"
    assert "reserved" in told["bad~cachefs~name"]["reason"]
    summary = lines(done)[-1]["summary"]
    assert (summary["new"], summary["skipped"], summary["failed"]) == (1, 1, 1)
    assert (summary["bytes_sent"], summary["interrupted"]) == (1, False)
    assert summary["requests"]["put"] == 1


def test_a_dry_run_tells_and_does_nothing(place: Place) -> None:
    place.write("a")
    (place.store / "old").touch()

    done = place.push("--dry-run", "--delete")

    assert done.code == 0
    assert {line.split()[0]: line.split()[1] for line in done.out.splitlines()[:2]} == {
        "new": "a",
        "deleted": "old",
    }
    assert "1 would be deleted" in done.out
    assert place.stored() == ["old"]


def test_too_many_deletions_are_none_and_a_failure(place: Place) -> None:
    place.write("a")
    for name in ("old1", "old2"):
        (place.store / name).touch()

    done = place.push("--delete", "--max-delete", "1")

    assert done.code == 1
    assert "nothing was deleted of 2 objects that only DEST has: they are more" in done.err
    assert place.stored() == ["a", "old1", "old2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a\nd/b\n", ()),
        (b"a\0d/b\0", ("--null",)),
    ],
)
def test_a_list_on_standard_input_names_what_is_pushed(
    place: Place, text: bytes, words: tuple[str, ...]
) -> None:
    for name in ("a", "d/b", "d/c"):
        place.write(name)

    tool = ROOT / "tools/sync_dir_to_swift.py"
    done = subprocess.run(
        [sys.executable, tool, place.root, place.dest, "--manifest", "-", *words],
        env=surroundings(place.base, XDG_STATE_HOME=str(place.base / "state")),
        input=text,
        capture_output=True,
        timeout=50,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert place.stored() == ["a", "d", "d/b"]


def test_a_list_that_names_what_is_not_there_is_a_failure(place: Place) -> None:
    (place.base / "list").write_text("gone\n")

    done = place.push("--manifest", "list")

    assert done.code == 1
    assert done.err == "cachefs: gone: No such file or directory\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--manifest", "none"), "--manifest none: No such file or directory — name a list"),
        (("--manifest", "list", "--delete"), "--delete needs the whole directory"),
        (("--max-delete", "5"), "--max-delete bounds what --delete does"),
        (("--null",), "--null says how a list is written"),
        (("--limit-rate", "fast"), "--limit-rate fast is not a size — for example"),
        (("--limit-rate", "0"), "--limit-rate 0 would send nothing"),
        (("--nice", "77"), "--nice 77 is not between 0 and 19"),
        (("--exclude", "!"), "--exclude '!' is no pattern"),
        (("--size-only", "--mtime"), "not allowed with"),
        (("--cache-size", "5G"), "unknown option --cache-size"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(
    place: Place, words: tuple[str, ...], said: str
) -> None:
    (place.base / "list").touch()

    done = place.push(*words)

    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1
    assert place.stored() == []


@pytest.mark.parametrize("inside", ["root-in-store", "store-in-root", "same"])
def test_a_directory_is_not_pushed_into_itself(place: Place, inside: str) -> None:
    match inside:
        case "root-in-store":
            place.dest = f"file://{place.base}"
        case "store-in-root":
            (place.root / "store").mkdir()
            place.dest = f"file://{place.root}/store"
        case "same":
            place.dest = f"file://{place.root}"

    done = place.push()

    assert done.code == 2
    assert "lie in one another" in done.err


def test_a_store_that_is_not_there_is_refused(place: Place) -> None:
    place.store.rmdir()

    done = place.push()

    assert done.code == 3
    assert done.err.startswith(f"cachefs: cannot push to {place.dest}: no such directory")


def test_results_go_to_the_pipe_while_the_terminal_shows_a_bar(place: Place) -> None:
    for number in range(40):
        place.write(f"f{number}")
    terminal, inner = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "cachefs", "push", place.root, place.dest, "--json"],
        env=surroundings(place.base, XDG_STATE_HOME=str(place.base / "state"), TERM="xterm"),
        stdout=subprocess.PIPE,
        stderr=inner,
    ) as process:
        os.close(inner)
        out, _ = process.communicate(timeout=30)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)

    assert len([json.loads(line) for line in out.splitlines()]) == 41
    assert "pushing" in shown
    assert re.search(r"\d+(/40)? files", shown)


@pytest.fixture
def slow(place: Place) -> Iterator["subprocess.Popen[str]"]:
    """A push that takes long."""
    for number in range(8):
        place.write(f"f{number}", "x" * 50_000)
    slowly = ("--limit-rate", "20KiB", "-v")
    process = subprocess.Popen(
        [sys.executable, "-m", "cachefs", "push", *slowly, place.root, place.dest],
        env=surroundings(place.base, XDG_STATE_HOME=str(place.base / "state")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_ctrl_c_stops_with_a_summary_and_the_next_run_does_the_rest(
    place: Place, slow: "subprocess.Popen[str]"
) -> None:
    assert slow.stdout is not None
    first = slow.stdout.readline()
    slow.send_signal(signal.SIGINT)
    out, err = slow.communicate(timeout=20)

    assert first.startswith("new ")
    assert slow.returncode == 130
    assert "not finished" in out
    assert err == ""
    before = place.stored()
    assert len(before) < 8
    rest = lines(place.push("--json"))[-1]["summary"]
    assert (rest["same"], rest["new"]) == (len(before), 8 - len(before))


def test_two_pushes_of_the_same_do_not_get_into_each_other_s_way(
    place: Place, slow: "subprocess.Popen[str]"
) -> None:
    assert slow.stdout is not None
    slow.stdout.readline()

    done = place.push()

    assert done.code == 2
    assert "under way" in done.err
