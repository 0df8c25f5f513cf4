"""Alembic environment: migrations run on the connection that `sources.db` hands over, never on a URL of their own."""

from alembic import context

from attestation.sources.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
