"""Writes everything below `deploy/` that is rendered: kustomize bases and the Helm chart, from one set of objects.

`make manifests` runs it; CI runs it again and finds no difference.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from kata_gpu import __version__
from kata_gpu.core.manifests import broker, classes, node
from kata_gpu.core.manifests.template import Document, fill, render_helm, render_yaml
from kata_gpu.core.manifests.values import VALUES

DEPLOY = Path(__file__).resolve().parent
HEADER = "# Rendered by `make manifests`; change kata_gpu/core/manifests instead.\n"
BASES = {
    "classes": classes.documents(),
    "nvidia": classes.NVIDIA,
    "init-data": classes.MUTATION,
    "node": (node.NAMESPACE, *node.DOCUMENTS),
    "node-evict": node.EVICTION,
    "broker": (*broker.COMMON, broker.SQLITE_VOLUME, broker.SQLITE),
    "broker-postgres": (*broker.COMMON, broker.COLLATERAL_VOLUME, broker.POSTGRES, broker.DISRUPTION),
}
ALL = (*classes.documents(), *classes.MUTATION, *classes.NVIDIA, *node.DOCUMENTS, *node.EVICTION, *broker.DOCUMENTS)
NOTES = """\
The node component of kata-gpu runs on every node that kata-deploy has set up.

  kubectl -n {{ .Release.Namespace }} get daemonset,deployment
  kubectl get resourceslices -o wide | grep cgpu.kata-gpu.dev

Next: docs/tutorial.md, from here to a released key.
"""


def _by_file(documents: Iterable[Document]) -> dict[str, list[Document]]:
    found: dict[str, list[Document]] = {}
    for document in documents:
        found.setdefault(document.file, []).append(document)
    return found


def render() -> dict[str, str]:
    """Path below `deploy/` to text."""
    files: dict[str, str] = {}
    for base, documents in BASES.items():
        grouped = _by_file(documents)
        for name, group in grouped.items():
            files[f"base/{base}/{name}.yaml"] = HEADER + "---\n".join(render_yaml(fill(d.obj, VALUES)) for d in group)
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [f"{name}.yaml" for name in grouped],
        }
        files[f"base/{base}/kustomization.yaml"] = HEADER + render_yaml(kustomization)
    chart = {
        "apiVersion": "v2",
        "name": "kata-gpu",
        "description": "Confidential GPU containers for Kata: node component, key broker, classes and admission",
        "type": "application",
        "version": __version__,
        "appVersion": __version__,
        "kubeVersion": ">=1.34.0-0",
    }
    files["chart/kata-gpu/Chart.yaml"] = HEADER + render_yaml(chart)
    files["chart/kata-gpu/values.yaml"] = HEADER + render_yaml({k: v for k, v in VALUES.items() if k != "namespace"})
    files["chart/kata-gpu/templates/NOTES.txt"] = NOTES
    for name, group in _by_file(ALL).items():
        files[f"chart/kata-gpu/templates/{name}.yaml"] = HEADER + "---\n".join(render_helm(d, VALUES) for d in group)
    return files


def main() -> None:
    """Replace the rendered folders."""
    for folder in ("base", "chart"):
        shutil.rmtree(DEPLOY / folder, ignore_errors=True)
    for name, text in render().items():
        path = DEPLOY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
