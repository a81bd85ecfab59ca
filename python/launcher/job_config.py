"""Options of a program as an object, for init(job_config=...)."""

from __future__ import annotations

from typing import Any, Dict, Optional


class JobConfig:
    """runtime_env and ray_namespace count; the rest is accepted."""

    def __init__(self, runtime_env: Optional[Dict[str, Any]] = None, ray_namespace: Optional[str] = None, metadata: Optional[Dict[str, str]] = None, **ignored: Any) -> None:
        self.runtime_env, self.ray_namespace, self.metadata = runtime_env, ray_namespace, dict(metadata or {})

    def set_runtime_env(self, runtime_env: Optional[Dict[str, Any]], validate: bool = False) -> None:
        """Set the environment of the program's tasks."""
        self.runtime_env = runtime_env

    def set_ray_namespace(self, ray_namespace: str) -> None:
        """Set the namespace of the program's actors."""
        self.ray_namespace = ray_namespace

    def set_metadata(self, key: str, value: str) -> None:
        """Note something about the program."""
        self.metadata[key] = value
