"""Keys that come out of one model key: a shard key for every name, by HKDF (RFC 5869).

Whoever may have the model key may ask for its shard keys, one or many in one GET: `?derive=shard-1,shard-2`.
"""

import re
from collections.abc import Sequence

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from attestation.broker.keys import MAX_BUNDLE, MODEL_KEY_BYTES, render_bundle
from attestation.errors import Malformed
from attestation.values import ResourcePath, Secret

DERIVE_PARAMETER = "derive"
_CONTEXT = b"kata-gpu-kbs shard key v1"
_LABEL = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")  # as a part of a resource path


def derive_shard_key(model_key: Secret, path: ResourcePath, label: str) -> Secret:
    """32 bytes for this shard of this key. The model key is uniform, so that expansion alone is sound (RFC 5869, 3.3).

    The parts of `info` cannot run into each other: neither a path nor a label holds a zero byte. Raises Malformed.
    """
    if len(model_key) != MODEL_KEY_BYTES or not _LABEL.fullmatch(label):
        raise Malformed("shard-label", "not a shard of a model key", where=str(path), expected=_LABEL.pattern)
    info = b"\0".join((_CONTEXT, str(path).encode(), label.encode()))
    return Secret(HKDFExpand(SHA256(), MODEL_KEY_BYTES, info).derive(model_key.expose()))


def parse_labels(text: str) -> tuple[str, ...]:
    """`shard-1,shard-2`: distinct labels. Raises Malformed."""
    labels = tuple(text.split(","))
    if not 0 < len(labels) <= MAX_BUNDLE or len(set(labels)) != len(labels) or not all(map(_LABEL.fullmatch, labels)):
        raise Malformed("shard-label", "not a list of shards", where=DERIVE_PARAMETER, expected=_LABEL.pattern)
    return labels


def derived(model_key: Secret, path: ResourcePath, labels: Sequence[str]) -> Secret:
    """What a guest gets: the key itself for one label, a bundle by label for several."""
    keys = {label: derive_shard_key(model_key, path, label) for label in labels}
    return keys[labels[0]] if len(labels) == 1 else render_bundle(keys)
