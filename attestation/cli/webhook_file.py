"""`--webhook FILE`: where denials and revocations are posted. `url`, `secret_file` and, optionally, `ca_file`; TOML."""

from pathlib import Path
from typing import TYPE_CHECKING

from attestation.errors import Misconfigured

if TYPE_CHECKING:
    from attestation.sources.webhook import Webhook

MAX_BYTES = 4096


def load_webhook(path: Path) -> "Webhook":
    """A running webhook; files are beside the document. Misconfigured."""
    import tomllib

    from attestation.sources.atomic import read_bounded
    from attestation.sources.webhook import Webhook
    from attestation.values import Secret

    try:
        document = tomllib.loads(read_bounded(path, MAX_BYTES).decode())
        url, secret_file, ca_file = document.pop("url"), document.pop("secret_file"), document.pop("ca_file", None)
        if document or not all(isinstance(value, str) for value in (url, secret_file, ca_file or "")):
            raise ValueError("a text is missing, or something else is there")
    except (KeyError, ValueError) as exc:
        raise Misconfigured("webhook", "bad webhook file", where=str(path), expected="url, secret_file") from exc
    secret = Secret(read_bounded(path.parent / secret_file, MAX_BYTES).strip())
    return Webhook(url, secret, ca_file=str(path.parent / ca_file) if ca_file else None)
