"""The one numbered drop-in that this toolkit writes: `60-kata-gpu.toml`, above kata-deploy's own 10 to 50."""

from collections.abc import Mapping
from typing import Any

import tomli_w

from kata_gpu.core.kata.effective import Runtime
from kata_gpu.core.kata.settings import SETTINGS, Needs

FILE_NAME = "60-kata-gpu.toml"
_HEADER = """\
# Written by `kata-gpu kata render`. Do not edit: run it again, or override in a file that sorts after this one.
# Kata merges tables and replaces every other value.
"""


def dropin_values(needs: Needs, runtime: Runtime) -> dict[str, Any]:
    """Nested values of the drop-in for these needs."""
    root: dict[str, Any] = {}
    for setting in SETTINGS:
        key, want = setting.key(runtime), setting.want(needs, runtime)
        if key is None or want is None or not setting.writable:
            continue
        *tables, leaf = key.split(".")
        node = root
        for table in tables:
            node = node.setdefault(table, {})
        node[leaf] = want
    return root


def render_dropin(needs: Needs, runtime: Runtime) -> str:
    """The file's text; parsing it gives `dropin_values` back."""
    return _HEADER + tomli_w.dumps(_sorted(dropin_values(needs, runtime)))


def _sorted(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _sorted(v) if isinstance(v, dict) else v for k, v in sorted(table.items())}
