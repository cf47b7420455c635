"""``cachefs simulate`` as it is run: table, JSON, plot, and one line for what is wrong."""

import json
from pathlib import Path

import pytest

from cachefs.cli import main
from cachefs.core.traceline import HEADER, TraceLine
from tests.cli.running import cachefs


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A hundred opens of twenty files of 100 KB."""
    path = tmp_path / "trace.csv"
    lines = [
        TraceLine(
            at * 10**9,
            f"d/f{(at * at) % 20}",
            100_000,
            is_hit=False,
            fetch_ns=10**8,
            is_write=False,
        )
        for at in range(100)
    ]
    path.write_text("\n".join([HEADER, *(line.encode() for line in lines)]) + "\n")
    return path


def test_a_table_tells_each_measure_by_policy_and_size(trace: Path, tmp_path: Path) -> None:
    done = cachefs(
        *("simulate", trace, "--policy", "lru,no-eviction", "--sizes", "1MiB,100MiB"),
        home=tmp_path,
    )

    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "100 opens of 6 files, 585.9 KiB in all, 1970-01-01T00:00:00Z to 1970-01-01T00:01:39Z",
        "",
        "hit ratio    1.0 MiB  100.0 MiB",
        "lru          94.00%   94.00%",
        "no-eviction  94.00%   94.00%",
        "",
        "byte hit ratio  1.0 MiB  100.0 MiB",
        "lru             94.00%   94.00%",
        "no-eviction     94.00%   94.00%",
        "",
        "waiting time (recorded)  1.0 MiB  100.0 MiB",
        "lru                      0.6 s    0.6 s",
        "no-eviction              0.6 s    0.6 s",
    ]


def test_machines_get_one_document_and_people_a_plot(trace: Path, tmp_path: Path) -> None:
    pytest.importorskip("libcachesim")
    pytest.importorskip("matplotlib")

    done = cachefs(
        *("simulate", trace, "--policy", "gdsf,belady,libcachesim:lru", "--sizes", "100%,3MiB"),
        *("--json", "--plot", "curves.svg"),
        home=tmp_path,
        PYTHONWARNINGS="default",
    )

    assert done.code == 0
    document = json.loads(done.out)
    assert document["trace"]["opens"] == 100
    assert document["trace"]["fetch_times"] == "recorded"
    assert [(each["policy"], each["size"]) for each in document["results"]] == [
        (policy, size)
        for policy in ("gdsf", "belady", "libcachesim:lru")
        for size in (2**20, 3 * 2**20)
    ]
    assert all(each["hits"] == 94 for each in document["results"])
    drawn = (tmp_path / "curves.svg").read_text()
    assert drawn.count("<svg") == 1


def test_the_opens_that_a_cache_remembers_are_a_trace(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "a").write_bytes(b"content")
    (tmp_path / "list").write_text("a\n")
    words = (f"file://{tmp_path}/objects", "--cache-dir", tmp_path / "cache")
    cachefs("preheat", *words, "--list", "list", home=tmp_path)

    done = cachefs("simulate", tmp_path / "cache", home=tmp_path)

    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == (
        "cachefs: the cache remembers no open of the last days — name a file that --trace wrote"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("TRACE --policy lur", "there is no policy lur — did you mean lru?"),
        ("TRACE --policy ,", "--policy names none — for example --policy gdsf,lru"),
        ("TRACE --policy lru --sizes 5KiB", "--sizes 5KiB is less than the smallest cache, 1MiB — for example --sizes 1GiB,10GiB or --sizes 1%,10%"),
        ("TRACE --policy lru --sizes 200%", "--sizes 200% is no percentage — for example --sizes 1GiB,10GiB or --sizes 1%,10%"),
        ("TRACE --policy lru --columns key", "--columns key is not NAME=COLUMN — for example --columns time=1,key=2,size=3"),
        ("TRACE --policy lru --plot a.pdf", "--plot a.pdf is neither .png nor .svg — for example --plot curves.svg"),
        ("TRACE none --policy lru", "the trace HOME/none cannot be read: No such file or directory — name a trace of opens"),
        ("none --policy lru", "none is neither a trace, nor a mount that remembers opens, nor a cache directory — name a file that --trace wrote"),
        ("", "the following arguments are required: TRACE — see cachefs simulate --help"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line(
    words: str,
    line: str,
    trace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CACHEFS_CONFIG", "")

    code = main(["simulate", *(str(trace) if word == "TRACE" else word for word in words.split())])

    told = capsys.readouterr()
    assert told.err == f"cachefs: {line}\n".replace("HOME", str(tmp_path))
    assert (code, told.out) == (2, "")
