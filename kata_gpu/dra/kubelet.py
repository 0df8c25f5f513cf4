"""Two small questions to neighbours on this node: what does kubelet list, and does the bridge answer."""

import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import grpc

from kata_gpu.dra._pb import podresources_v1_pb2 as pb
from kata_gpu.dra._pb import podresources_v1_pb2_grpc as rpc
from kata_gpu.errors import Unavailable

LIST_S = 5.0
CONNECT_S = 1.0
MAX_MESSAGE = 16 << 20


def listed_by(path: Path, driver: str) -> Callable[[], frozenset[str]]:
    """CDI ids of our driver that kubelet shows for running pods. The result raises Unavailable without kubelet."""

    def listed() -> frozenset[str]:
        options = (("grpc.max_receive_message_length", MAX_MESSAGE),)
        with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
            try:
                answer = rpc.PodResourcesListerStub(channel).List(pb.ListPodResourcesRequest(), timeout=LIST_S)
            except grpc.RpcError as exc:
                raise Unavailable("kubelet", "kubelet does not list pod resources", where=str(path), got=exc) from exc
        return frozenset(
            device.name
            for pod in answer.pod_resources
            for container in pod.containers
            for claim in container.dynamic_resources
            for resource in claim.claim_resources
            if resource.driver_name == driver
            for device in resource.cdi_devices
        )

    return listed


def answers(path: Path) -> bool:
    """Whether a process accepts on the socket. A file without one is what a dead bridge leaves."""
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(CONNECT_S)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True
