"""Merkle trees of RFC 9162 (Certificate Transparency 2.0), section 2.1: roots and inclusion proofs over SHA-256."""

import hashlib
from collections.abc import Sequence

from attestation.errors import Untrusted

MAX_PROOF = 64  # a tree of 2**64 leaves


def leaf_hash(entry: bytes) -> bytes:
    """HASH(0x00 || entry): a leaf can never be taken for a node."""
    return hashlib.sha256(b"\0" + entry).digest()


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """MTH over leaf hashes (2.1.1), level by level; an odd node at the end moves up unchanged."""
    level = list(leaves)
    while len(level) > 1:
        level = _parents(level)
    return level[0] if level else hashlib.sha256(b"").digest()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """PATH(index, leaves) (2.1.3.1): the siblings on the way to the root, lowest first."""
    level, proof = list(leaves), []
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            proof.append(level[sibling])
        level, index = _parents(level), index // 2
    return tuple(proof)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Untrusted unless the leaf is the `index`-th of the `size` leaves under this root (2.1.3.2)."""
    if not 0 <= index < size or len(proof) > MAX_PROOF:
        raise Untrusted("merkle-index", "no such leaf", expected=f"below {size}", got=index)
    at, last, node, left = index, size - 1, leaf, list(proof)
    while last:
        if at % 2 or at < last:
            if not left:
                raise Untrusted("merkle-proof", "the proof is too short", where=f"leaf {index}")
            sibling = left.pop(0)
            node = _node(sibling, node) if at % 2 else _node(node, sibling)
        at, last = at // 2, last // 2
    if left or node != root:
        raise Untrusted("merkle-proof", "the proof does not lead to the root", where=f"leaf {index}")


def _parents(level: list[bytes]) -> list[bytes]:
    pairs = [_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return pairs + level[len(level) - len(level) % 2 :]


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
