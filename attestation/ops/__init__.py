"""Use cases of the relying party: challenge, attest, release, administer."""
