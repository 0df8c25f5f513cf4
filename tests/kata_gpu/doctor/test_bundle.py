"""The support bundle: doctor on it says the same, and nothing secret is in it."""

import io
import json
import tarfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_gpu.core.doctor import Profile, Report
from kata_gpu.core.doctor.redact import redact
from kata_gpu.errors import Malformed, Misconfigured
from kata_gpu.host import bundle as archive
from kata_gpu.host.real import RealHost
from kata_gpu.ops.bundle import create
from kata_gpu.ops.doctor import diagnose, source
from kata_gpu.ops.observe import observe
from tests.kata_gpu.doctor.flips import DROPIN, FLIPS, Flip
from tests.kata_gpu.doctor.tree import KUBELET_YAML, Tree, healthy

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def _bundle(tree: Tree, at: Path) -> tuple[Path, Report]:
    root = tree.write(at / "host")
    output = at / "bundle.tar.gz"
    with source(root=root) as host:
        return output, create(host, output, now=NOW, profiles=tree.profiles).report


def _contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: f.read() for m in tar if (f := tar.extractfile(m) if m.isfile() else None) is not None}


def _replay(path: Path, tree: Tree) -> dict[str, object]:
    with source(root=path) as host:
        return diagnose(host, tree.profiles).to_json()


@pytest.mark.parametrize(
    "tree",
    [
        pytest.param(healthy(), id="gpu"),
        pytest.param(healthy(Profile.SNP), id="snp"),
        pytest.param(healthy(Profile.TDX), id="tdx"),
        pytest.param(healthy(Profile.SNP, Profile.PPCIE, gpus=8, switches=4), id="hgx"),
    ],
)
def test_same_report_from_the_archive_and_unpacked(tree: Tree, tmp_path: Path) -> None:
    path, report = _bundle(tree, tmp_path)
    assert _replay(path, tree) == report.to_json()
    archive.unpack(path, tmp_path / "unpacked")
    assert _replay(tmp_path / "unpacked", tree) == report.to_json()
    assert json.loads(_contents(path)["doctor.json"]) == report.to_json()


@pytest.mark.parametrize("flip", [pytest.param(f, id=f"{f.id}-{f.name}") for f in FLIPS])
def test_same_report_of_every_broken_host(flip: Flip, tmp_path: Path) -> None:
    tree = flip.tree()
    path, report = _bundle(tree, tmp_path)
    assert _replay(path, tree) == report.to_json()


def test_inventory_is_the_same(tmp_path: Path) -> None:
    tree = healthy(Profile.SNP, Profile.PPCIE, gpus=8, switches=4)
    path, _ = _bundle(tree, tmp_path)
    archive.unpack(path, tmp_path / "unpacked")
    inventory = observe(RealHost(tmp_path / "unpacked"))
    assert len(inventory.devices) == 12
    assert inventory == observe(RealHost(tmp_path / "host"))


def test_bundle_of_a_bundle_is_the_same(tmp_path: Path) -> None:
    tree = healthy(Profile.SNP)
    first, report = _bundle(tree, tmp_path)
    with source(root=first) as host:
        again = create(host, tmp_path / "again.tar.gz", now=NOW, profiles=tree.profiles)
    assert again.report.to_json() == report.to_json()


def test_archive_is_deterministic_private_and_free_of_special_members(tmp_path: Path) -> None:
    tree = healthy(Profile.SNP)
    path, _ = _bundle(tree, tmp_path)
    first = path.read_bytes()
    with source(root=tmp_path / "host") as host:
        create(host, path, now=NOW, profiles=tree.profiles)
    assert _contents(path) == _contents_of(first)
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as tar:
        for member in tar:
            assert member.isfile() or (member.issym() and not member.linkname.startswith("/"))
            assert not member.name.startswith("/")
            assert ".." not in member.name.split("/")


def _contents_of(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {m.name: f.read() for m in tar if (f := tar.extractfile(m) if m.isfile() else None) is not None}


SECRETS = {
    "registry password": (DROPIN, '\n[registry.auth]\npassword = "hunter2-registry"\n', "hunter2-registry"),
    "kubelet token": (KUBELET_YAML, "bootstrapToken: abcdef.0123456789abcdef\n", "0123456789abcdef\n"),
    "jwt": (DROPIN, "# eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJub2RlIn0.c2lnbmF0dXJl\n", "eyJzdWIi"),
    "url password": ("/etc/kata-gpu/initdata/a.toml", 'url = "https://user:s3cr3tpass@kbs.example.com:8443"\n', "s3cr3tpass"),
    "private key": (
        "/etc/kata-gpu/initdata/a.toml",
        "key = '''\n-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIB\n-----END EC PRIVATE KEY-----\n'''\n",
        "MHcCAQEEIB",
    ),
    "libvirt": ("/etc/libvirt/qemu/vm.xml", "<graphics type='vnc' passwd='vncpass1'/>", "vncpass1"),
    "ip address": (KUBELET_YAML, "address: 192.0.2.17\n", "192.0.2.17"),
    "ipv6 address": (KUBELET_YAML, "address6: 2001:db8::17\n", "2001:db8"),
    "mac address": ("/etc/udev/rules.d/70-net.rules", '# 10de ATTR{address}=="02:42:ac:11:00:02"\n', "02:42:ac"),
    "disk key": ("/proc/cmdline", " rd.luks.key=/secretpath", "secretpath"),
    "foreign environment": ("/proc/900/environ", "TOKEN=environment-secret", "environment-secret"),
    "foreign process": ("/proc/4242/cmdline", "psql\0postgres://u:databasepw@db\0", "databasepw"),
    "foreign pod": ("/var/log/pods/bank_ledger-0_uid/0.log", "x", "ledger"),
}  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_secret_is_not_in_the_bundle(name: str, tmp_path: Path) -> None:
    path, text, secret = SECRETS[name]
    tree = healthy(Profile.SNP)
    if path == "/proc/4242/cmdline":
        tree.put("/proc/4242/comm", "psql\n")
    tree.put(path, tree.files.get(path, b"").decode() + text)
    output, _ = _bundle(tree, tmp_path)
    for entry, content in _contents(output).items():
        assert secret.encode() not in content
        assert secret not in entry


def test_kernel_log_is_filtered(tmp_path: Path) -> None:
    tree = healthy(Profile.SNP)
    tree.command("dmesg", (tree.probes.commands["dmesg"] or "") + "[ 9.0] audit: user alice logged in from 192.0.2.9\n")
    output, _ = _bundle(tree, tmp_path)
    record = _contents(output)[".probes.json"]
    assert b"alice" not in record
    assert b"RMP table" in record


TRICKY = [
    "password", "token", "auth", "=", ":", " ", "\n", "\0", '"', "'", "[", "{", "redacted", "-----BEGIN PRIVATE KEY-----",
    "-----END PRIVATE KEY-----", "eyJhbGciOiJI", ".", "https://", "@", "/", "10.1.2.3", "fe80::1", "::", "0000:17:00.0",
    "00:11:22:33:44:55", "Bearer ", "abcdefghij", "-", "x",
]  # fmt: skip


@given(st.lists(st.sampled_from(TRICKY), max_size=14).map("".join))
@settings(max_examples=600, deadline=None, derandomize=True)
def test_redaction_is_idempotent(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@pytest.mark.parametrize(
    "unit", [*TRICKY, "eyJ", "a-", "token-", "-----BEGIN PRIVATE KEY-----\n", "1.", "f:", '"auth":', "auth ", "://a"]
)
def test_redaction_is_linear(unit: str) -> None:
    text = unit * ((1 << 19) // len(unit))
    start = time.process_time()
    redact(text)
    assert time.process_time() - start < 3.0


ENCRYPTED_KEY = """-----BEGIN RSA PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-128-CBC,00

MIIE
-----END RSA PRIVATE KEY-----"""
REDACTED = {
    "password": ('password = "x y"', 'password = "redacted"'),
    "block below": ("auth:\n  anonymous: true", "auth:\n  anonymous: true"),
    "table": ("auth = { user = 1 }", "auth = { user = 1 }"),
    "argument": ("--token\0abc\0", '--token\0"redacted"\0'),
    "bearer": ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer redacted"),
    "token in url": ("git clone https://ghp_abcdef@example.com/x", "git clone https://redacted@example.com/x"),
    "encrypted key": (f"a\n{ENCRYPTED_KEY}\nb", "a\nredacted-private-key\nb"),
    "key cut off": ("-----BEGIN PRIVATE KEY-----\nMIIE", "redacted-private-key"),
    "certificate stays": ("-----BEGIN CERTIFICATE-----\nMIIE", "-----BEGIN CERTIFICATE-----\nMIIE"),
    "url": ("https://u:p@h/x", "https://redacted@h/x"),
    "ip and port": ("https://10.1.2.3:8443/x", "https://redacted-ip:8443/x"),
    "loopback stays": ("127.0.0.1 ::1", "127.0.0.1 ::1"),
    "pci address stays": ("vfio-pci 0000:17:00.0: reset done", "vfio-pci 0000:17:00.0: reset done"),
    "time stays": ("10:58:42", "10:58:42"),
    "firmware version stays": ("96.00.74.00.01", "96.00.74.00.01"),
    "mac": ("00:11:22:33:44:55", "redacted-mac"),
    "mac of a network boot": ("BOOTIF=01-aa-bb-cc-dd-ee-ff", "BOOTIF=redacted-mac"),
    "addresses of a network boot": ("ip=10.0.0.1::10.0.0.254:", "ip=redacted-ip::redacted-ip:"),
    "mapped address": ("::ffff:10.1.2.3", "::ffff:redacted-ip"),
    "argument after a space": ("x --token abcdef.012 --y", "x --token redacted --y"),
    "escaped quote": (r'password = "a\" b" # c', 'password = "redacted" # c'),
    "doubled quote": ("password: 'it''s' # c", 'password: "redacted" # c'),
    "over lines": ('password = """\na\n"""\nb', 'password = "redacted"\nb'),
    "without end": ('password = "a b', 'password = "redacted"'),
    "list": ('x-api-key = ["a", 1]', 'x-api-key = ["redacted", 1]'),
    "uuid stays": ("0a1b2c3d-0011-2233-4455-66778899aabb", "0a1b2c3d-0011-2233-4455-66778899aabb"),
}  # fmt: skip


@pytest.mark.parametrize("name", REDACTED)
def test_redaction(name: str) -> None:
    text, expected = REDACTED[name]
    assert redact(text) == expected
    assert redact(expected) == expected


def _tar(at: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(at, "w:gz") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return at


def _info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "member",
    [
        pytest.param(_info("../outside"), id="dot-dot"),
        pytest.param(_info("a", tarfile.SYMTYPE, "/etc/passwd"), id="absolute-link"),
        pytest.param(_info("a", tarfile.SYMTYPE, "../../../../etc/passwd"), id="escaping-link"),
        pytest.param(_info("dev/kvm", tarfile.CHRTYPE), id="device"),
        pytest.param(_info("a", tarfile.LNKTYPE, "b"), id="hard-link"),
    ],
)
def test_hostile_archive_is_refused(member: tarfile.TarInfo, tmp_path: Path) -> None:
    path = _tar(tmp_path / "x.tar.gz", (member, b""))
    with pytest.raises(Malformed) as caught:
        archive.unpack(path, tmp_path / "out")
    assert caught.value.code in {"bundle-content", "bundle-archive"}
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("data", [b"", b"not a tar", b"\x1f\x8b" + b"\0" * 64], ids=["empty", "text", "gzip-header"])
def test_no_archive_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(data)
    with pytest.raises(Malformed, match="cannot unpack"), source(root=path):
        pass


def test_too_large_archive_is_refused_before_it_fills_the_disk(tmp_path: Path) -> None:
    info = _info("big")
    path = _tar(tmp_path / "x.tar.gz", (info, bytes(archive.MAX_BYTES + 1)))
    with pytest.raises(Malformed, match="not a support bundle"):
        archive.unpack(path, tmp_path / "out")
    assert not (tmp_path / "out" / "big").exists()


def test_absent_root_is_the_operators_mistake(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="neither a directory nor a bundle"), source(root=tmp_path / "none"):
        pass


@pytest.mark.parametrize(
    "record", ["[]", "{}", '{"commands": {"a": 1}, "nodes": {}, "peers": {}}', "{" * 2000, '"' + "x" * 40_000_000 + '"'],
    ids=["list", "empty", "wrong-type", "deep", "huge"],
)  # fmt: skip
def test_broken_probe_record_is_refused(record: str, tmp_path: Path) -> None:
    (tmp_path / ".probes.json").write_text(record)
    with pytest.raises(Malformed, match="not a probe record"), source(root=tmp_path):
        pass
