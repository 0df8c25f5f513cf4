"""PCI configuration space, as far as ACS needs it (PCI 3.0 6.7, PCIe 6.0 7.5.3 and 7.7.11)."""

_CAPABILITIES_POINTER = 0x34
_STATUS = 0x06
_HAS_CAPABILITIES = 1 << 4
_PCI_EXPRESS = 0x10
_EXTENDED_START = 0x100
_ACS = 0x000D
_ACS_CONTROL = 6
_ROOT_PORT, _DOWNSTREAM_PORT = 4, 6
_MAX_CAPABILITIES = 48  # 192 bytes of space, 4 bytes at least each
_MAX_EXTENDED = 480  # (4096 - 256) / 8


def _u16(config: bytes, offset: int) -> int:
    return int.from_bytes(config[offset : offset + 2], "little")


def forwards_downstream(config: bytes) -> bool | None:
    """Whether this is a root port or a switch's downstream port: where ACS matters. None when it cannot be read."""
    if len(config) < 256:
        return None
    if not _u16(config, _STATUS) & _HAS_CAPABILITIES:
        return False
    pointer = config[_CAPABILITIES_POINTER] & 0xFC
    for _ in range(_MAX_CAPABILITIES):
        if pointer < 0x40:
            return False
        if config[pointer] == _PCI_EXPRESS:
            return (_u16(config, pointer + 2) >> 4) & 0xF in {_ROOT_PORT, _DOWNSTREAM_PORT}
        pointer = config[pointer + 1] & 0xFC
    return False


def acs_control(config: bytes) -> int | None:
    """The ACS control register; 0 where the port has no ACS, None when extended space cannot be read."""
    if len(config) < 4096:
        return None
    offset = _EXTENDED_START
    for _ in range(_MAX_EXTENDED):
        header = int.from_bytes(config[offset : offset + 4], "little")
        if header & 0xFFFF == _ACS:
            return _u16(config, offset + _ACS_CONTROL)
        offset = header >> 20 & 0xFFC
        if offset < _EXTENDED_START:
            return 0
    return 0
