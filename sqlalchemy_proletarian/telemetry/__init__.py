"""Named events, to ``logging`` and to a callable of yours."""
