"""`POST /kbs/v0/auth`: a fresh nonce and a session for it."""

from dataclasses import dataclass
from datetime import datetime

from attestation.broker.session import SESSION_ID_BYTES, Challenged, challenge
from attestation.ops.world import World
from attestation.sources.sessions import session_key


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedChallenge:
    """The cookie goes to the guest and nowhere else; only its hash is stored."""

    cookie: str
    challenged: Challenged


def issue_challenge(world: World, *, version: str, tee: str, offered: object = None, now: datetime) -> IssuedChallenge:
    """A new handshake, whatever session the caller had before."""
    challenged = challenge(version=version, tee=tee, offered=offered, enabled=world.tees, random=world.random, now=now)
    cookie = world.random(SESSION_ID_BYTES).hex()
    world.sessions.add(session_key(cookie), challenged)
    return IssuedChallenge(cookie=cookie, challenged=challenged)
