"""Fixtures: the tables of the shop."""

from tests.integration.conftest import _shop_tables, shop

__all__ = ["_shop_tables", "shop"]
