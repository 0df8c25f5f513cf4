"""Bytes to types: exact parsers, no cryptography, no I/O. Each raises Malformed and nothing else."""
