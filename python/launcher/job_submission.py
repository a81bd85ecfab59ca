"""Ray's client for jobs, over the launcher command."""

from __future__ import annotations

import asyncio
import enum
import json
import os
import subprocess
import uuid
from typing import Any, AsyncIterator, Dict, List, Optional

from ._cluster import binary
from ._remote import environment


class JobStatus(str, enum.Enum):
    """How far a job is."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    def __str__(self) -> str:
        return self.value

    def is_terminal(self) -> bool:
        """Whether nothing more will happen."""
        return self in (JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED)


class JobType(str, enum.Enum):
    """How a job came to be."""

    SUBMISSION = "SUBMISSION"
    DRIVER = "DRIVER"


_STATUS = {"waiting": JobStatus.PENDING, "done": JobStatus.SUCCEEDED, "failed": JobStatus.FAILED, "lost": JobStatus.FAILED, "cancelled": JobStatus.STOPPED}


class JobInfo:
    """A job; times are milliseconds since 1970."""

    def __init__(self, job: Dict[str, Any]) -> None:
        self.status = _STATUS.get(job["state"], JobStatus.RUNNING)
        command = list(job.get("command") or [])
        self.entrypoint = command[2] if command[:2] == ["sh", "-c"] and len(command) == 3 else " ".join(command)
        self.message = job.get("cause") or f"the job is {job['state']}"
        self.start_time, self.end_time = _ms(job.get("started") or job.get("submitted")), _ms(job.get("ended"))
        self.driver_exit_code: Optional[int] = job.get("exit_code")
        self.job_id, self.submission_id = str(job["id"]), str(job["name"])
        self.type = JobType.SUBMISSION
        self.error_type: Optional[str] = None
        self.metadata: Dict[str, str] = {}
        self.runtime_env: Dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(submission_id={self.submission_id!r}, status={self.status}, entrypoint={self.entrypoint!r})"


class JobDetails(JobInfo):
    """A job with its number."""


def _ms(stamp: Optional[str]) -> Optional[int]:
    if not stamp:
        return None
    from datetime import datetime

    whole, _, rest = stamp.rstrip("Z").partition(".")
    return int(datetime.fromisoformat(whole + "+00:00").timestamp() * 1000) + int((rest + "000")[:3])


class JobSubmissionClient:
    """Submits commands to a cluster and says what becomes of them.

    address: a cluster's name; in a run, and for addresses of Ray's, the cluster that the
    launcher command finds.
    """

    def __init__(self, address: Optional[str] = None, *ignored: Any, **more: Any) -> None:
        named = address if address and address != "auto" and ":" not in address else ""
        self._cluster = [] if not named or "LAUNCHER_SOCKET" in os.environ else ["-c", named]

    def _run(self, *args: str) -> str:
        got = subprocess.run([binary(), *self._cluster, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace")
        if got.returncode:
            raise RuntimeError(got.stderr.strip() or f"launcher {args[0]} ended with code {got.returncode}")
        return got.stdout

    def _jobs(self) -> List[Dict[str, Any]]:
        jobs: List[Dict[str, Any]] = json.loads(self._run("jobs", "--all", "--json"))["jobs"]
        return jobs

    def _job(self, job_id: str) -> Dict[str, Any]:
        found = [j for j in self._jobs() if job_id in (str(j["id"]), j["name"])]
        if not found:
            raise RuntimeError(f"there is no job {job_id}")
        return found[-1]

    def submit_job(
        self,
        *,
        entrypoint: str,
        job_id: Optional[str] = None,
        runtime_env: Optional[Dict[str, Any]] = None,
        metadata: Optional[Dict[str, str]] = None,
        submission_id: Optional[str] = None,
        entrypoint_num_cpus: Optional[float] = None,
        entrypoint_num_gpus: Optional[float] = None,
        entrypoint_memory: Optional[int] = None,
        entrypoint_resources: Optional[Dict[str, float]] = None,
        entrypoint_label_selector: Optional[Dict[str, str]] = None,
    ) -> str:
        """Run a shell command as a job, with ``import ray`` answered; its submission id."""
        if entrypoint_resources or entrypoint_label_selector:
            raise ValueError("entrypoint_resources and entrypoint_label_selector are not in launcher: give num_cpus, num_gpus or memory")
        name = submission_id or job_id or f"raysubmit_{uuid.uuid4().hex[:16]}"
        if submission_id and any(j["name"] == submission_id for j in self._jobs()):
            raise RuntimeError(f"there is a job with the submission_id {submission_id} already")
        args = ["run", "--detach", "--as-ray", "--name", name, "--cpus", f"{entrypoint_num_cpus or 0:g}"]
        if entrypoint_num_gpus:
            args += ["--gpus", f"{entrypoint_num_gpus:g}"]
        if entrypoint_memory:
            args += ["--memory", str(int(entrypoint_memory))]
        env = environment(runtime_env)
        for k, v in (env.get("env") or {}).items():
            args += ["--env", f"{k}={v}"]
        if env.get("working_dir"):
            args += ["--workdir", env["working_dir"]]
        self._run(*args, "--", "sh", "-c", entrypoint)
        return name

    def get_job_status(self, job_id: str) -> JobStatus:
        """How far a job is."""
        return self.get_job_info(job_id).status

    def get_job_info(self, job_id: str) -> JobDetails:
        """What is known of a job."""
        return JobDetails(self._job(job_id))

    def list_jobs(self) -> List[JobDetails]:
        """All jobs, ended ones too."""
        return [JobDetails(j) for j in self._jobs()]

    def get_job_logs(self, job_id: str) -> str:
        """What a job has printed so far."""
        number = str(self._job(job_id)["id"])
        got = subprocess.run([binary(), *self._cluster, "logs", number], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace")
        return got.stdout

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """What a job prints, until it has ended."""
        number = str(self._job(job_id)["id"])
        process = await asyncio.create_subprocess_exec(binary(), *self._cluster, "logs", "-f", number, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                yield line.decode("utf-8", "replace")
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    def stop_job(self, job_id: str) -> bool:
        """End a job; whether it had not ended."""
        job = self._job(job_id)
        if _STATUS.get(job["state"], JobStatus.RUNNING).is_terminal():
            return False
        self._run("cancel", str(job["id"]))
        return True


    def delete_job(self, job_id: str) -> bool:
        """Not there: the record is bounded by itself."""
        raise NotImplementedError("a job's record stays until `launcher forget` drops that of the whole cluster; it is bounded")

    def get_version(self) -> str:
        """launcher's version."""
        return self._run("version").strip()


__all__ = ["JobDetails", "JobInfo", "JobStatus", "JobSubmissionClient", "JobType"]
