"""A table of a release or verification policy, taken field by field: typed, bounded, and what nobody took is an error.

In a verification policy a field that is left out keeps its default, a rule is switched off by `{ unchecked =
"reason" }` and nothing else, and every reason is kept.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, TypeVar

from attestation.appraise.rules import MAX_VALUES, MIN_REASON, Rule, parse_rule
from attestation.errors import AttestationError, Misconfigured

MAX_DAYS = 3650  # ten years: longer than any certificate here lives, but for the roots
_HEX = re.compile(r"(?:[0-9a-f]{2}){1,64}")
E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


class Fields:
    """One table. `waivers` collects `field: reason` over all tables of a document."""

    def __init__(self, value: object, where: str, waivers: list[str] | None = None) -> None:
        if not isinstance(value, dict):
            raise bad(where or "policy", "a table", value)
        self._left: dict[str, Any] = dict(value)
        self._waivers = [] if waivers is None else waivers
        self._where = where

    def path(self, name: str) -> str:
        """Where a field is, for messages."""
        return f"{self._where}.{name}".lstrip(".")

    def table(self, name: str) -> "Fields":
        """A table below this one; a missing one has no fields, so that every default holds."""
        return Fields(self._left.pop(name, {}), self.path(name), self._waivers)

    def required_table(self, name: str) -> "Fields":
        """A table below this one. Raises Misconfigured where there is none."""
        return Fields(self.required(name), self.path(name), self._waivers)

    def optional_table(self, name: str) -> "Fields | None":
        """A table below this one, None where it is missing: a release policy does not ask what it does not name."""
        return self.table(name) if name in self._left else None

    def is_table(self, name: str) -> bool:
        """Whether the document has a table here, of a field that may be one."""
        return isinstance(self._left.get(name), dict)

    def has(self, name: str) -> bool:
        """Whether the document says something here."""
        return name in self._left

    def names(self) -> tuple[str, ...]:
        """What is left, for tables whose keys are data."""
        return tuple(self._left)

    def take(self, name: str) -> Any:
        """The raw value, None where there is none."""
        return self._left.pop(name, None)

    def required(self, name: str) -> Any:
        """The raw value. Raises Misconfigured where there is none, with the name that was meant, if one is near."""
        if name not in self._left:
            near = ", ".join(get_close_matches(name, self._left, n=1))
            raise Misconfigured("policy-field-missing", "a required field is missing", where=self.path(name), got=near)
        return self._left.pop(name)

    def rule(self, name: str) -> Rule:
        """A rule on one value, required."""
        return parse_rule(self.required(name), self.path(name))

    def optional_rule(self, name: str) -> Rule | None:
        """A rule on one value, None where there is none."""
        return self.rule(name) if name in self._left else None

    def waived(self, name: str) -> str | None:
        """The reason, where the field is `{ unchecked = "reason" }`."""
        value = self._left.get(name)
        if not isinstance(value, dict) or set(value) != {"unchecked"}:
            return None
        reason = self._left.pop(name)["unchecked"]
        if not isinstance(reason, str) or len(reason.strip()) < MIN_REASON:
            raise bad(self.path(name), f"a reason of at least {MIN_REASON} characters", reason)
        self._waivers.append(f"{self.path(name)}: {reason}")
        return reason

    def forbidden(self, name: str, *, default: bool) -> bool:
        """`"forbid"` or waived; gives whether the thing is allowed. `default`: allowed where nothing is said."""
        if not self.has(name):
            return default
        if self.waived(name) is not None:
            return True
        if (value := self.take(name)) != "forbid":
            raise bad(self.path(name), '"forbid" or { unchecked = "reason" }', value)
        return False

    def integer(self, name: str, default: int, most: int) -> int:
        """A whole number from 0."""
        return self._whole(name, self._left.pop(name, default), most)

    def integer_or_none(self, name: str, most: int) -> int | None:
        """A whole number from 0, None where there is none."""
        return self._whole(name, self._left.pop(name), most) if name in self._left else None

    def required_integer(self, name: str, most: int) -> int:
        """A whole number from 0, required."""
        return self._whole(name, self.required(name), most)

    def integers(self, name: str, default: frozenset[int], most: int) -> frozenset[int]:
        """A set of whole numbers, not empty."""
        return self._set(name, default, lambda value: self._whole(name, value, most))

    def integers_or_none(self, name: str, most: int) -> frozenset[int]:
        """A set of whole numbers, which may be empty."""
        if self._left[name] == []:
            self.take(name)
        return self.integers(name, frozenset(), most)

    def days(self, name: str, default: timedelta) -> timedelta:
        """A duration in whole days."""
        return timedelta(days=self.integer(name, default.days, MAX_DAYS))

    def member(self, name: str, kind: type[E], default: E) -> E:
        """One of a closed vocabulary, in any case."""
        return self._member(name, kind, self._left.pop(name, default))

    def members(self, name: str, kind: type[E], default: frozenset[E]) -> frozenset[E]:
        """A set out of a closed vocabulary, not empty."""
        return self._set(name, default, lambda value: self._member(name, kind, value))

    def texts(self, name: str, default: frozenset[str]) -> frozenset[str]:
        """A set of texts, not empty."""
        return self._set(name, default, lambda value: self._text(name, value))

    def texts_or_any(self, name: str) -> frozenset[str] | None:
        """A set of texts, which may be empty; None, which asks nothing, where the field is absent or waived."""
        if not self.has(name) or self.waived(name) is not None:
            return None
        if self._left[name] == []:
            self.take(name)
        return self.texts(name, frozenset())

    def hexes(self, name: str, default: frozenset[str]) -> frozenset[str]:
        """A set of hexadecimal texts, made lower case."""
        return self._set(name, default, lambda value: self._hex(name, value))

    def hexes_or_any(self, name: str) -> frozenset[str] | None:
        """A set of hexadecimal texts; None, which asks nothing, where the field is absent or waived."""
        if not self.has(name) or self.waived(name) is not None:
            return None
        return self.hexes(name, frozenset())

    def numbers(self, name: str, count: int) -> tuple[int, ...] | None:
        """A dotted version of `count` numbers, None where absent."""
        value = self.take(name)
        if value is None:
            return None
        parts = value.split(".") if isinstance(value, str) else []
        if len(parts) != count or not all(p.isascii() and p.isdigit() and int(p) <= 255 for p in parts):
            raise bad(self.path(name), f"{count} numbers with dots between", value)
        return tuple(map(int, parts))

    def time(self, name: str) -> datetime | None:
        """A TOML time with offset; None where absent or waived."""
        if not self.has(name) or self.waived(name) is not None:
            return None
        return self.time_or_none(name)

    def time_or_none(self, name: str) -> datetime | None:
        """A TOML time with offset; None where absent."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, datetime) or value.tzinfo is None:
            raise bad(self.path(name), "a TOML time with offset", value)
        return value.astimezone(UTC)

    def finish(self) -> None:
        """Every field was known. Raises Misconfigured."""
        if self._left:
            raise Misconfigured("policy-field-unknown", "unknown field", where=self.path(min(self._left)))

    def built(self, make: Callable[[], T]) -> T:
        """`make()`, its complaint about a combination of fields placed in this table; then `finish`.

        Raises Misconfigured.
        """
        self.finish()
        try:
            return make()
        except AttestationError as exc:
            raise Misconfigured(
                exc.code, exc.what, where=exc.where or self._where, expected=exc.expected, got=exc.got
            ) from exc

    def checked(self, name: str, make: Callable[[], T]) -> T:
        """`make()`, its complaint placed at this field. Raises Misconfigured."""
        try:
            return make()
        except AttestationError as exc:
            raise Misconfigured(exc.code, exc.what, where=self.path(name), expected=exc.expected, got=exc.got) from exc

    def _set(self, name: str, default: frozenset[T], one: Callable[[object], T]) -> frozenset[T]:
        if name not in self._left:
            return default
        value = self._left.pop(name)
        listed = value if isinstance(value, list) else [value]
        if not 0 < len(listed) <= MAX_VALUES:
            raise bad(self.path(name), f"1 to {MAX_VALUES} values", value)
        return frozenset(one(item) for item in listed)

    def _whole(self, name: str, value: object, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise bad(self.path(name), f"0..{most}", value)
        return value

    def _member(self, name: str, kind: type[E], value: object) -> E:
        by_name = {member.lower(): member for member in kind}
        if not isinstance(value, str) or value.lower() not in by_name:
            raise bad(self.path(name), "|".join(kind), value)
        return by_name[value.lower()]

    def _text(self, name: str, value: object) -> str:
        if not isinstance(value, str) or not value:
            raise bad(self.path(name), "a text", value)
        return value

    def _hex(self, name: str, value: object) -> str:
        text = self._text(name, value).lower()
        if not _HEX.fullmatch(text):
            raise bad(self.path(name), "hexadecimal, whole octets", value)
        return text


def bad(where: str, expected: str, got: object) -> Misconfigured:
    """A value of the wrong kind."""

    return Misconfigured("policy-value", "wrong value", where=where, expected=expected, got=repr(got)[:80])
