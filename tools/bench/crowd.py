"""Very many empty objects, put into the gateway's bucket as archives: a thousand of them in one request."""

import http.client
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_THREADS: Final = 4
_STEP: Final = 1000
_LARGE: Final = "large"
_DIRECTORIES: Final = 100


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many objects there are: a tenth in one directory, the rest in a hundred of equal size."""

    objects: int

    @property
    def large(self) -> int:
        """Objects in the one directory."""
        return self.objects // 10

    @property
    def each(self) -> int:
        """Objects in each of the hundred."""
        return (self.objects - self.large) // _DIRECTORIES

    @property
    def lines(self) -> int:
        """What ``find`` prints: objects, directories and the root."""
        return self.large + self.each * _DIRECTORIES + _DIRECTORIES + 2

    def batches(self) -> Iterator[list[str]]:
        """The keys, some at a time."""
        for number in range(_DIRECTORIES):
            yield from _batches(f"d{number:03d}", self.each)
        yield from _batches(_LARGE, self.large)


def large_directory() -> str:
    """The name of the largest directory."""
    return _LARGE


def seed(
    auth: str, user: str, password: str, bucket: str, crowd: Crowd, say: Callable[[str], None]
) -> None:
    """Make *bucket* and put *crowd* into it, by the gateway's Swift API, which takes archives."""
    host, path, token = _sign_in(auth, user, password)

    def ask(target: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(host, timeout=600)
        try:
            headers = {"X-Auth-Token": token, "Accept": "application/json"}
            connection.request("PUT", f"{path}/{target}", body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def put(names: Sequence[str]) -> int:
        status, told = ask(f"{bucket}?extract-archive=tar", _archive(names))
        if status != 200 or json.loads(told)["Number Files Created"] != len(names):
            raise OSError(f"the gateway took no archive: {status} {told[:300]!r}")
        return len(names)

    ask(bucket)
    done = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for count in pool.map(put, crowd.batches()):
            done += count
            if done % 50_000 < count:
                say(f"{done} objects")


def _sign_in(auth: str, user: str, password: str) -> tuple[str, str, str]:
    where = urlsplit(auth)
    connection = http.client.HTTPConnection(where.netloc, timeout=60)
    try:
        connection.request(
            "GET", where.path, headers={"X-Auth-User": user, "X-Auth-Key": password}
        )
        answer = connection.getresponse()
        answer.read()
        storage = urlsplit(answer.headers["X-Storage-Url"])
        return where.netloc, storage.path, answer.headers["X-Auth-Token"]
    finally:
        connection.close()


def _batches(directory: str, count: int) -> Iterator[list[str]]:
    for begin in range(0, count, _STEP):
        yield [f"{directory}/f{n:06d}" for n in range(begin, min(count, begin + _STEP))]


def _archive(names: Sequence[str]) -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return body.getvalue()
