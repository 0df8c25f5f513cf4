"""The journal and the other state files of a node: read as they were written, and nothing else is believed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_gpu.core.actions import Bind, Binding, ModeChange, Publish, Switch
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import Malformed
from kata_gpu.host.durable import DurableDir
from kata_gpu.host.journal import Journal, Transaction

GPU = PciAddress.parse("0000:17:00.0")
TAKEN = Bind(address=GPU, before=Binding(driver="nvidia"), after=Binding(driver="vfio-pci", override="vfio-pci"))
SWITCHED = Switch(changes=(ModeChange(address=GPU, before=None, after=CcMode.ON),), found=(CcMode.OFF,))
TOLD = Publish(file="cgpu.kata-gpu.dev-gpu.json", devices=(GPU,), before="{}")
OPEN = Transaction(purpose="setup", boot_id="b", pid=7, actions=(TAKEN, SWITCHED, TOLD), step=2, reason="r")


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    journal = Journal(DurableDir(tmp_path))
    journal.record(OPEN)
    assert journal.open_transaction() == OPEN
    journal.close(OPEN, "undone")
    assert journal.open_transaction() is None
    assert journal.last_outcome() == {"purpose": "setup", "outcome": "undone", "reason": "r"}


def journal_with(tmp_path: Path, path: str, value: object) -> bytes:
    """The journal of OPEN with one value replaced."""
    Journal(DurableDir(tmp_path)).record(OPEN)
    data = json.loads((tmp_path / "journal.json").read_bytes())
    *way, leaf = (int(k) if k.isdecimal() else k for k in path.split("/"))
    node = data
    for key in way:
        node = node[key]
    node[leaf] = value
    return json.dumps(data).encode()


DEEP = b"[" * 100_000


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"version": 1, "purpose": "x"}', b"\xff", DEEP])
def test_a_damaged_journal_is_named(tmp_path: Path, data: bytes) -> None:
    """A journal that cannot be read stops everything: it is never taken for none."""
    (tmp_path / "journal.json").write_bytes(data)
    with pytest.raises(Malformed) as error:
        Journal(DurableDir(tmp_path)).open_transaction()
    assert "journal.json" in error.value.where
    assert error.value.expected
    assert "status" in error.value.hint


WRONG = [
    ("version", 2), ("version", "1"), ("purpose", None), ("boot_id", 1), ("pid", "7"), ("step", 4), ("step", -1),
    ("step", 1.5), ("reason", []), ("actions", {}), ("actions/0", None), ("actions/0", []), ("actions/0", {"do": "x"}),
    ("actions/0/address", 5), ("actions/0/address", "17:00.0"), ("actions/0/before", "ab"), ("actions/0/after", ["x"]),
    ("actions/0/after", [1, None]), ("actions/1/changes", [["0000:17:00.0", "on"]]), ("actions/1/changes", [7]),
    ("actions/1/changes", [[{}, None, "on"]]), ("actions/1/changes", [["0000:17:00.0", None, []]]),
    ("actions/1/found", []), ("actions/1/found", ["on", "on"]), ("actions/1/found", "o"), ("actions/1/found", ["x"]),
    ("actions/2/file", "../../etc/passwd"), ("actions/2/devices", [None]), ("actions/2/before", 5),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), [pytest.param(*row, id=f"{row[0]}={row[1]}") for row in WRONG])
def test_a_journal_with_one_wrong_value_is_refused(tmp_path: Path, path: str, value: object) -> None:
    """What says where a device goes back to, or which file is removed, is believed only as we write it."""
    (tmp_path / "journal.json").write_bytes(journal_with(tmp_path, path, value))
    with pytest.raises(Malformed) as error:
        Journal(DurableDir(tmp_path)).open_transaction()
    assert "journal.json" in error.value.where
    assert error.value.expected
    assert error.value.got


STATE: list[tuple[str, Callable[[Journal], object]]] = [
    ("origins.json", lambda j: j.origins("b")),
    ("modes.json", lambda j: j.modes("b")),
    ("wedged.json", lambda j: j.wedged("b")),
    ("removed.json", lambda j: j.removed("b")),
]
ROWS = [
    {"17:00.0": "x"}, {"0000:17:00.0": 5}, {"0000:17:00.0": None}, {"0000:17:00.0": []}, {"0000:17:00.0": {}},
    {"0000:17:00.0": ["a", "b", "c"]}, [], "rows", None,
]  # fmt: skip
BROKEN = [json.dumps({"boot_id": "b", "rows": rows}).encode() for rows in ROWS]
BROKEN += [b"", b"5", b"{}", b'{"boot_id": 1, "rows": {}}', DEEP, b'{"boot_id": "b", "rows": ' + b'{"a": ' * 900]


@pytest.mark.parametrize(("name", "read"), STATE, ids=[name for name, _ in STATE])
def test_a_damaged_state_file_is_never_taken_for_an_empty_one(
    tmp_path: Path, name: str, read: Callable[[Journal], object]
) -> None:
    journal = Journal(DurableDir(tmp_path))
    for data in BROKEN:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(Malformed) as error:
            read(journal)
        assert str(tmp_path / name) == error.value.where
        assert error.value.expected
        assert error.value.got
        assert error.value.hint


@pytest.mark.parametrize("data", [b"{}", b'{"purpose": "setup", "outcome": 1, "reason": ""}', DEEP])
def test_a_damaged_outcome_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "last.json").write_bytes(data)
    with pytest.raises(Malformed, match=r"last\.json"):
        Journal(DurableDir(tmp_path)).last_outcome()


def test_state_of_another_boot_does_not_count(tmp_path: Path) -> None:
    journal = Journal(DurableDir(tmp_path))
    address = PciAddress.parse("0000:17:00.0")
    journal.set_wedged("boot-1", {address: "held"})
    assert journal.wedged("boot-1") == {address: "held"}
    assert journal.wedged("boot-2") == {}
