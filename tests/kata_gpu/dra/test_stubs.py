"""The generated stubs are what `make proto` gives, and the protos carry the field numbers of the contract."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kata_gpu.dra._pb import dra_v1_pb2, dra_v1beta1_pb2, podresources_v1_pb2, registration_v1_pb2
from tests.conftest import ROOT


def test_regenerating_gives_no_diff(tmp_path: Path) -> None:
    protos = sorted((ROOT / "kata_gpu/dra/proto").glob("*.proto"))
    command = [
        sys.executable, "-m", "grpc_tools.protoc", "-Ikata_gpu/dra/_pb=kata_gpu/dra/proto", f"--python_out={tmp_path}",
        f"--grpc_python_out={tmp_path}", f"--mypy_out=quiet:{tmp_path}", f"--mypy_grpc_out=quiet:{tmp_path}",
        *(str(p.relative_to(ROOT)) for p in protos),
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}/usr/bin{os.pathsep}/bin"
    subprocess.run(command, cwd=ROOT, env={"PATH": path}, check=True)
    made = {p.name: p.read_bytes() for p in (tmp_path / "kata_gpu/dra/_pb").iterdir()}
    kept = {p.name: p.read_bytes() for p in (ROOT / "kata_gpu/dra/_pb").glob("*_pb2*")}
    assert made == kept
    assert len(made) == 4 * len(protos)


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (registration_v1_pb2.PluginInfo, {"type": 1, "name": 2, "endpoint": 3, "supported_versions": 4}),
        (dra_v1_pb2.Claim, {"namespace": 1, "uid": 2, "name": 3}),
        (
            dra_v1_pb2.Device,
            {"request_names": 1, "pool_name": 2, "device_name": 3, "cdi_device_ids": 4, "share_id": 5},
        ),
        (
            dra_v1beta1_pb2.Device,
            {"request_names": 1, "pool_name": 2, "device_name": 3, "cdi_device_ids": 4},
        ),
        (
            podresources_v1_pb2.ClaimResource,
            {"cdi_devices": 1, "driver_name": 2, "pool_name": 3, "device_name": 4, "share_id": 5},
        ),
        (podresources_v1_pb2.DynamicResource, {"claim_name": 2, "claim_namespace": 3, "claim_resources": 4}),
    ],
)
def test_field_numbers(message: type, fields: dict[str, int]) -> None:
    assert {f.name: f.number for f in message.DESCRIPTOR.fields} == fields  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "service",
    [
        "pluginregistration.Registration",
        "k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin",
        "k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin",
        "v1alpha1.DRAResourceHealth",
        "v1.PodResourcesLister",
        "v1beta1.DevicePlugin",
        "v1beta1.Registration",
    ],
)
def test_service_names_on_the_wire(service: str) -> None:
    text = "".join(p.read_text() for p in (ROOT / "kata_gpu/dra/_pb").glob("*_pb2_grpc.py"))
    assert f"'/{service}/" in text
