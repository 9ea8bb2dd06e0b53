"""How one job is run, and what becomes of it."""
