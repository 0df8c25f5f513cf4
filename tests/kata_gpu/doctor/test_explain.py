"""Explain: every cause has a line and a near miss, and it says nothing about ordinary lines."""

import io
import json
import time

import click.testing
import pytest

from kata_gpu.cli.explain import _lines
from kata_gpu.cli.explain import explain as command
from kata_gpu.core.doctor import CHECKS
from kata_gpu.core.explain import causes, explain, explain_line
from kata_gpu.core.explain.classify import MAX_LINE, Weight
from tests.kata_gpu.doctor.corpus import LINES, QUIET


def test_corpus_covers_the_table() -> None:
    assert [c.id for c in causes()] != []
    assert {c.id for c in causes()} == LINES.keys()
    assert len({c.id for c in causes()}) == len(causes())


@pytest.mark.parametrize("cause_id", LINES)
def test_line_has_its_cause(cause_id: str) -> None:
    found = explain_line(LINES[cause_id][0])
    assert found is not None
    assert found.id == cause_id


@pytest.mark.parametrize("cause_id", LINES)
def test_near_miss_has_no_cause_at_all(cause_id: str) -> None:
    found = explain_line(LINES[cause_id][1])
    assert found is None


@pytest.mark.parametrize("line", QUIET)
def test_ordinary_lines_are_not_explained(line: str) -> None:
    assert explain_line(line) is None


@pytest.mark.parametrize("cause", causes(), ids=lambda c: c.id)
def test_row_is_complete(cause: object) -> None:
    row = next(c for c in causes() if c is cause)
    assert row.cause.endswith(".")
    assert row.fix.endswith(".")
    assert row.source
    assert set(row.checks) <= {c.id for c in CHECKS}
    assert row.needle.lower() in LINES[row.id][0].lower()


def test_counted_once_problems_first() -> None:
    benign, problem = LINES["vfio-reset-done"][0], LINES["group-not-viable"][0]
    first, second = explain([benign, problem, benign, "noise"])
    assert (first.cause.id, first.line_number, first.count) == ("group-not-viable", 2, 1)
    assert (second.cause.id, second.line_number, second.count) == ("vfio-reset-done", 1, 2)
    assert first.cause.weight is Weight.PROBLEM


def test_colour_is_ignored() -> None:
    found = explain_line("\x1b[31mvm-type tdx\x1b[0m not supported by KVM")
    assert found is not None
    assert found.id == "qemu-tdx-unsupported"


@pytest.mark.parametrize(
    "line",
    ["\0" * 10_000, "vfio " * 20_000, "\x1b[" * 10_000, "no runtime for " + '"kata-' * 5000, "�" * 9000],
    ids=["zeros", "words", "escapes", "near", "replacement"],
)
def test_hostile_lines_are_fast(line: str) -> None:
    start = time.process_time()
    assert explain_line(line) is None
    assert time.process_time() - start < 0.1


def test_input_without_line_ends_comes_in_pieces() -> None:
    pieces = list(_lines(io.StringIO("x" * 200_000)))
    assert max(map(len, pieces)) <= 1 << 16
    assert sum(map(len, pieces)) == 200_000
    assert MAX_LINE < 1 << 16


def test_ten_thousand_lines_in_a_second() -> None:
    lines = [*QUIET, *(line for pair in LINES.values() for line in pair)] * 85
    start = time.process_time()
    explain(lines)
    assert len(lines) > 10_000
    assert time.process_time() - start < 1.0


def test_command_reads_standard_input_and_counts() -> None:
    text = "\n".join([QUIET[1], LINES["snp-iommu-passthrough"][0]]).encode() + b"\n\xff\xfe\n"
    result = click.testing.CliRunner().invoke(command, ["-", "--output", "json"], input=text, standalone_mode=False)
    assert result.return_value == 1
    (match,) = json.loads(result.stdout)["matches"]
    assert match["id"] == "snp-iommu-passthrough"
    assert match["line"] == 2
    assert match["checks"] == ["SNP-02"]


def test_command_is_calm_about_benign_lines() -> None:
    result = click.testing.CliRunner().invoke(command, input=LINES["amd-iommu-on"][0], standalone_mode=False)
    assert result.return_value == 0
    assert "0 known problems, 1 benign" in result.stdout
