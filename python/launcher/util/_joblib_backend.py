"""joblib's contract over the pool of util.multiprocessing. It is imported with joblib only."""

from __future__ import annotations

from typing import Any, Dict, Optional

from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase, PoolManagerMixin  # type: ignore[import-not-found,import-untyped,unused-ignore]

import launcher

from .multiprocessing import Pool


class Backend(PoolManagerMixin, AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Batches of calls go to actors."""

    supports_retrieve_callback = True
    supports_return_generator = True
    supports_inner_max_num_threads = False

    def __init__(self, nesting_level: Optional[int] = None, inner_max_num_threads: Optional[int] = None, ray_remote_args: Optional[Dict[str, Any]] = None, **options: Any) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **options)
        self.ray_remote_args = ray_remote_args

    def effective_n_jobs(self, n_jobs: Optional[int]) -> int:
        """How many calls run at once: -1 is the cluster's cores."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        cores = max(int(launcher.cluster_resources().get("CPU", 1)), 1)
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(cores + 1 + n_jobs, 1)

    def configure(self, n_jobs: int = 1, parallel: Any = None, prefer: Optional[str] = None, require: Optional[str] = None, **ignored: Any) -> int:
        """Start the actors."""
        n = self.effective_n_jobs(n_jobs)
        self._pool: Optional[Pool] = Pool(n, ray_remote_args=self.ray_remote_args)
        self.parallel = parallel
        return n

    def terminate(self) -> None:
        """End the actors."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
            self._pool = None
        self.reset_batch_stats()
