"""The protocol of CC mode backends, and the one sequence that switches a set of devices with any of them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from kata_gpu.core.gpu import CcMode, GpuDevice
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import KataGpuError, Unavailable


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
    keep_going: bool = False,
) -> None:
    """Bring a set of devices to their modes: read all, check all, stage all, reset all, verify all.

    `on_found` gets the modes that were read before the first change, to be recorded durably. A failure leaves the set
    partly switched: the caller's journal brings all of it back. That way back uses `keep_going`: one device that does
    not answer must not keep the others from returning; its error is raised when they have.
    """
    steps = _Steps(list(targets), keep_going=keep_going)
    found = steps.each(session.query)
    on_found(found)
    differing = [a for a in steps.left if found[a] is not targets[a]]
    steps.each(lambda address: session.require_permitted(address, targets[address]), differing)
    changed = steps.each(lambda address: session.stage(address, targets[address]))
    staged = [a for a in steps.left if changed[a] or found[a] is not targets[a]]
    for address in staged:
        progress(f"staged   {address}  {targets[address]}")
    steps.each(session.activate, staged)
    for address in staged:
        progress(f"reset    {address}")
    steps.each(session.wait, staged)
    steps.each(lambda address: _verify(session, address, targets[address]))
    for address in steps.left:
        progress(f"verified {address}  {targets[address]}")
    steps.finish()


_T = TypeVar("_T")


class _Steps:
    """Devices that still take part, and the first error of those that do not."""

    def __init__(self, left: list[PciAddress], *, keep_going: bool) -> None:
        self.left = left
        self._keep_going = keep_going
        self._error: KataGpuError | None = None

    def each(self, step: Callable[[PciAddress], _T], only: Sequence[PciAddress] | None = None) -> dict[PciAddress, _T]:
        results = {}
        for address in list(self.left):
            if only is not None and address not in only:
                continue
            try:
                results[address] = step(address)
            except KataGpuError as exc:
                if not self._keep_going:
                    raise
                self._error = self._error or exc
                self.left.remove(address)
        return results

    def finish(self) -> None:
        if self._error is not None:
            raise self._error


def _verify(session: CcSession, address: PciAddress, mode: CcMode) -> None:
    active = session.query(address)
    if active is not mode:
        raise Unavailable(
            "mode-not-active",
            "the device did not take the CC mode",
            where=str(address),
            expected=mode,
            got=active or "the invalid state",
        )
