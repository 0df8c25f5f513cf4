"""The `[snp]` and `[tdx]` tables of a verification policy."""

from datetime import timedelta

from attestation.appraise.fields import Fields, bad
from attestation.formats.snp_report import Firmware
from attestation.formats.snp_tcb import Product, Tcb
from attestation.verify.snp_policy import Rule, SnpPolicy, TcbFloors
from attestation.verify.snp_trust import ChainRules, CrlMode, LeafKind
from attestation.verify.tdx_trust import TcbStatus, TdxPolicy

_BYTE, _U32, _U64 = 0xFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF  # TOML integers have 64 bits with a sign
_MAX_VMPL, _MAX_REPORT_VERSION = 3, 5
_MAX_TRAILING = 64 * 1024
_SNP, _TDX = SnpPolicy(), TdxPolicy()
_SNP_BITS = (
    "smt", "single_socket", "cxl", "aes_xts", "rapl_disabled", "ciphertext_hiding", "page_swap_disabled", "tsme",
    "ecc", "alias_check",
)  # fmt: skip


def read_snp(table: Fields) -> SnpPolicy:
    """Rules for SEV-SNP. Raises Misconfigured with the path of the field."""
    firmware, abi = table.numbers("min_firmware", 3), table.numbers("min_abi", 2)
    fields = {
        "products": table.members("products", Product, _SNP.products),
        "versions": table.integers("report_versions", _SNP.versions, _MAX_REPORT_VERSION),
        "leaf_kinds": table.members("signing_keys", LeafKind, _SNP.leaf_kinds),
        "csp_ids": table.texts("csp_ids", _SNP.csp_ids),
        "chain": ChainRules(
            crl=table.member("crl", CrlMode, _SNP.chain.crl), vcek_grace=table.days("vcek_grace_days", timedelta(0))
        ),
        "floors": _floors(table.table("floors")),
        "min_firmware": None if firmware is None else Firmware(*firmware),
        "provisional_firmware": table.forbidden("provisional_firmware", default=False),
        "vmpls": table.integers("vmpls", _SNP.vmpls, _MAX_VMPL),
        "min_abi": _SNP.min_abi if abi is None else abi,
        "min_guest_svn": table.integer("min_guest_svn", 0, _U32),
        "mitigations": table.integer("mitigations", 0, _U64),
        "id_keys": table.hexes_or_any("id_keys"),
        "author_keys": table.hexes_or_any("author_keys"),
        "family_ids": table.hexes_or_any("family_ids"),
        "image_ids": table.hexes_or_any("image_ids"),
        "chip_allow": table.hexes_or_any("chip_allow"),
        "chip_deny": table.hexes("chip_deny", _SNP.chip_deny),
        "masked_chip": table.forbidden("masked_chip", default=False),
        **{name: _bit(table, name) for name in _SNP_BITS},
    }
    return table.built(lambda: SnpPolicy(**fields))  # type: ignore[arg-type]  # each reader gives its field's type


def _bit(table: Fields, name: str) -> Rule:
    """`"require"`, `"forbid"`, or waived."""
    if table.waived(name) is not None:
        return Rule.ANY
    if not table.has(name):
        default: Rule = getattr(_SNP, name)
        return default
    value = table.take(name)
    if value not in (Rule.REQUIRE, Rule.FORBID):
        raise bad(table.path(name), '"require", "forbid" or { unchecked = "reason" }', value)
    return Rule(value)


def _floors(table: Fields) -> dict[Product, TcbFloors]:
    found = {
        product: _floor_set(table.table(product.lower()), product) for product in Product if table.has(product.lower())
    }
    table.finish()
    return found


def _floor_set(table: Fields, product: Product) -> TcbFloors:
    given = [name for name in ("reported", "committed", "launch") if table.has(name)]
    floors = {name: _floor(table.table(name), product) for name in given}
    return table.built(lambda: TcbFloors(**floors))


def _floor(table: Fields, product: Product) -> Tcb:
    """Components that are left out have floor 0."""
    names = ("bootloader", "tee", "snp", "microcode", *(("fmc",) if product.has_fmc else ()))
    numbers = {name: table.integer(name, 0, _BYTE) for name in names}
    return table.built(lambda: Tcb(**numbers))


def read_tdx(table: Fields) -> TdxPolicy:
    """Rules for TDX. Raises Misconfigured with the path of the field."""
    fields = {
        "statuses": table.members("statuses", TcbStatus, _TDX.statuses),
        "advisories": table.texts_or_any("advisories"),
        "min_tcb_date": table.time("min_tcb_date"),
        "min_evaluation": table.integer("min_evaluation", 0, _U32),
        "allow_pks": table.forbidden("pks", default=_TDX.allow_pks),
        "allow_key_locker": table.forbidden("key_locker", default=_TDX.allow_key_locker),
        "allow_perfmon": table.forbidden("perfmon", default=_TDX.allow_perfmon),
        "xfam_allowed": table.integer("xfam_allowed", _TDX.xfam_allowed, _U64),
        "mr_seams": table.hexes_or_any("mr_seams"),
        "mr_owners": table.hexes_or_any("mr_owners"),
        "mr_owner_configs": table.hexes_or_any("mr_owner_configs"),
        "platform_allow": table.hexes_or_any("platform_allow"),
        "platform_deny": table.hexes("platform_deny", _TDX.platform_deny),
        "dynamic_platform": table.forbidden("dynamic_platform", default=_TDX.dynamic_platform),
        "cached_keys": table.forbidden("cached_keys", default=_TDX.cached_keys),
        "smt": table.forbidden("smt", default=_TDX.smt),
        "trailing_zeros": table.integer("trailing_zeros", _TDX.trailing_zeros, _MAX_TRAILING),
    }
    return table.built(lambda: TdxPolicy(**fields))  # type: ignore[arg-type]  # each reader gives its field's type
