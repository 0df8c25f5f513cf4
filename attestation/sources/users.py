"""Admin users: role, repositories, and an epoch that takes back every token issued before it."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from attestation.broker.roles import Role
from attestation.errors import Misconfigured
from attestation.sources.configuration import Configuration
from attestation.sources.configuration_change import Change
from attestation.sources.schema import ms
from attestation.sources.sheets import USERS


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An administrator. No repositories means all of them."""

    name: str
    role: Role
    repositories: tuple[str, ...]
    epoch: int


class UserStore:
    """Who may administer."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    def add(self, change: Change, name: str, role: Role, repositories: tuple[str, ...], now: datetime) -> None:
        """A new user; Misconfigured where the name is taken."""
        if (name,) in change.rows(USERS):
            raise Misconfigured("user-exists", "there is a user of this name", where=name)
        row = {"name": name, "role": str(role), "repositories": json.dumps(repositories), "epoch": 1}
        change.put(USERS, {**row, "created": ms(now)})

    def get(self, name: str) -> User | None:
        """One user."""
        row = self._configuration.rows(USERS).get((name,))
        return None if row is None else _user(row)

    def list(self) -> tuple[User, ...]:
        """All users."""
        return tuple(_user(row) for row in sorted(self._configuration.rows(USERS).values()))

    def bump(self, change: Change, name: str) -> bool:
        """Take back the user's tokens; false where there is no such user."""
        row = change.rows(USERS).get((name,))
        if row is None:
            return False
        change.put(USERS, row._replace(epoch=row.epoch + 1)._asdict())
        return True


def _user(row: Any) -> User:
    return User(name=row.name, role=Role(row.role), repositories=tuple(json.loads(row.repositories)), epoch=row.epoch)
