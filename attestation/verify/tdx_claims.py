"""The claims of a TDX quote, with the names and types of trustee's `tdx` map (tee.md 6.4)."""

from typing import Any

from attestation.formats.tdx_collateral import TdxCollateral
from attestation.values import JsonObject, JsonValue
from attestation.verify.tdx_policy import DEBUG, SEPT_VE_DISABLE, TdxFacts


def tdx_claims(
    facts: TdxFacts, native: dict[str, Any], known: TdxCollateral, events: tuple[JsonObject, ...]
) -> JsonObject:
    """The claims of a quote that verified. `native` is what dcap-qvl says of it, `events` its event log."""
    quote, td, attributes = facts.quote, facts.quote.td, facts.quote.td.td_attributes
    header = quote.header
    body: dict[str, JsonValue] = {
        "tcb_svn": td.tee_tcb_svn.hex(),
        "mr_seam": td.mr_seam.hex(),
        "mrsigner_seam": td.mrsigner_seam.hex(),
        "seam_attributes": td.seam_attributes.hex(),
        "td_attributes": attributes.to_bytes(8, "little").hex(),
        "xfam": td.xfam.to_bytes(8, "little").hex(),
        "mr_td": td.mr_td.hex(),
        "mr_config_id": td.mr_config_id.hex(),
        "mr_owner": td.mr_owner.hex(),
        "mr_owner_config": td.mr_owner_config.hex(),
        "report_data": td.report_data.hex(),
        **{f"rtmr_{index}": register.hex() for index, register in enumerate(td.rtmrs)},
    }
    if td.tee_tcb_svn2 is not None and td.mr_service_td is not None:
        body |= {"tee_tcb_svn2": td.tee_tcb_svn2.hex(), "mr_servicetd": td.mr_service_td.hex()}
    platform = native["platform"]
    return {
        "quote": {
            "header": {
                "version": header[0:2].hex(),
                "att_key_type": header[2:4].hex(),
                "tee_type": header[4:8].hex(),
                "reserved": header[8:12].hex(),
                "vendor_id": header[12:28].hex(),
                "user_data": header[28:48].hex(),
            },
            "body": body,
        },
        "td_attributes": {
            "debug": bool(attributes & DEBUG),
            "septve_disable": bool(attributes & SEPT_VE_DISABLE),
            "protection_keys": bool(attributes >> 30 & 1),
            "key_locker": bool(attributes >> 31 & 1),
            "perfmon": bool(attributes >> 63 & 1),
        },
        "report_data": td.report_data.hex(),
        "init_data": td.mr_config_id.hex(),
        "uefi_event_logs": list(events),
        "tcb_status": facts.status,
        "tcb_date": facts.tcb_date,
        "tcb_eval_num": facts.evaluation,
        "advisory_ids": list(facts.advisories),
        "collateral_expiration_status": "0",
        "earliest_expiration_date": min(known.tcb_info.next_update, known.qe_identity.next_update).isoformat(),
        "earliest_issue_date": native["earliest_issue_date"],
        "latest_issue_date": native["latest_issue_date"],
        "pck_crl_num": platform["pck_crl_num"],
        "root_ca_crl_num": platform["root_ca_crl_num"],
        "root_key_id": bytes(platform["root_key_id"]).hex(),
        "sgx_type": platform["pck"]["sgx_type"],
        "is_dynamic_platform": facts.flags["dynamic_platform"] == "True",
        "is_cached_keys": facts.flags["cached_keys"] == "True",
        "is_smt_enabled": facts.flags["smt_enabled"] == "True",
        "platform_instance_id": facts.platform_instance,
    }
