"""Which packages the wheel has; everything else is in pyproject.toml.

The declarative configuration can either find packages or list them. Here both are needed: the
migrations are a top-level folder of the repository, and a subpackage once installed.
"""

from setuptools import find_packages, setup

MIGRATIONS = {
    "sqlalchemy_proletarian.migrations": "alembic_migrations",
    "sqlalchemy_proletarian.migrations.versions": "alembic_migrations/versions",
}

setup(
    # pytest imports its plugins in every project of the environment: this one is no module of the
    # package, which would import SQLAlchemy.
    py_modules=["pytest_sqlalchemy_proletarian"],
    packages=[
        *find_packages(include=["sqlalchemy_proletarian", "sqlalchemy_proletarian.*"]),
        *MIGRATIONS,
    ],
    package_dir=MIGRATIONS,
)
