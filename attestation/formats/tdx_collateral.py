"""TDX collateral in one shape, the nine members of dcap-qvl; what Intel signed is kept byte for byte (tee.md 2.3)."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from attestation.errors import Malformed
from attestation.formats.json_strict import parse_json, require_object, require_text

MAX_COLLATERAL_BYTES = 1024 * 1024  # genuine: 20-60 kB
MAX_LEVELS = 64  # genuine: 2 to 20
COMPONENTS = 16
_SIGNATURE_BYTES = 64
_MEMBERS = (
    "pck_crl_issuer_chain",
    "root_ca_crl",
    "pck_crl",
    "tcb_info_issuer_chain",
    "tcb_info",
    "tcb_info_signature",
    "qe_identity_issuer_chain",
    "qe_identity",
    "qe_identity_signature",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedStatement:
    """TCB info or QE identity: the bytes that Intel signed, and what they say about themselves."""

    signed: bytes
    signature: bytes  # r and s, big endian
    chain: bytes  # PEM
    id: str
    version: int
    issue_date: datetime
    next_update: datetime
    evaluation: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxCollateral:
    """One consistent set for one FMSPC and one PCK CA. `text` is the JSON that the set came as."""

    text: str
    tcb_info: SignedStatement
    qe_identity: SignedStatement
    pck_crl: bytes
    root_crl: bytes

    @property
    def fmspc(self) -> str:
        """Platform family of the TCB info, 12 lower-case hex digits."""
        return str(self.tcb_info.body["fmspc"]).lower()

    @property
    def pce_id(self) -> str:
        """PCE id of the TCB info, 4 lower-case hex digits."""
        return str(self.tcb_info.body["pceId"]).lower()


def parse_tdx_collateral(data: bytes) -> TdxCollateral:
    """The nine members, complete and well formed. Raises Malformed; nothing is believed yet."""
    document = require_object(parse_json(data, max_bytes=MAX_COLLATERAL_BYTES, what="tdx-collateral"), "tdx-collateral")
    members = {name: require_text(document.get(name), f"tdx-collateral.{name}") for name in _MEMBERS}
    for name, text in members.items():
        if not text.isascii():  # PEM, hexadecimal and Intel's JSON all are
            raise Malformed("tdx-collateral-text", "not ASCII", where=f"tdx-collateral.{name}")
    tcb_info = _statement(members, "tcb_info")
    _require_levels(tcb_info.body.get("tcbLevels"))
    for name in ("fmspc", "pceId"):
        require_text(tcb_info.body.get(name), f"tcb_info.{name}")
    return TdxCollateral(
        text=data.decode(),
        tcb_info=tcb_info,
        qe_identity=_statement(members, "qe_identity"),
        pck_crl=_hex(members, "pck_crl"),
        root_crl=_hex(members, "root_ca_crl"),
    )


def _require_levels(levels: object) -> None:
    """Each level has exactly 16 components of one byte on either side: a short list would compare too little."""
    if not isinstance(levels, list) or not 0 < len(levels) <= MAX_LEVELS:
        raise Malformed("tdx-tcb-levels", "not a list of levels", where="tcb_info", expected=f"1..{MAX_LEVELS}")
    for level in levels:
        tcb = require_object(require_object(level, "tcbLevels").get("tcb"), "tcbLevels.tcb")
        for name in ("sgxtcbcomponents", "tdxtcbcomponents"):
            listed = tcb.get(name)
            parts = listed if isinstance(listed, list) else []
            svns = [part.get("svn") if isinstance(part, dict) else None for part in parts]
            if len(svns) != COMPONENTS or not all(type(svn) is int and 0 <= svn <= 255 for svn in svns):
                raise Malformed(
                    "tdx-tcb-components", "not 16 byte-sized SVNs", where=f"tcb_info.{name}", got=repr(svns)[:80]
                )


def _hex(members: dict[str, str], name: str) -> bytes:
    try:
        return bytes.fromhex(members[name])
    except ValueError as exc:
        raise Malformed("tdx-collateral-hex", "not hexadecimal", where=name, got=repr(members[name][:40])) from exc


def _statement(members: dict[str, str], name: str) -> SignedStatement:
    signature = _hex(members, f"{name}_signature")
    if len(signature) != _SIGNATURE_BYTES:
        raise Malformed("tdx-collateral-hex", "wrong signature length", where=name, expected=64, got=len(signature))
    signed = members[name].encode()
    body = require_object(parse_json(signed, max_bytes=MAX_COLLATERAL_BYTES, what=name), name)
    return SignedStatement(
        signed=signed,
        signature=signature,
        chain=members[f"{name}_issuer_chain"].encode(),
        id=require_text(body.get("id"), f"{name}.id"),
        version=_number(body, name, "version"),
        issue_date=_time(body, name, "issueDate"),
        next_update=_time(body, name, "nextUpdate"),
        evaluation=_number(body, name, "tcbEvaluationDataNumber"),
        body=body,
    )


def _number(body: dict[str, Any], where: str, name: str) -> int:
    value = body.get(name)
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise Malformed("tdx-collateral-number", "not a number", where=f"{where}.{name}", got=repr(value)[:40])
    return value


def _time(body: dict[str, Any], where: str, name: str) -> datetime:
    text = require_text(body.get(name), f"{where}.{name}")
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as exc:
        raise Malformed("tdx-collateral-time", "not a time", where=f"{where}.{name}", got=repr(text[:40])) from exc
