"""Pure leaf that broker and guest share: JWE, STREAM, TEE keys, binding hashes (docs/adr/0004)."""
