"""The tables: built by versions, run by a command, shipped in a package."""
