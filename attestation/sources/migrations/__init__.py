"""The schema of a store and its history, for alembic."""
