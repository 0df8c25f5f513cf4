"""Five clocks that must agree: kubelet, shim, agent connection, image pull in the guest, CDI wait in the guest.

The pod starts only if each outer clock outlasts the inner ones (node.md 6, pains 14 and 15):
kubelet `runtimeRequestTimeout` >= shim `create_container_timeout` >= guest image pull + guest CDI wait, and the
connection to the agent may take as long as the VM needs to accept its memory.
"""

from dataclasses import dataclass

KUBELET_DEFAULT_S = 120  # KubeletConfiguration.runtimeRequestTimeout
IMAGE_PULL_DEFAULT_S = 1200  # agent.image_pull_timeout in the NVIDIA guest
CDI_DEFAULT_S = 100  # agent.cdi_timeout


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """All five, in seconds."""

    kubelet_s: int = KUBELET_DEFAULT_S
    create_container_s: int
    dial_s: int
    image_pull_s: int = IMAGE_PULL_DEFAULT_S
    cdi_s: int = CDI_DEFAULT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """One clock that ends too early, what it must be, and why."""

    name: str
    got_s: int
    want_s: int
    why: str


def solve(current: Timeouts, *, boot_s: int) -> tuple[Correction, ...]:
    """The smallest corrections that make the five agree for a VM that needs `boot_s` to boot; empty when they do."""
    create = max(current.create_container_s, current.image_pull_s + current.cdi_s)
    wanted = (
        ("agent connection (dial_timeout, reconnect_timeout_ms)", current.dial_s, max(current.dial_s, boot_s),
         f"the VM needs up to {boot_s} s before its agent answers"),
        ("create_container_timeout", current.create_container_s, create,
         f"it covers the image pull ({current.image_pull_s} s) and the wait for CDI ({current.cdi_s} s) in the guest"),
        ("kubelet runtimeRequestTimeout", current.kubelet_s, max(current.kubelet_s, create, boot_s),
         "kubelet gives up first, deletes the sandbox and starts over, for ever"),
    )  # fmt: skip
    return tuple(Correction(name=n, got_s=g, want_s=w, why=y) for n, g, w, y in wanted if g < w)
