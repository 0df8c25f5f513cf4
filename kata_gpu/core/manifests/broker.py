"""The key broker: two listeners apart, no service-account token, nothing writable but its data."""

from typing import Any

from kata_gpu.core.manifests.template import Document

NAME = "kata-gpu-kbs"
LABELS = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "kata-gpu"}
SELECTOR = {"app.kubernetes.io/name": NAME}
GUEST_PORT, ADMIN_PORT = 8080, 8081
DRAIN_DELAY_S = 5  # endpoints of a Service follow within seconds; `serve` itself waits, so there is no preStop hook
GRACE_S = 45  # the delay, 20 s for requests in flight, and as much again before kubelet kills
USER = 65532  # the unprivileged user of the image


def _meta(name: str = NAME) -> dict[str, Any]:
    return {"name": name, "namespace": "${namespace}", "labels": dict(LABELS)}


def _service(name: str, port: int) -> Document:
    return Document(
        file="broker-service",
        when="broker.enabled",
        obj={
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": _meta(name),
            "spec": {"selector": dict(SELECTOR), "ports": [{"name": "https", "port": port, "targetPort": port}]},
        },
    )


_HARDENED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def _pod(database: list[str], volumes: list[dict[str, Any]], mounts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": GRACE_S,
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
             "labelSelector": {"matchLabels": dict(SELECTOR)}}
        ],
        "initContainers": [
            {
                # Secret volumes are symlinks with group-readable files; the broker demands a private regular file.
                "name": "root-key",
                "image": "${broker.image}",
                "args": ["root-key", "install", "--from", "/secret/root.key", "--to", "/keys/root.key"],
                "securityContext": dict(_HARDENED),
                "resources": {"requests": {"cpu": "10m", "memory": "50Mi"}, "limits": {"memory": "100Mi"}},
                "volumeMounts": [
                    {"name": "root-key", "mountPath": "/secret", "readOnly": True},
                    {"name": "keys", "mountPath": "/keys"},
                ],
            }
        ],
        "containers": [
            {
                "name": "kbs",
                "image": "${broker.image}",
                "args": [
                    "serve", "--listen", f"0.0.0.0:{GUEST_PORT}", "--admin-listen", f"0.0.0.0:{ADMIN_PORT}",
                    "--tls-cert", "/tls/tls.crt", "--tls-key", "/tls/tls.key", "--root-key", "/keys/root.key",
                    "--drain-delay", str(DRAIN_DELAY_S), *database,
                ],
                "securityContext": dict(_HARDENED),
                "resources": "${broker.resources}",
                "ports": [{"name": "guests", "containerPort": GUEST_PORT},
                          {"name": "admin", "containerPort": ADMIN_PORT}],
                "livenessProbe": {"httpGet": {"path": "/healthz", "port": "guests", "scheme": "HTTPS"},
                                  "periodSeconds": 10},
                "readinessProbe": {"httpGet": {"path": "/readyz", "port": "guests", "scheme": "HTTPS"},
                                   "periodSeconds": 5},
                "volumeMounts": [
                    {"name": "tls", "mountPath": "/tls", "readOnly": True},
                    {"name": "keys", "mountPath": "/keys", "readOnly": True},
                    {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a path in the container
                    *mounts,
                ],
            }
        ],
        "volumes": [
            {"name": "tls", "secret": {"secretName": "${broker.tlsSecret}"}},
            {"name": "root-key", "secret": {"secretName": "${broker.rootKeySecret}"}},
            {"name": "keys", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
            *volumes,
        ],
    }  # fmt: skip


def _volume(store: str, name: str, access: str, size: str) -> Document:
    return Document(
        file=f"broker-{store}",
        when=f"broker.enabled broker.{store}",
        obj={
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": _meta(name),
            "spec": {"accessModes": [access], "resources": {"requests": {"storage": size}}},
        },
    )


def _deployment(when: str, file: str, replicas: Any, strategy: dict[str, Any], pod: dict[str, Any]) -> Document:
    return Document(
        file=file,
        when=when,
        obj={
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": _meta(),
            "spec": {
                "replicas": replicas,
                "strategy": strategy,
                "selector": {"matchLabels": dict(SELECTOR)},
                "template": {"metadata": {"labels": dict(LABELS)}, "spec": pod},
            },
        },
    )


ACCOUNT = Document(
    file="broker-service",
    when="broker.enabled",
    obj={"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _meta(), "automountServiceAccountToken": False},
)

SQLITE = _deployment(
    "broker.enabled broker.sqlite",
    "broker-sqlite",
    1,  # one writer: SQLite is a file
    {"type": "Recreate"},
    _pod(["--store", "/data/store", "--collateral", "/data/collateral"],
         [{"name": "data", "persistentVolumeClaim": {"claimName": "kata-gpu-kbs-data"}}],
         [{"name": "data", "mountPath": "/data"}]),
)  # fmt: skip

SQLITE_VOLUME = _volume("sqlite", "kata-gpu-kbs-data", "ReadWriteOnce", "${broker.storage}")

POSTGRES = _deployment(
    "broker.enabled broker.postgres",
    "broker-postgres",
    "${broker.replicas}",
    {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
    _pod(["--store-file", "/database/url", "--collateral", "/collateral"],
         [{"name": "database", "secret": {"secretName": "${broker.databaseSecret}"}},
          {"name": "collateral", "persistentVolumeClaim": {"claimName": "${broker.collateralClaim}"}}],
         [{"name": "database", "mountPath": "/database", "readOnly": True},
          {"name": "collateral", "mountPath": "/collateral", "readOnly": True}]),
)  # fmt: skip

# Every replica reads the same collateral; one pod of the operator writes it (docs/configuration.md).
COLLATERAL_VOLUME = _volume("postgres", "${broker.collateralClaim}", "ReadWriteMany", "${broker.collateralStorage}")

DISRUPTION = Document(
    file="broker-postgres",
    when="broker.enabled broker.postgres",
    obj={
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _meta(),
        "spec": {"minAvailable": 1, "selector": {"matchLabels": dict(SELECTOR)}},
    },
)

NETWORK = Document(
    file="broker-network",
    when="broker.enabled",
    obj={
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _meta(),
        "spec": {
            "podSelector": {"matchLabels": dict(SELECTOR)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [{"namespaceSelector": "${broker.guestNamespaceSelector}"}],
                 "ports": [{"port": GUEST_PORT, "protocol": "TCP"}]},
                # Admin API, operator's page and metrics: only from this namespace.
                {"from": [{"podSelector": {}}], "ports": [{"port": ADMIN_PORT, "protocol": "TCP"}]},
            ],
            # Verification is offline: the broker itself needs its database and names, and nothing else.
            "egress": [
                {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]},
                {"to": [{"podSelector": {}}], "ports": [{"port": 5432, "protocol": "TCP"}]},
            ],
        },
    },
)  # fmt: skip

MONITOR = Document(
    file="broker-monitoring",
    when="broker.enabled monitoring.enabled",
    obj={
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": _meta(),
        "spec": {
            "selector": {"matchLabels": dict(SELECTOR)},
            "endpoints": [{"targetPort": ADMIN_PORT, "path": "/metrics", "scheme": "https", "interval": "30s",
                           "tlsConfig": {"serverName": NAME, "ca": {"secret": {"name": "${broker.tlsSecret}",
                                                                               "key": "ca.crt"}}}}],
        },
    },
)  # fmt: skip

COMMON = (ACCOUNT, _service(NAME, GUEST_PORT), _service(f"{NAME}-admin", ADMIN_PORT), NETWORK)
DOCUMENTS = (*COMMON, SQLITE_VOLUME, SQLITE, COLLATERAL_VOLUME, POSTGRES, DISRUPTION, MONITOR)
