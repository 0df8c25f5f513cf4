"""From a pod to plaintext with real processes, then each link broken in turn: who notices, and what they are told.

Every case starts from a site that releases the key, and ends by showing that it does so again and that nothing leaked.
"""

import os
import re
from datetime import timedelta

import grpc
import pytest

from attestation.clock import utc_now
from attestation.errors import ExitCode
from attestation.simulate.nvidia import NvidiaForge
from attestation.values import Architecture
from tests.demo import AGENT_POLICY
from tests.e2e.program import until
from tests.e2e.report import Report
from tests.e2e.site import PATH, Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
STRANGER = 42  # serial number of a genuine GPU that is not the owner's


def chip_id(serial: int) -> str:
    """Identity of a simulated GPU."""
    return NvidiaForge().chip_id(Architecture.HOPPER, serial)


def test_two_pods_at_once(site: Site, report: Report) -> None:
    """Each VM attests exactly the GPU of its claim; both serve the owner's bytes."""
    with site.broken(report, "none") as row:
        pods = [site.node.kubelet.pod(), site.node.kubelet.pod()]
        vms = [site.boot(pod) for pod in pods]
        for vm, pod in zip(vms, pods, strict=True):
            site.reads(vm, pod)
        released = [entry["body"]["devices"] for entry in site.audit() if entry["event"] == "released"]
        assert sorted(released) == sorted([chip_id(serial)] for vm in vms for serial in vm.launch.serials)
        assert len(set(map(str, released))) == 2
        for vm, pod in zip(vms, pods, strict=True):
            site.shut_down(vm, pod)
        row.told("client in the VM", f"{len(site.weights)} bytes, those that the owner encrypted")
        row.told("owner", f"released to GPUs {' and '.join(device for devices in released for device in devices)}")


def test_gpu_swapped(site: Site, report: Report) -> None:
    """Another GPU of the same model, with the same firmware, in the slot."""
    with site.broken(report, "GPU swapped for another") as row:
        pod = site.node.kubelet.pod()
        own = site.node.swap(pod.address, STRANGER)
        site.denied(row, "gpu-identity-not-accepted", pod=pod)
        assert site.node.taints() == {}
        row.told("node", "nothing: what a host says of a GPU proves nothing")
        site.node.swap(pod.address, own)


def test_cc_off(site: Site, report: Report) -> None:
    """After the claim was prepared. An honest guest stops by itself; the driver finds it at the next claim."""
    with site.broken(report, "CC switched off on the host") as row:
        node, pod = site.node, site.node.kubelet.pod()
        node.set_cc(pod.address, on=False)
        code, said = site.attempt(pod)
        assert code == ExitCode.NEGATIVE
        assert said.startswith("error[cc-mode-off]")
        row.told("guest", f"exit code {code}: cc-mode-off; sends no evidence")
        version = node.version()
        told = re.search(r"mode-differs: .*, expected on, got off", node.kubelet.refusal(pod.device))
        assert told
        row.told("kubelet", told[0])
        until(lambda: (node.taints_since(version, pod.device) or ["-"])[-1] == "", "the agent has switched it on again")
        assert "mode-transition" in node.taints_since(version, pod.device)
        row.told("scheduler", "taint mode-transition, until the agent has switched it on again")


def test_gpu_left_out(site: Site, report: Report) -> None:
    """A guest that hides the GPU that cannot attest."""
    with site.broken(report, "GPU left out of the evidence") as row:
        site.denied(row, "gpu-count-wrong", hidden=1)


def test_init_data_of_the_host(site: Site, report: Report) -> None:
    """The owner's broker and certificate, and an agent policy that lets the host into the container."""
    with site.broken(report, "init-data changed by the host") as row:
        owners = site.annotation
        site.annotation = site.build_init_data(AGENT_POLICY.replace("false", "true"))
        site.denied(row, "init-data-unknown")
        site.annotation = owners


def test_rim_retired(site: Site, report: Report) -> None:
    """The operator no longer accepts the reference document of the driver."""
    with site.broken(report, "RIM retired") as row:
        site.brokers.retire_rim()
        site.denied(row, "rim-missing", "gpu-mode-not-accepted")
        site.brokers.accept_rim()


def test_rim_signer_revoked(site: Site, report: Report) -> None:
    """The vendor's OCSP answer, as the next `collateral fetch` brings it."""
    with site.broken(report, "RIM signer revoked") as row:
        answer = site.brokers.revoke_signer(utc_now() - timedelta(minutes=1))
        site.denied(row, "revocation-revoked", "gpu-mode-not-accepted")
        site.brokers.forget(answer)


def test_gpu_revoked(site: Site, report: Report) -> None:
    """By its identity, on both replicas."""
    with site.broken(report, "GPU revoked") as row:
        pod = site.node.kubelet.pod()
        chip = chip_id(site.node.rack[pod.address])
        site.brokers.operate("revoke", "add", "gpu", chip, "--reason", "stolen in transit")
        code, said = site.attempt(pod)
        assert code == ExitCode.NEGATIVE
        assert "401" in said
        assert "revoked" not in said
        row.told("guest", f"exit code {code}: 401 at attestation; no reason")
        refused = [entry["body"] for entry in site.audit() if entry["event"] == "attest-refused"][-1]
        assert (refused["code"], refused["got"]) == ("revoked", f"gpu {chip.lower()}")
        row.told("owner", f"revoked: got {refused['got']}")
        site.brokers.operate("revoke", "remove", "gpu", chip)


def test_key_deleted(site: Site, report: Report) -> None:
    """Every version of it."""
    with site.broken(report, "key revoked (deleted)") as row:
        site.brokers.operate("key", "delete", PATH, "--yes")
        site.denied(row, "no-release-policy")
        site.brokers.operate("key", "add", PATH, site.desk / "model.key", "--policy", site.policy(), "--label", "test")


def test_policy_tightened(site: Site, report: Report) -> None:
    """A driver that does not exist yet."""
    with site.broken(report, "policy tightened") as row:
        site.brokers.operate("key", "set-policy", PATH, site.policy(driver="999.0"))
        site.denied(row, "gpu-driver-not-accepted")
        site.brokers.operate("key", "set-policy", PATH, site.policy())


def test_replica_killed(site: Site, report: Report) -> None:
    """Between challenge and evidence; then for a VM that meets it at the balancer."""
    with site.broken(report, "replica killed (SIGKILL)") as row:
        pipe, brokers = site.work / "pipe", site.brokers
        os.mkfifo(pipe)
        pod = site.node.kubelet.pod()
        vm = site.boot(pod, hold=pipe)
        with pipe.open("wb"):  # opens when the VM has its challenge and collects; it waits for the end of this block
            victim = brokers.balancer.taken[-1]
            brokers.replicas[victim].kill()
        site.reads(vm, pod)
        assert brokers.balancer.taken[-1] != victim
        row.told("guest", "nothing: the same evidence again, to the other replica, gives the key")
        site.shut_down(vm, pod)
        before = len(brokers.balancer.taken)
        site.releases()
        assert victim in brokers.balancer.taken[before:]
        row.told("next guest", "nothing: a connection cut at the balancer is tried again")
        brokers.start(victim)


def test_bridge_stopped(site: Site, report: Report) -> None:
    """Its socket stays: without the file Kata would start the VM and no GPU."""
    with site.broken(report, "PodResources bridge stopped") as row:
        node, pod = site.node, site.node.kubelet.pod()
        assert node.bridge.stop() == 0
        assert node.socket.is_socket()
        with pytest.raises(grpc.RpcError) as caught:
            node.launch(pod, site.annotation)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        row.told("runtime", "UNAVAILABLE, connection refused: no sandbox; the socket file is there")
        until(lambda: set(node.taints().values()) == {"bridge-down"}, "the agent has tainted the node's GPUs")
        until(lambda: node.condition() == ("False", "DevicesUnfit"), "the node's condition")
        row.told("scheduler", f"taint bridge-down on {len(node.taints())} GPUs; condition DevicesUnfit")
        node.start_bridge()
        until(lambda: node.condition() == ("True", "Ready"), "the node is ready again")
        assert node.taints() == {}
        node.kubelet.end(pod)


def test_a_year_later(site: Site, report: Report) -> None:
    """The brokers' clock a year ahead: the signer of the reference documents has ended meanwhile."""
    with site.broken(report, "clock a year ahead") as row:
        brokers = site.brokers
        brokers.stop()
        brokers.serve("--unsafe-frozen-time", f"{utc_now() + timedelta(days=366):%Y-%m-%dT%H:%M:%SZ}")
        site.denied(row, "rim-signer-expired", "gpu-mode-not-accepted")
        brokers.stop()
        brokers.serve()
