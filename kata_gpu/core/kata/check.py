"""Effective configuration against the requirements: one finding a row, with the file to blame and the value to set."""

from dataclasses import dataclass

from kata_gpu.core.kata.effective import Effective
from kata_gpu.core.kata.settings import SETTINGS, Needs


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFinding:
    """One requirement on one configuration."""

    id: str
    key: str
    ok: bool
    expected: str
    got: str
    source: str  # the file that set it; empty where nothing does
    symptom: str
    fixed_by_dropin: bool

    def to_json(self) -> dict[str, object]:
        """Plain mapping."""
        return {name: getattr(self, name) for name in self.__slots__}


def check(effective: Effective, needs: Needs) -> tuple[ConfigFinding, ...]:
    """Every applicable row, in table order; never empty."""
    runtime = effective.runtime
    findings = []
    for setting in SETTINGS:
        key = setting.key(runtime)
        want = setting.want(needs, runtime)
        if key is None or want is None:
            continue
        origin = effective.get(key)
        got = None if origin is None else origin.value
        findings.append(
            ConfigFinding(
                id=setting.id,
                key=key,
                ok=setting.holds(got, want),
                expected=_text(want),
                got="not set" if origin is None else _text(got),
                source="" if origin is None else origin.path,
                symptom=setting.symptom,
                fixed_by_dropin=setting.writable,
            )
        )
    return tuple(findings)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
