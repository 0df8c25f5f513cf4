"""Node labels: those of NVIDIA's cc-manager, which upstream RuntimeClasses select on, and those that ours select on."""

from kata_gpu.core.gpu import CcMode
from kata_gpu.core.inventory import Inventory, Tee

MODE_STATE = "nvidia.com/cc.mode.state"
READY_STATE = "nvidia.com/cc.ready.state"
OUR_MODE = "kata-gpu.dev/cc-mode"  # selected by runtimeclass/manifests
OUR_TEE = "kata-gpu.dev/tee"
_READY = {CcMode.ON: "true", CcMode.PPCIE: "true", CcMode.OFF: "false"}


def render_labels(inventory: Inventory) -> dict[str, str]:
    """Values for this node, in every mode.

    `ready.state` is "true" only when every CC-capable GPU is bound and verified in one protecting mode, "false" when
    all are verified off or none is capable. Anything else (devtools, mixed, unknown) is empty, so that no RuntimeClass
    matches; `mode.state` then says `failed`, `mixed` or `devtools`. Our own `cc-mode` is there only where every GPU is
    bound and verified in that one mode, devtools included: it has a RuntimeClass of its own.
    """
    upstream = _upstream(inventory)
    mode, tee = upstream.get(MODE_STATE, ""), inventory.facts.tee
    ours = {OUR_MODE: mode} if mode in set(CcMode) else {}
    return upstream | ours | ({OUR_TEE: str(tee)} if ours and tee is not Tee.NONE else {})


def _upstream(inventory: Inventory) -> dict[str, str]:
    capable = [d for d in inventory.gpus if d.cc_capable]
    if not capable:
        return {MODE_STATE: str(CcMode.OFF), READY_STATE: "false"} if inventory.gpus else {}
    modes = {d.cc_mode for d in capable}
    if None in modes or any(d.problem or not d.bound for d in capable):
        return {MODE_STATE: "failed", READY_STATE: ""}
    if len(modes) > 1:
        return {MODE_STATE: "mixed", READY_STATE: ""}
    mode = next(m for m in modes if m is not None)
    return {MODE_STATE: str(mode), READY_STATE: _READY.get(mode, "")}
