"""Rows to RuntimeClass objects and manifests. Deterministic: CI renders again and compares."""

from collections.abc import Mapping
from typing import Any

import yaml

from runtimeclass.model import Row, Tee, table

LABEL_GROUP = "kata-gpu.dev"  # labels that our agent writes on nodes
TEE_KEY_RESOURCE = {Tee.SNP: "sev-snp.amd.com/esids", Tee.TDX: "tdx.intel.com/keys"}  # NFD's kata-tee-keys rule


def render_object(row: Row, *, tee_keys: bool = False) -> dict[str, Any]:
    """One node.k8s.io/v1 RuntimeClass. `tee_keys` adds the key resource that NFD counts, where that rule is active."""
    overhead = {"cpu": row.overhead_cpu, "memory": row.overhead_memory}
    if tee_keys and row.confidential:
        overhead[TEE_KEY_RESOURCE[row.tee]] = "1"
    selector = {"katacontainers.io/kata-runtime": "true", f"{LABEL_GROUP}/cc-mode": str(row.cc_mode)}
    if row.confidential:
        selector[f"{LABEL_GROUP}/tee"] = str(row.tee)
    return {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {
            "name": row.name,
            "labels": {
                "app.kubernetes.io/part-of": "kata-gpu",
                f"{LABEL_GROUP}/confidential": "true" if row.confidential else "false",
                f"{LABEL_GROUP}/cc-mode": str(row.cc_mode),
            },
            "annotations": {f"{LABEL_GROUP}/summary": row.summary, f"{LABEL_GROUP}/kata-minimum": row.kata_minimum},
        },
        "handler": row.handler,
        "overhead": {"podFixed": overhead},
        "scheduling": {"nodeSelector": selector},
    }


def objects(default_tee: Tee = Tee.NONE, *, tee_keys: bool = False) -> tuple[dict[str, Any], ...]:
    """All RuntimeClasses for a cluster."""
    return tuple(render_object(row.resolve(default_tee), tee_keys=tee_keys) for row in table())


def render_yaml(obj: Mapping[str, Any]) -> str:
    """One object as YAML text, keys in the order above, `on` quoted so that YAML 1.1 readers keep it text."""
    return yaml.safe_dump(dict(obj), sort_keys=False, default_flow_style=False, width=120)


def manifests(default_tee: Tee = Tee.NONE, *, tee_keys: bool = False) -> dict[str, str]:
    """File name to text for every class."""
    return {f"{obj['metadata']['name']}.yaml": render_yaml(obj) for obj in objects(default_tee, tee_keys=tee_keys)}
