"""Ceph's object gateway (radosgw) with one monitor and one memory OSD: a strict S3, and a Swift v1.

Debian: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common
"""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.process import free_ports, running, wait_until_listening
from tests.servers.s3 import S3Server
from tests.servers.tls import Tls

_PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "monmaptool")
# Without cephx "secure" messengers never connect, hence crc everywhere. tcp_nodelay spares 44 ms on each
# small answer, and the short paxos interval a second at each step of the start.
_CONF = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
auth_allow_insecure_global_id_reclaim = false
ms_mon_client_mode = crc
ms_mon_service_mode = crc
ms_mon_cluster_mode = crc
ms_cluster_mode = crc
ms_service_mode = crc
ms_client_mode = crc
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
run_dir = {dir}/run
admin_socket = {dir}/run/$name.$pid.asok
log_file = {dir}/log/$name.log
mon_cluster_log_file = {dir}/log/cluster.log
crash_dir = {dir}/log
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
ms_dispatch_throttle_bytes = 0
[mon]
mon_data = {dir}/mon
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
mon_data_avail_crit = 1
mon_data_avail_warn = 2
mon_allow_pool_delete = true
[osd]
osd_data = {dir}/osd
osd_objectstore = memstore
memstore_device_bytes = 8589934592
osd_mon_heartbeat_interval = 5
osd_op_num_shards = 2
osd_class_load_list = *
osd_class_default_list = *
[client.rgw]
rgw_frontends = beast {front} tcp_nodelay=1
rgw_thread_pool_size = 32
rgw_enable_usage_log = false
rgw_enable_ops_log = false
rgw_run_sync_thread = false
rgw_dynamic_resharding = false
rgw_override_bucket_index_max_shards = 1
rgw_crypt_require_ssl = false
rgw_gc_obj_min_wait = 5
rgw_gc_processor_period = 10
rgw_gc_processor_max_time = 10
rgw_swift_account_in_url = true
rgw_data = {dir}/rgw
"""


@dataclass(frozen=True, slots=True)
class RadosGateway(S3Server):
    """The gateway; its Swift API takes the same password."""

    swift_auth: str = ""
    swift_user: str = "test:tester"
    cluster: "Cluster | None" = None

    def admin(self, *words: str) -> None:
        """Run ``radosgw-admin``."""
        assert self.cluster is not None
        self.cluster.admin(*words)


@contextmanager
def radosgw(directory: Path, *, tls: Tls | None = None) -> Iterator[RadosGateway]:
    """An empty gateway with all its state in *directory*; ready in one to two seconds."""
    port, v2, v1 = free_ports(3)
    for name in ("mon", "osd", "run", "log", "rgw"):
        (directory / name).mkdir(parents=True)
    front = f"endpoint=127.0.0.1:{port}"
    if tls is not None:
        front = (
            f"ssl_endpoint=127.0.0.1:{port} ssl_certificate={tls.cert} ssl_private_key={tls.key}"
        )
    fsid = str(uuid.uuid4())
    conf = directory / "ceph.conf"
    conf.write_text(
        _CONF.format(fsid=fsid, v2=v2, v1=v1, dir=directory, front=front), encoding="ascii"
    )
    url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
    with ExitStack() as stack:
        cluster = Cluster(directory, conf, stack)
        cluster.start(fsid, v2, v1, port)
        yield RadosGateway(
            url=url,
            access="test",
            secret="testing",
            ca=None if tls is None else str(tls.ca),
            swift_auth=f"{url}/auth/v1.0",
            cluster=cluster,
        )


@dataclass(frozen=True, slots=True)
class Cluster:
    """The daemons, and the tools that speak to them."""

    directory: Path
    conf: Path
    stack: ExitStack

    def start(self, fsid: str, v2: int, v1: int, port: int) -> None:
        osd = str(uuid.uuid4())
        monitors = f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]"
        monmap = str(self.directory / "monmap")
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", monitors, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._serve("ceph-mon", "-f", "-i", "a")
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd)
        self._serve("ceph-osd", "-f", "-i", "0")
        gateway = self._serve("radosgw", "-f", "-n", "client.rgw")
        self.admin("user", "create", "--uid=test", "--display-name=test", "--access-key=test", "--secret-key=testing")  # fmt: skip
        self.admin("subuser", "create", "--uid=test", "--subuser=test:tester", "--key-type=swift", "--secret=testing", "--access=full")  # fmt: skip
        wait_until_listening(port, gateway)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CEPH_CONF": str(self.conf)}

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command, env=self._environment(), cwd=self.directory, capture_output=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr.decode(errors='replace')[-2000:]}"

    def admin(self, *command: str) -> None:
        """Run ``radosgw-admin``."""
        self._run("radosgw-admin", "-n", "client.rgw", *command)

    def _serve(self, *command: str) -> subprocess.Popen[bytes]:
        log = self.stack.enter_context((self.directory / "log" / "out").open("ab"))
        return self.stack.enter_context(running(command, log=log, env=self._environment()))


def missing_programs() -> Sequence[str]:
    """Which programs are not installed."""
    return [program for program in _PROGRAMS if shutil.which(program) is None]
