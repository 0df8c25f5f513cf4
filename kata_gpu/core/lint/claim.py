"""Rules for ResourceClaims and ResourceClaimTemplates that ask for our device classes."""

from kata_gpu.core.lint.rule import Json, Rule, items, mapping

CONFIDENTIAL_CLASSES = ("confidential-gpu", "confidential-gpu-devtools", "confidential-gpu-ppcie")
CLASSES = (*CONFIDENTIAL_CLASSES, "passthrough-gpu")
MIG_CLASS = "mig.nvidia.com"
MAX_GPUS = 8  # node.md 5.2: no accepted layout has more


def spec_of(obj: Json) -> Json:
    """The claim's spec, of a claim or of a template."""
    spec = mapping(obj, "spec")
    # Items of a list carry no kind; a claim's spec has no `spec`.
    return mapping(spec, "spec") if obj.get("kind") == "ResourceClaimTemplate" or "spec" in spec else spec


def requests(obj: Json) -> list[Json]:
    """Every way to satisfy the claim: `exactly` requests and the alternatives of `firstAvailable`."""
    found = []
    for request in items(spec_of(obj), "devices", "requests"):
        exactly = mapping(request, "exactly")
        found += [exactly] if exactly else []
        found += items(request, "firstAvailable")
    return found


def classes(obj: Json) -> set[str]:
    """Device classes that the claim names."""
    return {str(r.get("deviceClassName", "")) for r in requests(obj)}


def _ours(request: Json) -> bool:
    return request.get("deviceClassName") in CLASSES


def _no_admin(obj: Json) -> bool:
    return not any(_ours(r) and r.get("adminAccess") is True for r in requests(obj))


def _exact_count(obj: Json) -> bool:
    return all(
        r.get("allocationMode", "ExactCount") == "ExactCount" and 1 <= _count(r) <= MAX_GPUS
        for r in requests(obj)
        if _ours(r)
    )


def _count(request: Json) -> int:
    count = request.get("count", 1)
    return count if isinstance(count, int) else 0


def _one_ppcie(obj: Json) -> bool:
    return all(_count(r) == 1 for r in requests(obj) if r.get("deviceClassName") == "confidential-gpu-ppcie")


def _one_mode(obj: Json) -> bool:
    return len(classes(obj) & set(CLASSES)) <= 1


def _no_multi_node(obj: Json) -> bool:
    return not (classes(obj) & set(CLASSES) and any(c.startswith("compute-domain-") for c in classes(obj)))


def _no_mig(obj: Json) -> bool:
    return not (classes(obj) & set(CLASSES) and MIG_CLASS in classes(obj))


def _requests(spec: str) -> str:
    there = f"{spec}.devices.requests"
    return f"(has({spec}.devices) && has({there}) && type({there}) == list ? {there} : [])"


_IN = f"[{', '.join(repr(c) for c in CLASSES)}]"
# CEL has no flatten: each predicate is asked of `exactly` and of every alternative. A claim without requests reaches
# admission with a null, for which `has` is true.
REQUESTS_CEL = (f"object.kind == 'ResourceClaimTemplate' ? {_requests('object.spec.spec')} : "
                f"{_requests('object.spec')}")  # fmt: skip


def _all(predicate: str) -> str:
    """`predicate` over `r` holds for every alternative."""
    return (f"variables.requests.all(q, (!has(q.exactly) || [q.exactly].all(r, {predicate})) && "
            f"(!has(q.firstAvailable) || q.firstAvailable.all(r, {predicate})))")  # fmt: skip


def _any(predicate: str) -> str:
    return f"!({_all(f'!({predicate})')})"


_NAMED = "has(r.deviceClassName) && r.deviceClassName"
_OURS = f"({_NAMED} in {_IN})"
_COUNT = "(has(r.count) ? r.count : 1)"

RULES: tuple[Rule, ...] = (
    Rule(id="admin-access", holds=_no_admin, cel=_all(f"!({_OURS} && has(r.adminAccess) && r.adminAccess)"),
         message="adminAccess to a confidential GPU is refused: it bypasses allocation",
         symptom="two VMs would hold one GPU"),
    Rule(id="exact-count", holds=_exact_count,
         cel=_all(f"!{_OURS} || ((!has(r.allocationMode) || r.allocationMode == 'ExactCount') && {_COUNT} >= 1 && "
                  f"{_COUNT} <= {MAX_GPUS})"),
         message=f"ask for an exact number of GPUs, 1 to {MAX_GPUS}",
         symptom="the broker expects a count; the guest refuses the layout"),
    Rule(id="one-ppcie", holds=_one_ppcie,
         cel=_all(f"!({_NAMED} == 'confidential-gpu-ppcie') || {_COUNT} == 1"),
         message="confidential-gpu-ppcie is a whole node: ask for exactly one", symptom="the claim stays pending"),
    Rule(id="one-mode", holds=_one_mode,
         cel=" && ".join(f"(!({_any(f'{_NAMED} == {a!r}')}) || !({_any(f'{_NAMED} == {b!r}')}))"
                         for n, a in enumerate(CLASSES) for b in CLASSES[n + 1:]),
         message="one claim mixes GPU modes; a VM has one", symptom="the claim is never satisfiable on one node"),
    Rule(id="multi-node-nvlink", holds=_no_multi_node,
         cel=f"!({_any(_OURS)}) || !({_any(f'''{_NAMED}.startsWith('compute-domain-')''')})",
         message="multi-node NVLink (ComputeDomain) needs the host's fabric service: not with a VM that owns the GPU",
         symptom="the claim is never satisfiable"),
    Rule(id="mig-device", holds=_no_mig, cel=f"!({_any(_OURS)}) || !({_any(f'{_NAMED} == {MIG_CLASS!r}')})",
         message="MIG slices cannot be given to confidential VMs: the whole GPU is attested",
         symptom="the claim is never satisfiable on one GPU"),
)  # fmt: skip
