"""Where `revoke`, `lease` and `tenant` do their work: in a store on this machine, or at a broker's admin listener."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlencode

import click

from attestation.cli.output import output_option
from attestation.cli.store import moment, opened, operator, read_text
from attestation.errors import Misconfigured

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class Office(Protocol):
    """What both places answer: documents of the HTTP API (docs/protocol.md)."""

    def revoke(self, kind: str, value: str, reason: str) -> Mapping[str, Any]:
        """Leases that it `ended`."""

    def unrevoke(self, kind: str, value: str) -> bool:
        """Whether it was revoked."""

    def revocations(self) -> list[Mapping[str, Any]]:
        """Oldest first."""

    def leases(self, path: str | None) -> list[Mapping[str, Any]]:
        """Of one key, or of all."""

    def tenants(self) -> list[Mapping[str, Any]]:
        """With their limits."""

    def set_tenant(self, name: str, limits: Mapping[str, int | None]) -> None:
        """Those that are None are lifted."""

    def policy_history(self, path: str) -> list[Mapping[str, Any]]:
        """Oldest first."""


def office_options(command: F) -> F:
    """`--store` with `--root-key`, or `--broker` with a token; and `--output`."""
    for option in (
        output_option,
        click.option("--admin-token-file", type=_FILE, help="Admin token for --broker."),
        click.option("--broker-cert", type=_FILE, help="PEM to pin for it (https)."),
        click.option("--broker", metavar="URL", help="A broker's admin listener, instead of --store."),
        click.option("--root-key", type=click.Path(path_type=Path), help="Root key file. Default: in the store."),
        click.option("--store", type=click.Path(), help="Directory of the embedded store, or postgresql://..."),
    ):
        command = option(command)
    return command


@contextmanager
def office(where: Mapping[str, Any], webhook: Path | None = None) -> Iterator[Office]:
    """The place that the options of `office_options` name; closed at the end."""
    if (where["store"] is None) == (where["broker"] is None):
        raise Misconfigured("office", "name one place", expected="either --store or --broker")
    if where["broker"] is not None:
        if webhook is not None:
            raise Misconfigured("office", "a broker tells its own webhook", expected="no --webhook with --broker")
        yield _Remote(_client(where))
        return
    with opened(where["store"], where["root_key"]) as world:
        if webhook is None:
            yield _Local(world)
            return
        from dataclasses import replace

        from attestation.cli.webhook_file import load_webhook

        hook = load_webhook(webhook)
        try:
            yield _Local(replace(world, webhook=hook))
        finally:
            hook.close()


def _client(where: Mapping[str, Any]) -> Any:
    from attestation.cli.admin_client import AdminClient

    if where["admin_token_file"] is None:
        raise Misconfigured("office", "no admin token", expected="--admin-token-file with --broker")
    certificate = read_text(os.fspath(where["broker_cert"])) if where["broker_cert"] else None
    token = read_text(os.fspath(where["admin_token_file"])).strip()
    return AdminClient(where["broker"], certificate=certificate, token=token)


@dataclass(frozen=True, slots=True)
class _Local:
    """The store's administrator is whoever can open its root key."""

    world: Any

    def revoke(self, kind: str, value: str, reason: str) -> Mapping[str, Any]:
        from attestation.broker.revocation import RevocationKind
        from attestation.ops.revocations import revoke

        ended = revoke(self.world, operator(), RevocationKind(kind), value, reason, now=moment(None))
        return {"kind": kind, "value": value, "ended": [lease.to_json() for lease in ended]}

    def unrevoke(self, kind: str, value: str) -> bool:
        from attestation.broker.revocation import RevocationKind
        from attestation.ops.revocations import unrevoke

        return unrevoke(self.world, operator(), RevocationKind(kind), value, now=moment(None))

    def revocations(self) -> list[Mapping[str, Any]]:
        from attestation.ops.revocations import list_revocations

        return [found.to_json() for found in list_revocations(self.world, operator())]

    def leases(self, path: str | None) -> list[Mapping[str, Any]]:
        from attestation.ops.revocations import list_leases
        from attestation.values import ResourcePath

        at = None if path is None else ResourcePath.parse(path)
        return [found.to_json() for found in list_leases(self.world, operator(), at, now=moment(None))]

    def tenants(self) -> list[Mapping[str, Any]]:
        from attestation.ops.revocations import list_quotas

        return list(list_quotas(self.world, operator(), now=moment(None)))

    def set_tenant(self, name: str, limits: Mapping[str, int | None]) -> None:
        from attestation.ops.revocations import set_quota
        from attestation.sources.tenants import Quota

        set_quota(self.world, operator(), name, Quota(**limits), now=moment(None))

    def policy_history(self, path: str) -> list[Mapping[str, Any]]:
        from attestation.ops.revocations import policy_history
        from attestation.values import ResourcePath

        return list(policy_history(self.world, operator(), ResourcePath.parse(path)))


@dataclass(frozen=True, slots=True)
class _Remote:
    """The same over HTTP, with the rights of the token."""

    client: Any

    def revoke(self, kind: str, value: str, reason: str) -> Mapping[str, Any]:
        document = {"kind": kind, "value": value, "reason": reason}
        answer: Mapping[str, Any] = self.client.call("POST", "/api/v1/revocations", document)
        return answer

    def unrevoke(self, kind: str, value: str) -> bool:
        query = urlencode({"kind": kind, "value": value})
        return self.client.call("DELETE", f"/api/v1/revocations?{query}").get("removed") is True

    def revocations(self) -> list[Mapping[str, Any]]:
        return self._rows("/api/v1/revocations", "revocations")

    def leases(self, path: str | None) -> list[Mapping[str, Any]]:
        query = "" if path is None else f"?{urlencode({'path': path})}"
        return self._rows(f"/api/v1/leases{query}", "leases")

    def tenants(self) -> list[Mapping[str, Any]]:
        return self._rows("/api/v1/tenants", "tenants")

    def set_tenant(self, name: str, limits: Mapping[str, int | None]) -> None:
        self.client.call("PUT", f"/api/v1/tenants/{quote(name, safe='')}", dict(limits))

    def policy_history(self, path: str) -> list[Mapping[str, Any]]:
        from attestation.values import ResourcePath

        return self._rows(f"/api/v1/policies/{ResourcePath.parse(path)}", "changes")

    def _rows(self, path: str, name: str) -> list[Mapping[str, Any]]:
        rows: list[Mapping[str, Any]] = self.client.call("GET", path).get(name, [])
        return rows
