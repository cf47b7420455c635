"""``cachefs://`` by fsspec: its own suite, and the programs that it is for, in this process and on a live mount."""

import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import duckdb
import fsspec
import fsspec.tests.abstract as suite
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSelector, FSSpecHandler, PyFileSystem

from cachefs.fsspec_filesystem import CachefsFileSystem
from tests.mount.announcing import ROOT, announced
from tests.mount.harness import Mount
from tests.mount.stores import FileBucket, LiveStore

TABLE = pd.DataFrame({"number": range(1000), "text": [f"row {each}" for each in range(1000)]})


@dataclass
class Door:
    """Where files are, how they are reached, and what is behind."""

    options: dict[str, Any]
    store: FileBucket
    mount: Mount | None

    @property
    def fs(self) -> CachefsFileSystem:
        made: CachefsFileSystem = fsspec.filesystem("cachefs", **self.options)
        return made


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try all on both; how patterns are read, which is fsspec's own and a hundred tests, on a mount in the soak only."""
    if "door" in metafunc.fixturenames:
        is_long = "glob_edge_cases" in metafunc.function.__name__
        mount = pytest.param("mount", marks=pytest.mark.soak) if is_long else "mount"
        metafunc.parametrize("door", ["within", mount], indirect=True, scope="module")


@pytest.fixture(scope="module")
def door(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Door]:
    base = tmp_path_factory.mktemp("fsspec")
    (base / "config.toml").touch()
    store = FileBucket(base / "objects")
    with pytest.MonkeyPatch.context() as patch:
        for name in [each for each in os.environ if each.startswith(("CACHEFS_", "XDG_", "AWS_"))]:
            patch.delenv(name)
        patch.setenv("HOME", str(base))
        patch.setenv("CACHEFS_MIN_FREE", "0")
        patch.setenv("CACHEFS_CONFIG", str(base / "config.toml"))
        patch.setattr(fsspec.config, "conf", {})
        fsspec.register_implementation("cachefs", CachefsFileSystem, clobber=True)
        try:
            if request.param == "within":
                options = {"source": store.target().source, "cache_dir": str(base / "cache")}
                yield Door(options, store, None)
            else:
                with Mount(store.target(), base / "mount", watchdog_s=1800) as mount:
                    yield Door({"source": str(mount.mountpoint)}, store, mount)
                    _close_all()
        finally:
            _close_all()


def _close_all() -> None:
    for made in list(CachefsFileSystem._cache.values()):
        made.close()
    CachefsFileSystem.clear_instance_cache()


# ---- fsspec's own suite ----------------------------------------------------------------------


class Fixtures(suite.AbstractFixtures):  # type: ignore[misc]
    @pytest.fixture
    def fs(self, door: Door) -> CachefsFileSystem:
        return door.fs

    @pytest.fixture
    def fs_path(self, request: pytest.FixtureRequest) -> str:
        return f"suite/{abs(hash(request.node.nodeid))}"


class TestCopy(Fixtures, suite.AbstractCopyTests):  # type: ignore[misc]
    pass


class TestGet(Fixtures, suite.AbstractGetTests):  # type: ignore[misc]
    pass


class TestPut(Fixtures, suite.AbstractPutTests):  # type: ignore[misc]
    pass


class TestOpen(Fixtures, suite.AbstractOpenTests):  # type: ignore[misc]
    pass


class TestPipe(Fixtures, suite.AbstractPipeTests):  # type: ignore[misc]
    pass


# ---- what the suite does not ask -------------------------------------------------------------


def test_a_file_is_moved_by_a_rename_and_a_directory_too(door: Door) -> None:
    fs = door.fs
    fs.pipe({"mv/a": b"a", "mv/d/b": b"b"})

    fs.mv("mv/a", "mv/new/a")
    fs.mv("cachefs://mv/d", "mv/e", recursive=True)
    fs.mv("mv/new/a", "mv/e/")

    assert sorted(fs.find("mv")) == ["mv/e/a", "mv/e/b"]
    assert fs.cat(fs.find("mv")) == {"mv/e/a": b"a", "mv/e/b": b"b"}
    with pytest.raises(FileNotFoundError):
        fs.mv("mv/none", "mv/x")


def test_what_is_told_of_a_file_is_what_fsspec_expects(door: Door) -> None:
    fs = door.fs
    fs.pipe_file("told/file", b"abc")

    info = fs.info("cachefs://told/file")
    assert (info["name"], info["size"], info["type"]) == ("told/file", 3, "file")
    assert info["ETag"]
    assert fs.ls("told", detail=False) == ["told/file"]
    assert fs.info("told")["type"] == "directory"
    assert fs.modified("told/file").timestamp() == pytest.approx(info["mtime"])
    assert fs.created("told/file") == fs.modified("told/file")
    assert (fs.isdir("told"), fs.isfile("told/file"), fs.exists("told/none")) == (
        True,
        True,
        False,
    )
    assert fs.glob("told/*") == ["told/file"]
    assert fs.cat_file("told/file", 1, -1) == b"b"
    assert fs.tail("told/file", 2) == b"bc"
    before = fs.ukey("told/file"), fs.checksum("told/file")
    fs.pipe_file("told/file", b"abd")
    assert (fs.ukey("told/file"), fs.checksum("told/file")) != before
    fs.touch("told/file", truncate=False)
    assert fs.cat_file("told/file") == b"abd"
    fs.rm("told", recursive=True)
    assert not fs.exists("told")


def test_what_is_written_in_a_transaction_is_stored_with_it_or_not_at_all(door: Door) -> None:
    fs = door.fs
    with fs.transaction:
        with fs.open("transaction/a", "wb") as file:
            file.write(b"a")
        assert not fs.exists("transaction/a")
    assert fs.cat_file("transaction/a") == b"a"

    def fail() -> None:
        with fs.transaction:
            with fs.open("transaction/b", "wb") as file:
                file.write(b"b")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not fs.exists("transaction/b")


def test_what_others_store_is_seen_once_what_was_listed_is_given_up(door: Door) -> None:
    fs = door.fs
    fs.pipe_file("others/file", b"mine")
    assert fs.ls("others", detail=False) == ["others/file"]
    door.store.put("others/new", b"theirs")

    fs.invalidate_cache()

    assert fs.ls("others", detail=False) == ["others/file", "others/new"]


def test_of_a_large_file_no_more_is_fetched_than_is_read(door: Door) -> None:
    content = os.urandom(8 << 20)
    door.store.put("large/file", content)
    fs = fsspec.filesystem("cachefs", **door.options, whole_below=1 << 20)

    with fs.open("large/file") as file:
        file.seek(6 << 20)
        assert file.read(100) == content[6 << 20 : (6 << 20) + 100]
        with pytest.raises(io.UnsupportedOperation):
            file.fileno()
    assert fs.cat_file("large/file", -5, None) == content[-5:]
    pq.write_table(pa.table({"x": range(300_000), "y": range(300_000)}), "large/t", filesystem=fs)
    assert pq.read_table("large/t", columns=["y"], filesystem=fs).num_rows == 300_000


def test_an_instance_goes_to_other_processes_by_pickle(door: Door) -> None:
    door.fs.pipe_file("pickled/file", b"x")
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).cat_file('pickled/file'))"

    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(door.fs),
        capture_output=True,
        cwd=ROOT,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, b"b'x'\n", b"")


def test_a_forked_child_and_other_threads_have_instances_of_their_own(door: Door) -> None:
    fs = door.fs
    fs.pipe_file("forked/file", b"x")
    pid = os.fork()
    if not pid:
        try:
            good = fsspec.filesystem("cachefs", **door.options).cat_file("forked/file") == b"x"
            good = good and fs.cat_file("forked/file") == b"x"
        finally:
            os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(door.fs.cat_file("forked/file")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"x"] * 4


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_the_first_part_of_a_path_is_the_bucket_of_an_account(
    store: LiveStore,
    mounting: Callable[..., Mount],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in store.target().environment.items():
        monkeypatch.setenv(name, value)
    fsspec.register_implementation("cachefs", CachefsFileSystem, clobber=True)
    options = {"endpoint_url": store.endpoint, "skip_instance_cache": True}
    with mounting(store.target()) as mount:
        fs = fsspec.filesystem("cachefs", **options)
        fs.pipe_file(f"{store.bucket}/d/file", b"x")
        assert fs.ls(f"{store.bucket}/d", detail=False) == [f"{store.bucket}/d/file"]
        (client,) = fs._clients.values()
        assert client.cache_dir == mount.cache_dir
        fs.close()
    monkeypatch.setenv("CACHEFS_CACHE_DIR", str(tmp_path / "own"))
    fs = fsspec.filesystem("cachefs", source="s3://", **options)
    assert fs.cat_file(f"cachefs://{store.bucket}/d/file") == b"x"
    (client,) = fs._clients.values()
    assert client.is_in_process
    fs.close()
    with pytest.raises(ValueError, match="name one"):
        CachefsFileSystem("s3://", remote="x", skip_instance_cache=True)


# ---- the programs that it is for -------------------------------------------------------------


def test_pandas_reads_and_writes(door: Door) -> None:
    where = {"storage_options": door.options}
    TABLE.to_parquet("cachefs://pandas/table.parquet", **where)
    TABLE.to_csv("cachefs://pandas/table.csv", index=False, **where)

    assert pd.read_parquet("cachefs://pandas/table.parquet", **where).equals(TABLE)
    assert pd.read_parquet("cachefs://pandas/table.parquet", columns=["text"], **where).equals(
        TABLE[["text"]]
    )
    assert pd.read_csv("cachefs://pandas/table.csv", **where).equals(TABLE)
    assert pq.read_table(pa.BufferReader(door.store.get("pandas/table.parquet"))).num_rows == 1000


def test_pyarrow_reads_and_writes(door: Door) -> None:
    arrow = PyFileSystem(FSSpecHandler(door.fs))
    table = pa.Table.from_pandas(TABLE)
    ds.write_dataset(
        table,
        "arrow/set",
        format="parquet",
        filesystem=arrow,
        max_rows_per_file=300,
        max_rows_per_group=300,
    )

    found = arrow.get_file_info(FileSelector("arrow/set", recursive=True))
    assert sorted(each.path for each in found) == [f"arrow/set/part-{n}.parquet" for n in range(4)]
    read = ds.dataset("arrow/set", filesystem=arrow)
    assert read.count_rows(filter=ds.field("number") >= 500) == 500
    with arrow.open_input_file("arrow/set/part-0.parquet") as file:
        assert file.read_at(4, 0) == b"PAR1"
    arrow.delete_dir("arrow/set")
    assert not door.fs.exists("arrow/set")


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # dask's own, of the newest pandas
def test_dask_reads_and_writes(door: Door) -> None:
    where = {"storage_options": door.options}
    dd.from_pandas(TABLE, npartitions=4).to_parquet("cachefs://dask/set", **where)

    read = dd.read_parquet("cachefs://dask/set", **where)

    assert read.number.sum().compute() == TABLE.number.sum()
    assert len([key for key in door.store.keys("dask/set") if key.endswith(".parquet")]) == 4


def test_duckdb_reads_and_writes(door: Door) -> None:
    with duckdb.connect() as db:
        db.register_filesystem(door.fs)
        db.execute("CREATE TABLE t AS SELECT range AS number FROM range(1000)")
        db.execute("COPY t TO 'cachefs://duck/t.parquet' (FORMAT parquet)")
        db.execute("COPY t TO 'cachefs://duck/t.csv'")

        total = db.execute("SELECT sum(number) FROM 'cachefs://duck/*.parquet'").fetchone()
        assert total == (499500,)
        count = db.execute("SELECT count(*) FROM read_csv('cachefs://duck/t.csv')").fetchone()
        assert count == (1000,)
    assert pq.read_table(pa.BufferReader(door.store.get("duck/t.parquet"))).num_rows == 1000


def test_the_protocol_is_found_by_its_entry_point(door: Door, tmp_path: Path) -> None:
    code = "import fsspec; print(fsspec.get_filesystem_class('cachefs').__name__)"

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{announced(tmp_path)}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert (done.stdout, done.stderr) == ("CachefsFileSystem\n", "")
