"""The plugin of SQLAlchemy's engines for databases that are compatible with PostgreSQL.

::

    engine = create_engine(url, plugins=["proletarian_portable"])

Workers and functions then use only what such databases have in common: no LISTEN and NOTIFY, no
arrays, no LATERAL joins, no advisory locks, no UNLOGGED tables and no catalogs of PostgreSQL. In a
URL, ``?plugin=proletarian_portable`` does the same.

.. versionadded:: 0.1
"""

from __future__ import annotations

from sqlalchemy import URL, CreateEnginePlugin, Engine

from .dialects import set_portable


class PortablePlugin(CreateEnginePlugin):
    """Marks the dialect of an engine as portable."""

    def update_url(self, url: URL) -> URL:
        """Return the URL unchanged: the plugin has no options."""
        return url

    def engine_created(self, engine: Engine) -> None:
        """Mark the dialect.

        :raises ValueError: if the engine is not for PostgreSQL or a database compatible with it.
        """
        set_portable(engine.dialect)
