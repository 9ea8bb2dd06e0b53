"""The life cycle of a job on every supported database, with every supported driver."""
