"""The protocol of CC mode backends, and the one sequence that switches a set of devices with any of them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from kata_gpu.core.gpu import CcMode, GpuDevice
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import Unavailable


class CcSession(Protocol):
    """Exclusive access to a set of devices: nobody else can use or reset them until it ends."""

    def query(self, address: PciAddress) -> CcMode | None:
        """Active mode, read from the device; None for the invalid state of an interrupted switch."""
        ...

    def require_permitted(self, address: PciAddress, mode: CcMode) -> None:
        """LockedOutOfBand where the platform owner forbids the change. Changes nothing."""
        ...

    def stage(self, address: PciAddress, mode: CcMode) -> bool:
        """Make the mode the one after the next reset; False where it was already."""
        ...

    def activate(self, address: PciAddress) -> None:
        """Reset the device."""
        ...

    def wait(self, address: PciAddress) -> None:
        """Until the device has started. TimedOut otherwise."""
        ...


class CcBackend(Protocol):
    """One way to reach CC modes."""

    name: str

    def unsupported(self, device: GpuDevice) -> str:
        """Why this backend cannot do a device; empty where it can. Touches nothing."""
        ...

    def session(self, devices: Sequence[GpuDevice]) -> AbstractContextManager[CcSession]:
        """Take the devices. Raises InUse, Unavailable."""
        ...


def switch_modes(
    session: CcSession,
    targets: Mapping[PciAddress, CcMode],
    *,
    on_found: Callable[[dict[PciAddress, CcMode | None]], None],
    progress: Callable[[str], None],
) -> None:
    """Bring a set of devices to their modes: read all, check all, stage all, reset all, verify all.

    `on_found` gets the modes that were read before the first change, to be recorded durably. A failure leaves the set
    partly switched: the caller's journal brings all of it back. A half-switched board is never usable, so nothing is
    gained by going on.
    """
    found = {address: session.query(address) for address in targets}
    on_found(found)
    for address, mode in targets.items():
        session.require_permitted(address, mode)
    staged = []
    for address, mode in targets.items():
        changed = session.stage(address, mode)
        if changed or found[address] is not mode:
            staged.append(address)
            progress(f"staged   {address}  {mode}")
    for address in staged:
        session.activate(address)
        progress(f"reset    {address}")
    for address in staged:
        session.wait(address)
    for address, mode in targets.items():
        active = session.query(address)
        if active is not mode:
            raise Unavailable(
                "mode-not-active",
                "the device did not take the CC mode",
                where=str(address),
                expected=mode,
                got=active or "the invalid state",
            )
        progress(f"verified {address}  {mode}")
