"""The option ``--models``: the mapped classes that a command works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import click

from ..models.defaults import ArchivedJob, Job, PausedQueue, RecurringJob
from ..models.job_classes import base_of, check_models
from ..models.limits import LimitPlaceMixin
from ..models.mixins import ArchivedJobMixin, JobMixin, PausedQueueMixin, RunningJobMixin
from ..models.recurring import RecurringJobMixin
from .importing import import_named


@dataclass(frozen=True)
class Models:
    """The mapped classes; those that are None have no default for a job table of your own."""

    job: type[JobMixin] = Job
    archived: type[ArchivedJobMixin] = ArchivedJob
    running: type[RunningJobMixin] | Literal["default"] | None = "default"
    paused: type[PausedQueueMixin] | None = PausedQueue
    recurring: type[RecurringJobMixin] | None = RecurringJob
    places: type[LimitPlaceMixin] | None = None

    @property
    def of_jobs(self) -> dict[str, Any]:
        """The arguments of functions for queued jobs and their archive."""
        return {"job_model": self.job, "archived_job_model": self.archived}

    @property
    def of_running(self) -> dict[str, Any]:
        """The arguments of functions for running jobs."""
        return {"job_model": self.job, "running_job_model": self.running}

    @property
    def of_worker(self) -> dict[str, Any]:
        """The arguments of a worker."""
        places = {} if self.places is None else {"limit_place_model": self.places}
        return {
            **self.of_jobs,
            "running_job_model": self.running,
            "paused_queue_model": self.paused,
            "recurring_job_model": self.recurring,
            **places,
        }

    def require(self, kind: Literal["paused", "recurring"]) -> Any:
        """Return a class that a command needs.

        :raises click.UsageError: if there is none.
        """
        found = getattr(self, kind)
        if found is None:
            mixin = _MIXINS[kind].__name__
            msg = f"{self.job.__qualname__} needs a class with {mixin} for this: add it to --models"
            raise click.UsageError(msg)
        return found


_MIXINS: Final[dict[str, type[Any]]] = {
    "job": JobMixin,
    "archived": ArchivedJobMixin,
    "running": RunningJobMixin,
    "paused": PausedQueueMixin,
    "recurring": RecurringJobMixin,
    "places": LimitPlaceMixin,
}


def load_models(targets: Sequence[str]) -> Models:
    """Import mapped classes and find out by their mixins what each is for.

    :param targets: the classes, each as ``module:Class,Class``.
    :raises click.UsageError: if a target is not written like this or does not exist, is no class
        with a mixin, or the job table or its archive is missing.
    :raises click.ClickException: if the module raises an error.
    """
    found: dict[str, Any] = {}
    for target in targets:
        for name, model in _imported(target):
            kind = next((k for k, mixin in _MIXINS.items() if _is_model(model, mixin)), None)
            if kind is None:
                mixins = ", ".join(mixin.__name__ for mixin in _MIXINS.values())
                msg = f"--models {target!r}: {name} is not a mapped class with one of {mixins}"
                raise click.UsageError(msg)
            if found.setdefault(kind, model) is not model:
                msg = (
                    f"--models: both {found[kind].__qualname__} and {name} are classes with "
                    f"{_MIXINS[kind].__name__}: name one of them"
                )
                raise click.UsageError(msg)
    if not found:
        return Models()
    missing = [kind for kind in ("job", "archived") if kind not in found]
    if missing:
        mixin = _MIXINS[missing[0]].__name__
        msg = f"--models needs a class with {mixin} as well, as in shop.models:Job,ArchivedJob"
        raise click.UsageError(msg)
    models = Models(**{"running": None, "paused": None, "recurring": None, **found})
    if base_of(models.job) is not models.job:
        found_base = base_of(models.job).__qualname__
        msg = f"--models: {models.job.__qualname__} has only some jobs: name {found_base}"
        raise click.UsageError(msg)
    check_models(models.job, models.archived, found.get("running"))
    return models


def _imported(target: str) -> list[tuple[str, Any]]:
    try:
        return import_named("--models", target)
    except click.ClickException:
        raise
    except Exception as error:
        msg = f"--models {target!r} cannot be imported: {type(error).__name__}: {error}"
        raise click.ClickException(msg.partition("\n")[0]) from error


def _is_model(found: Any, mixin: type[Any]) -> bool:
    return isinstance(found, type) and issubclass(found, mixin) and hasattr(found, "__mapper__")
