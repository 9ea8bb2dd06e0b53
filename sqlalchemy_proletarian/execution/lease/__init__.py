"""Lease mode: jobs are held by a lease, and no transaction is open while they run."""
