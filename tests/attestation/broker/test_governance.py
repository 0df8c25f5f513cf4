"""Revocations, leases, limits, audit and policy history over HTTP and by the command line, here and at a broker."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from attestation.broker.roles import Role
from attestation.cli.main import cli
from attestation.errors import AttestationError, Misconfigured
from attestation.ops.administer import add_user, issue_admin_token, set_key_policy
from attestation.values import ResourcePath
from tests.attestation.broker.broker import ADMIN, GPU_POLICY, NOW, PATH, Broker, Served, ready_broker, served
from tests.conformance.rust_client import Reply, Wire

ACME = ResourcePath.parse("acme/model/key")
ABOUT_EVERYBODY = [
    pytest.param("GET", "/api/v1/revocations", None, id="revocations"),
    pytest.param("POST", "/api/v1/revocations", {"kind": "chip", "value": "aa", "reason": "x"}, id="revoke"),
    pytest.param("DELETE", "/api/v1/revocations?kind=chip&value=aa", None, id="unrevoke"),
    pytest.param("PUT", "/api/v1/tenants/acme", {"max_keys": 1}, id="own-limits"),
    pytest.param("GET", f"/api/v1/leases?path={PATH}", None, id="leases-of-others"),
    pytest.param("GET", "/api/v1/audit?repository=default", None, id="audit-of-others"),
    pytest.param("GET", f"/api/v1/policies/{PATH}", None, id="policies-of-others"),
]
Call = Callable[..., Reply]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two tenants, one key and one lease each, and administrators of all and of one."""
    with ready_broker(tmp_path_factory.mktemp("governed")) as made:
        made.put(ACME, policy=GPU_POLICY)
        for path in (PATH, ACME):
            made.handshake().get(path)
        add_user(made.world, ADMIN, "root", Role.ADMIN, (), now=NOW)
        add_user(made.world, ADMIN, "alice", Role.OPERATOR, ("acme",), now=NOW)
        add_user(made.world, ADMIN, "chief", Role.ADMIN, ("acme",), now=NOW)
        with served(made) as running:
            yield running


def token(made: Broker, name: str) -> str:
    return issue_admin_token(made.world, name, now=NOW)


@pytest.fixture
def call(site: Served) -> Iterator[Call]:
    """One request in somebody's name."""
    wire = Wire(site.admin_url)

    def send(who: str, method: str, path: str, body: Any = None) -> Reply:
        return wire.call(method, path, body, {"authorization": f"Bearer {token(site.broker, who)}"})

    yield send
    wire.close()


@pytest.mark.parametrize("who", ["alice", "chief"], ids=["operator", "admin"])
@pytest.mark.parametrize(("method", "path", "body"), ABOUT_EVERYBODY)
def test_what_concerns_everybody_is_not_for_a_tenant(call: Call, who: str, method: str, path: str, body: Any) -> None:
    """Whatever the role: an administrator of one repository revokes nothing and lifts no limits, their own included."""
    reply = call(who, method, path, body)
    assert (reply.status, reply.json()["type"]) in {
        (403, "urn:kata-gpu:error:repository-not-allowed"),
        (403, "urn:kata-gpu:error:role-not-allowed"),
    }


def test_a_tenant_sees_its_own(call: Call) -> None:
    """Leases, limits and audit entries of its repository, and none of another one."""
    call("root", "PUT", "/api/v1/tenants/acme", {"max_keys": 5})
    call("root", "PUT", "/api/v1/tenants/default", {"max_keys": 7})
    assert [row["path"] for row in call("alice", "GET", "/api/v1/leases").json()["leases"]] == [str(ACME)]
    assert len(call("root", "GET", "/api/v1/leases").json()["leases"]) == 2
    (own,) = call("alice", "GET", "/api/v1/tenants").json()["tenants"]
    assert (own["tenant"], own["max_keys"], own["used"]["keys"]) == ("acme", 5, 1)
    entries = call("alice", "GET", "/api/v1/audit?last=1000").json()["entries"]
    assert {entry["subject"].split("/")[0] for entry in entries} == {"acme"}
    assert {"released", "key-stored", "quota-set"} <= {entry["event"] for entry in entries}
    everything = call("root", "GET", "/api/v1/audit?last=1000").json()["entries"]
    assert len(everything) > len(entries)
    one = call("root", "GET", "/api/v1/audit?repository=acme&last=1000").json()["entries"]
    assert [entry["seq"] for entry in one] == [entry["seq"] for entry in entries]


def test_revocation_over_http(call: Call, site: Served) -> None:
    """Refused from now on, with the lease that it ended, until it is taken back."""
    visit = site.broker.handshake()
    visit.get()
    chip = site.broker.world.attestations.recent(1)[0].facts.cpu.chip_id
    done = call("root", "POST", "/api/v1/revocations", {"kind": "chip", "value": chip, "reason": "test"}).json()
    assert {lease["path"] for lease in done["ended"]} == {str(PATH), str(ACME)}
    with pytest.raises(AttestationError) as caught:
        visit.get()
    assert caught.value.code == "revoked"
    (row,) = call("root", "GET", "/api/v1/revocations").json()["revocations"]
    assert (row["kind"], row["value"], row["reason"]) == ("chip", chip, "test")
    for removed in (True, False):
        reply = call("root", "DELETE", f"/api/v1/revocations?kind=chip&value={chip}")
        assert reply.json() == {"removed": removed}
    assert visit.get() == b"k" * 32
    assert call("root", "POST", "/api/v1/revocations", {"kind": "moon", "value": "x", "reason": "y"}).status == 400


def test_policy_history(call: Call, site: Served) -> None:
    """Who, when and which, as releases name it."""
    set_key_policy(site.broker.world, ADMIN, ACME, GPU_POLICY + "[release]\nlease_s = 60\n", now=NOW)
    changes = call("alice", "GET", f"/api/v1/policies/{ACME}").json()["changes"]
    assert [change["by"] for change in changes] == ["test", "test"]
    assert all(change["at"] == NOW.isoformat() for change in changes)
    released = site.broker.world.audit.about(str(ACME), "released")[0]
    assert changes[0]["policy"] == released.body["policy"] != changes[1]["policy"]


@pytest.fixture
def run(site: Served, tmp_path: Path) -> Callable[..., Any]:
    """The command line at the running broker, as its administrator."""
    file = tmp_path / "token"
    file.write_text(token(site.broker, "root") + "\n")

    def command(*argv: str, code: int = 0) -> Any:
        options = ["--broker", site.admin_url, "--admin-token-file", str(file), "--output", "json"]
        done = CliRunner().invoke(cli, [*argv, *options], catch_exceptions=False)
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    return command


def test_the_command_line_at_a_broker(run: Callable[..., Any]) -> None:
    """The same commands as in a store on this machine."""
    assert run("revoke", "add", "gpu", "beef", "--reason", "test")["ended"] == []
    assert [row["value"] for row in run("revoke", "list")["revocations"]] == ["beef"]
    assert run("revoke", "remove", "gpu", "beef") == {"removed": True}
    with pytest.raises(Misconfigured, match="not revoked"):
        run("revoke", "remove", "gpu", "beef")
    assert run("tenant", "set", "acme", "--keys", "9")["max_keys"] == 9
    assert {row["tenant"]: row["max_keys"] for row in run("tenant", "list")["tenants"]}["acme"] == 9
    assert {row["path"] for row in run("lease", str(ACME))["leases"]} <= {str(ACME)}
    assert run("key", "history", str(ACME))["changes"][0]["by"] == "test"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        pytest.param(["lease"], "either --store or --broker", id="nowhere"),
        pytest.param(["lease", "--store", "x", "--broker", "http://127.0.0.1:1"], "either --store", id="both"),
        pytest.param(["lease", "--broker", "http://127.0.0.1:1"], "--admin-token-file", id="no-token"),
    ],
)
def test_one_place(argv: list[str], said: str) -> None:
    """A store here or a broker there, and a token with it."""
    done = CliRunner().invoke(cli, argv)
    assert done.exit_code != 0
    assert said in (done.output + str(done.exception))
