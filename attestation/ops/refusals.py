"""Which refusals of evidence have an entry of their own in the audit log, and which are in it as a number.

What a CPU had signed is recorded one by one, always. The rest is anybody's: as much as rate limits let through, in a
log that is kept for ever. Of that each network has a few entries a minute and all together some; what exceeds them is
counted, and one entry says how many, why and from where.
"""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from threading import Lock

from attestation.errors import AttestationError
from attestation.sources.audit import AuditLog
from attestation.values import JsonValue

WINDOW = timedelta(minutes=1)
SINGLY_EACH = 10  # of one network in a window: enough to see what is wrong with its guests
SINGLY_ALL = 30  # of all networks: whoever has many of them writes at most 0.3 GB a day, at 6.6 KB each
MAX_NETWORKS = 1000  # that are counted by name in a window
SHOWN = 16  # of these named in the entry, the busiest first
SUBJECT, OTHERS = "unsigned", "others"


class Refusals:
    """Counts of one process. It loses at most those of the running window, and only where it is killed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._since: datetime | None = None
        self._singly: Counter[str] = Counter()
        self._networks: Counter[str] = Counter()
        self._codes: Counter[str] = Counter()
        self.summed_up = 0  # since the process started

    def singly(self, exc: AttestationError, network: str, now: datetime) -> bool:
        """Whether this refusal is recorded by itself; it is counted where not."""
        if exc.signed:
            return True
        with self._lock:
            self._since = self._since or now
            if self._singly[network] < SINGLY_EACH and self._singly.total() < SINGLY_ALL:
                self._singly[network] += 1
                return True
            self._count({network: 1}, {exc.code: 1})
            self.summed_up += 1
            return False

    def sum_up(self, audit: AuditLog, now: datetime, *, ending: bool = False) -> None:
        """Record what was counted, once its window is over or the process is ending. A failure keeps the counts."""
        with self._lock:
            since, networks, codes = self._since, self._networks, self._codes
            if since is None or (now - since < WINDOW and not ending):
                return
            self._since, self._singly, self._networks, self._codes = None, Counter(), Counter(), Counter()
        if not codes:
            return
        try:
            audit.record(event="attest-refused", subject=SUBJECT, body=_body(networks, codes, since, now), now=now)
        except AttestationError:
            with self._lock:
                self._since = since
                self._count(networks, codes)
            raise

    def _count(self, networks: Mapping[str, int], codes: Mapping[str, int]) -> None:
        for name, count in networks.items():
            known = name in self._networks or len(self._networks) < MAX_NETWORKS
            self._networks[name if known else OTHERS] += count
        self._codes.update(codes)


def _body(networks: Counter[str], codes: Counter[str], since: datetime, until: datetime) -> dict[str, JsonValue]:
    """The fields of any refusal, and the numbers."""
    count = codes.total()
    return {
        "tee": "",
        "code": "refusals-summed-up",
        "where": "",
        "reason": "more evidence without a verified signature was refused",
        "expected": "",
        "got": f"{count} from {len(networks)} networks",
        "count": count,
        "since": since.isoformat(),
        "until": until.isoformat(),
        "codes": _busiest(codes),
        "networks": _busiest(networks),
    }


def _busiest(counts: Counter[str]) -> dict[str, JsonValue]:
    named = dict([pair for pair in counts.most_common() if pair[0] != OTHERS][:SHOWN])
    rest = counts.total() - sum(named.values())
    return {**named, **({OTHERS: rest} if rest else {})}
