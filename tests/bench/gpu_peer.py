"""Drives the peer `nv-local-gpu-verifier` 2.7.3 over one artefact, in its own virtual environment.

    PEER_VENV/bin/python tests/bench/gpu_peer.py PACKAGE_FOLDER ARTEFACT_FOLDER ROUNDS

Parse, chain, signature, both reference documents and comparison run as NVIDIA wrote them; only what needs a network or
a GPU is replaced here: OCSP answers good, documents come from the artefact folder. Prints JSON of milliseconds.
"""

import json
import logging
import sys
import time
from pathlib import Path
from types import SimpleNamespace

package, folder, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, str(package))
started = time.perf_counter()

from OpenSSL import crypto  # noqa: E402
from verifier import cc_admin, cc_admin_utils  # noqa: E402
from verifier.config import BaseSettings  # noqa: E402

imported = time.perf_counter() - started
logging.disable(logging.CRITICAL)

BaseSettings.RIM_ROOT_CERT = str(folder / "nvidia-rim-root.pem")
BaseSettings.DEVICE_ROOT_CERT = str(folder / "nvidia-device-root.pem")
documents = {path.stem: path.read_text() for path in folder.glob("*.xml")}
report = (folder / "report.bin").read_bytes()
meta = json.loads((folder / "meta.json").read_text())


def direct(call: list[object], _timeout: object) -> object:
    """`function_wrapper_with_timeout` without its worker."""
    return documents[str(call[1])]


cc_admin.function_wrapper_with_timeout = direct
cc_admin.NvmlHandler.is_cc_dev_mode = staticmethod(lambda: False)
cc_admin_utils.CcAdminUtils.ocsp_certificate_chain_validation = staticmethod(lambda *_: (True, None, "good", None))


def evidence() -> SimpleNamespace:
    """What NVML would have answered; certificates are loaded anew each time, as the peer does for each GPU."""
    pems = (folder / "chain.pem").read_bytes().split(b"-----END CERTIFICATE-----\n")
    end = b"-----END CERTIFICATE-----\n"
    chain = [crypto.load_certificate(crypto.FILETYPE_PEM, pem + end) for pem in pems if pem.strip()]
    return SimpleNamespace(
        get_gpu_architecture=lambda: HOPPER,
        get_uuid=lambda: "GPU-0",
        get_driver_version=lambda: meta["driver"],
        get_vbios_version=lambda: meta["vbios"],
        get_attestation_report=lambda: report,
        get_attestation_cert_chain=lambda: chain,
    )


HOPPER = 9  # NVML architecture number
OPTIONS = {
    "allow_hold_cert": False, "claims_version": "3.0", "ocsp_nonce_disabled": True, "rim_service_url": None,
    "ocsp_url": None, "service_key": None, "verbose": False, "driver_rim": None, "vbios_rim": None,
    "test_no_gpu": False, "user_mode": True,
}  # fmt: skip


def attest() -> None:
    """One verification, which must succeed: otherwise less would be measured."""
    ok, _token = cc_admin.attest(OPTIONS, meta["nonce"], [evidence()])
    if not ok:
        raise SystemExit("the peer refused the artefact")


def timed() -> float:
    """Milliseconds of one verification."""
    before = time.perf_counter()
    attest()
    return (time.perf_counter() - before) * 1e3


first = timed()
warm = sorted(timed() for _ in range(rounds))
print(json.dumps({"import": imported * 1e3, "first": first, "warm_best": warm[0], "warm_median": warm[len(warm) // 2]}))
