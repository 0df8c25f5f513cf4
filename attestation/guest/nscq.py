"""NVSwitches of this VM through NSCQ, by ctypes (gpu-attestation.md 5.2). The library calls back once per device.

Layouts of NSCQ's attestation interface: a return code is an i8 (0 is success, below 0 an error, above 0 a warning), a
UUID 16 bytes, a label 64 characters; a report is a u32 size and 0x2000 bytes, a chain 0x1400 bytes and a u32 size, both
passed to the callback by value.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from attestation.errors import Denied, Malformed, Unavailable
from attestation.guest.evidence import DeviceEvidence
from attestation.values import Architecture, Nonce

LIBRARY = "libnvidia-nscq.so.2"
REPORT_BYTES, CHAIN_BYTES = 0x2000, 0x1400
ARCH_LS10 = 2
_LABEL_BYTES = 64
_MOUNT_DEVICES = 1


class _Uuid(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_uint8 * 16),)


class _Label(ctypes.Structure):
    _fields_ = (("data", ctypes.c_char * _LABEL_BYTES),)


class _Session(ctypes.Structure):
    _fields_ = (("rc", ctypes.c_int8), ("session", ctypes.c_void_p))


class _Report(ctypes.Structure):
    _fields_ = (("size", ctypes.c_uint32), ("data", ctypes.c_uint8 * REPORT_BYTES))


class _Chain(ctypes.Structure):
    _fields_ = (("data", ctypes.c_uint8 * CHAIN_BYTES), ("size", ctypes.c_uint32))


class NscqSwitches:
    """All NVSwitches of one NSCQ session."""

    def __init__(self, library: ctypes.CDLL, session: int) -> None:
        self._library, self._session = library, ctypes.c_void_p(session)

    def collect(self, nonce: Nonce) -> tuple[DeviceEvidence, ...]:
        """Report and chain of every switch over this nonce, by label. One that fails is an error."""
        return tuple(self._device(label, nonce) for label in sorted(self.labels()))

    def labels(self) -> list[str]:
        """Names of all switches, as paths of the session use them."""
        labels = []
        for uuid in self._observe("/drv/nvswitch/{device}/uuid", ctypes.POINTER(_Uuid)):
            label = _Label()
            _check(self._library.nscq_uuid_to_label(uuid, ctypes.byref(label), 0), "uuid")
            labels.append(label.data.decode("ascii", "replace"))
        return labels

    def _device(self, label: str, nonce: Nonce) -> DeviceEvidence:
        arch = self._one(f"/{label}/id/arch", ctypes.c_int8)
        if arch != ARCH_LS10:
            raise Denied("switch-architecture", "this NVSwitch cannot attest", where=label, expected="LS10", got=arch)
        buffer = (ctypes.c_uint8 * len(nonce.raw))(*nonce.raw)
        _check(self._library.nscq_session_set_input(self._session, 0, buffer, len(nonce.raw)), f"{label} nonce")
        report = self._one(f"/{label}/config/attestation_report", _Report)
        chain = self._one(f"/{label}/config/certificate", _Chain)
        return DeviceEvidence(
            arch=Architecture.LS10,
            uuid=label,
            report=_sized(report, f"{label} report"),
            chain=_sized(chain, f"{label} certificates"),
        )

    def _one(self, path: str, kind: Any) -> Any:
        values = self._observe(path, kind)
        if len(values) != 1:
            raise Unavailable("nscq", "one answer expected", where=path, expected=1, got=len(values))
        return values[0]

    def _observe(self, path: str, kind: Any) -> list[Any]:
        """Values of a path, copied inside the callback: NSCQ's memory ends with it."""
        values: list[Any] = []
        codes: list[int] = []

        def receive(_device: Any, code: int, value: Any, _user: Any) -> None:
            codes.append(code)
            if code == 0:
                values.append(_copy(value))

        callback = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Uuid), ctypes.c_int8, kind, ctypes.c_void_p)(receive)
        _check(self._library.nscq_session_path_observe(self._session, path.encode("ascii"), callback, None, 0), path)
        for code in codes:
            _check(code, path)
        return values


@contextmanager
def open_nscq(library: str = LIBRARY) -> Iterator[NscqSwitches]:
    """Load NSCQ and mount the switches; Unavailable where there is no library or driver."""
    try:
        nscq = ctypes.CDLL(library)
        nscq.nscq_session_create.restype = _Session
        nscq.nscq_session_create.argtypes = (ctypes.c_uint32,)
        nscq.nscq_session_destroy.restype = None
        nscq.nscq_session_destroy.argtypes = (ctypes.c_void_p,)
        nscq.nscq_session_path_observe.restype = ctypes.c_int8
        nscq.nscq_session_path_observe.argtypes = (
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32,
        )  # fmt: skip
        nscq.nscq_session_set_input.restype = ctypes.c_int8
        nscq.nscq_session_set_input.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32)
        nscq.nscq_uuid_to_label.restype = ctypes.c_int8
        nscq.nscq_uuid_to_label.argtypes = (ctypes.POINTER(_Uuid), ctypes.POINTER(_Label), ctypes.c_uint32)
    except (OSError, AttributeError) as exc:
        raise Unavailable("nscq-library", "cannot load NSCQ", where=library, got=str(exc)[:120]) from exc
    result = nscq.nscq_session_create(_MOUNT_DEVICES)
    _check(result.rc, "session")
    try:
        yield NscqSwitches(nscq, result.session)
    finally:
        nscq.nscq_session_destroy(result.session)


def _check(code: int, where: str) -> None:
    """Anything but 0: a warning of NSCQ (driver and library do not fit) is no ground to hand out evidence either."""
    if code != 0:
        raise Unavailable("nscq", "NSCQ call failed", where=f"nscq {where}", expected=0, got=code)


def _copy(value: Any) -> Any:
    source = value.contents if isinstance(value, ctypes._Pointer) else value  # noqa: SLF001 - the public name is missing
    return type(source).from_buffer_copy(source) if isinstance(source, ctypes.Structure) else source


def _sized(value: Any, where: str) -> bytes:
    if not 0 < value.size <= len(value.data):
        raise Malformed("nscq-size", "impossible size", where=where, expected=f"1 to {len(value.data)}", got=value.size)
    return bytes(value.data[: value.size])
