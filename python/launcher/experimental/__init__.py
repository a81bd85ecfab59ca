"""What Ray has as experimental and programs use."""

from .locations import get_local_object_locations, get_object_locations

__all__ = ["get_local_object_locations", "get_object_locations"]
