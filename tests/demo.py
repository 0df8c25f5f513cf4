"""`make demo`: the whole path with the real commands, from a host to a decrypted model, and what is refused.

Every line that starts with `$` is the command as it ran. Only the hardware is simulated, and the broker says so; the
NVIDIA evidence of step 2 is genuine.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
SAMPLES = ROOT / ".cache/nv-local-gpu-verifier/verifier/samples"
VECTORS = Path(os.environ.get("KATA_GPU_VECTORS", ROOT.parent / "shared" / "vectors"))
WIDTH = 130
TODAY = "2026-11-21T00:00:00Z"  # what "now" is for genuine evidence: the demo does not depend on the calendar
NONCE = "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb"  # of the recorded reports
START_S = 15.0
CHANGED_AT = 400  # a hexadecimal digit of the report: in a measurement, which is signed
PROBE = 64  # bytes of plaintext that must not be in the ciphertext
KEY = "kbs:///models/llama/key"
AGENT_POLICY = "package agent_policy\n\ndefault ExecProcessRequest := false\ndefault ReadStreamRequest := false\n"
RELEASE_POLICY = """\
version = 1

[cpu]                       # one CPU TEE, of this launch measurement
tee = "snp"
measurement = {{ reference = "snp_launch_measurement" }}

[gpus]                      # and one Hopper GPU in confidential mode with known firmware
count = 1
arch = "hopper"
mode = "on"
driver_version = {{ at_least = "550.90.07" }}
vbios_version = {{ unchecked = "NVIDIA's reference documents name the accepted versions" }}

[init_data]                 # started with this broker and this agent policy, and no other
accept = ["{init_data}"]
"""


INTRO = """\
The owner of a model stores its key at a broker under a policy. The host starts a confidential VM with a GPU; CPU and GPU sign
what they are; the broker compares this with the policy and gives the key to that VM alone. Nobody has to trust the host.
Lines with $ are commands as they ran, in a folder that is gone at the end (docs/tutorial.md: the same to keep); -> says what
to look at. Only hardware is simulated."""
WHY = """\
   fresh     the broker's nonce is in what the CPU signed and, hashed, in what the GPU signed: recorded reports are refused
             (--replay-gpu, --stale-nonce)
   genuine   both reports are signed by keys that chain to pinned vendor roots: here to forged ones, and the broker warns; in
             step 2 to NVIDIA's own, and one changed digit is refused
   known     the CPU measured exactly the guest of the policy (--fault=cpu-measurement), and every GPU measurement is one that
             the vendor signed (--tamper=measurement)
   owner's   the guest was told its broker, certificate and agent policy by the owner, not by the host (--fault=other-init-data)
   sealed    the key was encrypted to a key made inside this VM and named in its CPU report: the host carried ciphertext
   recorded  each decision is in a signed, chained log, with the chip, the GPU and the policy
What this run does not prove
   hardware  the chip, the GPU and their roots were forged: only a key labelled `test` can leave such a broker
   place     no signature says that CPU and GPU are in one machine: the measured guest vouches for the GPU that it drives
   whose     any genuine chip and GPU would have done: a policy may name them (`[gpus.hosts]`; above: identity_allowlist off)
   waived    what a policy leaves `unchecked` was not looked at: each release names it (here the VBIOS version)
All of it: docs/threat-model.md."""


class Failed(Exception):
    """A step did not do what it shows."""


def _paint(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if sys.stdout.isatty() else text


def step(number: int, title: str, why: str) -> None:
    """Announce a step and why it matters."""
    print(f"\n{_paint('1;36', f'{number}. {title}')}\n{_paint('2', why)}", flush=True)


def note(text: str) -> None:
    """What to see in the output above."""
    print(_paint("32", f"   -> {text}"), flush=True)


def show(text: str, colour: str = "0") -> None:
    """Output below its command, wrapped rather than cut: the end of a refusal says why."""
    for line in text.splitlines():
        for part in textwrap.wrap(line, WIDTH, subsequent_indent="  ", drop_whitespace=False) or [""]:
            print(f"     {_paint(colour, part)}", flush=True)


def run(
    *argv: str | Path,
    expect: int = 0,
    lines: int = 6,
    contains: str = "",
    refused: bool = False,
    into: str = "",
    cwd: Path,
) -> str:
    """Run one command, show it with the first and last lines of its output, and demand its exit code.

    Returns what it said. `into` is the file that its output goes to instead.
    """
    words = [str(a) for a in argv]
    shown = " ".join(w.replace(f"{cwd}/", "").replace(f"{ROOT}/", "") for w in words) + (f" > {into}" if into else "")
    print(f"   {_paint('1', f'$ {shown}')}", flush=True)
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    body = ((done.stderr if refused else "") or done.stdout or done.stderr).rstrip().splitlines()
    if into:
        (cwd / into).write_text(done.stdout)
        body = []
    elif len(body) > lines:
        head = (lines + 1) // 2
        body = [*body[:head], f"... ({len(body) - lines} lines)", *body[len(body) - (lines - head) :]]
    show("\n".join(body))
    if done.returncode != expect:
        raise Failed(f"`{shown}` gave exit code {done.returncode}, expected {expect}\n{done.stdout}\n{done.stderr}")
    if contains not in done.stdout + done.stderr:
        raise Failed(f"`{shown}` does not say {contains!r}\n{done.stdout}\n{done.stderr}")
    return done.stdout or done.stderr


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def broker(work: Path, guests: int, admins: int) -> Iterator[Path]:
    """`kata-gpu-kbs serve` in the background; gives the path of its log."""
    log = work / "broker.log"
    argv = ["kata-gpu-kbs", "serve", "--store", "store", "--listen", f"127.0.0.1:{guests}",
            "--admin-listen", f"127.0.0.1:{admins}", "--tls-cert", "kbs.pem", "--tls-key", "kbs.key",
            "--unsafe-trust-simulated-roots", "roots"]  # fmt: skip
    print(f"   {_paint('1', '$ ' + ' '.join(argv) + ' &')}", flush=True)
    with log.open("w") as output:
        process = subprocess.Popen([str(BIN / argv[0]), *argv[1:]], cwd=work, stdout=output, stderr=output)
    try:
        _await_listener(process, guests, log)
        yield log
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()


def certificate(work: Path) -> None:
    """A self-signed certificate for loopback: the guest pins it, no public authority is asked."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kata-gpu demo broker")])
    now = datetime.fromtimestamp(time.time(), UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (work / "kbs.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (work / "kbs.key").write_bytes(private)


def _await_listener(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise Failed(f"the broker did not start\n{log.read_text()}")


def host(work: Path) -> None:
    """Step 1."""
    step(1, "A host with 8 GPUs and 4 NVSwitches becomes a confidential GPU node",
         "The host is a kernel model (IOMMU groups, drivers, GPU registers) behind the port that a real host uses. Kubelet,\n"
         "containerd and Kata are not simulated: doctor fails their checks, as it must, and says the fix.")  # fmt: skip
    sim = ("--sim", "host.sim")
    run("kata-gpu", "sim", "create", "--preset", "hgx-h100", "host.sim", cwd=work)
    run("kata-gpu", "doctor", *sim, "--profile", "gpu,snp", lines=16, expect=1, cwd=work)
    note("kernel, IOMMU, SEV-SNP and devices are in order; kubelet, containerd and Kata are what is left to do")
    run("kata-gpu", "gpus", *sim, cwd=work)
    setup = ("kata-gpu", "node", "setup", "--cc-mode", "on", *sim)
    run(*setup, "--dry-run", contains="nothing changed", cwd=work)
    run(*setup, lines=2, contains="carried out and read back", cwd=work)
    run("kata-gpu", "gpus", *sim, contains="vfio-pci", cwd=work)
    note("8 GPUs are `on`; NVSwitches stay `off`, for each VM gets one GPU (`--cc-mode ppcie` takes the whole board)")
    run(*setup, contains="nothing to do", cwd=work)
    note("the second run plans nothing: what was asked for is what is there")


def evidence(work: Path) -> None:
    """Step 2."""
    step(2, "Genuine NVIDIA evidence, verified offline",
         "Signed by a real GPU. No socket is opened: roots are pinned, the time is explicit.")  # fmt: skip
    report, chain = SAMPLES / "hopperAttestationReport.txt", SAMPLES / "hopperCertChain.txt"
    gpu = ("kata-gpu-kbs", "verify", "gpu", "--at", TODAY)
    run(*gpu, "--report", report, "--chain", chain, "--require", "authentic", lines=14, cwd=work)
    note("authentic: a genuine H100 signed this. Not trusted: no nonce of ours, no reference values, and it says so")
    text = report.read_text()
    changed = text[:CHANGED_AT] + ("0" if text[CHANGED_AT] != "0" else "1") + text[CHANGED_AT + 1 :]
    (work / "changed.txt").write_text(changed)
    run(*gpu, "--report", "changed.txt", "--chain", chain, "--require", "authentic", lines=12, expect=1,
        contains="signature does not verify", cwd=work)  # fmt: skip
    note("the same report with one digit changed")
    switch = VECTORS / "nvidia/switch"
    if not switch.is_dir():
        note(
            "left out: a recorded NVSwitch report, which is not in this repository (KATA_GPU_VECTORS names its folder)"
        )
        return
    rim = VECTORS / "nvidia/rim/switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml"
    run(*gpu, "--report", switch / "switchAttestationReport.txt", "--chain", switch / "switchCertChain.txt",
        "--rim", rim, "--nonce", NONCE, lines=20, contains="31 of 31", cwd=work)  # fmt: skip
    note("trusted: fresh, and 31 of 31 measurements equal NVIDIA's signed reference values")


def owner(work: Path, guests: int, admins: int) -> str:
    """Step 3: what the model owner does. Returns the SHA-256 of the model."""
    (work / "agent-policy.rego").write_text(AGENT_POLICY)
    built = run("kata-gpu", "initdata", "build", "--tee", "snp", "--kbs-url", f"https://127.0.0.1:{guests}",
                "--kbs-cert", "kbs.pem", "--agent-policy", "agent-policy.rego", "-o", "init.toml", cwd=work)  # fmt: skip
    digest = built.partition("digest: ")[2].split()[0]
    note("the guest learns its broker from measured init-data, whose digest the policy names")
    from attestation.simulate.amd import MEASUREMENT

    (work / "measured.json").write_text(json.dumps({"snp_launch_measurement": [MEASUREMENT.hex()]}))
    run("kata-gpu-kbs", "reference", "import", "measured.json", "--store", "store", cwd=work)
    note("the one launch measurement that the broker accepts; on a real node `kata-gpu measure snp` computes it")
    policy = RELEASE_POLICY.format(init_data=f"sha256:{digest}")
    (work / "release.toml").write_text(policy)
    print(f"   {_paint('1', '$ cat release.toml')}")
    show(policy)
    note("the policy: what is not named here gets no key; there is no default that lets anybody in")
    (work / "model").mkdir()
    weights = b"".join(hashlib.sha256(n.to_bytes(4, "big")).digest() for n in range(1 << 16))
    (work / "model/weights.bin").write_bytes(weights)
    run("kata-gpu-kbs", "user", "add", "owner", "--role", "admin", "--store", "store", cwd=work)
    run("kata-gpu-kbs", "user", "token", "owner", "--store", "store", into="owner.token", cwd=work)
    run("kata-gpu-kbs", "model", "encrypt", "model", "model.kgm", "--key", KEY, "--policy", "release.toml",
        "--label", "test", "--broker", f"https://127.0.0.1:{admins}", "--broker-cert", "kbs.pem",
        "--admin-token-file", "owner.token", cwd=work)  # fmt: skip
    note("key and policy are in the broker, encrypted at rest; the model on disk is ciphertext")
    return hashlib.sha256(weights).hexdigest()


def vm(work: Path, sha256: str) -> None:
    """Step 4."""
    step(4, "A confidential VM attests its CPU and its GPU, gets the key and decrypts the model in memory",
         "POST /kbs/v0/auth, POST /kbs/v0/attest, GET /kbs/v0/resource/...: the key comes sealed to the VM's own key.")  # fmt: skip
    target = Path(tempfile.mkdtemp(prefix="kata-gpu-demo-", dir="/dev/shm")) / "model"
    try:
        run("kata-gpu-kbs", "simulate", "vm", KEY, "--init-data", "init.toml", "--model", "model.kgm",
            "--target", target, lines=12, cwd=work)  # fmt: skip
        if hashlib.sha256((target / "weights.bin").read_bytes()).hexdigest() != sha256:
            raise Failed("the decrypted model differs from the original")
    finally:
        shutil.rmtree(target.parent, ignore_errors=True)
    note(f"SHA-256 of the decrypted weights equals the original: {sha256[:16]}...")
    weights = (work / "model/weights.bin").read_bytes()[:PROBE]
    if any(weights in path.read_bytes() for path in (work / "model.kgm").rglob("*") if path.is_file()):
        raise Failed("the encrypted model holds plaintext")
    run("kata-gpu-kbs", "audit", "who", "models/llama/key", "--store", "store", lines=12, contains="released", cwd=work)
    note("who got it: this chip, this GPU, under this policy; `simulated true` marks evidence that proves nothing")


def refusals(work: Path, log: Path) -> None:
    """Step 5."""
    step(5, "The same VM is refused when one thing is wrong, and the operator sees which",
         "The guest gets an opaque ticket; the reason goes to the operator's log and the signed audit trail.")  # fmt: skip
    for fault, says in (
        ("--tamper=measurement", "measurement["),
        ("--fault=cpu-measurement", "cpu0"),
        ("--replay-gpu", "nonce"),
        ("--stale-nonce", "report-data"),
        ("--fault=other-init-data", "init-data"),
    ):
        before = log.read_text()
        run("kata-gpu-kbs", "simulate", "vm", KEY, "--init-data", "init.toml", fault, expect=1, refused=True, cwd=work)
        new = [line for line in log.read_text()[len(before) :].splitlines() if says in line]
        if not new:
            raise Failed(f"the broker's log does not name the finding {says!r}:\n{log.read_text()[len(before) :]}")
        show("broker.log: " + new[0].partition(" event=")[2], "33")
    run("kata-gpu-kbs", "audit", "verify", "--store", "store", lines=2, cwd=work)
    note("every decision is in the hash-chained, signed log")


def main() -> int:
    """Console entry: 0 when every step did what it shows."""
    started = time.perf_counter()
    print(f"\n{INTRO}")
    work = Path(tempfile.mkdtemp(prefix="kata-gpu-demo-"))
    try:
        host(work)
        evidence(work)
        step(3, "The model owner stores a key under a policy, and encrypts a model with it",
             "One CPU TEE and one Hopper GPU, by measurement. The broker runs with forged roots and says that this is "
             "unsafe.")  # fmt: skip
        run("kata-gpu-kbs", "simulate", "roots", "roots", cwd=work)
        certificate(work)
        guests, admins = free_port(), free_port()
        with broker(work, guests, admins) as log:
            sha256 = owner(work, guests, admins)
            vm(work, sha256)
            refusals(work, log)
    except Failed as exc:
        print(f"\nFAILED: {exc}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"\n{_paint('1;36', 'Why it was safe to release the key')}")
    print(WHY)
    print(f"\n{_paint('1;32', 'All five steps did what they show')} in {time.perf_counter() - started:.0f} s.")
    print("Next: docs/tutorial.md (a real node), docs/architecture.md (where each step lives in the code).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
