"""`kata-gpu measure snp|tdx`: the launch measurements that the broker should expect, as an importable file."""

import hashlib
import json
from pathlib import Path

import click

from kata_gpu.core.measure.ovmf import MAX_OVMF_BYTES, parse_ovmf
from kata_gpu.core.measure.qemu import MAX_CMDLINE_BYTES, parse_qemu_cmdline
from kata_gpu.core.measure.snp import Boot, launch_digests
from kata_gpu.core.measure.tdx import mrtd
from kata_gpu.core.measure.vmsa import SNP_ACTIVE, CpuModel
from kata_gpu.errors import ExitCode, Misconfigured

_MODELS = {m.name.replace("_", "-").title().replace("Epyc", "EPYC").replace("-V4", "-v4"): m for m in CpuModel}


@click.group()
def measure() -> None:
    """Compute expected launch measurements from what will be launched.

    \b
    Example:
      kata-gpu measure snp --firmware AMDSEV.fd --kernel vmlinuz --cmdline-file cmdline --vcpus 1-16 --cpu EPYC-Genoa
      kata-gpu measure snp --qemu-cmdline /proc/$(pgrep -n qemu)/cmdline --vcpus 1-16 --cpu EPYC-Genoa
    """


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as exc:
        raise Misconfigured("measure-read", "cannot read", where=str(path), got=exc.strerror or exc) from exc
    if len(data) > limit:
        raise Misconfigured("measure-size", "file is too large", where=str(path), expected=f"at most {limit} bytes")
    return data


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as exc:
        raise Misconfigured("measure-read", "cannot read", where=str(path), got=exc.strerror or exc) from exc
    return digest.digest()


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()) or int(last or first) < int(first) or int(first) < 1:
        raise Misconfigured(
            "measure-vcpus", "bad range of vCPU counts", where="--vcpus", expected="4 or 1-16", got=text
        )
    return int(first), int(last or first)


@measure.command()
@click.option("--firmware", type=click.Path(path_type=Path), help="OVMF image (AMDSEV build).")
@click.option("--kernel", type=click.Path(path_type=Path), help="Guest kernel.")
@click.option("--initrd", type=click.Path(path_type=Path), help="Guest initrd, where there is one.")
@click.option("--cmdline", help="Kernel command line, exactly as QEMU gets it (the verity root hash is part of it).")
@click.option("--cmdline-file", type=click.Path(path_type=Path), help="The same from a file; one final newline is cut.")
@click.option(
    "--qemu-cmdline", type=click.Path(path_type=Path), help="/proc/PID/cmdline of a sandbox's QEMU instead of all."
)
@click.option(
    "--vcpus", default="1", show_default=True, metavar="N|A-B", help="Numbers of vCPUs that the policy allows."
)
@click.option(
    "--cpu", type=click.Choice(list(_MODELS)), default="EPYC-Genoa", show_default=True, help="QEMU's CPU model."
)
@click.option("--features", type=lambda v: int(v, 16), default=f"{SNP_ACTIVE:x}", metavar="HEX", help="SEV_FEATURES.")
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the result."
)
def snp(
    firmware: Path | None, kernel: Path | None, initrd: Path | None, cmdline: str | None, cmdline_file: Path | None,
    qemu_cmdline: Path | None, vcpus: str, cpu: str, features: int, output: str,
) -> int:  # fmt: skip
    """SEV-SNP MEASUREMENT for every allowed number of vCPUs. JSON is the file that the broker imports.

    \b
    Example:
      kata-gpu measure snp --firmware AMDSEV.fd --kernel vmlinuz --cmdline-file cmdline --vcpus 1-16 --output json
    """
    first, last = _range(vcpus)
    if qemu_cmdline is not None:
        launch = parse_qemu_cmdline(_read(qemu_cmdline, MAX_CMDLINE_BYTES), where=str(qemu_cmdline))
        firmware, kernel, cmdline = Path(launch.firmware), Path(launch.kernel), launch.cmdline
        initrd = Path(launch.initrd) if launch.initrd else None
    elif cmdline_file is not None:
        cmdline = _read(cmdline_file, MAX_CMDLINE_BYTES).decode("utf-8", "surrogateescape").removesuffix("\n")
    if firmware is None or kernel is None or cmdline is None:
        raise Misconfigured("measure-inputs", "not enough to compute a measurement",
                            expected="--firmware, --kernel and --cmdline, or --qemu-cmdline")  # fmt: skip
    boot = Boot(
        kernel_sha256=_sha256(kernel),
        initrd_sha256=hashlib.sha256(b"").digest() if initrd is None else _sha256(initrd),
        cmdline=cmdline,
    )
    ovmf = parse_ovmf(_read(firmware, MAX_OVMF_BYTES))
    digests = launch_digests(ovmf, boot, vcpus=last, signature=_MODELS[cpu], sev_features=features)
    chosen = {n: d.hex() for n, d in digests if n >= first}
    if output == "json":
        click.echo(json.dumps({"snp_launch_measurement": list(chosen.values())}, indent=1))
    else:
        for count, digest in chosen.items():
            click.echo(f"{count:>4} vCPU  {digest}")
    return ExitCode.OK


@measure.command()
@click.option("--firmware", type=click.Path(path_type=Path), required=True, help="TDVF image (OVMF.inteltdx.fd).")
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the result."
)
def tdx(firmware: Path, output: str) -> int:
    """TDX MRTD of a firmware image. Kernel and command line are in RTMR1 and RTMR2, which the firmware measures.

    \b
    Example:
      kata-gpu measure tdx --firmware OVMF.inteltdx.fd --output json
    """
    digest = mrtd(parse_ovmf(_read(firmware, MAX_OVMF_BYTES))).hex()
    click.echo(json.dumps({"mr_td": [digest]}, indent=1) if output == "json" else digest)
    return ExitCode.OK
