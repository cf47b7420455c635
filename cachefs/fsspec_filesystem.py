"""fsspec's door: ``cachefs://BUCKET/KEY`` for pandas, dask, pyarrow, DuckDB and whatever else speaks fsspec.

::

    import pandas as pd

    table = pd.read_parquet("cachefs://photos/index.parquet", storage_options={"source": "s3://"})
"""

import datetime as dt
import os
import threading
from contextlib import suppress
from glob import has_magic
from typing import IO, Any, Final

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.spec import AbstractFileSystem

from cachefs.answers import Info
from cachefs.config import current
from cachefs.library import Client
from cachefs.meant import is_many, mounted_bucket
from cachefs.spool import SpooledWriter

_KINDS: Final = {"file": "file", "dir": "directory"}


class CachefsFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Files of a cache; see :class:`cachefs.Client`, whose options these are.

    *source* (or *remote*, the name of a ``[remotes.NAME]``) says which store is meant. If that is a whole account (``s3://``,
    ``swift://``, ``NAME:``), the first part of each path is a bucket; else all paths are relative to it. None: the mount that
    runs of the bucket that is the first part, or else ``s3://BUCKET``.

    What is opened to be read is a local file of the cache, whole, unless it is larger than *whole_below* (64 MiB): then
    no more of it is fetched than is read. What is written is stored at the close, or with the
    transaction, whole or not at all.
    """

    protocol = "cachefs"
    root_marker = ""

    def __init__(
        self,
        source: str | None = None,
        *,
        remote: str | None = None,
        whole_below: int = 64 * 2**20,
        **storage_options: object,
    ) -> None:
        if source is not None and remote is not None:
            raise ValueError("source and remote both say which store is meant: name one")
        super().__init__(source, remote=remote, whole_below=whole_below, **storage_options)
        self._whole_below = whole_below
        own = (
            "use_listings_cache",
            "listings_expiry_time",
            "max_paths",
            "skip_instance_cache",
            "asynchronous",
            "loop",
            "batch_size",
        )
        self._options = {name: each for name, each in storage_options.items() if name not in own}
        self._source = source if remote is None else f"{remote}:"
        self._is_many = self._source is None or is_many(self._source, current())
        self._clients: dict[str, Client] = {}
        self._lock = threading.RLock()

    # ---- whom to ask ------------------------------------------------------------------------

    def _of(self, path: str) -> tuple[Client, str, str]:
        """Return whom to ask about *path*, the path there, and what stands before that in ours."""
        path = self._strip_protocol(path)
        if not self._is_many:
            return self._client(""), path, ""
        bucket, _, inner = path.partition("/")
        if not bucket:
            return self._client(""), "", ""
        return self._client(bucket), inner, f"{bucket}/"

    def _client(self, bucket: str) -> Client:
        with self._lock:
            client = self._clients.get(bucket)
            if client is None:
                client = self._clients[bucket] = Client(self._where(bucket), **self._options)
            return client

    def _where(self, bucket: str) -> str:
        if self._source is None:
            return mounted_bucket(bucket, current()) or f"s3://{bucket}"
        return self._source + bucket if bucket else self._source

    def close(self) -> None:
        """Close every client: end their leases, and the services in this process."""
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()

    # ---- looking ----------------------------------------------------------------------------

    def info(self, path: str, **kwargs: object) -> dict[str, Any]:
        """Return name, size, type (``file``, ``directory``), mtime and ETag of *path*."""
        client, inner, before = self._of(path)
        return _told(client.stat(inner), before)

    def ls(self, path: str, detail: bool = True, **kwargs: object) -> list[Any]:
        """Return what is in a directory, or the file itself."""
        client, inner, before = self._of(path)
        try:
            found = [_told(each, before) for each in client.list(inner)]
        except NotADirectoryError:
            found = [self.info(path)]
        found.sort(key=lambda each: str(each["name"]))
        return found if detail else [each["name"] for each in found]

    def modified(self, path: str) -> dt.datetime:
        """Return when the file was written last."""
        return dt.datetime.fromtimestamp(self.info(path)["mtime"], tz=dt.UTC)

    def created(self, path: str) -> dt.datetime:
        """Return the same: an object is made anew with each write."""
        return self.modified(path)

    def ukey(self, path: str) -> str:
        """Return what is another text for another content."""
        info = self.info(path)
        return str(info["ETag"] or f"{info['size']}-{info['mtime']}")

    def checksum(self, path: str) -> int:
        """Return what is another number for another content."""
        return int.from_bytes(self.ukey(path).encode()[:32], "little")

    def invalidate_cache(self, path: str | None = None) -> None:
        """Have the store asked anew about *path* and what is below, or about all that was asked of it here."""
        if path is not None:
            client, inner, _ = self._of(path)
            with suppress(FileNotFoundError):
                client.refresh(inner)
            return
        with self._lock:
            clients = list(self._clients.values())
        for client in clients:
            client.refresh()

    # ---- bytes ------------------------------------------------------------------------------

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> IO[bytes]:
        client, inner, _ = self._of(path)
        spelled = mode if "b" in mode else f"{mode}b"
        is_large = spelled == "rb" and client.stat(inner).size > self._whole_below
        file = client.open(inner, spelled, whole=not is_large)
        if not autocommit and isinstance(file, SpooledWriter):
            file.defer()
        return file

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: object
    ) -> bytes:
        """Return the bytes of a file, or some of them."""
        with self._open(path) as file:
            first, last, _ = slice(start, end).indices(file.seek(0, 2))
            file.seek(first)
            return bytes(file.read(max(0, last - first)))

    def pipe_file(
        self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object
    ) -> None:
        """Store *value* as a file; with the mode ``create`` only where there is none."""
        client, inner, _ = self._of(path)
        if mode == "create":
            with client.open(inner, "xb") as file:
                file.write(value)
        else:
            client.write(inner, value)

    def touch(self, path: str, truncate: bool = True, **kwargs: object) -> None:
        """Make an empty file of *path*; unless *truncate*, what is there keeps its bytes."""
        client, inner, _ = self._of(path)
        if truncate or not client.exists(inner):
            client.write(inner, b"")
        else:
            client.copy(inner, inner)

    def put_file(
        self,
        lpath: str,
        rpath: str,
        callback: Callback = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **kwargs: object,
    ) -> None:
        """Store a local file, or make a directory where *lpath* is one."""
        client, inner, _ = self._of(rpath)
        try:
            info = client.put(lpath, inner, replace=mode != "create")
        except IsADirectoryError:
            self.makedirs(rpath, exist_ok=True)
            return
        callback.set_size(info.size)
        callback.absolute_update(info.size)

    def get_file(
        self,
        rpath: str,
        lpath: str,
        callback: Callback = DEFAULT_CALLBACK,
        outfile: IO[bytes] | None = None,
        **kwargs: object,
    ) -> None:
        """Copy a file to a local path; a directory is made there."""
        if outfile is not None or hasattr(lpath, "write"):
            target: Any = outfile or lpath
            target.write(self.cat_file(rpath))
            return
        client, inner, _ = self._of(rpath)
        if client.stat(inner).is_dir:
            os.makedirs(lpath, exist_ok=True)
            return
        os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
        client.get(inner, lpath)
        size = os.path.getsize(lpath)
        callback.set_size(size)
        callback.absolute_update(size)

    # ---- names ------------------------------------------------------------------------------

    def cp_file(self, path1: str, path2: str, **kwargs: object) -> None:
        """Copy a file, through the cache; of a directory, make one."""
        if self.isdir(path1):
            self.makedirs(path2, exist_ok=True)
            return
        client, inner, _ = self._of(path1)
        other, target, _ = self._of(path2)
        if client is other:
            client.copy(inner, target)
            return
        with client.lease(inner) as lease:
            other.put(lease, target)

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: object) -> None:
        """Make a directory."""
        client, inner, _ = self._of(path)
        if create_parents and self.exists(path):
            raise FileExistsError(path)
        client.mkdir(inner, parents=create_parents)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory and those above it."""
        client, inner, _ = self._of(path)
        if not exist_ok and client.exists(inner):
            raise FileExistsError(path)
        client.mkdir(inner, parents=True)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        client, inner, _ = self._of(path)
        if not client.stat(inner).is_dir:
            raise NotADirectoryError(path)
        client.delete(inner)

    def _rm(self, path: str) -> None:
        client, inner, _ = self._of(path)
        client.delete(inner)

    def rm_file(self, path: str) -> None:
        """Remove a file."""
        self._rm(path)

    def rm(
        self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None
    ) -> None:
        """Remove files; *recursive*: and directories, with what is in them."""
        if maxdepth is not None:
            super().rm(path, recursive=recursive, maxdepth=maxdepth)
            return
        for each in self.expand_path(path, recursive=False):
            client, inner, _ = self._of(each)
            client.delete(inner, recursive=recursive)

    def mv(
        self,
        path1: str | list[str],
        path2: str | list[str],
        recursive: bool = False,
        maxdepth: int | None = None,
        **kwargs: object,
    ) -> None:
        """Move files: one file, or a whole directory to where there is nothing, by a rename; else by copies."""
        if isinstance(path1, str) and isinstance(path2, str) and maxdepth is None:
            source, inner, _ = self._of(path1)
            other, target, _ = self._of(path2)
            is_plain = not has_magic(path1) and not path2.endswith("/") and source is other
            if is_plain and not self.isdir(path2) and self.exists(path1):
                if not source.stat(inner).is_dir:
                    self._rename(source, inner, target)
                    return
                if recursive and not path1.endswith("/"):
                    self._rename(source, inner, target)
                    return
        super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **kwargs)

    @staticmethod
    def _rename(client: Client, path: str, target: str) -> None:
        parent = target.rpartition("/")[0]
        if parent:
            client.mkdir(parent, parents=True)
        client.rename(path, target)


def _told(info: Info, before: str) -> dict[str, Any]:
    return {
        "name": f"{before}{info.path}".rstrip("/"),
        "size": info.size if info.is_file else 0,
        "type": _KINDS.get(info.kind, "other"),
        "mtime": info.mtime_ns / 1e9,
        "mode": info.mode,
        "uid": info.uid,
        "gid": info.gid,
        "ETag": info.etag,
    }
