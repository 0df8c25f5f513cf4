"""Per-claim CDI files: dra.md 7, behaviours 80 to 86."""

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from kata_gpu.core.cdi import validate
from kata_gpu.core.claim_cdi import (
    CDI_VERSION,
    PREFIX,
    SUFFIX,
    claim_of,
    device_id,
    file_name,
    parse_claim_file,
    render_claim,
)
from kata_gpu.core.pci import PciAddress
from kata_gpu.core.podresources import parse_cdi_name
from kata_gpu.errors import Malformed
from kata_gpu.host.claim_cdi_dir import ClaimCdiDir
from tests.kata_gpu.dra.world import World, address, gpu, numbered

NODE = ("/dev/vfio/devices/vfio3",)


@pytest.mark.parametrize("count", [pytest.param(1, id="dra-080-1"), pytest.param(8, id="dra-080-8")])
def test_output_is_valid(world: World, count: int) -> None:
    ref = world.claim(*(gpu(i) for i in range(count)))
    world.prepare(ref)
    spec = json.loads(world.cdi.read(file_name(ref.uid)) or b"")
    validate(spec, where="test")
    assert [d["name"] for d in spec["devices"]] == [f"{ref.uid}-{gpu(i)}" for i in range(count)]


@numbered("dra-081")
def test_the_version_is_the_lowest_that_allows_names_starting_with_a_digit(case: None) -> None:
    spec = json.loads(render_claim("0aa", {"d": NODE}))
    assert spec["cdiVersion"] == CDI_VERSION == "0.5.0"
    validate(spec, where="test")
    with pytest.raises(Malformed):
        validate(spec | {"cdiVersion": "0.4.0"}, where="test")


@numbered("dra-082")
def test_names_round_trip(case: None) -> None:
    uid = "5f0c8f8e-0000-4000-8000-000000000001"
    kind, name = parse_cdi_name(device_id(uid, gpu(0)))
    assert (kind, name) == ("cgpu.kata-gpu.dev/claim", f"{uid}-{gpu(0)}")
    assert claim_of(file_name(uid)) == uid
    assert parse_claim_file(render_claim(uid, {gpu(0): NODE}), uid).devices == {gpu(0): NODE}


@pytest.mark.parametrize(
    "uid", ["", " ", "a b", "a/b", "../a", "a\n", "-a", "a-", "a.b", "\u00e4", "a" * 64, "a.json", "a\0"], ids=repr
)
def test_a_file_of_a_name_that_we_never_write_is_not_ours(tmp_path: Path, uid: str) -> None:
    name = f"{PREFIX}{uid}{SUFFIX}"
    assert claim_of(name) is None
    for other in (name[1:], f"{PREFIX}a", f"a{SUFFIX}", f"{PREFIX}a{SUFFIX}x", f"x{PREFIX}a{SUFFIX}"):
        assert claim_of(other) is None
    with pytest.raises(Malformed):
        ClaimCdiDir(tmp_path).remove(name)


@pytest.mark.parametrize("node", ["/dev/sda", "/dev/vfio/../sda", "", 5, None, ["/dev/vfio/1"]])
def test_a_file_that_names_other_nodes_is_not_ours(node: object) -> None:
    body = json.loads(render_claim("uid", {"d": NODE}))
    body["devices"][0]["containerEdits"]["deviceNodes"] = [{"path": node}]
    with pytest.raises(Malformed):
        parse_claim_file(json.dumps(body).encode(), "uid")


@pytest.mark.parametrize(
    "devices",
    [
        pytest.param({}, id="dra-082-no-device"),
        pytest.param({"d": ()}, id="dra-082-no-node"),
        pytest.param({"d": NODE, "e": ()}, id="dra-082-one-without-node"),
        pytest.param({"d": ("/dev/sda",)}, id="dra-082-foreign-node"),
        pytest.param({"d": ("/dev/vfio/devices/vfio3\n",)}, id="dra-082-newline"),
        pytest.param({"d": ("/dev/vfio/../sda",)}, id="dra-082-traversal"),
    ],
)
def test_bad_content_is_refused_before_writing(devices: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(Malformed):
        render_claim("uid", devices)


def _device(name: object, nodes: list[str] | None = None) -> dict[str, object]:
    paths = [*NODE] if nodes is None else nodes
    return {"name": name, "containerEdits": {"deviceNodes": [{"path": path, "permissions": "rw"} for path in paths]}}


def _file(**changes: object) -> bytes:
    """A good file with one member replaced."""
    return json.dumps(json.loads(render_claim("uid", {"d": NODE})) | changes).encode()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="dra-082-read-empty"),
        pytest.param(b"[]", id="dra-082-read-list"),
        pytest.param(b'{"kind": "x/y", "devices": []}', id="dra-082-read-other-kind"),
        pytest.param(render_claim("other", {"d": NODE}), id="dra-082-read-other-claim"),
        pytest.param(_file(kind="example.com/gpu"), id="dra-082-read-other-kind-of-good-content"),
        pytest.param(_file(devices=[]), id="dra-082-read-no-device"),
        pytest.param(_file(devices=[_device("uid-d"), _device("uid-e", [])]), id="dra-082-read-one-without-node"),
        pytest.param(_file(devices=[_device("uid-d"), _device("other-d")]), id="dra-082-read-one-of-another-claim"),
        pytest.param(_file(devices=[_device(7)]), id="dra-082-read-name-no-text"),
    ],
)
def test_a_file_that_is_not_ours_is_not_read_as_ours(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_claim_file(data, "uid")


@numbered("dra-083")
def test_a_reader_in_a_loop_never_sees_a_partial_file(tmp_path: Path, case: None) -> None:
    store = ClaimCdiDir(tmp_path)
    contents = [render_claim("u", {f"d{i}": NODE for i in range(n)}) for n in (1, 200)]
    store.write(file_name("u"), contents[0])
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            for name in os.listdir(tmp_path):
                if name.endswith((".json", ".yaml")) and not name.startswith("."):
                    seen.add((tmp_path / name).read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        store.write(file_name("u"), contents[turn % 2])
    stop.set()
    reader.join()
    assert seen
    assert seen <= set(contents)


@numbered("dra-083-temporary-names")
def test_no_cdi_reader_loads_a_temporary_file(tmp_path: Path, case: None, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    real = os.rename

    def spy(source: str | Path, target: str | Path) -> None:
        names.append(Path(source).name)
        real(source, target)

    monkeypatch.setattr(os, "rename", spy)
    ClaimCdiDir(tmp_path).write(file_name("u"), b"{}")
    assert not names[0].endswith((".json", ".yaml"))


@numbered("dra-084")
def test_no_device_numbers_and_no_second_path(world: World, case: None) -> None:
    ref = world.claim(gpu(0))
    world.prepare(ref)
    spec = json.loads(world.cdi.read(file_name(ref.uid)) or b"")
    (node,) = spec["devices"][0]["containerEdits"]["deviceNodes"]
    assert node == {"path": "/dev/vfio/devices/vfio0", "permissions": "rw"}
    assert "containerEdits" not in spec


@numbered("dra-085")
def test_modes_and_links(tmp_path: Path, case: None) -> None:
    directory = tmp_path / "cdi"
    store = ClaimCdiDir(directory)
    old = os.umask(0o077)
    try:
        store.write(file_name("u"), render_claim("u", {"d": NODE}))
    finally:
        os.umask(old)
    assert (directory / file_name("u")).stat().st_mode & 0o777 == 0o644
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (file_name("v"), f".{file_name('v')}.tmp"):
        (directory / name).symlink_to(victim)
    store.write(file_name("v"), render_claim("v", {"d": NODE}))
    assert victim.read_text() == "precious"
    assert not (directory / file_name("v")).is_symlink()
    (directory / file_name("w")).symlink_to(victim)
    assert store.read(file_name("w")) is None
    with pytest.raises(Malformed):
        store.write("../escape.json", b"{}")


@numbered("dra-086")
def test_each_device_is_in_one_file(world: World, case: None) -> None:
    refs = [world.claim(gpu(0)), world.claim(gpu(1)), world.claim(gpu(2), gpu(3))]
    for ref in refs:
        world.prepare(ref)
        world.prepare(ref)
    names = [d["name"] for f in world.files() for d in json.loads((world.tmp / "cdi" / f).read_bytes())["devices"]]
    assert len(names) == len(set(names)) == 4


@numbered("dra-084-companions")
def test_the_functions_of_a_card_travel_together(world: World, case: None) -> None:
    card = world.host.functions[address(0)]
    world.host.functions["0000:17:00.1"] = replace(
        card, address=PciAddress(0, 0x17, 0, 1), class_code=0x040300, device=0x10F0, vfio_cdev="vfio8"
    )
    ref = world.claim(gpu(0))
    world.prepare(ref)
    nodes = parse_claim_file(world.cdi.read(file_name(ref.uid)) or b"", ref.uid).devices[gpu(0)]
    assert nodes == ("/dev/vfio/devices/vfio0", "/dev/vfio/devices/vfio8")
