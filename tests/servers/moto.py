"""moto: S3 in one Python process. Knows conditions; checks neither signatures nor checksums.

It looks at a condition first and acts afterwards, so that of several requests at once more than one may find it
met. A store does not; so here its requests, once they have come in whole, are served one after the other.

Run as a program it serves until it is killed, and prints one JSON line that says where.
"""

import argparse
import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.servers.process import first_line, running
from tests.servers.s3 import S3Server
from tests.servers.tls import Tls


@contextmanager
def moto(*, tls: Tls | None = None) -> Iterator[S3Server]:
    """An empty S3 on a free port."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.servers.moto"]
    if tls is not None:
        command += ["--cert", str(tls.cert), "--key", str(tls.key)]
    with running(command, stdout=subprocess.PIPE) as process:
        where = first_line(process)
        yield S3Server(
            url=str(where["url"]),
            access="moto",
            secret="anything",
            ca=None if tls is None else str(tls.ca),
        )


def _one_at_a_time(application: Any) -> Any:  # noqa: ANN401  (WSGI)
    from werkzeug.wsgi import get_input_stream

    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Any) -> list[bytes]:  # noqa: ANN401
        body = get_input_stream(environ).read()
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        environ.pop("wsgi.input_terminated", None)
        with lock:
            return list(application(environ, start_response))

    return serve


def _serve() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    parser = argparse.ArgumentParser()
    parser.add_argument("--cert")
    parser.add_argument("--key")
    paths = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server(
        "127.0.0.1",
        0,
        _one_at_a_time(DomainDispatcherApplication(create_backend_app)),
        threaded=True,
        ssl_context=(paths.cert, paths.key) if paths.cert else None,
    )
    scheme = "https" if paths.cert else "http"
    print(json.dumps({"url": f"{scheme}://127.0.0.1:{server.server_port}"}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve()
