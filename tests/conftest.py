"""Shared fixtures: the genuine vectors, and the rule that every skip is listed."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VECTORS = Path(os.environ.get("KATA_GPU_VECTORS", ROOT.parent / "shared" / "vectors"))
NV_SAMPLES = Path(
    os.environ.get("KATA_GPU_NV_SAMPLES", ROOT / ".cache" / "nv-local-gpu-verifier" / "verifier" / "samples")
)
NO_VECTORS = "vectors: KATA_GPU_VECTORS is absent"
NO_SAMPLES = "samples: run `make samples` to unpack the nv-local-gpu-verifier wheel"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--allowed-skips", type=Path, help="fail on any skip whose reason starts with none of these lines")
    parser.addoption("--require-vectors", action="store_true", help="fail where the genuine vectors are absent")
    parser.addoption("--kbs-url", help="run tests/conformance against this key broker instead of ours")
    parser.addoption("--kbs-admin-url", help="its admin address, where that is another one")
    parser.addoption("--kbs-admin-token-file", help="file with its admin token")


@pytest.fixture(scope="session")
def vectors(request: pytest.FixtureRequest) -> Path:
    """Folder of genuine signed evidence."""
    if (VECTORS / "MANIFEST.json").is_file():
        return VECTORS
    if request.config.getoption("--require-vectors"):
        pytest.fail(NO_VECTORS)
    pytest.skip(NO_VECTORS)


@pytest.fixture(scope="session")
def nv_samples(request: pytest.FixtureRequest) -> Path:
    """Samples folder of the public wheel: a genuine Hopper report, its chain and 25 VBIOS RIMs."""
    if NV_SAMPLES.is_dir():
        return NV_SAMPLES
    if request.config.getoption("--require-vectors"):
        pytest.fail(NO_SAMPLES)
    pytest.skip(NO_SAMPLES)


def _allowed(config: pytest.Config) -> list[str] | None:
    path = config.getoption("--allowed-skips")
    if path is None:
        return None
    return [line.strip() for line in Path(path).read_text().splitlines() if line.strip() and not line.startswith("#")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name what was left out, once per reason."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"left out: {count} tests: {reason}")
    ran = [v for r in terminalreporter.stats.get("passed", []) for k, v in r.user_properties if k == "api-server"]
    if ran:
        terminalreporter.write_line(
            f"envtest: {ran.count('fake')} on the fake API server, {ran.count('real')} on a real one"
        )
    allowed = _allowed(config)
    if allowed is not None:
        config.stash[_UNLISTED] = [r for r in reasons if not any(r.startswith(a) for a in allowed)]
        for reason in config.stash[_UNLISTED]:
            terminalreporter.write_line(f"NOT ALLOWED to be skipped: {reason}")


_UNLISTED = pytest.StashKey[list[str]]()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    if config.stash.get(_UNLISTED, []):
        pytest.exit("unlisted skips", returncode=1)
