"""Which worker died, and while it ran which job."""
