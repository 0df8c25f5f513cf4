"""The flows of keybroker.md 4.3 to 4.6 by the emulated Rust client, and docs/protocol.md, which shows them."""

import json
import re
from pathlib import Path

import pytest

from tests.conformance.target import Target, local_target
from tests.conformance.transcripts import DOCUMENT, FLOWS, fill, render

pytestmark = pytest.mark.usefixtures("own")


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_flow_and_its_transcript(tmp_path: Path, name: str) -> None:
    """The flow runs, and the document shows exactly this. Rewrite with `python -m tests.conformance.transcripts`."""
    with local_target(tmp_path) as kbs:
        transcript = render(FLOWS[name](kbs))
    text = DOCUMENT.read_text()
    assert fill(text, {name: transcript}) == text


def test_every_endpoint_is_documented(kbs: Target) -> None:
    """Every operation of the OpenAPI document has a line in docs/protocol.md and a request in a transcript."""
    text = DOCUMENT.read_text()
    document = json.loads(kbs.wire().call("GET", "/openapi.json").body)
    for path, item in document["paths"].items():
        for method in set(item) & {"get", "post", "put", "delete"}:
            row = f"| {method.upper()} | `{path}` |"
            assert row in text, row
            pattern = re.sub(r"\\\{[a-z]+\\\}", "[^/ ]+", re.escape(path))
            if path not in ("/metrics", "/openapi.json") and not path.startswith("/ui"):
                assert re.search(rf"> {method.upper()} {pattern}(\?\S*)?\n", text), (method, path)
