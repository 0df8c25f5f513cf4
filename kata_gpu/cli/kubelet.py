"""Ask kubelet which devices pods hold, for the in-use guard of commands. Imported only where its socket exists."""

from pathlib import Path

import click
import grpc

from kata_gpu.core.allocations import Allocation
from kata_gpu.dra._pb import podresources_v1_pb2 as pb
from kata_gpu.dra._pb import podresources_v1_pb2_grpc as rpc
from kata_gpu.errors import Unavailable

LIST_S = 5.0
MAX_MESSAGE = 16 << 20


def list_allocations(path: Path) -> list[Allocation]:
    """What every pod of the node holds. Empty, with a word on stderr, where kubelet has stopped and left its socket.

    Open files are looked at all the same. Raises Unavailable for any other failure: a guess is not an answer.
    """
    options = (("grpc.max_receive_message_length", MAX_MESSAGE),)
    with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
        try:
            answer = rpc.PodResourcesListerStub(channel).List(pb.ListPodResourcesRequest(), timeout=LIST_S)
        except grpc.RpcError as exc:
            if exc.code() is grpc.StatusCode.UNAVAILABLE:
                click.echo(f"kubelet does not answer on {path}; only open files tell who uses the devices", err=True)
                return []
            raise Unavailable(
                "kubelet", "kubelet does not list pod resources", where=str(path), got=exc.code()
            ) from exc
    found = []
    for pod in answer.pod_resources:
        name = f"{pod.namespace}/{pod.name}"
        for container in pod.containers:
            for devices in container.devices:
                resource = devices.resource_name
                found += [Allocation(pod=name, resource=resource, device_id=i) for i in devices.device_ids]
            for claim in (c for dynamic in container.dynamic_resources for c in dynamic.claim_resources):
                driver = claim.driver_name
                found += [Allocation(pod=name, resource=driver, device_id=d.name) for d in claim.cdi_devices]
    return found
