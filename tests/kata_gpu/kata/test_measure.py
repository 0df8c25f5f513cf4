"""Launch measurements equal those of the tool that others use, and wrong firmware is refused."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_gpu.cli.main import cli, run
from kata_gpu.core.measure.ovmf import parse_ovmf
from kata_gpu.core.measure.qemu import parse_qemu_cmdline
from kata_gpu.core.measure.snp import Boot, launch_digests
from kata_gpu.core.measure.tdx import mrtd
from kata_gpu.core.measure.vmsa import CpuModel
from kata_gpu.errors import KataGpuError, Malformed, Misconfigured
from tests.kata_gpu.kata.firmware import firmware

ROOT = Path(__file__).resolve().parents[3]
PEER = ROOT / ".cache/peers/sev-snp-measure/bin/sev-snp-measure"
BOOT = Boot(kernel_sha256=hashlib.sha256(b"kernel").digest(), initrd_sha256=hashlib.sha256(b"").digest(), cmdline="a b")
# Computed once with sev-snp-measure 0.0.13 over the same image, kernel and command line.
KNOWN = {
    (
        "EPYC-Genoa",
        1,
    ): "bd24137c10a9e80f4094efb474f1178766c6dbfc1fca7dc5f8f4a74673675be438f71f4b1d964dda1a2c91ea54e5c2ec",
    (
        "EPYC-Genoa",
        2,
    ): "449c766ae76534d8320a6565183477beebcb89c261bcb64a817a77965330ac0153132722d6351e039eaea14606768d58",
    (
        "EPYC-Turin",
        4,
    ): "acb9e383f68d0824304bd446136c16f5275b1fd3cdca9c62c167aec32f0d585a4d7dd896465bd5ae714e8548ab77e6a7",
}


@pytest.mark.parametrize(("cpu", "vcpus"), KNOWN)
def test_known_answers(cpu: str, vcpus: int) -> None:
    model = {"EPYC-Genoa": CpuModel.EPYC_GENOA, "EPYC-Turin": CpuModel.EPYC_TURIN}[cpu]
    digests = dict(launch_digests(parse_ovmf(firmware()), BOOT, vcpus=vcpus, signature=model))
    assert list(digests) == list(range(1, vcpus + 1))
    assert digests[vcpus].hex() == KNOWN[cpu, vcpus]


@pytest.mark.skipif(not PEER.exists(), reason="peers: run `make peers`")
@pytest.mark.parametrize("cpu", ["EPYC-v4", "EPYC-Rome", "EPYC-Milan", "EPYC-Genoa", "EPYC-Turin"])
def test_equal_to_sev_snp_measure(cpu: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("fw", firmware()), ("kernel", b"kernel"), ("initrd", b"initrd")):
        (tmp_path / name).write_bytes(content)
    inputs = ["--kernel", str(tmp_path / "kernel"), "--initrd", str(tmp_path / "initrd")]
    line = "console=ttyS0 rootfs_verity=abc"
    assert run(cli, ["measure", "snp", "--firmware", str(tmp_path / "fw"), *inputs, "--cmdline", line, "--cpu", cpu,
                     "--vcpus", "2-3", "--output", "json"]) == 0  # fmt: skip
    ours = json.loads(capsys.readouterr().out)["snp_launch_measurement"]
    theirs = [
        subprocess.run([PEER, "--mode", "snp", "--vcpus", str(n), "--vcpu-type", cpu, "--ovmf", tmp_path / "fw", *inputs,
                        "--append", line], check=True, capture_output=True, text=True).stdout.strip()
        for n in (2, 3)
    ]  # fmt: skip
    assert ours == theirs


def test_every_input_changes_the_measurement() -> None:
    def last(image: bytes = firmware(), boot: Boot = BOOT, features: int = 1, vcpus: int = 1) -> bytes:
        digests = launch_digests(parse_ovmf(image), boot, vcpus=vcpus, signature=1, sev_features=features)
        return list(digests)[-1][1]

    changed_image = bytearray(firmware())
    changed_image[5] ^= 1
    kernel = Boot(kernel_sha256=bytes(32), initrd_sha256=BOOT.initrd_sha256, cmdline=BOOT.cmdline)
    initrd = Boot(kernel_sha256=BOOT.kernel_sha256, initrd_sha256=bytes(32), cmdline=BOOT.cmdline)
    cmdline = Boot(kernel_sha256=BOOT.kernel_sha256, initrd_sha256=BOOT.initrd_sha256, cmdline="a  b")
    variants = [last(), last(bytes(changed_image)), last(boot=kernel), last(boot=initrd), last(boot=cmdline),
                last(features=0x21), last(vcpus=2)]  # fmt: skip
    assert len(set(variants)) == len(variants)


def test_mrtd_is_the_documented_chain() -> None:
    """Recomputed here from the section table, call by call."""
    image = firmware()
    running = hashlib.sha384()

    def add(gpa: int) -> None:
        running.update(b"MEM.PAGE.ADD\0\0\0\0" + gpa.to_bytes(8, "little") + bytes(104))

    for page in range(8):  # the boot firmware volume, extended 256 bytes at a time
        gpa = 0xFFFF8000 + page * 4096
        add(gpa)
        for at in range(0, 4096, 256):
            running.update(b"MR.EXTEND".ljust(16, b"\0") + (gpa + at).to_bytes(8, "little") + bytes(104))
            start = 0x8000 + page * 4096 + at
            running.update(image[start : start + 256])
    for gpa in [0xFFFF0000, 0x80B000, 0x80C000, *range(0x810000, 0x820000, 4096)]:
        add(gpa)
    assert mrtd(parse_ovmf(image)) == running.digest()


@pytest.mark.parametrize(("image", "code"), [
    pytest.param(b"", "ovmf-size", id="empty"),
    pytest.param(bytes(4097), "ovmf-size", id="part-of-a-page"),
    pytest.param(bytes(8192), "ovmf-no-table", id="zeros"),
    pytest.param(firmware(sev=False), "ovmf-no-metadata", id="no-sev"),
    pytest.param(firmware(kernel_hashes=False), "ovmf-no-kernel-hashes", id="does-not-hash-the-kernel"),
    pytest.param(firmware().replace(b"ASEV", b"BSEV"), "ovmf-sev-metadata", id="bad-signature"),
])  # fmt: skip
def test_wrong_firmware_is_refused(image: bytes, code: str) -> None:
    with pytest.raises(Malformed) as caught:
        list(launch_digests(parse_ovmf(image), BOOT, vcpus=1, signature=1))
    assert caught.value.code == code


@pytest.mark.parametrize(("image", "code"), [
    pytest.param(firmware(tdvf=False), "ovmf-no-tdvf", id="no-tdvf"),
    pytest.param(firmware().replace(b"TDVF", b"XDVF"), "ovmf-tdvf-header", id="bad-signature"),
])  # fmt: skip
def test_wrong_tdvf_is_refused(image: bytes, code: str) -> None:
    with pytest.raises(Malformed) as caught:
        mrtd(parse_ovmf(image))
    assert caught.value.code == code


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 0x10000 - 1), st.binary(min_size=1, max_size=40))
def test_damaged_firmware_gives_a_measurement_or_our_error(at: int, damage: bytes) -> None:
    image = bytearray(firmware())
    image[at : at + len(damage)] = damage
    try:
        ovmf = parse_ovmf(bytes(image[:0x10000]))
        assert all(len(d) == 48 for _, d in launch_digests(ovmf, BOOT, vcpus=1, signature=1))
        assert len(mrtd(ovmf)) == 48
    except KataGpuError as error:
        assert error.code.startswith("ovmf-")


def test_impossible_vcpus_are_refused() -> None:
    for vcpus in (0, 513):
        with pytest.raises(Misconfigured):
            list(launch_digests(parse_ovmf(firmware()), BOOT, vcpus=vcpus, signature=1))


def test_inputs_come_from_a_running_qemu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fw").write_bytes(firmware())
    (tmp_path / "k").write_bytes(b"kernel")
    argv = [
        "qemu",
        "-bios",
        str(tmp_path / "fw"),
        "-kernel",
        str(tmp_path / "k"),
        "-append",
        "a b",
        "-smp",
        "1,maxcpus=1",
    ]
    (tmp_path / "cmdline").write_bytes("\0".join(argv).encode() + b"\0")
    assert run(cli, ["measure", "snp", "--qemu-cmdline", str(tmp_path / "cmdline"), "--output", "json"]) == 0
    expected = next(d for _, d in launch_digests(parse_ovmf(firmware()), BOOT, vcpus=1, signature=CpuModel.EPYC_GENOA))
    assert json.loads(capsys.readouterr().out) == {"snp_launch_measurement": [expected.hex()]}
    assert parse_qemu_cmdline((tmp_path / "cmdline").read_bytes(), where="t").vcpus == 1
    (tmp_path / "cmdline").write_bytes(b"qemu\0-smp\0one\0")
    assert run(cli, ["measure", "snp", "--qemu-cmdline", str(tmp_path / "cmdline")]) == 2
    assert run(cli, ["measure", "tdx", "--firmware", str(tmp_path / "fw"), "--output", "json"]) == 0
    assert run(cli, ["measure", "tdx", "--firmware", str(tmp_path / "absent")]) == 2
    assert run(cli, ["measure", "snp", "--firmware", str(tmp_path / "fw")]) == 2
    assert run(cli, ["measure", "snp", "--firmware", str(tmp_path / "fw"), "--vcpus", "4-1"]) == 2
