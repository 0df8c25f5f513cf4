"""Who may administer what: three roles, verbs per role, rights per repository (keybroker.md 6, 11 and 12)."""

from dataclasses import dataclass
from enum import StrEnum

from attestation.errors import Denied


class Role(StrEnum):
    """`admin` does everything; `operator` manages keys and policies of its repositories; `auditor` only reads."""

    ADMIN = "admin"
    OPERATOR = "operator"
    AUDITOR = "auditor"


class Verb(StrEnum):
    """What an admin request does."""

    READ = "read"
    WRITE_KEY = "write-key"
    WRITE_POLICY = "write-policy"
    WRITE_GLOBAL = "write-global"  # policies and reference values that concern every repository
    MANAGE_USERS = "manage-users"


_ALLOWED = {
    Role.ADMIN: frozenset(Verb),
    Role.OPERATOR: frozenset({Verb.READ, Verb.WRITE_KEY, Verb.WRITE_POLICY}),
    Role.AUDITOR: frozenset({Verb.READ}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An authenticated administrator. No repositories means all of them; `title` is the identity provider's role."""

    name: str
    role: Role
    repositories: tuple[str, ...] = ()
    title: str = ""

    @property
    def somewhere(self) -> str | None:
        """A repository of theirs, for requests whose answer is cut to what they `see`; None where they see all."""
        return self.repositories[0] if self.repositories else None

    def sees(self, repository: str) -> bool:
        """Whether it is one of theirs."""
        return not self.repositories or repository in self.repositories

    def require(self, verb: Verb, repository: str | None = None) -> None:
        """Denied unless the role has this verb, in this repository where one is named."""
        if verb not in _ALLOWED[self.role]:
            raise Denied("role-not-allowed", f"Role {self.title or self.role} not allowed", where=verb)
        if self.repositories and repository not in self.repositories:
            raise Denied(
                "repository-not-allowed",
                f"Role {self.title or self.role} not allowed in this repository",
                expected="|".join(self.repositories),
                got=repository or "all repositories",
            )
