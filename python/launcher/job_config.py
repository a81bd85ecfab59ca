"""Options of a program as objects, for init(job_config=..., logging_config=...)."""

from __future__ import annotations

from typing import Any, Dict, List, Optional


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


class LoggingConfig:
    """Accepted by init: workers log as the program's own code sets logging up."""

    def __init__(self, encoding: str = "TEXT", log_level: str = "INFO", additional_log_standard_attrs: Optional[List[str]] = None) -> None:
        if encoding not in ("TEXT", "JSON"):
            raise ValueError(f"encoding is {encoding!r}; there are 'TEXT' and 'JSON'")
        self.encoding, self.log_level = encoding, log_level
        self.additional_log_standard_attrs = list(additional_log_standard_attrs or [])
