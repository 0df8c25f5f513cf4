"""Adapters, one kind of I/O each: database, collateral store, HTTP, root key providers."""
