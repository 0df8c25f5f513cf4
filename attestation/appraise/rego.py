"""What Rego policies see and what we make of their answer: upstream's default policies run unmodified.

Input is upstream's annotated evidence of one submodule, output `data.policy.trust_claims` (keybroker.md 3.4).
"""

from collections.abc import Mapping

from attestation.appraise.ear import TrustVector
from attestation.appraise.facts import CpuFacts, DeviceFacts, PlatformFacts, SampleDeviceFacts, Submod
from attestation.appraise.nv_claims import nras_shaped
from attestation.crypto.b64 import b64
from attestation.errors import Malformed
from attestation.values import DeviceKind, JsonValue, Tee


def tee_class(part: Submod) -> str:
    """`cpu`, `gpu` or `switch`: the suffix of the policy id. Upstream's sample device is of the class `gpu`."""
    if isinstance(part, CpuFacts):
        return "cpu"
    return "gpu" if isinstance(part, SampleDeviceFacts) or part.kind is DeviceKind.GPU else "switch"


def policy_input(part: Submod, facts: PlatformFacts, runtime: Mapping[str, JsonValue] | None) -> dict[str, JsonValue]:
    """The submodule's evidence under its TEE name, with init-data and runtime data beside it for the CPU."""
    if isinstance(part, SampleDeviceFacts):
        return {"sampledevice": {"svn": part.svn}, "report_data": part.report_data, "runtime_data_claims": runtime}
    if isinstance(part, DeviceFacts):
        return {"nvidia": nras_shaped(part.kind, part.claims)}
    claims = part.claims.get(str(part.tee))
    document: dict[str, JsonValue] = {
        str(part.tee): claims if isinstance(claims, Mapping) else part.claims,
        # Upstream writes the field of a real TEE in hexadecimal, what it takes for that of the sample TEE in base64.
        "init_data": b64(bytes.fromhex(part.init_data)) if part.tee is Tee.SAMPLE else part.init_data,
        "init_data_claims": facts.init_data_claims,
        "runtime_data_claims": runtime,
    }
    if isinstance(report_data := part.claims.get("report_data"), str):
        document["report_data"] = report_data
    return document


def vector_of(answer: Mapping[str, JsonValue]) -> TrustVector:
    """`trust_claims` to a vector; unknown names and out-of-range values are Malformed, never wrapped around."""
    values: dict[str, int] = {}
    for name, value in answer.items():
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # noqa: PLW2901 - engines have one number type
        if type(value) is not int:
            raise Malformed("trust-value", "not an int8", where=name, expected="-128..127", got=repr(value)[:60])
        values[name] = value
    return TrustVector(values)
