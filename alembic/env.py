"""Alembic's entry point: the tables come from taskctl, the connection from whoever runs the migrations."""

from alembic import context

from taskctl.config import ServerSettings
from taskctl.server import migrations
from taskctl.server.tables import metadata

options = {"target_metadata": metadata, "compare_type": True, "compare_server_default": True}

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    connection = context.config.attributes.get("connection")
    with migrations.connect(ServerSettings.load()) if connection is None else connection as connection:
        context.configure(
            connection=connection,
            # Each revision commits by itself: one that fails leaves the ones before it in place.
            transaction_per_migration=True,
            on_version_apply=context.config.attributes.get("on_version_apply", ()),
            **options,
        )
        with context.begin_transaction():
            context.run_migrations()
