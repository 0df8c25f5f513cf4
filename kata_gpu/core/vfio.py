"""The VFIO and IOMMUFD user API: request numbers and structures (linux/vfio.h, linux/iommufd.h)."""

import struct

# _IO(';', 100 + n); IOMMUFD's commands start at 0x80 of the same type.
GET_API_VERSION = 0x3B64
SET_IOMMU = 0x3B66
GROUP_GET_STATUS = 0x3B67
GROUP_SET_CONTAINER = 0x3B68
GROUP_GET_DEVICE_FD = 0x3B6A
DEVICE_GET_REGION_INFO = 0x3B6C
DEVICE_RESET = 0x3B6F
DEVICE_BIND_IOMMUFD = 0x3B76

TYPE1V2_IOMMU = 3
GROUP_VIABLE = 1
GROUP_CONTAINER_SET = 2
REGION_BAR0 = 0
REGION_CONFIG = 7

_STATUS = struct.Struct("=II")  # argsz, flags
_REGION = struct.Struct("=IIIIQQ")  # argsz, flags, index, cap_offset, size, offset
_BIND = struct.Struct("=IIiI")  # argsz, flags, iommufd, out_devid


def group_status() -> bytearray:
    """struct vfio_group_status to be filled."""
    return bytearray(_STATUS.pack(_STATUS.size, 0))


def parse_group_status(buffer: bytes | bytearray) -> int:
    """Its flags."""
    flags: int = _STATUS.unpack_from(buffer)[1]
    return flags


def region_info(index: int) -> bytearray:
    """struct vfio_region_info to be filled."""
    return bytearray(_REGION.pack(_REGION.size, 0, index, 0, 0, 0))


def parse_region_info(buffer: bytes | bytearray) -> tuple[int, int]:
    """Size of the region, and its offset in the device's file."""
    _, _, _, _, size, offset = _REGION.unpack_from(buffer)
    return size, offset


def bind_iommufd(iommufd: int) -> bytearray:
    """struct vfio_device_bind_iommufd."""
    return bytearray(_BIND.pack(_BIND.size, 0, iommufd, 0))


def descriptor(fd: int) -> bytearray:
    """A pointer to a 32-bit descriptor, as GROUP_SET_CONTAINER takes it."""
    return bytearray(struct.pack("=i", fd))
