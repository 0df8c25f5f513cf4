"""Which addresses may be served in plaintext: those that nobody else can reach."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. Of names `localhost` alone is known (RFC 6761 6.3)."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
