"""``proletarian demo`` and ``proletarian bench``."""
