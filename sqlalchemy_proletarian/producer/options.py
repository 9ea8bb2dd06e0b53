"""The options that all functions for enqueueing have in common."""

from __future__ import annotations

from typing import TypeVar

from ..models.mixins import JobMixin
from ..serializers.json_serializer import JSONSerializer

JobT = TypeVar("JobT", bound=JobMixin)

JSON = JSONSerializer()
"""The serializer of payloads for which none is given."""
