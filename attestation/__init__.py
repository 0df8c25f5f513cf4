"""Relying party and guest: evidence formats, verification, appraisal, key broker, guest client.

Importing this package imports nothing else, so that every console script starts fast.
"""

__version__ = "0.1.0"
