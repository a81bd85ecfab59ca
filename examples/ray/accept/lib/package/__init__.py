"""A package with Ray in one of its modules."""

from .tasks import answer  # noqa: F401
