"""A real OpenStack Swift on loopback: proxy, account, container and object servers in one process.

Run by a Python that has `swift`, with `-P` (this directory has a module of that name). All of it lies below one
directory: no /etc/swift, no memcached, no root. Prints one JSON line when it listens.
"""

import argparse
import getpass
import json
import os
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import eventlet
import eventlet.wsgi
from swift.common import constraints, storage_policy, utils, wsgi
from swift.common.ring import RingBuilder

CACHE_MODULE = "cachefs_test_cache"
KINDS = ("proxy", "account", "container", "object")


class LocalCache:
    """A dictionary in the place of memcached; the proxy, its only user, is in the same process."""

    def __init__(self) -> None:
        self._store: dict[str, tuple[Any, float]] = {}

    def get(self, key: str, raise_on_error: bool = False) -> Any:  # noqa: ANN401
        value, until = self._store.get(key, (None, 0.0))
        return None if until and until < time.time() else value

    def set(self, key: str, value: Any, serialize: bool = True, time: float = 0, **_: Any) -> None:  # noqa: ANN401
        # memcached's JSON would turn tuples into lists
        kept = list(value) if isinstance(value, tuple) else value
        self._store[key] = (kept, _now() + time if time else 0.0)

    def incr(self, key: str, delta: int = 1, time: float = 0) -> int:
        value = max(int(self.get(key) or 0) + int(delta), 0)
        self.set(key, value, time=time)
        return value

    def decr(self, key: str, delta: int = 1, time: float = 0) -> int:
        return self.incr(key, -int(delta), time)

    def delete(self, key: str, server_key: str | None = None) -> None:
        self._store.pop(key, None)

    def set_multi(
        self, mapping: dict[str, Any], server_key: str, time: float = 0, **_: object
    ) -> None:
        for key, value in mapping.items():
            self.set(key, value, time=time)

    def get_multi(self, keys: list[str], server_key: str) -> list[Any]:
        return [self.get(key) for key in keys]


def _now() -> float:
    return time.time()


def filter_factory(_: object, **__: object) -> Any:  # noqa: ANN401  # paste's
    cache = LocalCache()

    def with_cache(app: Any) -> Any:  # noqa: ANN401
        def call(environ: dict[str, Any], start_response: Any) -> Any:  # noqa: ANN401
            environ["swift.cache"] = cache
            return app(environ, start_response)

        return call

    return with_cache


COMMON = """
bind_ip = 127.0.0.1
swift_dir = {etc}
user = {user}
workers = 0
log_level = WARNING
log_udp_host = 127.0.0.1
log_statsd_host =
conn_timeout = 5
node_timeout = 60
"""

SWIFT = """
[swift-hash]
swift_hash_path_suffix = cachefs-test
swift_hash_path_prefix = cachefs-test
[storage-policy:0]
name = one
default = yes
"""

BACKEND = """
[DEFAULT]
{common}
bind_port = {port}
devices = {root}/srv
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
container_update_timeout = 10
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
log_requests = false
"""

PROXY = """
[DEFAULT]
{common}
bind_port = {port}
{tls}
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck proxy-logging cache listing_formats bulk tempurl s3api {auth} copy container-quotas account-quotas slo dlo versioned_writes symlink proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
error_suppression_limit = 1000000
[filter:cache]
paste.filter_factory = {cache}:filter_factory
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:proxy-logging]
use = egg:swift#proxy_logging
access_log_level = DEBUG
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:tempurl]
use = egg:swift#tempurl
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
max_upload_part_num = 10000
dns_compliant_bucket_names = false
[filter:tempauth]
use = egg:swift#tempauth
token_life = {token_life}
user_admin_admin = admin .admin .reseller_admin
user_test_tester = testing .admin
user_test_reader = reading
user_test2_tester2 = testing2 .admin
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
www_authenticate_uri = {keystone}
auth_url = {keystone}
auth_type = password
username = swift
password = swiftpass
project_name = service
project_domain_id = default
user_domain_id = default
delay_auth_decision = True
include_service_catalog = False
cache = swift.cache
[filter:keystoneauth]
use = egg:swift#keystoneauth
operator_roles = admin, swiftoperator
reseller_admin_role = ResellerAdmin
[filter:s3token]
use = egg:swift#s3token
auth_uri = {keystone}/v3
auth_url = {keystone}
auth_type = password
username = swift
password = swiftpass
project_name = service
project_domain_id = default
user_domain_id = default
[filter:copy]
use = egg:swift#copy
[filter:container-quotas]
use = egg:swift#container_quotas
[filter:account-quotas]
use = egg:swift#account_quotas
[filter:slo]
use = egg:swift#slo
minimum_segment_size = 1
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
allow_object_versioning = true
[filter:symlink]
use = egg:swift#symlink
"""


def write_configuration(wanted: argparse.Namespace, ports: list[int]) -> Path:
    root = Path(wanted.root).absolute()
    etc = root / "etc"
    etc.mkdir(parents=True, exist_ok=True)
    (root / "srv" / "d1").mkdir(parents=True, exist_ok=True)
    common = COMMON.format(etc=etc, user=getpass.getuser())
    (etc / "swift.conf").write_text(SWIFT)
    auth = "authtoken s3token keystoneauth" if wanted.keystone else "tempauth"
    tls = f"cert_file = {wanted.cert}\nkey_file = {wanted.key}" if wanted.cert else ""
    (etc / "proxy-server.conf").write_text(
        PROXY.format(
            common=common,
            port=ports[0],
            tls=tls,
            auth=auth,
            cache=CACHE_MODULE,
            keystone=wanted.keystone,
            token_life=wanted.token_life,
        )
    )
    for kind, port in zip(KINDS[1:], ports[1:], strict=True):
        (etc / f"{kind}-server.conf").write_text(
            BACKEND.format(common=common, port=port, root=root, kind=kind)
        )
        write_ring(etc / f"{kind}.ring.gz", port)
    return etc


def write_ring(path: Path, port: int) -> None:
    builder = RingBuilder(2, 1, 1)  # four partitions, one replica
    device = {"id": 0, "region": 1, "zone": 1, "weight": 1.0, "device": "d1", "meta": ""}
    address = {"ip": "127.0.0.1", "port": port}
    builder.add_dev({**device, **address, **{f"replication_{k}": v for k, v in address.items()}})
    builder.rebalance()
    builder.get_ring().save(str(path))


def without_fsync() -> None:
    """Spare the disk: what a test stored need not survive a power cut."""
    from swift.obj import diskfile

    for module in (diskfile, utils):
        for name in ("fsync", "fdatasync", "fsync_dir"):
            if hasattr(module, name):
                setattr(module, name, lambda *_, **__: None)


def serve(etc: Path, kind: str, listener: socket.socket, wanted: argparse.Namespace) -> None:
    """What swift.common.wsgi.run_server does, without its use_hub(), which would orphan the other servers."""
    conf = str(etc / f"{kind}-server.conf")
    _, _, log_name = wsgi._initrp(conf, f"{kind}-server")
    served = eventlet.greenio.GreenSocket(listener)
    if kind == "proxy" and wanted.cert:
        served = eventlet.wrap_ssl(
            served, certfile=wanted.cert, keyfile=wanted.key, server_side=True
        )
    eventlet.wsgi.server(
        served,
        wsgi.loadapp(conf, global_conf={"log_name": log_name}),
        wsgi.NullLogger(),
        custom_pool=wsgi.RestrictedGreenPool(size=1024),
        protocol=wsgi.SwiftHttpProtocol,
        socket_timeout=60,
        capitalize_response_headers=False,
        url_length_limit=constraints.MAX_REQUEST_LINE,
    )


def listeners(port: int) -> list[socket.socket]:
    opened = []
    for number in range(len(KINDS)):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.bind(("127.0.0.1", 0 if number else port))
        one.listen(1024)
        opened.append(one)
    return opened


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--keystone", default="")
    parser.add_argument("--token-life", type=int, default=86400)
    parser.add_argument("--cert", default="")
    parser.add_argument("--key", default="")
    return parser.parse_args()


def main() -> None:
    warnings.simplefilter("ignore")
    wanted = parse_arguments()
    sys.modules[CACHE_MODULE] = sys.modules["__main__"]
    utils.monkey_patch()
    eventlet.hubs.use_hub(utils.get_hub())
    opened = listeners(wanted.port)
    ports = [one.getsockname()[1] for one in opened]
    etc = write_configuration(wanted, ports)
    utils.set_swift_dir(str(etc))
    constraints.reload_constraints()
    storage_policy.reload_storage_policies()
    without_fsync()
    for number in (1, 2, 3, 0):
        eventlet.spawn(serve, etc, KINDS[number], opened[number], wanted)
    eventlet.sleep(0)
    scheme = "https" if wanted.cert else "http"
    print(json.dumps({"url": f"{scheme}://127.0.0.1:{ports[0]}", "pid": os.getpid()}), flush=True)
    while True:
        eventlet.sleep(3600)


if __name__ == "__main__":
    main()
