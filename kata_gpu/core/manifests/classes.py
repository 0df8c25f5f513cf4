"""Classes and admission: RuntimeClasses, DeviceClasses, and the linter's rules as admission policies."""

from typing import Any

from kata_gpu.core.lint.admission import policies
from kata_gpu.core.manifests.template import Document
from runtimeclass.model import Tee
from runtimeclass.render import objects

DRIVER = "cgpu.kata-gpu.dev"
_ATTRIBUTE = f'device.attributes["{DRIVER}"]'
_GPU = f'device.driver == "{DRIVER}" && {_ATTRIBUTE}.type == "gpu"'
_READY = f"{_ATTRIBUTE}.teeReady && {_ATTRIBUTE}.iommufd"
SELECTORS = {  # dra.md 6.2; every attribute named here is on every device of the driver
    "confidential-gpu": f'{_GPU} && {_ATTRIBUTE}.ccMode == "on" && {_READY}',
    "confidential-gpu-devtools": f'{_GPU} && {_ATTRIBUTE}.ccMode == "devtools" && {_READY}',
    "confidential-gpu-ppcie": f'device.driver == "{DRIVER}" && {_ATTRIBUTE}.type == "ppcie-group" && '
    f'{_ATTRIBUTE}.ppcieMode == "on" && {_READY}',
    "passthrough-gpu": f'{_GPU} && {_ATTRIBUTE}.ccMode == "off"',
}


def device_class(name: str, *, extended_resource: str = "") -> dict[str, Any]:
    """One DeviceClass; `extended_resource` lets pods ask for it in limits (Kubernetes 1.36)."""
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "kata-gpu"}},
        "spec": {
            "selectors": [{"cel": {"expression": SELECTORS[name]}}],
            **({"extendedResourceName": extended_resource} if extended_resource else {}),
        },
    }


def documents(default_tee: Tee = Tee.NONE) -> tuple[Document, ...]:
    """All classes and policies, in apply order."""
    return (
        *(Document(file="device-classes", obj=device_class(name)) for name in SELECTORS),
        *(Document(file="runtime-classes", obj=obj) for obj in objects(default_tee)),
        *(Document(file="admission", when="admission.enabled", obj=obj) for obj in policies()),
    )
