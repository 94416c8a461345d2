"""Alembic's entry point. `serve_app.metering.migrate` hands over a connection, already locked.

The caller's SQL transaction spans every migration of one upgrade: SQLite and PostgreSQL both roll
DDL back, so an upgrade happens whole or not at all.
"""

from alembic import context

from serve_app.metering.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
