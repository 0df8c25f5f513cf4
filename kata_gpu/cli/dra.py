"""`kata-gpu dra classes|admission`: render the cluster's objects; nothing is sent anywhere."""

import json

import click


@click.group()
def dra() -> None:
    """Render DeviceClasses and the objects beside NVIDIA's DRA driver.

    \b
    Example:
      kata-gpu dra classes | kubectl apply -f -
    """


@dra.command()
@click.option("--extended-resource", is_flag=True,
              help="Pods that ask for nvidia.com/pgpu get a confidential GPU (Kubernetes 1.36).")  # fmt: skip
@click.option("--nvidia", is_flag=True, help="Add the class over devices of NVIDIA's DRA driver.")
def classes(*, extended_resource: bool, nvidia: bool) -> None:
    """DeviceClasses confidential-gpu, -devtools, -ppcie and passthrough-gpu, as a List in JSON (which is YAML).

    \b
    Example:
      kata-gpu dra classes --extended-resource
    """
    from kata_gpu.core.beside_nvidia import render_nvidia_class
    from kata_gpu.core.device_classes import render_device_classes

    _print([*render_device_classes(extended_resource=extended_resource), *([render_nvidia_class()] if nvidia else [])])


@dra.command()
@click.option("--runtime-class", multiple=True, help="RuntimeClass that GPU pods may use; repeat for several.")
def admission(runtime_class: tuple[str, ...]) -> None:
    """ValidatingAdmissionPolicies for claims, templates and pods.

    \b
    Example:
      kata-gpu dra admission --runtime-class kata-qemu-nvidia-gpu-snp
    """
    from kata_gpu.core.beside_nvidia import KATA_CLASSES, render_admission

    _print(render_admission(runtime_classes=runtime_class or KATA_CLASSES))


def _print(items: list[dict[str, object]]) -> None:
    click.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=2))
