"""Handshakes: who holds which nonce, and that exactly one body answers it, whichever replica receives it."""

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from attestation.broker.session import Challenged
from attestation.errors import Unavailable, Untrusted
from attestation.sources.db import Database
from attestation.sources.schema import moment, ms, sessions
from attestation.sources.statement import Statement
from attestation.values import BindingProfile, Tee

# A replica that died while verifying: after this time the same body may be tried again (verification takes ms).
CLAIM_TIMEOUT = timedelta(seconds=60)
CACHE_ENTRIES = 1024  # as many as attestations that are remembered
# Unauthenticated callers write these rows, a few hundred bytes each. One address alone, at its rate, cannot fill them.
MAX_SESSIONS = 1_000_000
COUNT_S = 1.0  # how long a count is believed


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """This very body was answered before, with this token."""

    token: str


@dataclass(frozen=True, slots=True)
class InProgress:
    """This very body is being verified now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSession:
    """An attested session, as a cookie finds it."""

    jti: str
    expires: datetime


def session_key(cookie: str) -> str:
    """What is stored for a cookie: its SHA-256, so that a stolen database opens no session."""
    return hashlib.sha256(cookie.encode()).hexdigest()


_ADD = Statement(insert(sessions))
_BY_ID = Statement(select(sessions).where(sessions.c.id == bindparam("key")))
_TAKE = Statement(
    update(sessions)
    .where(
        sessions.c.id == bindparam("key"),
        sessions.c.expires > bindparam("now"),
        sessions.c.state == bindparam("old_state"),
        sessions.c.claimed == bindparam("old_claimed"),
    )
    .values(state="verifying", body=bindparam("new_body"), claimed=bindparam("now"))
    .returning(sessions.c.tee, sessions.c.nonce, sessions.c.expires, sessions.c.profile)
)
_FINISH = Statement(
    update(sessions)
    .where(sessions.c.id == bindparam("key"), sessions.c.state == "verifying")
    .values(state="attested", jti=bindparam("new_jti"), token=bindparam("new_token"))
)


class _Row(NamedTuple):
    """A row of `sessions`, in the order of its columns."""

    id: str
    tee: str
    nonce: str
    expires: int
    state: str
    body: str
    claimed: int
    jti: str
    token: str
    profile: str


sessions_row = _Row._make


class SessionStore:
    """All transitions are single statements, so that replicas need no other coordination."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._live: OrderedDict[str, LiveSession] = OrderedDict()
        self._lock = Lock()
        self._counted, self._full = float("-inf"), False

    def _require_room(self) -> None:
        if (at := time.monotonic()) - self._counted > COUNT_S:
            with self._db.read() as connection:
                count = connection.execute(select(func.count()).select_from(sessions)).scalar_one()
            self._counted, self._full = at, count >= MAX_SESSIONS
        if self._full:
            raise Unavailable("sessions-full", "too many handshakes are under way; try again", expected=MAX_SESSIONS)

    def add(self, key: str, challenged: Challenged) -> None:
        """A new handshake. Unavailable where there are too many."""
        self._require_room()
        with self._db.write() as connection:
            _ADD.run(
                connection,
                {
                    "id": key,
                    "tee": str(challenged.tee),
                    "nonce": challenged.nonce,
                    "expires": ms(challenged.expires),
                    "state": "challenged",
                    "body": "",
                    "claimed": 0,
                    "jti": "",
                    "token": "",
                    "profile": str(challenged.profile),
                },
            )

    def claim(self, key: str, body: str, now: datetime) -> Challenged | Repeated | InProgress:
        """Take the nonce for this body, atomically and before anything is verified.

        Raises Untrusted for an unknown, expired or burned session and for a second, different body.
        """
        with self._db.write() as connection:
            taken = self._take(connection, key, body, now, "challenged", 0)
            if taken is not None:
                return taken
            row = _BY_ID.one(connection, {"key": key})
            if row is None or (found := sessions_row(row)).expires <= ms(now):
                raise Untrusted("session-unknown", "no such session, or it has expired")
            if found.state == "burned":
                raise Untrusted("session-burned", "this challenge was answered and refused; ask for a new one")
            if found.body != body:
                raise Untrusted("nonce-replayed", "this challenge was already answered with other evidence")
            if found.state == "attested":
                return Repeated(token=found.token)
            if found.claimed + ms_of(CLAIM_TIMEOUT) < ms(now):
                taken = self._take(connection, key, body, now, "verifying", found.claimed)
            return taken or InProgress()

    def _take(
        self, connection: Connection, key: str, body: str, now: datetime, state: str, claimed: int
    ) -> Challenged | None:
        values = {"key": key, "new_body": body, "now": ms(now), "old_state": state, "old_claimed": claimed}
        row = _TAKE.one(connection, values)
        if row is None:
            return None
        tee, nonce, expires, profile = row
        return Challenged(tee=Tee(tee), nonce=nonce, expires=moment(expires), profile=BindingProfile(profile))

    def finish(self, connection: Connection, key: str, *, jti: str, token: str) -> None:
        """The body was good; part of the transaction that records the attestation."""
        if _FINISH.run(connection, {"key": key, "new_jti": jti, "new_token": token}) != 1:
            raise Unavailable("session-lost", "the session ended while its evidence was verified")

    def burn(self, connection: Connection, key: str) -> None:
        """The body was bad: this nonce is spent."""
        mine = (sessions.c.id == key) & (sessions.c.state == "verifying")
        connection.execute(update(sessions).where(mine).values(state="burned"))

    def reopen(self, key: str) -> None:
        """We could not tell (collateral or verifier unavailable): the same guest may try this nonce again."""
        with self._db.write() as connection:
            connection.execute(
                update(sessions)
                .where(sessions.c.id == key, sessions.c.state == "verifying")
                .values(state="challenged", body="", claimed=0)
            )

    def remember(self, key: str, live: LiveSession) -> None:
        """After the commit of `finish`: nothing changes an attested session until it ends."""
        with self._lock:
            self._live[key] = live
            if len(self._live) > CACHE_ENTRIES:
                self._live.popitem(last=False)

    def live(self, key: str, now: datetime) -> LiveSession | None:
        """The attested session of a cookie, None for anything else."""
        with self._lock:
            known = self._live.get(key)
        if known is not None:
            return known if known.expires > now else None
        with self._db.read() as connection:
            row = _BY_ID.one(connection, {"key": key})
        if row is None or (found := sessions_row(row)).state != "attested" or found.expires <= ms(now):
            return None
        return LiveSession(jti=found.jti, expires=moment(found.expires))

    def sweep(self, now: datetime) -> int:
        """Delete what has expired."""
        with self._db.write() as connection:
            return connection.execute(delete(sessions).where(sessions.c.expires <= ms(now))).rowcount


def ms_of(span: timedelta) -> int:
    """A span as stored."""
    return round(span.total_seconds() * 1000)
