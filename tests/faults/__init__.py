"""Faults that happen in production, caused in real processes and real database servers."""
