"""The environment of a task or a program as an object: a dict with checks."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple, Union

_EMPTY: Tuple[Any, ...] = (None, "", [], {}, ())


class RuntimeEnvConfig(Dict[str, Any]):
    """How an environment is made: accepted, nothing here takes long to make."""

    def __init__(self, setup_timeout_seconds: int = 600, eager_install: bool = True, log_files: Optional[List[str]] = None) -> None:
        super().__init__(setup_timeout_seconds=setup_timeout_seconds, eager_install=eager_install, log_files=log_files or [])


class RuntimeEnv(Dict[str, Any]):
    """What runtime_env= takes: a dict of the fields that are given.

    env_vars and working_dir count; a field that launcher cannot honour raises when the
    environment is used.
    """

    def __init__(
        self,
        *,
        env_vars: Optional[Dict[str, str]] = None,
        working_dir: Optional[str] = None,
        config: Union[None, Dict[str, Any], RuntimeEnvConfig] = None,
        _validate: bool = True,
        **fields: Any,
    ) -> None:
        given = {"env_vars": env_vars, "working_dir": working_dir, "config": config, **fields}
        super().__init__({k: v for k, v in given.items() if v not in _EMPTY})

    def to_dict(self) -> Dict[str, Any]:
        """The fields as a plain dict."""
        return dict(self)

    def env_vars(self) -> Dict[str, str]:
        """The variables."""
        return dict(self.get("env_vars") or {})

    def working_dir(self) -> Optional[str]:
        """The directory."""
        return self.get("working_dir")

    def has_working_dir(self) -> bool:
        """Whether it names a directory."""
        return bool(self.get("working_dir"))
