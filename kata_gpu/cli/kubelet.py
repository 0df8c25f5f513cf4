"""Ask kubelet which devices pods hold, for the in-use guard of commands. Imported only where its socket exists."""

from pathlib import Path

import click
import grpc

from kata_gpu.core.allocations import Allocation
from kata_gpu.dra import kubelet
from kata_gpu.errors import Unavailable


def list_allocations(path: Path) -> list[Allocation]:
    """What every pod of the node holds. Empty, with a word on stderr, where kubelet has stopped and left its socket.

    Open files are looked at all the same. Raises Unavailable for any other failure: a guess is not an answer.
    """
    try:
        return kubelet.list_allocations(path)
    except Unavailable as exc:
        cause = exc.__cause__
        if isinstance(cause, grpc.RpcError) and cause.code() is grpc.StatusCode.UNAVAILABLE:
            click.echo(f"kubelet does not answer on {path}; only open files tell who uses the devices", err=True)
            return []
        raise
