"""Fixtures of the command ``proletarian worker``."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import URL

from sqlalchemy_proletarian import migrate

from .worker_command import Project, make_project


@pytest.fixture
def project(tmp_path: Path, empty_database: URL) -> Project:
    """A project whose database is on PostgreSQL."""
    migrate.upgrade(empty_database)
    return make_project(tmp_path, empty_database)
