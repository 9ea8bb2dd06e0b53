"""Transaction mode: jobs stay locked by the transaction that claimed them while they run."""
