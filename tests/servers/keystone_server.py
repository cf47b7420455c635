"""A real OpenStack Keystone (identity v3) on loopback: SQLite, Fernet tokens, one process, one directory.

Run by a Python that has `keystone` and `keystoneclient`, with `-P`. Prints one JSON line when all is there:
user `demo` of project `demo` with an application credential, and the service user `swift`.
"""

import argparse
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

CONFIGURATION = """
[DEFAULT]
use_stderr = true
default_log_levels = keystone=ERROR
log_file = {root}/keystone.log
[database]
connection = sqlite:///{root}/keystone.db
[token]
provider = fernet
[fernet_tokens]
key_repository = {root}/fernet
[fernet_receipts]
key_repository = {root}/fernet
[credential]
key_repository = {root}/credential
[cache]
enabled = true
backend = dogpile.cache.memory
[identity]
password_hash_algorithm = bcrypt
password_hash_rounds = 4
[oslo_policy]
enforce_scope = false
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def write_keys(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    for number in ("0", "1"):
        key = directory / number
        key.touch(mode=0o600)
        key.write_bytes(base64.urlsafe_b64encode(os.urandom(32)))


def prepare(root: Path, url: str, template: Path | None) -> None:
    """Make the database. The migrations take most of the start: *template* keeps their outcome."""
    conf = root / "keystone.conf"
    conf.write_text(CONFIGURATION.format(root=root))
    write_keys(root / "fernet")
    write_keys(root / "credential")
    database = root / "keystone.db"
    if template and template.exists():
        shutil.copy(template, database)
    else:
        manage(conf, "db_sync")
        if template:
            fresh = template.with_suffix(f".{os.getpid()}")
            shutil.copy(database, fresh)
            fresh.rename(template)
    urls = [
        word
        for kind in ("admin", "internal", "public")
        for word in (f"--bootstrap-{kind}-url", f"{url}/v3")
    ]
    manage(
        conf,
        "bootstrap",
        "--bootstrap-password",
        "adminpass",
        "--bootstrap-region-id",
        "RegionOne",
        *urls,
    )


def manage(conf: Path, *words: str) -> None:
    program = Path(sys.executable).parent / "keystone-manage"
    subprocess.run([program, "--config-file", conf, *words], check=True, stdout=sys.stderr)


def serve(port: int) -> None:
    from keystone.server import wsgi
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    arguments, sys.argv = sys.argv, ["keystone"]
    application = wsgi.initialize_public_application()
    sys.argv = arguments
    server = make_server("127.0.0.1", port, application, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def client(url: str, user: str, password: str, project: str) -> Any:  # noqa: ANN401
    from keystoneauth1 import identity, session
    from keystoneclient.v3 import client as v3

    who = identity.Password(
        auth_url=f"{url}/v3",
        username=user,
        password=password,
        project_name=project,
        user_domain_id="default",
        project_domain_id="default",
    )
    return v3.Client(session=session.Session(who))


def populate(url: str, storage_url: str) -> dict[str, str]:
    """Make projects, users, roles and the endpoints of the Swift. Return what the tests sign in with."""
    admin = client(url, "admin", "adminpass", "admin")
    service = admin.projects.create("service", "default")
    demo = admin.projects.create("demo", "default")
    roles = {role.name: role for role in admin.roles.list()}
    for name in ("swiftoperator", "ResellerAdmin"):
        roles[name] = admin.roles.create(name)
    swift = admin.users.create(
        "swift", domain="default", password="swiftpass", default_project=service
    )
    user = admin.users.create("demo", domain="default", password="demopass", default_project=demo)
    for name in {"admin", "service"} & roles.keys():
        admin.roles.grant(roles[name], user=swift, project=service)
    for name in ("swiftoperator", "member"):
        admin.roles.grant(roles[name], user=user, project=demo)
    store = admin.services.create("swift", "object-store")
    for interface in ("public", "internal", "admin"):
        admin.endpoints.create(store, storage_url, interface=interface, region="RegionOne")
    credential = client(url, "demo", "demopass", "demo").application_credentials.create("cachefs")
    return {
        "url": f"{url}/v3",
        "user": "demo",
        "key": "demopass",
        "project": "demo",
        "project_id": demo.id,
        "application_credential_id": credential.id,
        "application_credential_secret": credential.secret,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--swift", required=True, help="address of the Swift that it is for")
    parser.add_argument("--template", type=Path)
    wanted = parser.parse_args()
    root = wanted.root.absolute()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    os.environ["OS_KEYSTONE_CONFIG_FILES"] = "keystone.conf"
    os.environ["OS_KEYSTONE_CONFIG_DIR"] = str(root)
    prepare(root, url, wanted.template)
    serve(port)
    print(json.dumps(populate(url, f"{wanted.swift}/v1/AUTH_%(project_id)s")), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
