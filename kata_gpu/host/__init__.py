"""Adapters of the node component, one kind of I/O each."""
