"""The served OpenAPI document: valid, complete, and true under schemathesis on both listeners."""

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from openapi_spec_validator import validate
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from attestation.service.app import Service
from tests.conformance.target import Target

pytestmark = pytest.mark.usefixtures("own")
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 12  # per operation; schemathesis adds its own boundary cases
METHODS = {"get", "post", "put", "delete"}


@pytest.fixture(scope="session")
def document(kbs: Target) -> dict[str, Any]:
    reply = kbs.wire().call("GET", "/openapi.json")
    assert reply.header("content-type") == "application/json"
    body: dict[str, Any] = reply.json()
    return body


def test_document_is_valid(document: dict[str, Any]) -> None:
    """OpenAPI 3.1."""
    validate(document)
    assert document["openapi"] == "3.1.0"


def operations(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(path, method) for path, item in document["paths"].items() for method in item if method in METHODS}


def test_document_lists_every_route(kbs: Target, document: dict[str, Any]) -> None:
    """What is served is documented, and what is documented is served."""
    assert kbs.local
    service = Service(kbs.local.broker.world, clock=kbs.local.broker.clock)
    served = set()
    for routes in service.routes:
        for route in routes:
            assert isinstance(route, Route)
            path = route.path.replace("{resource:path}", "{repository}/{type}/{tag}").replace("{name:path}", "{name}")
            path = path.replace("/resource/{path:path}", "/resource/{repository}/{type}/{tag}")
            if path != "/kbs/v0/{path:path}":
                served |= {(path, method.lower()) for method in (route.methods or set()) - {"HEAD"}}
    service.close()
    assert served == operations(document)


def _run(document: dict[str, Any], url: str, tags: set[str], headers: dict[str, str]) -> int:
    """Every operation with these tags, deterministically; returns how many calls were made."""
    schema = schemathesis.openapi.from_dict(document)
    calls = 0
    for result in schema.get_all_operations():
        operation = result.ok()  # type: ignore[union-attr]
        if not tags & set(operation.tags or ()):
            continue

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def check(case: Case[Any]) -> None:
            nonlocal calls
            calls += 1
            response = case.call(base_url=url, headers=headers)
            case.validate_response(response, checks=CHECKS)

        schemathesis_test = operation.as_strategy()
        from hypothesis import given

        given(case=schemathesis_test)(check)()
    return calls


@pytest.mark.parametrize(
    ("listener", "tags", "as_admin"),
    [
        pytest.param("guest", {"guests", "both"}, False, id="guests"),
        pytest.param("admin", {"administrators", "both"}, True, id="administrators"),
        pytest.param("admin", {"administrators"}, False, id="anonymous"),
    ],
)
def test_schemathesis(kbs: Target, document: dict[str, Any], listener: str, tags: set[str], as_admin: bool) -> None:
    """No 5xx, no undocumented status, no other body than documented."""
    from tests.conformance.target import DENY_SOME

    headers = {"authorization": f"Bearer {kbs.token}"} if as_admin else {}
    try:
        assert _run(json.loads(json.dumps(document)), kbs.url if listener == "guest" else kbs.admin_url, tags, headers)
    finally:
        kbs.policy(DENY_SOME)
        kbs.put("default/test/secret", b"shhhhhhh")
