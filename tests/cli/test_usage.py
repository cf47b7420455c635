"""What is said of wrong usage: one line, the right exit code, and nothing done."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cachefs.cli import COMMANDS, build_parser
from cachefs.config.option import Group
from cachefs.config.options import MOUNT_OPTIONS
from tests.cli.running import cachefs, contents, surroundings


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    text = build_parser(command).format_help()

    assert text.startswith(f"usage: cachefs {command}")
    assert all(word in text for word in ("-v", "--verbose", "-q", "--quiet", "--help"))


@pytest.mark.parametrize(
    "command",
    [
        "umount",
        "status",
        "explain",
        "refresh",
        "flush",
        "verify",
        "preheat",
        "simulate",
        "push",
        "recover",
    ],
)
def test_every_command_that_reports_can_report_in_json(command: str) -> None:
    assert "--json" in build_parser(command).format_help()


def test_the_help_of_mount_shows_every_option_with_its_default() -> None:
    text = " ".join(build_parser("mount").format_help().split())

    for option in MOUNT_OPTIONS:
        assert f"--{option.name}" in text
    assert "[10GiB]" in text
    assert all(f"options: {group}:" in text for group in Group)


def test_help_is_a_result(tmp_path: Path) -> None:
    shown = cachefs("--help", home=tmp_path)
    of_mount = cachefs("mount", "--help", home=tmp_path)

    assert (shown.code, shown.err) == (0, "")
    assert all(command in shown.out for command in COMMANDS)
    assert (of_mount.code, of_mount.err) == (0, "")


def test_the_version_is_told(tmp_path: Path) -> None:
    assert re.fullmatch(r"cachefs \d+\.\d+\.\d+\n", cachefs("--version", home=tmp_path).out)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "",
            f"no command given — one of {', '.join(COMMANDS)}; see cachefs --help",
        ),
        ("status --interval 2s", "--interval says how often --watch tells — pass that, too"),
        (
            "prune --threshold 50% --to 80%",
            "--to 80% is more than --threshold 50%, at which pruning begins — name a lower level, or a higher threshold",
        ),
        (
            "verify here s3://photos",
            "here s3://photos are two — to verify the files of a directory: cachefs verify --dir here s3://photos",
        ),
        ("mont", "unknown command mont — did you mean mount?"),
        ("frobnicate", "unknown command frobnicate — see cachefs --help"),
        ("mount", "the following arguments are required: SOURCE — see cachefs mount --help"),
        (
            "mount s3://b",
            "cannot mount s3://b: no mountpoint given — for example cachefs mount s3://photos /mnt/photos",
        ),
        (
            "mount --cache-siz 5G s3://b m",
            "unknown option --cache-siz — did you mean --cache-size?",
        ),
        (
            "mount --cache_siz=5G s3://b m",
            "unknown option --cache-siz — did you mean --cache-size?",
        ),
        ("mount --verbos s3://b m", "unknown option --verbos — did you mean --verbose?"),
        (
            "mount s3://b m -o cache_siz=5G",
            "unknown option -o cache_siz — did you mean -o cache-size?",
        ),
        (
            "mount s3://b m --cache-size lots",
            "--cache-size lots is not a size — for example --cache-size 50GiB",
        ),
        (
            "mount s3://b m --cache_size=lots",
            "--cache_size lots is not a size — for example --cache_size 50GiB",
        ),
        (
            "mount s3://b m --cache-size",
            "--cache-size needs a value — for example --cache-size 50GiB",
        ),
        ("mount s3://b m -o", "-o needs a value — for example -o cache_size=50GiB"),
        ("mount s3://b m n", "unexpected argument 'n' — see cachefs mount --help"),
        (
            "mount s3//b m",
            "source s3//b is not a source — write s3://BUCKET[/PREFIX], swift://CONTAINER[/PREFIX], "
            "file:///DIRECTORY or REMOTE:BUCKET[/PREFIX]",
        ),
        (
            "mount photos m",
            "there is no [mounts.photos] in any configuration file — for the bucket, write s3://photos",
        ),
        (
            "mount s3://b m --endpoint-url 127.0.0.1:9000",
            "--endpoint-url 127.0.0.1:9000 is not an http:// or https:// URL — for example "
            "--endpoint-url http://127.0.0.1:9000",
        ),
        ("status --jsn", "unknown option --jsn — did you mean --json?"),
        ("umount", "the following arguments are required: MOUNTPOINT — see cachefs umount --help"),
        ("umount .", "HOME is not mounted — cachefs status lists what is"),
        (
            "umount . --timeout soon",
            "--timeout soon is not a duration — for example --timeout 60s",
        ),
        ("explain .", "HOME is in no running cachefs mount — cachefs status lists them"),
        ("refresh .", "HOME is in no running cachefs mount — cachefs status lists them"),
        ("flush .", "HOME is in no running cachefs mount — cachefs status lists them"),
        (
            "verify --cache-dir none s3://b",
            "there is no cache in HOME/none — name a mount, or its --cache-dir",
        ),
        (
            "verify --one-way",
            "--one-way says how to verify a directory — name one by --dir, or leave it out",
        ),
        (
            "verify --dir .",
            "where the files of HOME should be is missing — for example cachefs verify --dir HOME s3://BUCKET/PREFIX",
        ),
        (
            "verify --dir . s3://b --repair",
            "--repair and --wait are for a cache — to upload what a directory has, give the list to push: "
            "cachefs verify --json --dir DIR DEST | cachefs push --manifest - DIR DEST",
        ),
        ("verify --dir none s3://b", "none is no directory — name the one to verify"),
        (
            "verify --dir . s3://b --threads 0",
            "--threads 0 is not a number from 1 to 64 — for example --threads 4",
        ),
        (
            "verify --dir . s3://b --older-than soon",
            "--older-than soon is not a duration — for example --older-than 7d",
        ),
        (
            "verify --dir . s3://b --json --combined",
            "--json and --combined are two forms of the same — choose one",
        ),
        ("recover export", "export needs a directory to copy to — for example --to ./rescued"),
        (
            "recover list --cache-dir none",
            "there is no cache in HOME/none — name the directory that holds cachefs.sqlite3",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(words: str, line: str, tmp_path: Path) -> None:
    done = cachefs(
        *(str(tmp_path) if word == "." else word for word in words.split()), home=tmp_path
    )

    assert done.err == f"cachefs: {line}\n".replace("HOME", str(tmp_path))
    assert (done.code, done.out) == (2, "")
    assert contents(tmp_path) == []


def test_a_secret_on_the_command_line_is_refused_and_not_repeated(tmp_path: Path) -> None:
    done = cachefs("mount", "s3://b", "m", "-o", "secret_access_key=hunter2", home=tmp_path)

    assert done.code == 2
    assert "hunter2" not in done.err
    assert "credentials are taken from where the SDKs look for them" in done.err


def test_a_configuration_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    done = cachefs("mount", "photos", home=tmp_path, CACHEFS_CONFIG=str(tmp_path / "none.toml"))

    assert done.code == 2
    assert done.err == (
        f"cachefs: there is no configuration file {tmp_path}/none.toml — create it, or unset CACHEFS_CONFIG\n"
    )


def test_the_commands_start_without_the_event_loop_and_the_sdks(tmp_path: Path) -> None:
    done = cachefs("status", home=tmp_path, PYTHONPROFILEIMPORTTIME="1")

    loaded = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
    assert "cachefs.live" in loaded  # what status is made of
    assert not loaded & {"trio", "pyfuse3", "boto3", "botocore", "swiftclient", "sqlite3"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_as_wide_as_the_terminal(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    description, _, _ = build_parser(command).format_help().partition("\noptions:")

    prose = [
        line for line in description.splitlines() if line[:1].isalpha() and "usage:" not in line
    ]
    assert 40 < max(map(len, prose)) <= 60


def test_an_interrupt_while_the_command_is_loaded_ends_it_without_a_traceback(
    tmp_path: Path,
) -> None:
    interrupting = (
        "import runpy, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'cachefs.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_module('cachefs', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", interrupting],
        env=surroundings(tmp_path),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
