"""Rules over verified evidence: every check gives a Finding, the verdict is one `all()` over expected devices."""
