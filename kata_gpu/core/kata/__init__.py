"""Kata's configuration as it takes effect: layers merged with provenance, judged, and completed by one drop-in."""
