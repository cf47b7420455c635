"""``cachefs sync`` as operators type it."""

import io
import json
import logging
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cachefs.cli import main
from tests.cli.running import Done, surroundings
from tests.mount.harness import wait_until

SECRET = "hunter2hunter2"


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two directories as stores, the second with something of its own."""
    source, target = tmp_path / "from", tmp_path / "to"
    source.mkdir()
    target.mkdir()
    for name, content in (("a", "first"), ("d/b", "second"), ("new\nline", "third")):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(content)
    (target / "only here").write_text("doomed")
    return source, target


@pytest.fixture
def sync(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Done]]:
    """Runs ``cachefs sync`` in this process, with nothing but *secrets* on its standard input."""
    for name in [name for name in os.environ if re.match("(AWS|OS|ST|CACHEFS|XDG)_", name)]:
        monkeypatch.delenv(name)
    for name, value in surroundings(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    handlers, level = list(logging.root.handlers), logging.root.level

    def run(*words: str, secrets: str = "") -> Done:
        monkeypatch.setattr(sys, "stdin", io.StringIO(secrets))
        code = main(["sync", *words])
        shown = capsys.readouterr()
        return Done(code, shown.out, shown.err)

    yield run
    logging.root.handlers, logging.root.level = handlers, level


def test_what_is_configured_is_compared_copied_and_deleted(
    two: tuple[Path, Path], tmp_path: Path, sync: Callable[..., Done]
) -> None:
    source, target = two
    kept = sync("configure", "--in-bucket", f"file://{source}", "--out-bucket", f"file://{target}")
    assert (kept.code, kept.err) == (0, "")

    dry = sync("dryrun")

    out = tmp_path / "out"
    assert (dry.code, dry.err) == (0, "")
    assert dry.out == (
        "4 new (16 B), 0 modified (0 B), 1 duplicate; 4 objects compared\n"
        "lists: out/new.txt, out/modified.txt, out/duplicate_stores.txt\n"
    )
    assert (out / "new.txt").read_bytes() == b"a\0d/\0d/b\0new\nline\0"
    assert (out / "duplicate_stores.txt").read_bytes() == b"only here\n"
    assert sorted(path.name for path in target.iterdir()) == ["only here"]

    done = sync("sync", "--json")

    lines = [json.loads(line) for line in done.out.splitlines()]
    summary = lines.pop()["summary"]
    assert (done.code, done.err) == (0, "")
    assert {line["path"]: line["state"] for line in lines} == {
        "a": "copied", "d/": "copied", "d/b": "copied", "new\nline": "copied", "only here": "deleted",
    }  # fmt: skip
    assert (summary["copied"], summary["deleted"], summary["bytes"]) == (4, 1, 16)
    assert (out / "report.jsonl").read_text() == done.out
    assert not (target / "only here").exists()
    assert (target / "new\nline").read_text() == "third"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "the following arguments are required: COMMAND — see cachefs sync --help"),
        (
            "dryrun",
            "no buckets are configured — run cachefs sync configure, or name them: "
            "cachefs sync copy s3://FROM s3://TO",
        ),
        (
            "copy s3://a",
            "there is no bucket to copy s3://a to — name it behind: cachefs sync copy s3://FROM s3://TO",
        ),
        ("copy s3://a/b s3://a", "s3://a/b and s3://a hold the same objects — name two that do not overlap"),
        (
            "copy file:///a file:///a/b",
            "file:///a and file:///a/b hold the same objects — name two that do not overlap",
        ),
        ("copy s3:// s3://b", "a sync is from one bucket to one bucket — name both"),
        ("sync s3://a s3://b --max-delete some", "--max-delete some is not a number — for example --max-delete 1000"),
        (
            "copy s3://a s3://b --limit-rate fast",
            "--limit-rate fast is not a size — for example --limit-rate 10MiB",
        ),
        (
            "copy file:///a file:///b --limit-rate 0",
            "--limit-rate 0 would send nothing — leave it out for no limit",
        ),
        (
            "sync --in-bucket a --out-bucket b",
            "--in-bucket is for configure — name the buckets behind: cachefs sync sync FROM TO",
        ),
        (
            "copy s3://a s3://b --out-region x",
            "--out-region is for configure — name the buckets behind: cachefs sync copy FROM TO",
        ),
        (
            "configure s3://a s3://b",
            "configure does not take s3://a so — write --in-bucket SOURCE --out-bucket SOURCE",
        ),
        (
            "copy file:///a file:///b --cloud x",
            "--cloud x means nothing to file:///a — it is for swift",
        ),
        ("configure", "--in-bucket is missing — for example --in-bucket s3://photos"),
        (
            "configure --in-bucket a --out-bucket b --access-key-id AKID",
            "there is no secret key for s3://a — set CACHEFS_SYNC_SECRET, or pass --secret-stdin and write it to "
            "standard input",
        ),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_nothing_is_done(
    words: str, line: str, tmp_path: Path, sync: Callable[..., Done]
) -> None:
    done = sync(*words.split())

    assert done.err == f"cachefs: {line}\n"
    assert (done.code, done.out) == (2, "")
    assert list(tmp_path.iterdir()) == []


def here(words: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command in this process, and return its exit code."""
    monkeypatch.chdir(home)
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("CACHEFS_CONFIG", str(home / "config.toml"))
    (home / "config.toml").touch()
    handlers, level = list(logging.root.handlers), logging.root.level
    try:
        return main(["sync", *words.split()])
    finally:
        logging.root.handlers, logging.root.level = handlers, level


def test_a_directory_below_the_source_is_known_by_whatever_link_it_is_named(
    two: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (two[0] / "d" / "only here").write_text("precious")
    (tmp_path / "link").symlink_to(two[0])

    code = here(f"sync file://{two[0]} file://{tmp_path}/link/d", tmp_path, monkeypatch)

    assert code == 2
    assert "hold the same objects" in capsys.readouterr().err
    assert (two[0] / "d" / "only here").exists()


def test_containers_of_one_name_in_two_clouds_are_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text(
        '[remotes.old]\ntype = "swift"\ncloud = "one"\n[remotes.new]\ntype = "swift"\ncloud = "other"\n'
    )
    here("dryrun old:photos new:photos", tmp_path, monkeypatch)
    assert "hold the same objects" not in capsys.readouterr().err

    here("dryrun old:photos old:photos/2024", tmp_path, monkeypatch)
    assert "hold the same objects" in capsys.readouterr().err


def test_an_empty_source_empties_no_target_unless_that_is_said(
    two: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "typo").mkdir()
    words = f"sync file://{tmp_path}/typo file://{two[1]}"

    assert here(words, tmp_path, monkeypatch) == 1
    assert "--max-delete 1 says that it is" in capsys.readouterr().err
    assert (two[1] / "only here").exists()

    assert here(f"{words} --max-delete 1", tmp_path, monkeypatch) == 0
    assert not (two[1] / "only here").exists()


def test_more_than_may_be_deleted_is_refused_as_a_whole(
    two: tuple[Path, Path], sync: Callable[..., Done]
) -> None:
    source, target = (f"file://{path}" for path in two)

    done = sync("sync", source, target, "--max-delete", "0")

    assert done.code == 1
    assert "1 objects would be deleted, and --max-delete allows 0: nothing was done" in done.err
    assert [path.name for path in two[1].iterdir()] == ["only here"]


def test_a_store_that_is_not_there_is_said(tmp_path: Path, sync: Callable[..., Done]) -> None:
    (tmp_path / "from").mkdir()

    done = sync("copy", f"file://{tmp_path}/from", "file:///no/where")

    assert done.code == 3
    assert done.err == (
        "cachefs: cannot sync with file:///no/where: no such directory — create it, or check the name\n"
    )
    assert done.out == ""


def test_secrets_come_from_standard_input_and_are_shown_nowhere(
    tmp_path: Path, sync: Callable[..., Done]
) -> None:
    words = ("--in-bucket", "a", "--out-bucket", "swift://b", "--access-key-id", "AKID")
    done = sync(
        "configure", *words, "--out-access-key-id", "test:tester", "--region", "eu-west-1",
        "--secret-stdin", "--json", secrets=f"{SECRET}\nother-secret\n",
    )  # fmt: skip

    path = tmp_path / "config" / "cachefs" / "sync.ini"
    assert done.code == 0
    assert json.loads(done.out)["in"] == {
        "bucket": "s3://a", "access_key_id": "AKID", "region": "eu-west-1",
    }  # fmt: skip
    assert SECRET not in done.out + done.err
    assert "other-secret" not in done.out + done.err
    assert SECRET in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_secret_as_an_option_is_refused_and_not_repeated(sync: Callable[..., Done]) -> None:
    done = sync("configure", "--in-bucket", "a", "--secret-access-key", SECRET)

    assert done.code == 2
    assert SECRET not in done.err


def answer(home: Path, *answers: str) -> tuple[int, str]:
    """Answer what ``configure`` asks on a terminal; return its exit code and all that the terminal showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(home)
        command = [sys.executable, "-m", "cachefs", "sync", "configure"]
        os.execvpe(command[0], command, surroundings(home))
    shown, left = b"", list(answers)
    while select.select([terminal], [], [], 30)[0]:
        try:
            block = os.read(terminal, 4096)
        except OSError:  # how a terminal ends
            break
        shown += block
        if left and shown.endswith(b": "):
            os.write(terminal, left.pop(0).encode() + b"\n")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode()


def test_what_is_missing_is_asked_for_and_a_secret_is_not_echoed(tmp_path: Path) -> None:
    code, shown = answer(tmp_path, "rootwork", "store", "AKIDAKID", SECRET, "eu-west-1", "", "y")

    text = (tmp_path / "config" / "cachefs" / "sync.ini").read_text()
    assert code == 0
    assert SECRET not in shown
    assert text.count(SECRET) == 2
    assert text.count("bucket = s3://") == 2

    again, shown = answer(tmp_path, "", "store/sub", "", "", "", "", "y")

    assert again == 0
    assert "Access key (empty: as the SDKs find it) [****AKID]: " in shown
    assert SECRET not in shown
    assert "bucket = s3://store/sub" in (tmp_path / "config" / "cachefs" / "sync.ini").read_text()


def test_ctrl_c_ends_it_soon_with_a_summary(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "from" / "a").write_text("first")
    (tmp_path / "from" / "large").write_bytes(bytes(9 * 2**20))
    command = [sys.executable, "-m", "cachefs", "sync", "copy"]
    command += [f"file://{tmp_path}/from", f"file://{tmp_path}/to", "--limit-rate", "1MiB"]
    with subprocess.Popen(
        command, env=surroundings(tmp_path), cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        report = tmp_path / "out" / ".report.jsonl.part"
        wait_until(lambda: report.exists() and report.read_bytes(), "the first file is told")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)

    assert process.returncode == 130
    assert out.startswith("cut off: 1 object copied (5 B), 0 deleted, 0 failed")
    summary = json.loads((tmp_path / "out" / "report.jsonl").read_text().splitlines()[-1])
    assert summary["summary"]["interrupted"] is True
    assert not (tmp_path / "to" / "large").exists()


def test_by_checksum_what_is_the_same_is_not_copied_although_it_is_newer(
    two: tuple[Path, Path], tmp_path: Path, sync: Callable[..., Done]
) -> None:
    source, target = two
    (target / "a").write_text("first")
    (target / "d").mkdir()
    (target / "d" / "b").write_text("SECOND")
    (source / "a").write_text("first")
    os.utime(source / "a", (1e9, 1e9))  # the time that it shows, not that of the change

    words = ("dryrun", f"file://{source}", f"file://{target}")
    sync(*words)
    by_time = (tmp_path / "out" / "modified.txt").read_text()
    sync(*words, "--checksum")

    assert by_time == "a\n"
    assert (tmp_path / "out" / "modified.txt").read_text() == "d/b\n"
