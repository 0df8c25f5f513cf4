"""Strict reading of `classes.toml`: rows that cannot hold a wrong value."""

import re
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files

_NAME = re.compile(r"kata-nvidia-gpu(-[a-z0-9]+)*")
_QUANTITY = re.compile(r"[1-9][0-9]*(Mi|Gi)?")
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
UPSTREAM_HANDLER = "kata-qemu-nvidia-gpu"  # kata-deploy 4.1.0


class Misconfigured(Exception):
    """The table is wrong: says which row, which field, expected and got."""


class Tee(StrEnum):
    """TEE of a class; DEFAULT stands for the cluster's own and never reaches a manifest."""

    NONE = "none"
    SNP = "snp"
    TDX = "tdx"
    DEFAULT = "default"


class CcMode(StrEnum):
    """Mode of the GPUs that a pod of the class may get."""

    OFF = "off"
    ON = "on"
    DEVTOOLS = "devtools"
    PPCIE = "ppcie"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One RuntimeClass of the table."""

    name: str
    tee: Tee
    cc_mode: CcMode
    summary: str
    overhead_memory: str
    overhead_cpu: str
    kata_minimum: str

    def __post_init__(self) -> None:
        for field, pattern in (("name", _NAME), ("overhead_memory", _QUANTITY), ("overhead_cpu", _QUANTITY),
                               ("kata_minimum", _VERSION)):  # fmt: skip
            if not pattern.fullmatch(getattr(self, field)):
                raise Misconfigured(
                    f"class {self.name!r}: {field}: expected {pattern.pattern}, got {getattr(self, field)!r}"
                )
        if self.cc_mode is CcMode.PPCIE and self.tee not in (Tee.SNP, Tee.TDX):
            raise Misconfigured(f"class {self.name!r}: Protected PCIe needs a TEE, got tee = {self.tee}")

    def resolve(self, default_tee: Tee) -> "Row":
        """The row for a cluster: `default` replaced; without a TEE the mode `on` becomes plain passthrough."""
        if self.tee is not Tee.DEFAULT:
            return self
        mode = CcMode.OFF if default_tee is Tee.NONE and self.cc_mode is CcMode.ON else self.cc_mode
        return Row(
            name=self.name,
            tee=default_tee,
            cc_mode=mode,
            summary=self.summary,
            overhead_memory=self.overhead_memory,
            overhead_cpu=self.overhead_cpu,
            kata_minimum=self.kata_minimum,
        )

    @property
    def confidential(self) -> bool:
        """Whether the pod's memory is protected from the host."""
        return self.tee in (Tee.SNP, Tee.TDX)

    @property
    def handler(self) -> str:
        """Upstream containerd handler."""
        return f"{UPSTREAM_HANDLER}-{self.tee}" if self.confidential else UPSTREAM_HANDLER


def parse_table(text: str) -> tuple[Row, ...]:
    """All rows, in table order. Raises Misconfigured for unknown, missing or repeated things."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise Misconfigured(f"classes.toml: {exc}") from exc
    if set(table) != {"defaults", "class"} or not table["class"]:
        raise Misconfigured(f"classes.toml: expected [defaults] and [[class]], got {sorted(table)}")
    rows = tuple(_row(table["defaults"], raw) for raw in table["class"])
    names = [row.name for row in rows]
    if len(set(names)) != len(names):
        raise Misconfigured(f"classes.toml: a class is listed twice: {sorted(names)}")
    return rows


def _row(defaults: dict[str, str], raw: dict[str, str]) -> Row:
    merged = defaults | raw
    expected = {"name", "tee", "cc_mode", "summary", "overhead_memory", "overhead_cpu", "kata_minimum"}
    if set(merged) != expected:
        raise Misconfigured(f"class {raw.get('name')!r}: expected fields {sorted(expected)}, got {sorted(merged)}")
    try:
        return Row(**(merged | {"tee": Tee(merged["tee"]), "cc_mode": CcMode(merged["cc_mode"])}))  # type: ignore[arg-type]
    except ValueError as exc:
        raise Misconfigured(f"class {merged['name']!r}: {exc}") from exc


def table() -> tuple[Row, ...]:
    """The table of this package."""
    return parse_table((files("runtimeclass") / "classes.toml").read_text())
