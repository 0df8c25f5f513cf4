"""The vfio-user protocol, server side: one client on one socket (libvfio-user's specification, version 0.0)."""

import contextlib
import errno
import json
import os
import socket
import struct
from enum import IntEnum

from kata_gpu.host.softgpu.device import CONFIG_REGION, IRQS, REGIONS, SoftDevice

_HEADER = struct.Struct("<HHIII")  # id, command, size, flags, error
_REGION_INFO = struct.Struct("<IIIIQQ")
_ACCESS = struct.Struct("<QII")  # offset, region, count
_IRQ_INFO = struct.Struct("<IIII")
_MULTI = struct.Struct("<QII8s")
_REPLY, _ERROR, _NO_REPLY = 1, 0x20, 0x10
_READABLE, _WRITABLE, _MAPPABLE = 1, 2, 4
_RESETTABLE_PCI = 3
_MSI_IRQ, _EVENTFD, _NORESIZE = 1, 1, 8
MAX_TRANSFER = 1 << 20
MAX_MESSAGE = MAX_TRANSFER + 4096
MAX_FDS = 16


class Command(IntEnum):
    """Messages that a client sends."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_INFO = 4
    REGION_INFO = 5
    REGION_IO_FDS = 6
    IRQ_INFO = 7
    SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15


class ProtocolError(Exception):
    """The client broke the framing: the session ends."""


def serve_client(device: SoftDevice, connection: socket.socket) -> None:
    """Answer one client until it goes. Messages that we do not understand get ENOTSUP, bad ones EINVAL."""
    with contextlib.suppress(EOFError, ConnectionError, ProtocolError):
        while True:
            _serve_message(device, connection)


def _serve_message(device: SoftDevice, connection: socket.socket) -> None:
    fds: list[int] = []
    try:
        number, command, size, flags, _ = _HEADER.unpack(_receive(connection, _HEADER.size, fds))
        if not _HEADER.size <= size <= MAX_MESSAGE:
            raise ProtocolError
        body = _receive(connection, size - _HEADER.size, fds)
    finally:
        for fd in fds:
            os.close(fd)  # DMA windows and interrupt eventfds: this device neither reads memory nor interrupts
    error, answer = 0, b""
    attached: list[int] = []
    try:
        answer, attached = _answer(device, command, body)
    except OSError as exc:
        error = exc.errno or errno.EIO
    except (struct.error, ValueError):
        error = errno.EINVAL
    if flags & _NO_REPLY:
        return
    kind = _REPLY | (_ERROR if error else 0)
    message = _HEADER.pack(number, command, _HEADER.size + len(answer), kind, error) + answer
    if attached:
        socket.send_fds(connection, [message], attached)
    else:
        connection.sendall(message)


def _answer(device: SoftDevice, command: int, body: bytes) -> tuple[bytes, list[int]]:
    match command:
        case Command.VERSION:
            capabilities = {"max_msg_fds": MAX_FDS, "max_data_xfer_size": MAX_TRANSFER, "pgsizes": 4096}
            return body[:4] + json.dumps({"capabilities": capabilities}).encode() + b"\0", []
        case Command.DEVICE_INFO:
            return struct.pack("<IIII", 16, _RESETTABLE_PCI, REGIONS, IRQS), []
        case Command.REGION_INFO:
            return _region_info(device, struct.unpack_from("<I", body, 8)[0])
        case Command.IRQ_INFO:
            index = struct.unpack_from("<I", body, 8)[0]
            present = index == _MSI_IRQ
            return _IRQ_INFO.pack(16, (_EVENTFD | _NORESIZE) * present, index, int(present)), []
        case Command.REGION_READ:
            offset, region, count = _access(device, body)
            return body[: _ACCESS.size] + device.read(region, offset, count), []
        case Command.REGION_WRITE:
            offset, region, count = _access(device, body)
            device.write(region, offset, _exactly(body[_ACCESS.size :], count))
            return body[: _ACCESS.size], []
        case Command.REGION_WRITE_MULTI:
            return _write_multi(device, body), []
        case Command.DEVICE_RESET:
            device.reset()
            return b"", []
        case Command.DMA_MAP | Command.DMA_UNMAP | Command.SET_IRQS:
            return b"" if command != Command.DMA_UNMAP else body[:24], []
    raise OSError(errno.ENOTSUP, "unknown command")


def _region_info(device: SoftDevice, index: int) -> tuple[bytes, list[int]]:
    if index >= REGIONS:
        raise OSError(errno.EINVAL, "no such region")
    size = device.region_size(index)
    flags = _READABLE | _WRITABLE if size else 0
    attached = [device.memory[index]] if index in device.memory else []
    if attached:
        flags |= _MAPPABLE
    return _REGION_INFO.pack(_REGION_INFO.size, flags, index, 0, size, 0), attached


def _access(device: SoftDevice, body: bytes) -> tuple[int, int, int]:
    offset, region, count = _ACCESS.unpack_from(body)
    if region > CONFIG_REGION or not 0 < count <= MAX_TRANSFER or offset + count > device.region_size(region):
        raise OSError(errno.EINVAL, "outside of the region")
    return offset, region, count


def _exactly(data: bytes, count: int) -> bytes:
    if len(data) != count:
        raise OSError(errno.EINVAL, "size does not match")
    return data


def _write_multi(device: SoftDevice, body: bytes) -> bytes:
    """Up to a message full of small posted writes, 24 bytes each."""
    writes = struct.unpack_from("<Q", body)[0]
    if len(body) != 8 + writes * _MULTI.size:
        raise OSError(errno.EINVAL, "size does not match")
    for index in range(writes):
        offset, region, count, data = _MULTI.unpack_from(body, 8 + index * _MULTI.size)
        if count > len(data):
            raise OSError(errno.EINVAL, "write is too long")
        _access(device, _ACCESS.pack(offset, region, count))
        device.write(region, offset, data[:count])
    return body[:8]


def _receive(connection: socket.socket, size: int, fds: list[int]) -> bytes:
    """Exactly `size` bytes, and the descriptors that came with them. EOFError where the client went away."""
    data = b""
    while len(data) < size:
        chunk, attached, _, _ = socket.recv_fds(connection, size - len(data), MAX_FDS)
        fds.extend(attached)
        if not chunk:
            raise EOFError
        data += chunk
    return data
