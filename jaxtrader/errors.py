"""The one exception family: every message says what is wrong, where, and what to do."""

from __future__ import annotations


class JaxtraderError(Exception):
    """Anything the library can explain to the person who runs it."""


class DataError(JaxtraderError):
    """A data file, or an array made from one, cannot be used as it is."""


class ConfigError(JaxtraderError):
    """A setting is unknown, out of range or contradicts another."""


class CheckpointError(JaxtraderError):
    """A checkpoint is missing, damaged or belongs to another model."""


class ExportError(JaxtraderError):
    """A policy could not be exported, or an exported file fails its checks."""


class TrackingError(JaxtraderError):
    """An MLflow store cannot be reached, or refuses what it is sent."""


class DeviceMemoryError(JaxtraderError):
    """The memory of a device does not suffice."""
