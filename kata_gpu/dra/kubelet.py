"""Two small questions to neighbours on this node: what does kubelet list, and does the bridge answer."""

import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import grpc

from kata_gpu.core.allocations import Allocation
from kata_gpu.dra._pb import podresources_v1_pb2 as pb
from kata_gpu.dra._pb import podresources_v1_pb2_grpc as rpc
from kata_gpu.errors import Unavailable

LIST_S = 5.0
CONNECT_S = 1.0
MAX_MESSAGE = 16 << 20


def listed_by(path: Path, driver: str) -> Callable[[], frozenset[str]]:
    """CDI ids of our driver that kubelet shows for running pods. The result raises Unavailable without kubelet."""
    return lambda: frozenset(a.device_id for a in list_allocations(path) if a.resource == driver)


def list_allocations(path: Path) -> list[Allocation]:
    """What every pod of the node holds, of device plugins by their resource and of claims by their driver.

    Raises Unavailable without kubelet.
    """
    options = (("grpc.max_receive_message_length", MAX_MESSAGE),)
    with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
        try:
            answer = rpc.PodResourcesListerStub(channel).List(pb.ListPodResourcesRequest(), timeout=LIST_S)
        except grpc.RpcError as exc:
            raise Unavailable("kubelet", "kubelet does not list pod resources", where=str(path), got=exc) from exc
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


def answers(path: Path) -> bool:
    """Whether a process accepts on the socket. A file without one is what a dead bridge leaves."""
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(CONNECT_S)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True
