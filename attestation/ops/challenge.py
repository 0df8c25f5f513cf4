"""`POST /kbs/v0/auth`: a fresh nonce, and the cookie that brings the challenge back."""

from dataclasses import dataclass
from datetime import datetime

from attestation.broker.session import Challenged, challenge
from attestation.ops.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedChallenge:
    """The cookie goes to the guest and nowhere else."""

    cookie: str
    challenged: Challenged


def issue_challenge(world: World, *, version: str, tee: str, offered: object = None, now: datetime) -> IssuedChallenge:
    """A new handshake, whatever session the caller had before. Reads and writes nothing."""
    challenged = challenge(version=version, tee=tee, offered=offered, enabled=world.tees, random=world.random, now=now)
    return IssuedChallenge(cookie=world.cookies.seal(challenged), challenged=challenged)
