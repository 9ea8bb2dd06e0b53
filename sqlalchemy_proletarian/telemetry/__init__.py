"""What workers and producers report: named events, and runs for observers.

Events go to ``logging`` and to a callable of yours, see the page on events. Observers, from which
metrics and traces are made, see each run.
"""

from .calls import EnqueueCall
from .observers import ObservedRun, Observer, add_observer, remove_observer

__all__ = ["EnqueueCall", "ObservedRun", "Observer", "add_observer", "remove_observer"]
