"""Handshakes that ended: what each challenge was spent on, and that it was spent once, whichever replica was told.

A challenge itself is stored nowhere (`broker/cookie.py`). The row that ends it is part of the transaction that records
the outcome, and its primary key exists once: of two answers on two replicas the one that commits is the answer.
"""

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock

from sqlalchemy import Connection, bindparam, delete, func, select, text

from attestation.broker.session import Challenged
from attestation.errors import Unavailable, Untrusted
from attestation.sources.db import Database
from attestation.sources.schema import ms, sessions
from attestation.sources.statement import Statement

CACHE_ENTRIES = 1024  # as many as attestations that are remembered
# Whoever has a challenge may end it, with a row of a few hundred bytes. One address alone, at its rate, cannot fill it.
MAX_SESSIONS = 1_000_000
COUNT_S = 1.0  # how long a count is believed
# A row outlives its challenge by more than replicas' clocks may differ: what one deletes early, another accepts twice.
CLOCKS_APART = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Session:
    """One handshake: the SHA-256 of its cookie, so that a stolen database opens none, and its end."""

    key: str
    expires: datetime

    @classmethod
    def of(cls, cookie: str, challenged: Challenged) -> "Session":
        """Of an authentic cookie and what it holds."""
        return cls(hashlib.sha256(cookie.encode()).hexdigest(), challenged.expires)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a handshake ended: `body` is the SHA-256 of what was sent; a refused one has neither `jti` nor `token`."""

    body: str
    jti: str = ""
    token: str = ""

    def repeat(self, body: str) -> str:
        """The token once more, for the very body that it was given for; Untrusted otherwise."""
        if not self.jti:
            raise Untrusted("session-burned", "this challenge was answered and refused; ask for a new one")
        if self.body != body:
            raise _replayed()
        return self.token


@dataclass(frozen=True, slots=True)
class InProgress:
    """This very body is being verified by this process now."""


# SQLAlchemy writes `ON CONFLICT` once for each dialect, and they are the same.
_END = Statement(
    text(
        "INSERT INTO sessions (expires, id, body, jti, token) VALUES (:expires, :id, :body, :jti, :token)"
        " ON CONFLICT (expires, id) DO NOTHING"
    )
)
_FIND = Statement(
    select(sessions.c.body, sessions.c.jti, sessions.c.token).where(
        sessions.c.expires == bindparam("end"), sessions.c.id == bindparam("key")
    )
)


class SessionStore:
    """Rows that any replica reads, and this process's memory of the newest."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._ended: OrderedDict[str, str] = OrderedDict()  # token ids, empty for refused ones
        self._verifying: dict[str, str] = {}
        self._lock = Lock()
        self._counted, self._full = float("-inf"), False

    def claim(self, session: Session, body: str) -> Ended | InProgress | None:
        """None where this process shall verify the body, and say `leave` afterwards; or what became of it before.

        Another body for a challenge that is being answered is Untrusted. Unavailable where too many have ended.
        """
        self._require_room()
        with self._lock:
            if session.key not in self._ended:
                current = self._verifying.get(session.key)
                if current is None:
                    self._verifying[session.key] = body
                    return None
                if current != body:
                    raise _replayed()
                return InProgress()
        with self._db.read() as connection:
            return self._find(connection, session) or Ended(body=body)  # swept: it has ended in any case

    def leave(self, session: Session) -> None:
        """This process verifies nothing for the challenge any more. Where nothing was stored, it is as good as new."""
        with self._lock:
            self._verifying.pop(session.key, None)

    def end(self, connection: Connection, session: Session, ended: Ended) -> Ended | None:
        """Spend the challenge, as part of the transaction that records the outcome.

        Returns what it was spent on before, in which case nothing was written; None where this was the first time.
        Raises Unavailable.
        """
        values = {
            "expires": ms(session.expires),
            "id": session.key,
            "body": ended.body,
            "jti": ended.jti,
            "token": ended.token,
        }
        if _END.run(connection, values) == 1:
            return None
        before = self._find(connection, session)
        if before is None:  # a trigger or rule that is not ours
            raise Unavailable("session-lost", "the store does not keep what a challenge was spent on", where="sessions")
        return before

    def remember(self, session: Session, ended: Ended) -> None:
        """After the commit: nothing changes how a handshake ended."""
        with self._lock:
            self._ended[session.key] = ended.jti
            if len(self._ended) > CACHE_ENTRIES:
                self._ended.popitem(last=False)

    def attested(self, session: Session) -> str | None:
        """The token id of a handshake that ended well, None of any other."""
        with self._lock:
            known = self._ended.get(session.key)
        if known is None:
            with self._db.read() as connection:
                ended = self._find(connection, session)
            known = ended.jti if ended else ""
        return known or None

    def sweep(self, now: datetime) -> int:
        """Delete what no cookie can name any more."""
        with self._db.write() as connection:
            over = sessions.c.expires <= ms(now - CLOCKS_APART)
            return connection.execute(delete(sessions).where(over)).rowcount

    def _find(self, connection: Connection, session: Session) -> Ended | None:
        row = _FIND.one(connection, {"end": ms(session.expires), "key": session.key})
        return None if row is None else Ended(body=row[0], jti=row[1], token=row[2])

    def _require_room(self) -> None:
        if (at := time.monotonic()) - self._counted > COUNT_S:
            with self._db.read() as connection:
                count = connection.execute(select(func.count()).select_from(sessions)).scalar_one()
            self._counted, self._full = at, count >= MAX_SESSIONS
        if self._full:
            raise Unavailable("sessions-full", "too many handshakes; try again", expected=MAX_SESSIONS)


def _replayed() -> Untrusted:
    return Untrusted("nonce-replayed", "this challenge was already answered with other evidence")
