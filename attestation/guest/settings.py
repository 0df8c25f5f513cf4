"""What the guest was told, from measured init-data: broker, certificate to pin, devices to expect.

Init-data is bound to the CPU report, so its content is as good as the policy that accepts its digest. A URL or a
certificate from the command line is not measured: it is taken only where there is no init-data at all.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attestation.errors import Malformed, Misconfigured
from attestation.formats.initdata import MAX_INIT_DATA_BYTES, InitData, parse_init_data
from attestation.values import BindingProfile, Digest

OWN_ENTRY = "kata-gpu.toml"  # our own file in init-data: expected_devices, binding_profile, model_digest
_OWN_MEMBERS = {"expected_devices", "binding_profile", "model_digest"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSettings:
    """Everything that decides whom this guest trusts and what it must show."""

    broker_url: str
    broker_certificate: str | None
    init_data: str | None = None
    expected_devices: int | None = None
    profiles: tuple[BindingProfile, ...] = (BindingProfile.CGPU_V1, BindingProfile.TRUSTEE_RCAR)
    model_digest: Digest | None = None


def read_settings(init_data: Path | None, url: str | None, certificate: Path | None) -> GuestSettings:
    """From init-data, or from the command line where there is none. Both at once is Misconfigured."""
    if init_data is not None:
        if url or certificate:
            raise Misconfigured(
                "broker-twice", "init-data names the broker: nothing else may", expected="--init-data or --broker"
            )
        return settings_of(parse_init_data(read_text(init_data)))
    if not url:
        raise Misconfigured("broker-unknown", "no broker", expected="--init-data FILE, or --broker URL without it")
    pem = read_text(certificate) if certificate else None
    return GuestSettings(broker_url=url, broker_certificate=pem)


def settings_of(document: InitData) -> GuestSettings:
    """`[token_configs.kbs]` of `aa.toml` (`url`, `cert`), and our own entry where there is one. Raises Malformed."""
    kbs = _table(_table(_toml(document, "aa.toml"), "token_configs", "aa.toml"), "kbs", "aa.toml")
    url, certificate = kbs.get("url"), kbs.get("cert")
    if not isinstance(url, str) or not (certificate is None or isinstance(certificate, str)):
        raise Malformed("init-data-broker", "no broker in init-data", where="aa.toml", expected="url and cert")
    own = _toml(document, OWN_ENTRY) if OWN_ENTRY in document.data else {}
    if unknown := set(own) - _OWN_MEMBERS:
        raise Malformed(
            "init-data-member", "unknown member", where=OWN_ENTRY, expected=sorted(_OWN_MEMBERS), got=unknown
        )
    expected, profile, digest = own.get("expected_devices"), own.get("binding_profile"), own.get("model_digest")
    if expected is not None and (type(expected) is not int or expected < 0):
        raise Malformed(
            "init-data-member", "not a count", where=f"{OWN_ENTRY} expected_devices", got=repr(expected)[:40]
        )
    if profile is not None and profile not in tuple(BindingProfile):
        raise Malformed(
            "init-data-member", "unknown profile", where=f"{OWN_ENTRY} binding_profile", got=repr(profile)[:40]
        )
    return GuestSettings(
        broker_url=url,
        broker_certificate=certificate,
        init_data=document.text,
        expected_devices=expected,
        profiles=(BindingProfile(profile),) if profile else (BindingProfile.CGPU_V1, BindingProfile.TRUSTEE_RCAR),
        model_digest=Digest.parse(str(digest)) if digest is not None else None,
    )


def _toml(document: InitData, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(document.data[name])
    except KeyError as exc:
        raise Malformed("init-data-entry", "missing entry", where="init-data", expected=name) from exc
    except (ValueError, RecursionError) as exc:
        raise Malformed("init-data-toml", "not TOML", where=name, got=str(exc)[:120]) from exc


def _table(parent: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    table = parent.get(name)
    if not isinstance(table, dict):
        raise Malformed("init-data-broker", "missing table", where=where, expected=f"[{name}]")
    return table


def read_text(path: Path, limit: int = MAX_INIT_DATA_BYTES) -> str:
    """A small UTF-8 file. Raises Malformed or Misconfigured."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise Malformed("file-size", "too large", where=str(path), expected=f"at most {limit} bytes")
        return data.decode("utf-8")
    except OSError as exc:
        raise Misconfigured("file", exc.strerror or "cannot read", where=str(path)) from exc
    except UnicodeDecodeError as exc:
        raise Malformed("file-text", "not UTF-8 text", where=str(path)) from exc
