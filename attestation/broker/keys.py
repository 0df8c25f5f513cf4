"""Keys as the broker knows them: metadata and versions apart from the secret, labels, and how a bundle is written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from attestation.crypto.b64 import b64
from attestation.errors import Malformed
from attestation.values import ResourcePath, Secret

TEST_LABEL = "test"  # the only keys that forgeable evidence can get
MAX_SECRET_BYTES = 2 * 1024 * 1024  # keybroker.md 4.2 item 53
MODEL_KEY_BYTES = 32  # AES-256
MAX_BUNDLE = 1024  # shards of one model


class KeyKind(StrEnum):
    """`resource` is bytes an admin gave; `model-key` is 32 random bytes made here; `bundle` lists other keys."""

    RESOURCE = "resource"
    MODEL_KEY = "model-key"
    BUNDLE = "bundle"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """Everything about a key but its secret. `policy` is its own release policy (TOML), empty when it has none."""

    path: ResourcePath
    kind: KeyKind
    labels: tuple[str, ...]
    policy: str
    current_version: int
    releases: int
    created: datetime

    @property
    def is_test(self) -> bool:
        """Whether forgeable evidence may get it."""
        return TEST_LABEL in self.labels

    def to_json(self) -> dict[str, object]:
        """For listings."""
        return {
            "path": str(self.path),
            "kind": str(self.kind),
            "labels": list(self.labels),
            "version": self.current_version,
            "releases": self.releases,
            "created": self.created.isoformat(),
            "has_policy": bool(self.policy),
        }


def render_bundle(members: Mapping[str, Secret]) -> Secret:
    """All shard keys of a model in one JSON object, path to base64."""
    body = {path: b64(secret.expose()) for path, secret in sorted(members.items())}
    return Secret(json.dumps({"version": 1, "keys": body}, separators=(",", ":")).encode("ascii"))


def parse_bundle(secret: Secret) -> tuple[ResourcePath, ...]:
    """Member paths of a bundle: a JSON array of resource paths. Raises Malformed."""
    try:
        paths = json.loads(secret.expose())
    except (ValueError, RecursionError) as exc:
        raise Malformed("bundle", "a bundle is a JSON array of resource paths") from exc
    if not isinstance(paths, list) or not 0 < len(paths) <= MAX_BUNDLE or not all(isinstance(p, str) for p in paths):
        raise Malformed("bundle", "a bundle is a JSON array of resource paths", expected=f"1 to {MAX_BUNDLE} paths")
    return tuple(ResourcePath.parse(path) for path in paths)
