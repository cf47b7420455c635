"""Who we are to a Swift: credentials from the environment or from clouds.yaml, and the token that they buy."""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keystoneauth1 import exceptions as ksa
from keystoneauth1 import identity, token_endpoint
from keystoneauth1.session import Session
from swiftclient.authv1 import PasswordPlugin

from cachefs.core.errors import Denied, Fault, StoreError, Unreachable, Unsupported
from cachefs.core.source import StoreOptions
from cachefs.remote.swift_clouds import Cloud, read_cloud

_log = logging.getLogger(__name__)

_AGAIN_S: Final = 1.0
_RIGHTS_KEPT_S: Final = 5.0
"""A token this young has all the rights of its user: to fetch another would give no more."""
_HOW: Final = (
    "set OS_CLOUD (or --cloud), or OS_AUTH_URL with OS_USERNAME, OS_PASSWORD and OS_PROJECT_NAME, or ST_AUTH, "
    "ST_USER and ST_KEY"
)
_SCOPE: Final = (
    "project_name", "project_id", "project_domain_name", "project_domain_id",
)  # fmt: skip
_USER: Final = ("username", "user_id", "user_domain_name", "user_domain_id")
_ACCEPTED: Final = {
    "password": (*_USER, *_SCOPE, "password", "domain_name", "domain_id", "trust_id", "system_scope",
                 "default_domain_name", "default_domain_id"),
    "token": (*_SCOPE, "token", "domain_name", "domain_id", "trust_id"),
    "v3applicationcredential": (*_USER, "application_credential_id", "application_credential_name",
                                "application_credential_secret"),
    "v1password": ("username", "password", "project_name"),
}  # fmt: skip
_SAME_TYPE: Final = {"v3password": "password", "v2password": "password", "v3token": "token"}
_SAME_NAME: Final = {"tenant_name": "project_name", "tenant_id": "project_id"}


@dataclass(frozen=True, slots=True)
class Account:
    """Where to sign in, and what to ask for there. The plugin holds the secrets and shows none."""

    plugin: Any
    address: str
    """Of whoever gives out the tokens; for messages."""
    region: str | None = None
    interface: str = "public"
    service: str = "object-store"
    endpoint: str | None = None
    """The storage URL to use in place of the one that the sign-in names."""
    verify: bool | str = True
    cert: str | tuple[str, str] | None = None
    cloud: Cloud | None = field(default=None, repr=False)
    """What was read of clouds.yaml, to know a change of it by."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a sign-in gave: where the account is, and the token that opens it."""

    url: str
    token: str = field(repr=False)
    since_s: float = 0.0
    """When, by the monotonic clock."""


def find_account(
    options: StoreOptions, environ: Mapping[str, str], directory: Path = Path()
) -> Account:
    """Return the account that *options* and *environ* name. Raise ``Denied`` if they name none.

    *directory* is the one in which clouds.yaml is looked for first.

    In this order: a cloud, a token with its storage URL, version 1 (as the ``swift`` command, which prefers
    ``ST_*``), Keystone.
    """
    if cloud := options.cloud or environ.get("OS_CLOUD"):
        return _from_cloud(cloud, options, environ, directory)
    tls: dict[str, Any] = {"verify": _verify(options, environ), "cert": _cert(environ)}
    url, token = environ.get("OS_STORAGE_URL"), environ.get("OS_AUTH_TOKEN")
    if url and token:
        return Account(token_endpoint.Token(url, token), url, **tls)
    auth, user, key = (environ.get(name) for name in ("ST_AUTH", "ST_USER", "ST_KEY"))
    if auth and user and key:
        plugin = PasswordPlugin(auth_url=auth, username=user, password=key)
        return Account(plugin, auth, endpoint=url, **tls)
    if "OS_AUTH_URL" not in environ:
        raise Denied(f"no Swift credentials: {_HOW}")
    said = {
        name.removeprefix("OS_").lower(): value
        for name, value in environ.items()
        if name.startswith("OS_") and value
    }
    interface = said.get("interface") or said.get("endpoint_type") or "public"
    return Account(
        _plugin(said.get("auth_type"), said),
        said["auth_url"],
        region=options.region or said.get("region_name"),
        interface=interface.removesuffix("URL"),
        service=said.get("service_type", "object-store"),
        endpoint=url,
        **tls,
    )


def _from_cloud(
    name: str, options: StoreOptions, environ: Mapping[str, str], directory: Path
) -> Account:
    cloud = read_cloud(name, environ, directory)
    return Account(
        _plugin(cloud.auth_type, cloud.auth),
        cloud.auth.get("auth_url", name),
        region=options.region or cloud.region or environ.get("OS_REGION_NAME"),
        interface=(cloud.interface or "public").removesuffix("URL"),
        endpoint=cloud.endpoint,
        verify=options.ca_bundle or cloud.verify,
        cert=cloud.cert,
        cloud=cloud,
    )


def _plugin(auth_type: str | None, said: Mapping[str, str]) -> Any:  # noqa: ANN401  # keystoneauth's
    said = {_SAME_NAME.get(name, name): value for name, value in said.items()}
    kind = auth_type or _guess(said)
    kind = _SAME_TYPE.get(kind, kind)
    if kind not in _ACCEPTED:
        raise Unsupported(f"cachefs does not know the auth_type {kind!r} of OpenStack")
    url = said.get("auth_url")
    if not url:
        raise Denied(f"no auth_url in the Swift credentials: {_HOW}")
    given: dict[str, Any] = {name: said[name] for name in _ACCEPTED[kind] if name in said}
    match kind:
        case "v1password":
            return PasswordPlugin(auth_url=url, **given)
        case "token":
            return identity.Token(auth_url=url, **given)
        case "v3applicationcredential":
            versioned = url if url.rstrip("/").endswith("/v3") else f"{url.rstrip('/')}/v3"
            return identity.V3ApplicationCredential(auth_url=versioned, **given)
    return identity.Password(auth_url=url, **given)


def _guess(said: Mapping[str, str]) -> str:
    if "application_credential_id" in said or "application_credential_name" in said:
        return "v3applicationcredential"
    return "token" if "token" in said and "password" not in said else "password"


def _verify(options: StoreOptions, environ: Mapping[str, str]) -> bool | str:
    if environ.get("SWIFTCLIENT_INSECURE", "").lower() in ("true", "1", "yes"):
        return False
    return options.ca_bundle or environ.get("OS_CACERT") or True


def _cert(environ: Mapping[str, str]) -> str | tuple[str, str] | None:
    cert, key = environ.get("OS_CERT"), environ.get("OS_KEY")
    return (cert, key) if cert and key else cert


class SignIn:
    """The one token of an account, shared by all threads.

    Where the credentials are refused, *find* looks them up anew, for clouds.yaml may have changed. Whoever is
    refused asks no more than once a second: some lock an account out that is tried with a wrong password too often.
    """

    def __init__(
        self,
        account: Account,
        *,
        timeout_s: float,
        find: Callable[[], Account],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout_s = timeout_s
        self._find = find
        self._clock = clock
        self._lock = threading.Lock()
        self._grant: Grant | None = None
        self._denial: Denied | None = None
        self._denied_s = -math.inf
        self._take(account)
        self._failed: tuple[float, Fault] = (-math.inf, Fault())
        """When the last attempt that met a fault was over, and the fault."""

    def grant(self) -> Grant:
        """Return the token in use; sign in if there is none yet.

        Who waited while another's attempt met a fault has the same one: attempts in turn would add up.
        """
        came = time.monotonic()
        with self._lock:
            if self._grant is None:
                self._grant = self._ask_unless_failed(came)
            return self._grant

    def renew(self, refused: Grant) -> Grant:
        """Sign in again, unless somebody has since *refused* was. Raise ``Denied`` if there is no way to."""
        came = time.monotonic()
        with self._lock:
            if self._grant is None or self._grant is refused:
                self._grant = None
                if not self._session.invalidate() and not self._take_others():
                    raise Denied(
                        f"{self.account.address} refuses the token (401): it may have expired"
                    )
                self._grant = self._ask_unless_failed(came)
            return self._grant

    def other(self, grant: Grant) -> Grant | None:
        """Return a new token where *grant* does not open something: rights given since are not in it.

        None if it is new, or if there is no way to another.
        """
        if self._clock() < grant.since_s + _RIGHTS_KEPT_S:
            return None
        try:
            return self.renew(grant)
        except StoreError as error:
            _log.info("no new token: %s", error)
            return None

    def note_useless(self, grant: Grant) -> None:
        """Note that the store refuses even *grant*, which is new, so that no more are fetched for a moment."""
        with self._lock:
            if self._grant is grant:
                self._note(
                    Denied(f"the store refuses what {self.account.address} gives out (401)")
                )

    def _take(self, account: Account) -> None:
        self.account = account
        self._session = Session(
            auth=account.plugin,
            verify=account.verify,
            cert=account.cert,
            timeout=self._timeout_s,
            connect_retries=0,
        )

    def _take_others(self) -> bool:
        """Take up other credentials if there are any by now."""
        try:
            account = self._find()
        except StoreError as error:
            _log.info("the credentials could not be read anew: %s", error)
            return False
        if account.cloud == self.account.cloud:
            return False
        _log.info("access was denied, and clouds.yaml has other credentials now: they are used")
        self._take(account)
        return True

    def _sign_in(self) -> Grant:
        is_early = self._clock() < self._denied_s + _AGAIN_S
        if self._denial is not None and is_early and not self._take_others():
            raise Denied(str(self._denial))
        try:
            try:
                return self._ask()
            except Denied:
                if not self._take_others():
                    raise
                return self._ask()
        except Denied as denial:
            self._note(denial)
            raise

    def _note(self, denial: Denied) -> None:
        self._denial, self._denied_s = denial, self._clock()

    def _ask_unless_failed(self, since: float) -> Grant:
        failed_at, fault = self._failed
        if failed_at > since:
            raise type(fault)(str(fault))
        try:
            return self._sign_in()
        except Fault as error:
            self._failed = time.monotonic(), error
            raise

    def _ask(self) -> Grant:
        account = self.account
        try:
            token = self._session.get_token()
            url = account.endpoint or self._session.get_endpoint(
                service_type=account.service,
                interface=account.interface,
                region_name=account.region,
            )
        except ksa.ClientException as error:
            raise _verdict(error, account) from None
        except (OSError, ValueError) as error:
            raise Fault(f"signing in at {account.address}: {error}") from error
        if not token or not url:
            where = f" in region {account.region}" if account.region else ""
            raise Denied(f"{account.address} names no {account.service} endpoint{where}")
        return Grant(str(url).rstrip("/"), str(token), self._clock())


def _verdict(error: ksa.ClientException, account: Account) -> StoreError:
    where = account.address
    status = getattr(error, "http_status", 0) or 0
    if isinstance(error, ksa.ConnectFailure | ksa.UnknownConnectionError | ksa.SSLError):
        return Unreachable(f"no connection to {where}")
    if isinstance(error, ksa.RetriableConnectionFailure) or status >= 500 or status in (408, 429):
        return Fault(f"signing in at {where} failed" + (f" ({status})" if status else ""))
    if status in (401, 403) or isinstance(
        error, ksa.AuthorizationFailure | ksa.AuthPluginException
    ):
        return Denied(f"{where} refuses the credentials" + (f" ({status})" if status else ""))
    if isinstance(error, ksa.CatalogException):
        region = f" in region {account.region}" if account.region else ""
        return Denied(f"{where} names no {account.service} endpoint{region}")
    return Denied(f"signing in at {where} failed: {' '.join(str(error).split())[:200]}")
