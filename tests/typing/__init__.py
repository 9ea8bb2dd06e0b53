"""Tests of the types of the public API: see :mod:`.test_types`."""
