"""Defaults of everything that an admin may set; the same tree is the chart's `values.yaml`."""

from typing import Any

from kata_gpu import __version__

VALUES: dict[str, Any] = {
    "namespace": "kata-gpu",
    "node": {
        "enabled": True,
        "image": f"ghcr.io/kata-gpu/node:{__version__}",
        "policy": {"mode": "on", "bind": "gpus+nvswitches", "backend": "auto", "drain": "never"},
        "nodeSelector": {"katacontainers.io/kata-runtime": "true"},
        "resources": {"requests": {"cpu": "20m", "memory": "100Mi"}, "limits": {"memory": "200Mi"}},
        "kubeletRoot": "/var/lib/kubelet",
        "mode": "auto",
    },
    "admission": {"enabled": True, "addInitData": False},
    "broker": {
        "enabled": True,
        "image": f"ghcr.io/kata-gpu/kbs:{__version__}",
        "sqlite": True,
        "postgres": False,
        "replicas": 2,
        "storage": "10Gi",
        "resources": {"requests": {"cpu": "200m", "memory": "200Mi"}, "limits": {"memory": "600Mi"}},
        "tlsSecret": "kata-gpu-kbs-tls",
        "rootKeySecret": "kata-gpu-kbs-root-key",
        "databaseSecret": "kata-gpu-kbs-database",
        "collateralClaim": "kata-gpu-kbs-collateral",
        "collateralStorage": "1Gi",
        "guestNamespaceSelector": {},
    },
    "nvidia": {"enabled": False},
    "monitoring": {
        "enabled": False,
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
    },
}
