"""Tests of the migrations, the ``proletarian migrate`` command and the built packages."""
