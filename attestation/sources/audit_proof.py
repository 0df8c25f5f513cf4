"""What leaves the audit log as evidence: signed checkpoints, and proofs that one entry is part of the log.

A checkpoint that is kept elsewhere shows a log that was cut off together with its head, which no log can show by
itself. Both verify with the public audit key alone, offline.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from attestation.crypto.merkle import inclusion_proof, leaf_hash, tree_root, verify_inclusion
from attestation.errors import Malformed, Untrusted
from attestation.sources.audit import GENESIS, AuditLog, Entry, check_entry, parse_entry
from attestation.sources.schema import ms

_CONTEXT = "kata-gpu-kbs/audit-checkpoint/1"
MAX_DOCUMENT_BYTES = 4 * 1024 * 1024  # an entry of a bundle with a thousand members is far below


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The log at one moment: length, last digest, Merkle root over all digests; signed."""

    stream: str
    size: int
    digest: str
    root: str
    at: int
    signature: str

    def signed(self) -> bytes:
        """What the signature covers."""
        return json.dumps([_CONTEXT, self.stream, self.size, self.digest, self.root, self.at]).encode()

    def verify(self, key: Ed25519PublicKey) -> None:
        """Untrusted unless the audit key signed it."""
        try:
            key.verify(bytes.fromhex(self.signature), self.signed())
        except (InvalidSignature, ValueError) as exc:
            raise Untrusted("checkpoint-signature", "the checkpoint's signature does not verify") from exc

    def to_json(self) -> dict[str, Any]:
        """To be kept elsewhere."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, value: object) -> "Checkpoint":
        """Malformed unless it has exactly these members."""
        kinds = {"stream": str, "size": int, "digest": str, "root": str, "at": int, "signature": str}
        if not isinstance(value, dict) or set(value) != set(kinds):
            raise Malformed("checkpoint", "not a checkpoint", expected=", ".join(kinds))
        if not all(type(value[name]) is kind for name, kind in kinds.items()):
            raise Malformed("checkpoint", "a member has another type", where="checkpoint")
        return cls(**value)


def checkpoint(log: AuditLog, now: datetime) -> Checkpoint:
    """Sign the state of the log. The caller has verified it."""
    return _checkpoint(log, log.digests(), now)


def _checkpoint(log: AuditLog, digests: list[str], now: datetime) -> Checkpoint:
    bare = Checkpoint(
        stream=log.stream,
        size=len(digests),
        digest=digests[-1] if digests else GENESIS,
        root=tree_root(_leaves(digests)).hex(),
        at=ms(now),
        signature="",
    )
    return replace(bare, signature=log.sign(bare.signed()).hex())


def _leaves(digests: list[str]) -> list[bytes]:
    return [leaf_hash(bytes.fromhex(digest)) for digest in digests]


def check_extends(checkpoint: Checkpoint, entries: Iterable[Entry]) -> None:
    """Untrusted unless the log still has everything that the checkpoint covers, unchanged."""
    seen, digest = 0, GENESIS
    for entry in entries:
        if seen == checkpoint.size:
            break
        seen, digest = entry.seq, entry.digest
    if (seen, digest) != (checkpoint.size, checkpoint.digest):
        raise Untrusted("audit-rollback", "the log is not the one that was signed", expected=checkpoint.size, got=seen)


def make_proof(log: AuditLog, seq: int, now: datetime) -> dict[str, Any]:
    """One entry, a checkpoint of now, and the way between them. Malformed where there is no such entry."""
    entry, digests = log.entry(seq), log.digests()
    if entry is None or seq > len(digests):
        raise Malformed("audit-seq", "no such entry", expected=f"1..{len(digests)}", got=seq)
    path = [node.hex() for node in inclusion_proof(_leaves(digests), seq - 1)]
    made = _checkpoint(log, digests, now)
    return {"version": 1, "entry": entry.to_json(), "checkpoint": made.to_json(), "path": path}


def verify_proof(document: Mapping[str, Any], key: Ed25519PublicKey) -> Entry:
    """The entry, proven to be part of the log that the checkpoint names. Malformed or Untrusted."""
    if set(document) != {"version", "entry", "checkpoint", "path"} or document["version"] != 1:
        raise Malformed("audit-proof", "not an audit proof", expected="version 1")
    entry, checkpoint = parse_entry(document["entry"]), Checkpoint.from_json(document["checkpoint"])
    try:
        path = [bytes.fromhex(node) for node in document["path"]]
        root = bytes.fromhex(checkpoint.root)
    except (TypeError, ValueError) as exc:
        raise Malformed("audit-proof", "not hexadecimal", where="path") from exc
    checkpoint.verify(key)
    check_entry(entry, key, checkpoint.stream)
    verify_inclusion(leaf_hash(bytes.fromhex(entry.digest)), entry.seq - 1, checkpoint.size, path, root)
    return entry
