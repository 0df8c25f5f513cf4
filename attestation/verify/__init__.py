"""Numbered verification of parsed evidence: returns proof (`Verified*`) or raises Untrusted. Opens nothing."""
