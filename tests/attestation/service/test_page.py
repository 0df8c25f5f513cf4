"""The operator's page: who gets in, what it shows, and that nothing in evidence can act. In a real browser, too."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from attestation.broker.roles import Principal, Role
from attestation.errors import AttestationError
from attestation.formats.collateral import Kind
from attestation.ops.administer import add_user, issue_admin_token, set_key_policy
from attestation.ops.overview import Overview, overview
from attestation.ops.renewed_verifier import ShelfLife
from attestation.service.html import el, render
from attestation.service.page_view import overview_page
from attestation.values import BindingProfile, ResourcePath
from tests.attestation.broker.broker import (
    ADMIN,
    GPU_POLICY,
    INIT_DATA,
    NOW,
    PATH,
    Broker,
    Served,
    ready_broker,
    served,
)
from tests.attestation.service.browser import CHROMIUM, browser
from tests.attestation.tee.world import Guest
from tests.conformance.rust_client import Reply, Wire

SCREENSHOT = Path("out/operator-page.png")
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"&"
FORM = {"content-type": "application/x-www-form-urlencoded"}
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium: not installed (make test-deps)")


class Shelf:
    """What a collateral store would hold."""

    shelf = (
        ShelfLife(kind=Kind.RIM, id="NV_GPU_DRIVER_GH100_550.90.07", first_seen=NOW - timedelta(days=90), ends=None),
        ShelfLife(kind=Kind.OCSP, id="3af2", first_seen=NOW - timedelta(days=2), ends=NOW + timedelta(days=5)),
        ShelfLife(
            kind=Kind.CRL, id="amd-Genoa-vcek", first_seen=NOW - timedelta(days=40), ends=NOW - timedelta(days=1)
        ),
    )

    def renew(self) -> bool:
        return False

    def require_usable(self, now: object) -> None:
        """It is."""


def live(made: Broker) -> None:
    """Some hours of a small site: attestations, releases, denials of both kinds."""
    for index, name in enumerate(("qwen", "mixtral")):
        path = ResourcePath.parse(f"default/model/{name}")
        made.put(path, policy=GPU_POLICY.replace("count = 1", f"count = {4 << index}"))
    made.put(ResourcePath.parse("default/credential/registry"), policy=None)
    for hour in range(22, -1, -1):
        made.clock.now = NOW - timedelta(hours=hour)
        for number in range((hour * 7) % 5 + 1):
            many, native = number % 2 == 1, number % 3 == 1
            profile = BindingProfile.CGPU_V1 if native else BindingProfile.TRUSTEE_RCAR
            visit = made.handshake(Guest(init_data=INIT_DATA, gpus=4 if many else 1, profile=profile))
            visit.get(ResourcePath.parse("default/model/qwen") if many else PATH)
            if hour % 4 == 0 and number == 0:
                with pytest.raises(AttestationError):
                    visit.get(ResourcePath.parse("default/model/mixtral"))
        if hour % 6 == 0:
            with pytest.raises(AttestationError):
                made.handshake(change=lambda s: replace(s, additional=""))
    made.clock.now = NOW


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    shelf: Any = Shelf()
    with ready_broker(tmp_path_factory.mktemp("kbs"), simulated=True) as made:
        add_user(made.world, ADMIN, "alice", Role.AUDITOR, (), now=NOW - timedelta(days=1))
        add_user(made.world, ADMIN, "bob", Role.OPERATOR, ("default",), now=NOW - timedelta(days=1))
        live(made)
        with served(made, collateral=shelf) as running:
            yield running


def call(site: Served, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
    wire = Wire(site.admin_url)
    try:
        return wire.call(method, path, body, headers)
    finally:
        wire.close()


def token(site: Served, name: str = "alice") -> str:
    return issue_admin_token(site.broker.world, name, now=NOW)


def login(site: Served, secret: str, **headers: str) -> Reply:
    return call(site, "POST", "/ui/login", f"token={quote(secret)}".encode(), FORM | headers)


def shown(site: Served, name: str = "alice") -> str:
    reply = call(site, "GET", "/ui", headers={"cookie": f"other=1; kbs-operator={token(site, name)}"})
    assert reply.status == 200
    return reply.body.decode()


def test_a_token_becomes_a_cookie(site: Served) -> None:
    """HttpOnly, SameSite=Strict, for the page alone; leaving takes it back."""
    reply = login(site, token(site))
    assert (reply.status, reply.header("location")) == (303, "/ui")
    cookie = reply.header("set-cookie") or ""
    assert cookie.startswith("kbs-operator=")
    assert set(cookie.split("; ")[1:]) == {"Path=/ui", "HttpOnly", "SameSite=Strict"}
    page = call(site, "GET", "/ui", headers={"cookie": cookie.split(";")[0]})
    assert page.status == 200
    assert "alice, auditor" in page.body.decode()
    gone = call(site, "POST", "/ui/logout").header("set-cookie") or ""
    assert gone.startswith("kbs-operator=;")
    assert "Max-Age=0" in gone


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        pytest.param(b"token=nonsense", {}, 401, id="bad-token"),
        pytest.param(b"", {}, 401, id="no-token"),
        pytest.param(b"token=%ff" + b"&a=1" * 9, {}, 400, id="too-many-fields"),
        pytest.param("token=é".encode(), {}, 400, id="not-ascii"),
        pytest.param(b"token=" + b"a" * 20000, {}, 413, id="too-long"),
        pytest.param(b"token=x", {"sec-fetch-site": "cross-site"}, 403, id="from-another-site"),
    ],
)
def test_who_does_not_get_in(site: Served, body: bytes, headers: dict[str, str], status: int) -> None:
    """The form again, with a sentence; never a cookie."""
    reply = call(site, "POST", "/ui/login", body, FORM | headers)
    assert reply.status == status
    assert reply.header("set-cookie") is None
    assert b"<form" in reply.body


def test_the_page_wants_a_live_token(site: Served) -> None:
    """No cookie, a stale cookie, a guest's cookie: 401. The API takes no cookie."""
    cookie = f"kbs-operator={token(site)}"
    assert call(site, "GET", "/ui").status == 401
    assert call(site, "GET", "/ui", headers={"cookie": "kbs-operator=x"}).status == 401
    assert call(site, "GET", "/ui", headers={"cookie": f"kbs-session-id={token(site)}"}).status == 401
    assert call(site, "GET", "/api/v1/keys", headers={"cookie": cookie}).status == 401
    wire = Wire(site.url)
    assert wire.call("GET", "/ui", headers={"cookie": cookie}).status == 404
    wire.close()


@pytest.mark.parametrize("path", ["/ui", "/ui/style.css"])
def test_headers(site: Served, path: str) -> None:
    """Nothing from elsewhere, no script, no frame, no copy kept."""
    reply = call(site, "GET", path)
    policy = reply.header("content-security-policy") or ""
    assert policy.startswith("default-src 'none'; style-src 'self'; ")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert (reply.header("x-content-type-options"), reply.header("cache-control")) == ("nosniff", "no-store")


def test_what_it_shows(site: Served) -> None:
    """Attestations, denials with reasons, keys with conditions and releases, collateral with what ends."""
    page = shown(site)
    released = site.broker.world.keys.get(PATH)
    assert released is not None
    for text in (
        "keys released", "report-data-mismatch", "gpu-count-wrong", "default/model/llama", "hopper gpu, on",
        "GPUs: 1 × hopper, mode on", "init-data: 1 known", "1 expired", "ends soon", "in 5 days", "1 days ago",
        "waived: the reference documents name the versions", f"<td>{released.releases}</td>", "affirming",
    ):  # fmt: skip
        assert text in page, text
    assert "<script" not in page
    assert " style=" not in page
    assert " on" + "click" not in page


def test_an_operator_of_one_repository_sees_its_keys(site: Served) -> None:
    """And nothing about what guests did elsewhere."""
    page = shown(site, "bob")
    assert "default/model/llama" in page
    assert "Attestations" not in page
    assert "report-data-mismatch" not in page


def evil(text: str) -> str:
    return f"{text}{EVIL}"


def poisoned(seen: Overview) -> Overview:
    """Every text of evidence, audit log, keys and collateral replaced by markup."""
    result, entry, key = seen.attestations[0], seen.denials[0], seen.keys[0]
    cpu = replace(
        result.facts.cpu, product=evil("p"), chip_id=EVIL, measurement=EVIL, claims={"a": EVIL}, init_data=EVIL
    )
    device = replace(
        result.facts.devices[0], chip_id=EVIL, driver_version=EVIL, vbios_version=EVIL, evidence=EVIL, leaf_serial=EVIL
    )
    facts = replace(result.facts, cpu=cpu, devices=(device,), binding={"profile": EVIL})
    finding = dict.fromkeys(("check", "code", "expected", "got", "hint", "subject"), EVIL)
    refusal = dict.fromkeys(("tee", "code", "where", "reason", "expected", "got", "ticket"), EVIL)
    return replace(
        seen,
        who=Principal(name=EVIL, role=Role.ADMIN),
        attestations=(replace(result, facts=facts, jti=EVIL),),
        denials=(
            replace(entry, event="attest-refused", subject=EVIL, body=refusal),
            replace(entry, event="release-denied", subject=EVIL, body={"ticket": EVIL, "findings": [finding, EVIL]}),
            replace(entry, event="release-denied", subject=EVIL, body={"ticket": {EVIL: EVIL}, "findings": EVIL}),
        ),
        keys=(replace(key, record=replace(key.record, labels=(EVIL,))),),
        collateral=tuple(replace(kind, kind=EVIL, ending=tuple(replace(e, id=EVIL) for e in kind.ending)) for kind in seen.collateral or ()),
    )  # fmt: skip


@pytest.fixture(scope="module")
def poison(site: Served) -> bytes:
    seen = overview(site.broker.world, Principal(name="alice", role=Role.ADMIN), Shelf.shelf, now=NOW)
    return render(overview_page(poisoned(seen)))


def test_markup_in_every_field_stays_text(poison: bytes) -> None:
    """Escaped wherever it is shown."""
    text = poison.decode()
    assert "&lt;script&gt;" in text
    assert "<script" not in text
    assert "<img" not in text


def test_a_waiver_with_markup(site: Served) -> None:
    """Reasons of waivers are what administrators wrote; they are text as well, over HTTP."""
    reason = GPU_POLICY.replace("the reference documents name the versions", "<script>alert(1)</script> was here")
    set_key_policy(site.broker.world, ADMIN, PATH, reason, now=NOW)
    try:
        assert "waived: &lt;script&gt;alert(1)&lt;/script&gt;" in shown(site)
    finally:
        set_key_policy(site.broker.world, ADMIN, PATH, GPU_POLICY, now=NOW)


@pytest.mark.parametrize(
    ("tag", "attributes"),
    [
        pytest.param("script", {}, id="script"),
        pytest.param("iframe", {}, id="iframe"),
        pytest.param("p", {"onclick": "x()"}, id="handler"),
        pytest.param("p", {"style": "x"}, id="style"),
        pytest.param("a", {"href": "javascript:x()"}, id="javascript-link"),
        pytest.param("a", {"href": "//elsewhere"}, id="foreign-link"),
        pytest.param("form", {"action": "https://elsewhere/ui/"}, id="foreign-form"),
        pytest.param("a", {"href": "/uix"}, id="other-path"),
    ],
)
def test_what_cannot_be_built(tag: str, attributes: dict[str, str]) -> None:
    """The builder has no way to say it."""
    with pytest.raises(ValueError, match=r"no such|links stay"):
        el(tag, **attributes)


@needs_chromium
def test_in_a_browser(site: Served, tmp_path: Path) -> None:
    """Log in by keyboard with scripts switched off, read, and take the picture; nothing was refused by the policy."""
    with browser(tmp_path / "profile") as page:
        page.call("Emulation.setScriptExecutionDisabled", value=True)
        page.open(f"{site.admin_url}/ui")
        page.type_and_enter(token(site))
        assert page.value("location.pathname") == "/ui"
        assert page.value("document.querySelectorAll('section').length") == 5
        assert page.value("document.cookie") == ""
        assert page.value("getComputedStyle(document.querySelector('h2')).fontSize") == "16px"
        assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        page.screenshot(SCREENSHOT)
        errors = [e["entry"]["text"] for e in page.seen("Log.entryAdded") if e["entry"]["source"] == "security"]
        urls = {e["request"]["url"].removeprefix(site.admin_url) for e in page.seen("Network.requestWillBeSent")}
    assert not errors
    assert urls <= {"/ui", "/ui/login", "/ui/style.css", "/favicon.ico", "about:blank"}
    assert SCREENSHOT.stat().st_size > 20_000


@needs_chromium
def test_markup_is_inert_in_a_browser(poison: bytes, tmp_path: Path) -> None:
    """The poisoned page, with scripts on and without any policy: no element appears, nothing runs."""
    file = tmp_path / "page.html"
    file.write_bytes(poison)
    with browser(tmp_path / "profile") as page:
        page.open(file.as_uri())
        assert page.value("document.querySelectorAll('script,img,iframe,object,embed,base').length") == 0
        assert page.value("document.title") == "Key broker: overview"
        assert page.value("document.body.innerText.includes('<script>')")
        assert not page.seen("Page.javascriptDialogOpening")
