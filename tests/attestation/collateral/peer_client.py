"""Runs inside the virtual environment of NVIDIA's client, unmodified: one JSON command on stdin, one JSON line out."""

import hashlib
import json
import sys
from typing import Any

from nv_attestation_sdk.attestation import Attestation, Devices, Environment
from nv_attestation_sdk.verifiers.nv_switch_verifier.config import BaseSettings as SwitchSettings
from nv_attestation_sdk.verifiers.nv_switch_verifier.nvswitch_admin_utils import NVSwitchAdminUtils
from verifier.cc_admin_utils import CcAdminUtils
from verifier.config import BaseSettings


def attest(command: dict[str, Any]) -> dict[str, Any]:
    """Recorded evidence to a remote verifier, then the client's own validation of the token it got."""
    client = Attestation("peer")
    client.set_nonce(command["nonce"])
    client.set_claims_version(command["claims_version"])
    client.add_verifier(Devices[command["device"]], Environment.REMOTE, command["url"], "")
    attested = client.attest(command["evidence"])
    validated = [client.validate_token(json.dumps(policy)) for policy in command["policies"]]
    return {"attested": attested, "validated": validated, "token": client.get_token()}


def fetch_rim(command: dict[str, Any]) -> dict[str, Any]:
    """Both of the client's RIM fetchers against a mirror."""
    BaseSettings.RIM_SERVICE_BASE_URL = SwitchSettings.RIM_SERVICE_BASE_URL = command["url"]
    found = [fetcher.fetch_rim_file(command["rim_id"]) for fetcher in (NVSwitchAdminUtils, CcAdminUtils)]
    return {"sha256": [hashlib.sha256(text.encode()).hexdigest() for text in found]}


def main() -> None:
    """The client prints to stdout, too: the answer is the last line."""
    command = json.load(sys.stdin)
    print("\n" + json.dumps({"attest": attest, "fetch-rim": fetch_rim}[command["do"]](command)))


if __name__ == "__main__":
    main()
