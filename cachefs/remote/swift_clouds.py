"""Entries of ``clouds.yaml``, found where every OpenStack tool looks for them.

Read here in a page of code, for openstacksdk, whose reader is the reference, brings seven packages along (two of
them compiled) and reads the environment by itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from cachefs.core.errors import Denied


@dataclass(frozen=True, slots=True)
class Cloud:
    """What one entry says."""

    auth_type: str | None
    auth: Mapping[str, str]
    region: str | None
    interface: str | None
    endpoint: str | None
    verify: bool | str
    """Whether to check the server's certificate, or the file with the authorities to check it by."""
    cert: str | tuple[str, str] | None


def _places(
    environ: Mapping[str, str], directory: Path, name: str, variable: str
) -> Iterator[Path]:
    if given := environ.get(variable):
        yield directory / given
    home = Path(environ.get("HOME") or "/")
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    for each in (directory, config / "openstack", Path("/etc/openstack")):
        yield each / f"{name}.yaml"
        yield each / f"{name}.yml"


def _entry(path: Path, cloud: str) -> dict[str, object] | None:
    """Return what the file says of *cloud*; None if there is no such file."""
    try:
        document = yaml.safe_load(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not YAML"
        raise Denied(f"{path} cannot be read: {reason}") from None
    clouds = document.get("clouds") if isinstance(document, dict) else None
    entry = clouds.get(cloud) if isinstance(clouds, dict) else None
    return {str(name): value for name, value in entry.items()} if isinstance(entry, dict) else {}


def _first(
    environ: Mapping[str, str], directory: Path, name: str, variable: str, cloud: str
) -> dict[str, object]:
    for path in _places(environ, directory, name, variable):
        if (entry := _entry(path, cloud)) is not None:
            return entry
    return {}


def read_cloud(cloud: str, environ: Mapping[str, str], directory: Path) -> Cloud:
    """Return the entry *cloud*, with what ``secure.yaml`` adds to it. Raise ``Denied`` if there is none."""
    public = _first(environ, directory, "clouds", "OS_CLIENT_CONFIG_FILE", cloud)
    secure = _first(environ, directory, "secure", "OS_CLIENT_SECURE_FILE", cloud)
    auth = _strings(public.get("auth")) | _strings(secure.get("auth"))
    entry = public | secure
    if not auth:
        raise Denied(f"clouds.yaml has no cloud {cloud!r} with an `auth` section")
    verify = entry.get("verify", True) is not False
    cert, key = _text(entry.get("cert")), _text(entry.get("key"))
    return Cloud(
        auth_type=_text(entry.get("auth_type")),
        auth=auth,
        region=_text(entry.get("region_name")),
        interface=_text(entry.get("interface") or entry.get("endpoint_type")),
        endpoint=_text(entry.get("object_store_endpoint_override")),
        verify=(_text(entry.get("cacert")) or True) if verify else False,
        cert=(cert, key) if cert and key else cert,
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _strings(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {str(name): str(said) for name, said in value.items() if said is not None}
