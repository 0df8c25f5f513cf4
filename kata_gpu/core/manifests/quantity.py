"""Kubernetes quantities by value: the API server writes `10240Mi` back as `10Gi`.

Grammar: k8s.io/apimachinery/pkg/api/resource, type Quantity.
"""

import re
from decimal import Decimal

_QUANTITY = re.compile(
    r"([+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40}))(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]?|[eE][+-]?\d{1,2})"
)
_FACTOR = {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)} | {
    unit: Decimal(1000) ** power for power, unit in enumerate(["n", "u", "m", "", "k", "M", "G", "T", "P", "E"], -3)
}


def same_quantity(one: object, other: object) -> bool:
    """Whether both are quantities of the same amount. `10240Mi` and `10Gi` are."""
    first = _amount(one)
    return first is not None and first == _amount(other)


def _amount(text: object) -> Decimal | None:
    found = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    number, suffix = found.groups()
    factor = _FACTOR.get(suffix)
    return Decimal(number) * (Decimal(f"1{suffix}") if factor is None else factor)
