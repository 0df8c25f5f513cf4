"""Rego: upstream's interface, values bound to variables, and a worker that dies rather than hang."""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from attestation.errors import Denied, Malformed, Unavailable
from attestation.ops.administer import set_rego_policy
from attestation.ops.release import RESOURCE_POLICY
from attestation.sources.policy_store import PolicyKind
from attestation.sources.rego_child import CACHED_BUNDLES, Engine, readable
from attestation.sources.rego_worker import CHILDREN, RegoWorker
from tests.attestation.broker.broker import ADMIN, NOW, Broker, ready_broker

CPU = """package policy
import rego.v1
default executables := 33
default hardware := 97
executables := 3 if input.snp.measurement in query_reference_value("snp_launch_measurement")
hardware := 2 if input.snp
trust_claims := {"executables": executables, "hardware": hardware}
"""
SLOW = (
    "package policy\nimport rego.v1\nallow if { some x in numbers.range(0, 99999); "
    "some y in numbers.range(0, 99999); x * y == 0.5 }\n"
)
FAST = "package policy\ndefault allow := true\n"
ALLOW = "package policy\nimport rego.v1\ndefault allow := false\nallow if input.submods.cpu0\n"


@pytest.fixture(scope="module")
def rego() -> Iterator[RegoWorker]:
    worker = RegoWorker()
    yield worker
    worker.close()


def test_trust_claims_and_reference_values(rego: RegoWorker) -> None:
    """Upstream's extension function, with null for what is not there."""
    document = {"snp": {"measurement": "aa"}}
    assert rego.appraise(CPU, document, {"snp_launch_measurement": ["aa"]}) == {"executables": 3, "hardware": 2}
    assert rego.appraise(CPU, document, {"snp_launch_measurement": ["bb"]}) == {"executables": 33, "hardware": 2}
    assert rego.appraise(CPU, {}, {}) == {"executables": 33, "hardware": 97}


@pytest.mark.parametrize(
    ("policy", "allowed"),
    [
        pytest.param("package policy\ndefault allow := true\n", True, id="true"),
        pytest.param("package policy\ndefault allow := false\n", False, id="false"),
        pytest.param('package policy\nallow := "true"\n', False, id="text"),
        pytest.param("package policy\nallow := 1\n", False, id="number"),
        pytest.param("package policy\nother := true\n", False, id="missing"),
        pytest.param("package policy\nimport rego.v1\nallow if input.x == 1/0\n", False, id="error"),
        pytest.param('package policy\nimport rego.v1\nallow if data["resource-path"][2] == "t"\n', True, id="data"),
    ],
)
def test_allow_is_exactly_true(rego: RegoWorker, policy: str, allowed: bool) -> None:
    """False, undefined, errors and other types deny."""
    data = {"plugin": "resource", "resource-path": ["r", "t", "t"]}
    assert rego.allow(policy, {"x": 1}, data) is allowed


@pytest.mark.parametrize("policy", ["", "package other\n", "package policy\nallow if {", "package policy\n)"])
def test_what_does_not_compile_is_refused(rego: RegoWorker, policy: str) -> None:
    """At upload, not at the first release."""
    with pytest.raises(Malformed) as caught:
        rego.check(policy)
    assert caught.value.code == "rego-syntax"


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(SLOW, id="time"),
        pytest.param(
            "package policy\nimport rego.v1\nallow := [x | some x in numbers.range(0, 30000000)]\n", id="memory"
        ),
    ],
)
def test_a_runaway_policy_is_killed(policy: str) -> None:
    """Deadline and memory bound; the next evaluation works."""
    worker = RegoWorker(deadline_s=3.0)
    try:
        with pytest.raises(Unavailable) as caught:
            worker.allow(policy, {}, {})
        assert caught.value.code == "rego-deadline"
        assert worker.allow("package policy\ndefault allow := true\n", {}, {})
    finally:
        worker.close()


def _in_threads(worker: RegoWorker, count: int) -> list[Future[bool]]:
    pool = ThreadPoolExecutor(count)
    try:
        return [pool.submit(worker.allow, SLOW, {}, {}) for _ in range(count)]
    finally:
        pool.shutdown(wait=False)


def test_one_slow_evaluation_makes_nobody_wait() -> None:
    worker = RegoWorker(deadline_s=3.0)
    try:
        (slow,) = _in_threads(worker, 1)
        assert worker.allow(FAST, {}, {})
        assert not slow.done()
    finally:
        worker.close()


def test_who_would_wait_for_slow_evaluations_is_sent_away() -> None:
    """Nobody takes a turn after them: as many as there are children fail at their deadline, the others before it."""
    worker = RegoWorker(deadline_s=3.0, wait_s=0.2)
    try:
        codes = Counter(getattr(slow.exception(), "code", "") for slow in _in_threads(worker, CHILDREN + 3))
        assert codes == {"rego-deadline": CHILDREN, "rego-busy": 3}
        assert worker.allow(FAST, {}, {})
    finally:
        worker.close()


@pytest.fixture
def kbs(tmp_path: Path) -> Iterator[Broker]:
    with ready_broker(tmp_path) as made:
        yield made


def test_rego_appraisal_replaces_the_native_one_for_its_class(kbs: Broker) -> None:
    """Both see the same facts and give the same kind of result; the key's own conditions hold in any case."""
    set_rego_policy(kbs.world, ADMIN, PolicyKind.REGO_ATTESTATION, "default_cpu", CPU, now=NOW)
    assert kbs.handshake().get() == b"k" * 32
    bad = CPU.replace("default hardware := 97", "default hardware := 97\n").replace(
        "hardware := 2 if", "hardware := 33 if"
    )
    set_rego_policy(kbs.world, ADMIN, PolicyKind.REGO_ATTESTATION, "default_cpu", bad, now=NOW)
    with pytest.raises(Denied):
        kbs.handshake().get()


def test_resource_policy_only_tightens(kbs: Broker) -> None:
    """Where a key has conditions, an allowing Rego policy does not replace them, and a denying one denies."""
    set_rego_policy(kbs.world, ADMIN, PolicyKind.REGO_RESOURCE, RESOURCE_POLICY, ALLOW, now=NOW)
    assert kbs.handshake().get() == b"k" * 32
    from tests.attestation.broker.test_release import guest

    with pytest.raises(Denied):
        kbs.handshake(guest(gpus=0)).get()
    deny = "package policy\ndefault allow := false\n"
    set_rego_policy(kbs.world, ADMIN, PolicyKind.REGO_RESOURCE, RESOURCE_POLICY, deny, now=NOW)
    with pytest.raises(Denied):
        kbs.handshake().get()


@pytest.mark.parametrize("text", ["line\nfeed", 'a "quote"', "back\\slash", "\\n", "tab\t", "é", "\x1f", "/"])
def test_texts_are_what_they_are(rego: RegoWorker, text: str) -> None:
    """In input, in reference values and in a policy: the same text is equal, a text that merely spells it is not."""
    literal = json.dumps(text, ensure_ascii=False)
    same = f"package policy\nimport rego.v1\nallow if {{ input.x == {literal}; input.x == data.x; not input.x != {literal} }}\n"
    assert rego.allow(same, {"x": text}, {"x": text}) is True
    spelt = literal[1:-1]
    if spelt != text:
        assert rego.allow(same, {"x": spelt}, {"x": spelt}) is False


def _asked(engine: Engine, policy: str, tag: str, query: str = "") -> object:
    data = {"plugin": "resource", "resource-path": ["default", "key", tag], "query": {"q": query} if query else {}}
    return engine.answer({"query": "allow", "policy": policy, "data": data, "input": {"tag": tag}}).get("value")


@pytest.mark.parametrize(
    ("rule", "compiled"),
    [
        pytest.param('startswith(input.tag, "t")', 1, id="input-alone"),
        pytest.param('data.plugin == "resource"', 1, id="plugin"),
        pytest.param('data["resource-path"][2] == input.tag', 10, id="path"),
        pytest.param('not data.query.q == "0"', 3, id="query"),
    ],
)
def test_what_a_policy_cannot_read_compiles_it_not_again(rule: str, compiled: int) -> None:
    """A guest asks for paths and query strings as it likes: ten paths with three queries each here."""
    engine = Engine()
    policy = f"package policy\nimport rego.v1\nallow if {{ {rule} }}\n"
    assert {_asked(engine, policy, f"t{i}", query) for query in ("", "1", "2") for i in range(10)} == {True}
    assert engine.compiled == compiled


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        pytest.param("input.data_x == mydata", "", id="other-words"),
        pytest.param("data.policy.other", "", id="its-own-rules"),
        pytest.param("import data.query as q", "query", id="import"),
        pytest.param('data["resource-path"]', "resource-path", id="quoted"),
        pytest.param('data.plugin; data["query"].x', "plugin query", id="two"),
        pytest.param("some k; data[k] == 1", "all", id="any-member"),
        pytest.param("data[`query`]", "all", id="raw-text"),
        pytest.param('data["qu\\u0065ry"]', "all", id="escaped"),
        pytest.param("data .query", "all", id="blank"),
        pytest.param("data\n.query", "all", id="end-of-line"),
        pytest.param("walk(data, [p, v])", "all", id="all-of-it"),
        pytest.param("  # policy data:\n# data.plugin\r\nallow", "", id="comments"),
        pytest.param("allow # reads data", "all", id="comment-behind-code"),
        pytest.param("# `data` is\nallow", "all", id="comment-with-raw-quote"),
        pytest.param("x := `\n# ` ; data.query.x", "query", id="end-of-raw-text"),
        pytest.param("# a comment\r data.query", "query", id="old-end-of-line"),
    ],
)
def test_what_a_policy_can_read(text: str, kept: str) -> None:
    """Wherever the text leaves it open, all of it."""
    data = {name: name for name in ("plugin", "resource-path", "query")}
    assert sorted(readable(text, data)) == (sorted(data) if kept == "all" else kept.split())
    assert readable(text, {"__rvps": 1}) == {"__rvps": 1}


def test_paths_that_guests_ask_for_push_out_no_attestation_policy() -> None:
    engine = Engine()
    appraise = {"query": "trust_claims", "policy": CPU, "data": {"__rvps": {}}, "input": {"snp": {}}}
    first = engine.answer(appraise)
    assert first["value"] == {"executables": 33, "hardware": 2}
    policy = 'package policy\nallow := data["resource-path"][0] == "default"\n'
    assert all(_asked(engine, policy, f"t{i}") for i in range(2 * CACHED_BUNDLES))
    before = engine.compiled
    assert engine.answer(appraise) == first
    assert engine.compiled == before == 1 + 2 * CACHED_BUNDLES
