"""DeviceClasses of our driver (dra.md 6.2): what a claim names, and the demand that Prepare checks again.

CEL joins with `&&`, which absorbs the error of a missing attribute once an operand is false; so the driver is compared
first, the type second, and only then attributes that every device of ours has.
"""

from typing import Any

from kata_gpu.core.claim import CONFIG_API_VERSION, CONFIG_KIND, DRIVER

JsonObject = dict[str, Any]
EXTENDED_RESOURCE = "nvidia.com/pgpu"  # what existing pods and genpolicy count


def render_device_classes(*, extended_resource: bool = False) -> list[JsonObject]:
    """The four classes. `extended_resource`: pods that ask for `nvidia.com/pgpu` get a confidential GPU (1.36)."""
    own = f"device.attributes['{DRIVER}']"
    ready = f"{own}.teeReady && {own}.iommufd"
    return [
        _class("confidential-gpu", f"{own}.type == 'gpu' && {own}.ccMode == 'on' && {ready}", "on", extended_resource),
        _class(
            "confidential-gpu-devtools", f"{own}.type == 'gpu' && {own}.ccMode == 'devtools' && {ready}", "devtools"
        ),
        _class("confidential-gpu-ppcie", f"{own}.type == 'ppcie-group' && {own}.ppcieMode == 'on' && {ready}", "ppcie"),
        _class("passthrough-gpu", f"{own}.type == 'gpu' && {own}.ccMode == 'off'", "off"),
    ]


def _class(name: str, selector: str, mode: str, extended: bool = False) -> JsonObject:
    spec: JsonObject = {
        "selectors": [{"cel": {"expression": f"device.driver == '{DRIVER}' && {selector}"}}],
        "config": [
            {
                "opaque": {
                    "driver": DRIVER,
                    "parameters": {"apiVersion": CONFIG_API_VERSION, "kind": CONFIG_KIND, "requireMode": mode},
                }
            }
        ],
    }
    if extended:
        spec["extendedResourceName"] = EXTENDED_RESOURCE
    return {"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": name}, "spec": spec}
