"""Keys through the guest's own Confidential Data Hub, where Confidential Containers run one.

Ordinary containers have no access to the TEE; the hub attests for the whole pod. Its REST endpoint is loopback only.
"""

from attestation.errors import Denied, Misconfigured, Unavailable
from attestation.guest.http import PinnedHttp
from attestation.values import ResourcePath, Secret


class CdhClient:
    """Resources by path from the hub of this pod."""

    def __init__(self, http: PinnedHttp) -> None:
        self._http = http

    def fetch(self, path: ResourcePath) -> Secret:
        """The plain resource. The hub hides the broker's reason: today's answers 500 to whatever fails.

        Raises Denied, Misconfigured or Unavailable.
        """
        reply = self._http.call("GET", f"/cdh/resource/{path}")
        if reply.status == 200:
            return Secret(reply.body)
        if reply.status in {401, 403}:
            raise Denied("denied", "the data hub refused the key", where=reply.where, got=reply.status)
        if reply.status == 404:
            raise Misconfigured("not-found", "no such resource", where=reply.where, got=404)
        raise Unavailable(
            "cdh-error",
            "the data hub did not get the key (the broker's log and the hub's say why)",
            where=reply.where,
            got=reply.status,
        )
