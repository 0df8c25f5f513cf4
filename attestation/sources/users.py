"""Admin users: role, repositories, and an epoch that takes back every token issued before it."""

import json
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import insert, select, update

from attestation.broker.roles import Role
from attestation.errors import Misconfigured
from attestation.sources.db import Database
from attestation.sources.schema import ms, users


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An administrator. No repositories means all of them."""

    name: str
    role: Role
    repositories: tuple[str, ...]
    epoch: int


class UserStore:
    """Who may administer."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(self, name: str, role: Role, repositories: tuple[str, ...], now: datetime) -> User:
        """A new user; Misconfigured where the name is taken."""
        if self.get(name) is not None:
            raise Misconfigured("user-exists", "there is a user of this name", where=name)
        user = User(name=name, role=role, repositories=repositories, epoch=1)
        with self._db.write(durable=True) as connection:
            connection.execute(
                insert(users),
                {
                    "name": name,
                    "role": str(role),
                    "repositories": json.dumps(repositories),
                    "epoch": 1,
                    "created": ms(now),
                },
            )
        return user

    def get(self, name: str) -> User | None:
        """One user."""
        with self._db.read() as connection:
            row = connection.execute(select(users).where(users.c.name == name)).one_or_none()
        if row is None:
            return None
        return User(
            name=row.name, role=Role(row.role), repositories=tuple(json.loads(row.repositories)), epoch=row.epoch
        )

    def list(self) -> tuple[User, ...]:
        """All users."""
        with self._db.read() as connection:
            names = connection.execute(select(users.c.name).order_by(users.c.name)).scalars().all()
        return tuple(user for name in names if (user := self.get(name)) is not None)

    def bump(self, name: str) -> bool:
        """Take back the user's tokens; false where there is no such user."""
        with self._db.write(durable=True) as connection:
            query = update(users).where(users.c.name == name).values(epoch=users.c.epoch + 1)
            return connection.execute(query).rowcount == 1
