"""Synthetic PKIs that mint byte-exact evidence. Never part of a production image."""
