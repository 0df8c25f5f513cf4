"""Classes and admission: RuntimeClasses, DeviceClasses, and the linter's rules as admission policies."""

from kata_gpu.core.beside_nvidia import render_admission, render_nvidia_class
from kata_gpu.core.device_classes import render_device_classes
from kata_gpu.core.lint.admission import policies
from kata_gpu.core.lint.mutation import mutation
from kata_gpu.core.manifests.template import Document
from runtimeclass.model import Tee
from runtimeclass.render import objects


def documents(default_tee: Tee = Tee.NONE) -> tuple[Document, ...]:
    """All classes and policies, in apply order."""
    return (
        *(Document(file="device-classes", obj=obj) for obj in render_device_classes()),
        *(Document(file="runtime-classes", obj=obj) for obj in objects(default_tee)),
        *(Document(file="admission", when="admission.enabled", obj=obj) for obj in policies()),
    )


# Clusters where NVIDIA's DRA driver gives GPUs away on some nodes: its class, and rules for claims of it.
NVIDIA = tuple(
    Document(file="nvidia", when="nvidia.enabled", obj=obj) for obj in (render_nvidia_class(), *render_admission())
)

# Pods without init-data get that of their namespace's ConfigMap.
MUTATION = tuple(Document(file="init-data", when="admission.addInitData", obj=obj) for obj in mutation())
