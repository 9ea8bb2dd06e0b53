"""The whole life of a job on every database, and with every driver, that the library runs on."""
