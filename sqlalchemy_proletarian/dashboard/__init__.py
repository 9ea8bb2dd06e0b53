"""A web page of the queues and jobs, for any ASGI application.

::

    app.mount("/jobs", dashboard(engine, authorize=is_admin))
"""

from .application import dashboard
from .options import Action, JobTables

__all__ = ["Action", "JobTables", "dashboard"]
