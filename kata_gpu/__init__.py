"""Node component: host checks, CC mode, VFIO, CDI, DRA driver, agent.

Importing this package imports nothing else, so that the console script starts fast.
"""

__version__ = "0.1.0"
