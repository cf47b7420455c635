"""The examples for Python are run as they are shown, one after the other."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from cachefs import Client, CloudManager
from tests.mount.announcing import announced
from tests.mount.harness import Mount
from tests.mount.stores import Target

ROOT: Final = Path(__file__).parents[2]
GUIDE: Final = (ROOT / "cachefs" / "doc" / "python.md").read_text(encoding="utf-8")
SECTIONS: Final = {
    section.partition("\n")[0]: section
    for section in re.split(r"^## ", GUIDE, flags=re.MULTILINE)[1:]
}


def blocks(section: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE)


def run(example: str, place: Path) -> str:
    """Run an example whose places below /srv are below *place*; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example.replace("/srv", str(place))],
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        env={
            **os.environ,
            "HOME": str(place),
            "CACHEFS_MIN_FREE": "0",
            "PYTHONPATH": f"{announced(place)}:{ROOT}",
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "objects").mkdir()
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7 and so on")
    return tmp_path


def test_the_cloud_manager_does_what_its_example_says(place: Path) -> None:
    example, _ = blocks("CloudManager: files by what they hold")

    printed = run(f"{example}\nprint(path)", place)

    assert Path(printed.strip()).read_bytes() == b"%PDF-1.7 and so on"
    assert (place / "objects" / Path(printed.strip()).name).exists()


CLIENT: Final = "Client: the files of a bucket, without a mount"


def test_the_client_does_what_its_examples_say(place: Path) -> None:
    example, on_trio = blocks(CLIENT)

    printed = run(f"{example}\nprint(head, sorted(names))", place)

    assert printed == "b'%PDF-1.7' ['2026/notes.txt', '2026/report.pdf']\n"
    assert (place / "objects/2026/notes.txt").read_text() == "stored when it is closed\n"
    printed = run(f"{on_trio}\nprint(sorted(names))", place)
    assert printed == "['2026/notes.txt', '2026/report.pdf']\n"
    assert (place / "objects/2026/notes.txt").read_text() == "from trio"


def test_pandas_pyarrow_and_duckdb_do_what_their_example_says(place: Path) -> None:
    (example,) = blocks("fsspec: pandas, dask, pyarrow, DuckDB")

    printed = run(f"{example}\nprint(again.equals(table), rows, total)", place)

    assert printed == "True 2 42\n"
    assert (place / "objects/counts/all.parquet").exists()


def test_every_method_of_the_client_is_told_of() -> None:
    methods = {name for name in vars(Client) if not name.startswith("_")}

    named = set(re.findall(r"`(\w+)\(", SECTIONS[CLIENT]))

    assert methods - {"cache_dir", "is_in_process"} <= named


def test_the_cloud_manager_keeps_its_files_in_the_cache_of_a_mount(place: Path) -> None:
    _, example = blocks("CloudManager: files by what they hold")
    with Mount(Target(f"file://{place}/objects"), place / "mount") as mount:
        example = example.replace("/mnt/photos", str(mount.mountpoint))
        printed = run(f"{example}\n    print(path)", place)

    (stored,) = (place / "objects/pool").iterdir()
    assert stored.read_bytes() == b"%PDF-1.7 and so on"
    assert Path(printed.strip()).is_relative_to(mount.cache_dir)


def test_every_method_of_the_cloud_manager_is_told_of() -> None:
    methods = {name for name in vars(CloudManager) if not name.startswith("_")}

    named = set(re.findall(r"`(\w+)\(", SECTIONS["CloudManager: files by what they hold"]))

    assert methods <= named
