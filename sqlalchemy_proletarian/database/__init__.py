"""What each database can do, and the connections that a worker owns.

This is the only package that asks for the name of a dialect.
"""
