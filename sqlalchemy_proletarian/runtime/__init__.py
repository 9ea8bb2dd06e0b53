"""How the parts of a worker wait and run side by side, in threads or in asyncio tasks.

Nothing here knows about jobs.
"""
