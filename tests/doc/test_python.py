"""The examples for Python are run as they are shown, one after the other."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from cachefs import CloudManager

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
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "objects").mkdir()
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7 and so on")
    return tmp_path


def test_the_cloud_manager_does_what_its_example_says(place: Path) -> None:
    (example,) = blocks("CloudManager: files by what they hold")

    printed = run(f"{example}\nprint(path)", place)

    assert Path(printed.strip()).read_bytes() == b"%PDF-1.7 and so on"
    assert (place / "objects" / Path(printed.strip()).name).exists()


def test_every_method_of_the_cloud_manager_is_told_of() -> None:
    methods = {name for name in vars(CloudManager) if not name.startswith("_")}

    named = set(re.findall(r"`(\w+)\(", SECTIONS["CloudManager: files by what they hold"]))

    assert methods <= named
