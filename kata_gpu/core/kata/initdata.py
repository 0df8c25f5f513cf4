"""Init-data: the per-pod document that the TEE measures (CoCo initdata specification, node.md 4.8).

The digest is over the bytes of the TOML text and nothing else; gzip headers and base64 do not matter. The host chooses
init-data, so its digest is part of every release policy: these functions predict the values that the TEE will report.
"""

import base64
import binascii
import gzip
import hashlib
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import tomli_w

from kata_gpu.core import toml10
from kata_gpu.core.kata.agent_policy import open_requests, parse_policy_data
from kata_gpu.errors import Malformed, Misconfigured

ANNOTATION = "io.katacontainers.config.hypervisor.cc_init_data"
MAX_TOML_BYTES = 1 << 20  # inflated; a document is kilobytes
MAX_ANNOTATION_BYTES = 256 * 1024  # Kubernetes caps all annotations of one object together
HOST_DATA_BYTES = 32  # SNP HOST_DATA
MR_CONFIG_ID_BYTES = 48  # TDX MRCONFIGID
_PEM_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
_URL = re.compile(r"https?://[A-Za-z0-9.\-_\[\]:]+(:[0-9]+)?(/[^\s]*)?")
# Rules of Kata's agent policy that hand the guest to the host when nothing limits them: as a default, as a fact, or as
# a body of nothing but `true`. AllowRequestsFailingPolicy is Kata's own switch that lets every refused request pass.
_PERMISSIVE = re.compile(
    r"^[ \t]*(?:default[ \t]+)?(?:AllowRequestsFailingPolicy|ExecProcessRequest|ReadStreamRequest|WriteStreamRequest|"
    r"CopyFileRequest|SetPolicyRequest)\b(?:\s*:?=\s*true\b|(?:\s+if)?\s*\{\s*true\s*\}|\s+if\s+true\b|[ \t]*$)",
    re.MULTILINE,
)


_PACKAGE = re.compile(r"^[ \t]*package[ \t]+agent_policy\b", re.MULTILINE)  # what the agent asks: data.agent_policy
_POLICY_DATA = re.compile(r"^[ \t]*policy_data\b[ \t]*:?=", re.MULTILINE)


class Algorithm(StrEnum):
    """Digest algorithms that kata's agent accepts (the spec's `sha-256` spelling is refused by the code)."""

    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"


@dataclass(frozen=True, slots=True)
class InitData:
    """A parsed document together with the very bytes that are measured."""

    raw: bytes
    algorithm: Algorithm
    data: Mapping[str, str]

    @property
    def digest(self) -> bytes:
        """Digest over the raw bytes."""
        return hashlib.new(self.algorithm, self.raw).digest()

    def field(self, size: int) -> bytes:
        """The digest as a TEE field of `size` bytes: cut at the end, or padded with zeros at the end."""
        return self.digest[:size].ljust(size, b"\0")

    @property
    def host_data(self) -> bytes:
        """What an SNP report will carry."""
        return self.field(HOST_DATA_BYTES)

    @property
    def mr_config_id(self) -> bytes:
        """What a TDX quote will carry."""
        return self.field(MR_CONFIG_ID_BYTES)

    @property
    def annotation(self) -> str:
        """Value of the pod annotation: base64 of gzip, reproducible (no time stamp)."""
        return base64.b64encode(gzip.compress(self.raw, mtime=0)).decode()


def parse_initdata(raw: bytes, *, where: str) -> InitData:
    """TOML bytes to a document. Raises Malformed for size, syntax, version, algorithm and non-text entries."""
    if len(raw) > MAX_TOML_BYTES:
        raise Malformed(
            "initdata-size",
            "init-data is too large",
            where=where,
            expected=f"at most {MAX_TOML_BYTES} bytes",
            got=len(raw),
        )
    try:
        table = toml10.loads(raw)
    except ValueError as exc:
        raise Malformed("initdata-toml", "not valid TOML", where=where, got=str(exc)[:200]) from exc
    if table.get("version") != "0.1.0":
        raise Malformed(
            "initdata-version",
            "unknown version",
            where=f"{where}: version",
            expected="0.1.0",
            got=repr(table.get("version")),
        )
    algorithm = table.get("algorithm")
    if not isinstance(algorithm, str) or algorithm not in [*Algorithm]:
        raise Malformed(
            "initdata-algorithm",
            "unknown algorithm",
            where=f"{where}: algorithm",
            expected=" or ".join(Algorithm),
            got=repr(algorithm),
        )
    data = table.get("data")
    if not isinstance(data, dict) or not data or not all(isinstance(v, str) for v in data.values()):
        raise Malformed(
            "initdata-data",
            "[data] must be a table of texts",
            where=f"{where}: data",
            expected='name = "text"',
            got=type(data).__name__,
        )
    return InitData(raw, Algorithm(algorithm), data)


def parse_any(content: bytes, *, where: str) -> InitData:
    """The TOML text itself, or the annotation's base64 of gzip of it. Inflation is bounded. Raises Malformed."""
    stripped = content.strip()
    if not stripped.startswith(b"H4sI"):  # base64 of the gzip magic 1f 8b 08
        return parse_initdata(content, where=where)
    try:
        packed = base64.b64decode(stripped, validate=True)
        inflater = zlib.decompressobj(wbits=31)
        raw = inflater.decompress(packed, MAX_TOML_BYTES + 1)
    except (binascii.Error, zlib.error) as exc:
        raise Malformed("initdata-annotation", "not base64 of gzip", where=where, got=str(exc)[:120]) from exc
    if len(raw) <= MAX_TOML_BYTES and (not inflater.eof or inflater.unused_data):
        raise Malformed("initdata-annotation", "gzip stream is cut or followed by something", where=where)
    return parse_initdata(raw, where=where)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What the toolkit puts into init-data."""

    kbs_url: str
    kbs_cert_pem: str  # empty only for http on loopback, in demonstrations
    policy_rego: str
    extra: Mapping[str, str]


def build_initdata(contents: Contents, algorithm: Algorithm) -> InitData:
    """One document that names the broker in both files that guests read: `aa.toml` and `cdh.toml`.

    attestation-agent calls the certificate `cert`, confidential-data-hub calls it `kbs_cert`: the classic mistake.
    Raises Misconfigured.
    """
    if not _URL.fullmatch(contents.kbs_url):
        raise Misconfigured(
            "initdata-url",
            "not a broker URL",
            where="kbs-url",
            expected="https://host[:port][/path]",
            got=repr(contents.kbs_url),
        )
    if contents.kbs_cert_pem and _PEM_CERTIFICATE not in contents.kbs_cert_pem:
        raise Misconfigured(
            "initdata-cert",
            "not a certificate: no guest could reach this broker",
            where="kbs-cert",
            expected=f"PEM with {_PEM_CERTIFICATE}",
            got=repr(contents.kbs_cert_pem[:40]),
        )
    kbs: dict[str, Any] = {"url": contents.kbs_url}
    kbc: dict[str, Any] = {"name": "cc_kbc", "url": contents.kbs_url}
    if contents.kbs_cert_pem:
        kbs["cert"] = contents.kbs_cert_pem
        kbc["kbs_cert"] = contents.kbs_cert_pem
    data = {
        "aa.toml": tomli_w.dumps({"token_configs": {"kbs": kbs}}),
        "cdh.toml": tomli_w.dumps({"kbc": kbc}),
        "policy.rego": contents.policy_rego,
        **contents.extra,
    }
    text = tomli_w.dumps({"version": "0.1.0", "algorithm": str(algorithm), "data": data}, multiline_strings=True)
    return parse_initdata(text.encode(), where="generated init-data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a document, and what it leads to."""

    code: str
    what: str
    symptom: str

    def to_json(self) -> dict[str, str]:
        """Plain mapping."""
        return {"code": self.code, "what": self.what, "symptom": self.symptom}


def appraise_initdata(document: InitData) -> tuple[Problem, ...]:
    """Everything that would make a guest fail, or that would let the host in; empty when nothing is wrong."""
    aa = _table(document, "aa.toml", "token_configs", "kbs")
    cdh = _table(document, "cdh.toml", "kbc")
    problems = []

    def say(code: str, what: str, symptom: str) -> None:
        problems.append(Problem(code=code, what=what, symptom=symptom))

    for name, table in (("aa.toml", aa), ("cdh.toml", cdh)):
        if table is None:
            say("missing-file", f"{name} is missing or not TOML with a broker section", "the guest finds no broker")
        elif not isinstance(table.get("url"), str) or not _URL.fullmatch(table["url"]):
            say("bad-url", f"{name}: url is {table.get('url')!r}", "the guest finds no broker")
        elif table["url"].startswith("http://"):
            say(
                "plain-http",
                f"{name}: {table['url']} is not https",
                "anybody on the way can stop or watch the handshake",
            )
    if aa is not None and cdh is not None and aa.get("url") != cdh.get("url"):
        say(
            "two-brokers",
            f"aa.toml names {aa.get('url')!r}, cdh.toml {cdh.get('url')!r}",
            "attestation and keys disagree",
        )
    if aa is not None and "kbs_cert" in aa:
        say("cert-key", "aa.toml says kbs_cert; attestation-agent reads cert", "TLS to the broker fails")
    if cdh is not None and "cert" in cdh:
        say("cert-key", "cdh.toml says cert; confidential-data-hub reads kbs_cert", "TLS to the broker fails")
    if aa is not None and cdh is not None and not ("cert" in aa and "kbs_cert" in cdh):
        say("no-pin", "the broker's certificate is not pinned", "any public CA can stand in for the broker")
    policy = document.data.get("policy.rego")
    if policy is None:
        say("no-policy", "policy.rego is missing", "the image's default agent policy applies: often permissive")
    elif (why := _permissive(policy)) is not None:
        say("permissive-policy", f"policy.rego: {why}", "the host can run commands in the guest, or change its files")
    elif not _PACKAGE.search(policy):
        say("policy-package", "policy.rego has no `package agent_policy`", "the agent cannot load it: no pod starts")
    if len(document.annotation) > MAX_ANNOTATION_BYTES:
        say("annotation-size", f"annotation has {len(document.annotation)} bytes", "the API server refuses the pod")
    return tuple(problems)


def _permissive(policy: str) -> str | None:
    """The first thing in the rules, or in the data that they ask, which lets the host in; unreadable data is one."""
    if (rule := _PERMISSIVE.search(policy)) is not None:
        return rule.group(0).strip()
    try:
        data = parse_policy_data(policy)
    except Malformed as exc:
        return exc.what
    if data is None:
        return "policy_data is not written as genpolicy writes it" if _POLICY_DATA.search(policy) else None
    opened = open_requests(data)
    return f"policy_data.request_defaults allows {', '.join(opened)}" if opened else None


def _table(document: InitData, name: str, *path: str) -> Mapping[str, Any] | None:
    try:
        node: Any = toml10.loads(document.data[name])
    except (KeyError, ValueError):
        return None
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None
