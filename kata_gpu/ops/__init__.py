"""Use cases of the node component."""
