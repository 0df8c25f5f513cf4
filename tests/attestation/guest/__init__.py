"""The guest client and the encrypted model format."""
