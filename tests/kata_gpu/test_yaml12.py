"""The one YAML loader keeps what people wrote."""

import pytest

from kata_gpu.core.yaml12 import load
from kata_gpu.errors import Malformed


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("mode: on", {"mode": "on"}, id="on-is-text"),
        pytest.param("mode: off", {"mode": "off"}, id="off-is-text"),
        pytest.param("a: yes", {"a": "yes"}, id="yes-is-text"),
        pytest.param("a: true", {"a": True}, id="true"),
        pytest.param("bdf: 0000:17:00.0", {"bdf": "0000:17:00.0"}, id="pci-address"),
        pytest.param("bdf: 17:00", {"bdf": "17:00"}, id="no-sexagesimal"),
        pytest.param("n: 017", {"n": 17}, id="leading-zero-is-decimal"),
        pytest.param("n: 0o17", {"n": 15}, id="octal"),
        pytest.param("n: 0x1F", {"n": 31}, id="hex"),
        pytest.param("n: 1.5", {"n": 1.5}, id="float"),
        pytest.param("n: ~", {"n": None}, id="null"),
        pytest.param("n: !!str 1", {"n": "1"}, id="tag-str"),
        pytest.param("1: x\ntrue: y\n~: z", {"1": "x", "true": "y", "~": "z"}, id="keys-are-text"),
        pytest.param("d: 2026-11-21", {"d": "2026-11-21"}, id="date-is-text"),
    ],
)
def test_scalars(text: str, value: object) -> None:
    assert load(text, where="t") == value


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param("a: 1\na: 2", "yaml-duplicate-key", id="duplicate-key"),
        pytest.param("a: &x [1]\nb: *x", "yaml-alias", id="alias"),
        pytest.param("a: [", "yaml-syntax", id="syntax"),
        pytest.param("", "yaml-documents", id="empty"),
        pytest.param("a: 1\n---\nb: 2", "yaml-documents", id="two-documents"),
        pytest.param("[" * 100 + "]" * 100, "yaml-depth", id="deep"),
        pytest.param("a: !!python/object:os.system x", "yaml-tag", id="tag"),
        pytest.param("a: !!bool maybe", "yaml-tag", id="tag-bool"),
        pytest.param("a: !!timestamp x", "yaml-tag", id="tag-time"),
        pytest.param("a: !!float ''", "yaml-tag", id="tag-float"),
        pytest.param("!!map [1]", "yaml-tag", id="tag-map"),
        pytest.param("!!merge k: {a: 1}\na: 2", "yaml-tag", id="tag-merge"),
        pytest.param("? [a]\n: 1", "yaml-key", id="complex-key"),
        pytest.param("a: " + "x" * (1 << 20), "yaml-size", id="large"),
    ],
)
def test_refused(text: str, code: str) -> None:
    with pytest.raises(Malformed) as caught:
        load(text, where="node-policy.yaml")
    assert caught.value.code == code
    assert "node-policy.yaml" in str(caught.value)
