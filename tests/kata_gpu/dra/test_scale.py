"""5,000 nodes of 8 GPUs: what the API server carries, and what a node's watch holds."""

from datetime import timedelta

import pytest

from kata_gpu.core.allocatable import allocatables
from kata_gpu.core.labels import render_labels
from kata_gpu.core.slices import Features, Unfit, offers_of, render_pool
from kata_gpu.ops.agent import FULL_COMPARE
from kata_gpu.ops.publish import SlicePublisher
from kata_gpu.ops.report import NodeReporter
from tests.kata_gpu.dra.direct_kube import DirectKube
from tests.kata_gpu.dra.fake_node import NOW, FakeNode
from tests.kata_gpu.dra.fake_store import Kind, Object, Store
from tests.kata_gpu.dra.world import NODES, SLICES, address

NODE_COUNT, GPU_COUNT = 5000, 8
WRITES_PER_NODE_AND_HOUR = 2
VERBS = ("create", "update", "patch", "apply", "delete")


class Indexed(Store):
    """The store with the server's own index for the one selector that the nodes use."""

    def list(self, kind: Kind, namespace: str = "", fields: str = "", labels: str = "") -> tuple[list[Object], int]:
        if kind == SLICES and fields.startswith("spec.nodeName="):
            self.requests["list", kind.resource] += 1
            node = fields.split(",")[0].partition("=")[2]
            names = self.by_node.get(node, ())
            return [self.objects[kind]["", n] for n in names], self.version
        return super().list(kind, namespace, fields, labels)

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        self.requests["get", kind.resource] += 1
        return self.objects[kind][namespace, name]  # its readers change nothing: no copy

    def _emit(self, kind: Kind, event: str, obj: Object) -> None:
        if kind == SLICES:
            names = self.by_node.setdefault(obj["spec"]["nodeName"], {})
            if event == "DELETED":
                names.pop(obj["metadata"]["name"], None)
            else:
                names[obj["metadata"]["name"]] = None

    def __init__(self) -> None:
        super().__init__()
        self.by_node: dict[str, dict[str, None]] = {}


def writes(store: Store) -> int:
    return sum(n for (verb, _), n in store.requests.items() if verb in VERBS)


@pytest.mark.timeout(120)
def test_a_cluster_of_40_000_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    store = Indexed()
    kube = DirectKube(store)
    host = FakeNode(gpus=GPU_COUNT)
    inventory = host.observe()
    offers = offers_of(inventory, allocatables(inventory), {})
    nodes = [f"node-{i:04d}" for i in range(NODE_COUNT)]
    (pool,) = render_pool(inventory, offers, node="", features=Features())

    def sync(publisher: SlicePublisher, name: str) -> None:
        publisher.sync_specs(lambda _: [pool | {"nodeName": name}])

    publishers, reporters = [], []
    for name in nodes:
        store.create(NODES, "", {"metadata": {"name": name}})
        publishers.append(SlicePublisher(kube, name))
        reporters.append(NodeReporter(kube, name))
    store.requests.clear()

    for name, publisher, reporter in zip(nodes, publishers, reporters, strict=True):
        sync(publisher, name)
        reporter.labels(render_labels(inventory))
        reporter.condition(True, "Ready", "8 devices offered", NOW)
    first = dict(store.requests)
    assert writes(store) == 3 * NODE_COUNT
    assert sum(len(s["spec"]["devices"]) for s in store.objects[SLICES].values()) == NODE_COUNT * GPU_COUNT

    store.requests.clear()
    for _ in range(int(timedelta(hours=1) / FULL_COMPARE)):
        for name, publisher, reporter in zip(nodes, publishers, reporters, strict=True):
            sync(publisher, name)
            reporter.labels(render_labels(inventory))
            reporter.condition(True, "Ready", "8 devices offered", NOW)
    hour = dict(store.requests)
    assert writes(store) <= WRITES_PER_NODE_AND_HOUR * NODE_COUNT
    assert writes(store) == 0

    store.requests.clear()
    sick = offers_of(inventory, allocatables(inventory), {address(0): Unfit(code="device-dead", evict=True)})
    for publisher in publishers[:100]:
        publisher.sync(inventory, sick)
    assert writes(store) == 100

    largest = max(len(str(o)) for o in store.objects[SLICES].values())
    watched = [store.list(SLICES, fields=f"spec.nodeName={n}")[0] for n in nodes[:10]]
    assert [len(w) for w in watched] == [1] * 10  # what one node's watch holds, whatever the cluster's size
    assert largest < 32 << 10
    reads = sum(n for (verb, _), n in hour.items() if verb in {"get", "list"})
    with capsys.disabled():
        print(
            f"\n5,000 nodes x 8 GPUs: start {sum(first.values())} requests ({3 * NODE_COUNT} writes), then per hour "
            f"{reads} reads = {reads / 3600:.1f}/s and 0 writes; 100 failures = 100 writes; "
            f"a node's watch holds 1 object of {largest} bytes"
        )
