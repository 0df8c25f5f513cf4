"""Pure state of the key broker: challenges, sessions, tokens, release conditions."""
