"""The command ``proletarian worker``: one worker in this process, or a supervisor of several.

``command`` reads the options into a ``Plan``. ``serve`` loads the target, builds the worker, prints
the banner and runs it. ``supervisor`` starts processes with the same command, and each of them
serves.
"""
