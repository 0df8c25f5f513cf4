"""The good answer of a guest's request: a small JSON object whose few header fields are known beforehand."""

from collections.abc import Mapping

from starlette.responses import Response

from attestation.formats.json_compact import compact

_JSON = (b"content-type", b"application/json")


class Answer(Response):
    """200 with this object. `cookie` is the value of `Set-Cookie`."""

    def __init__(self, content: Mapping[str, object], *, cookie: str | None = None) -> None:
        self.status_code, self.background = 200, None
        self.body = compact(content)
        self.raw_headers = [(b"content-length", b"%d" % len(self.body)), _JSON]
        if cookie is not None:
            self.raw_headers.append((b"set-cookie", cookie.encode("ascii")))
