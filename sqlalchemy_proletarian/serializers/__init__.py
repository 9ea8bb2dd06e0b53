"""Payloads as text: the serializer interface, JSON, and typed payloads."""

from .json_serializer import JSONSerializer, Serializer

__all__ = ["JSONSerializer", "Serializer"]
