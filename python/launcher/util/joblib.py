"""The cluster as a backend of joblib, and so of scikit-learn."""

from __future__ import annotations

from typing import Any


def register_ray() -> None:
    """Make joblib know the backend "ray": ``with joblib.parallel_backend("ray"): ...``"""
    try:
        from joblib.parallel import register_parallel_backend  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as e:
        raise ImportError("register_ray needs joblib: pip install joblib") from e
    from ._joblib_backend import Backend

    register_parallel_backend("ray", Backend)


__all__: Any = ["register_ray"]
