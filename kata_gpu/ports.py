"""Protocols that adapters implement: exactly the methods their caller uses; tests hold the second one."""
