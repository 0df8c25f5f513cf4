"""Listen for QEMU: one unix socket and one thread per device."""

import socket
import threading
import time
from pathlib import Path

from kata_gpu.errors import Unavailable
from kata_gpu.host.softgpu.device import MODELS, SoftDevice
from kata_gpu.host.softgpu.session import serve_client


class SoftGpuServer:
    """Devices behind `DIR/NAME.sock`. Each serves one QEMU at a time and keeps its CC settings between them."""

    def __init__(self, directory: Path, devices: dict[str, str]) -> None:
        """`devices` maps names to models. Raises Unavailable when a socket cannot be made."""
        self.devices = {
            name: SoftDevice(MODELS[model], serial=0x10DE << 48 | index, clock=time.monotonic)
            for index, (name, model) in enumerate(devices.items(), 1)
        }
        self._sockets = [_listen(directory / f"{name}.sock") for name in devices]
        self._threads = [
            threading.Thread(target=_accept, args=(device, listener), daemon=True)
            for device, listener in zip(self.devices.values(), self._sockets, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Until every socket is closed."""
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """Stop listening."""
        for listener in self._sockets:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.wait()
        for device in self.devices.values():
            device.close()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(1)
    except OSError as exc:
        listener.close()
        raise Unavailable("socket", "cannot listen", where=str(path), got=exc.strerror) from exc
    return listener


def _accept(device: SoftDevice, listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            serve_client(device, connection)
