"""The life of a job as plain values and rules: no I/O."""
