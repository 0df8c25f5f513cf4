"""HTTP shell of the key broker."""
