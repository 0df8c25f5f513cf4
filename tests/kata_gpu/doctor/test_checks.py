"""Every check of node.md section 1: a host that passes it, and a host that fails only it and what follows from it."""

import re
import time
from pathlib import Path

import pytest

from kata_gpu.core.doctor import CHECKS, Profile, Severity, Status, examine
from kata_gpu.core.doctor.report import profiles_of
from kata_gpu.host.facts import gather
from kata_gpu.host.probes import SavedProbes
from kata_gpu.host.real import RealHost
from tests.kata_gpu.doctor.flips import FLIPS, Flip
from tests.kata_gpu.doctor.tree import healthy, statuses

IDS = (
    *(f"PLT-{n:02}" for n in range(1, 11)),
    *(f"SNP-{n:02}" for n in range(1, 10)),
    *(f"TDX-{n:02}" for n in range(1, 10)),
    *(f"IOM-{n:02}" for n in range(1, 19)),
    *(f"DRV-{n:02}" for n in range(1, 8)),
    *(f"K8S-{n:02}" for n in range(1, 9)),
    *(f"CRI-{n:02}" for n in range(1, 9)),
    *(f"KAT-{n:02}" for n in range(1, 6)),
    "NET-01",
)
BY_ID = {c.id: c for c in CHECKS}
BROKEN = {Severity.FATAL: Status.FAIL, Severity.WARNING: Status.WARN, Severity.INFO: Status.NOTE}
HEALTHY = {
    "gpu": ((), {}),
    "snp": ((Profile.SNP,), {}),
    "tdx": ((Profile.TDX,), {}),
    "ppcie-snp": ((Profile.SNP, Profile.PPCIE), {"gpus": 8, "switches": 4}),
    "ppcie-tdx": ((Profile.TDX, Profile.PPCIE), {"gpus": 8, "switches": 4}),
}


def followers(check_id: str) -> set[str]:
    """Checks that declare this one as a possible cause, directly or through another."""
    found: set[str] = set()
    todo = {check_id}
    while todo:
        todo = {c.id for c in CHECKS if set(c.after) & todo} - found
        found |= todo
    return found


def test_table_is_the_specification() -> None:
    assert tuple(c.id for c in CHECKS) == IDS
    assert len(IDS) == 75
    assert all(set(c.after) <= BY_ID.keys() - {c.id} for c in CHECKS)


@pytest.mark.parametrize("check_id", [pytest.param(i, id=f"doctor-{i}-text") for i in IDS])
def test_fix_names_a_command_or_a_file(check_id: str) -> None:
    check = BY_ID[check_id]
    assert re.search(r"`[^`]+`|/[a-z]+/[\w./-]+|\[[a-z.]+\]|config\.d/", check.fix)
    assert check.expected
    assert check.symptom
    assert check.fix.count("`") % 2 == 0


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_host_passes_everything(name: str, tmp_path: Path) -> None:
    profiles, shape = HEALTHY[name]
    report = healthy(*profiles, **shape).report(tmp_path)
    wrong = [f for f in report.findings if f.status not in {Status.OK, Status.NOT_APPLICABLE}]
    assert not wrong
    assert not report.negative(strict=True)


@pytest.mark.parametrize("check_id", [pytest.param(i, id=f"doctor-{i}-passes") for i in IDS])
def test_some_healthy_host_passes_the_check(check_id: str, healthy_statuses: list[dict[str, Status]]) -> None:
    if check_id == "DRV-04":  # applies to VGA-class GPUs only; the next test has one
        assert all(s[check_id] is Status.NOT_APPLICABLE for s in healthy_statuses)
    else:
        assert any(s[check_id] is Status.OK for s in healthy_statuses)


@pytest.fixture(scope="module")
def healthy_statuses(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Status]]:
    return [
        statuses(healthy(*profiles, **shape).report(tmp_path_factory.mktemp(name)))
        for name, (profiles, shape) in HEALTHY.items()
    ]


@pytest.mark.parametrize("_case", [pytest.param(None, id="doctor-DRV-04-passes-on-vga")])
def test_vga_without_framebuffer(_case: None, tmp_path: Path) -> None:
    tree = next(f for f in FLIPS if f.id == "DRV-04").tree()
    tree.put("/proc/iomem", "000000000000-0000003fffff : efifb\n")
    assert statuses(tree.report(tmp_path))["DRV-04"] is Status.OK


@pytest.mark.parametrize("flip", [pytest.param(f, id=f"doctor-{f.id}-{f.name}") for f in FLIPS])
def test_one_change_fails_only_its_check(flip: Flip, tmp_path: Path) -> None:
    report = flip.tree().report(tmp_path)
    result = statuses(report)
    assert result[flip.id] is BROKEN[BY_ID[flip.id].severity]
    others = {i for i, s in result.items() if s in {Status.FAIL, Status.WARN, Status.NOTE}} - {flip.id}
    assert others <= followers(flip.id)
    for finding in report.findings:
        if finding.check.id in others:
            assert finding.causes


def test_every_check_has_a_host_that_flips_it() -> None:
    assert {f.id for f in FLIPS} == set(IDS)


def test_unreadable_host_is_unknown_and_never_ready(tmp_path: Path) -> None:
    """An empty tree: nothing raises, nothing that needs evidence passes, strict is negative."""
    facts = gather(RealHost(tmp_path), SavedProbes())
    report = examine(CHECKS, facts, frozenset(Profile))
    assert report.negative(strict=False)
    assert report.count(Status.UNKNOWN) > 15
    assert statuses(report)["IOM-14"] is Status.FAIL


def test_unknown_fatal_check_is_negative_only_when_strict(tmp_path: Path) -> None:
    tree = healthy(Profile.SNP)
    tree.command("kubelet --version", None).edit(
        "/var/lib/kubelet/config.yaml", "featureGates:", "featureGates:\n  KubeletPodResourcesGet: true"
    )
    report = tree.report(tmp_path)
    assert statuses(report)["K8S-01"] is Status.UNKNOWN
    assert not report.negative(strict=False)
    assert report.negative(strict=True)


@pytest.mark.parametrize(
    ("vendor", "expected"),
    [("snp", {"gpu", "snp"}), ("tdx", {"gpu", "tdx"}), ("ppcie-snp", {"gpu", "snp", "ppcie"})],
)
def test_profiles_are_told_by_the_host(vendor: str, expected: set[str], tmp_path: Path) -> None:
    profiles, shape = HEALTHY[vendor]
    assert profiles_of(healthy(*profiles, **shape).facts(tmp_path)) == expected


@pytest.mark.parametrize("profile", [Profile.SNP, Profile.TDX])
def test_log_lines_only_add_evidence(profile: Profile, tmp_path: Path) -> None:
    """The kernel log rotates: without it nothing fails."""
    tree = healthy(profile).command("dmesg", "")
    assert not tree.report(tmp_path).negative(strict=True)


def test_hgx_takes_less_than_a_second(tmp_path: Path) -> None:
    tree = healthy(Profile.SNP, Profile.PPCIE, gpus=8, switches=4)
    tree.write(tmp_path)
    start = time.process_time()
    examine(CHECKS, gather(RealHost(tmp_path), SavedProbes.load(tmp_path)), tree.profiles)
    assert time.process_time() - start < 1.0


def test_root_cause_is_named(tmp_path: Path) -> None:
    tree = next(f for f in FLIPS if f.name == "imports-elsewhere").tree()
    causes = {f.check.id: f.causes for f in tree.report(tmp_path).findings if f.broken}
    assert causes["CRI-05"] == ()
    assert "CRI-05" in causes["CRI-02"]
