"""Actors that die: restarted so many times, calls tried again or not, then dead for good."""

import os

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError


@ray.remote(max_restarts=2, max_task_retries=2)
class Worker:
    """What it knew is lost with it: a restart begins with __init__."""

    def __init__(self):
        self.jobs = 0

    def job(self, n):
        self.jobs += 1
        return n * 10, self.jobs

    def crash_once(self, path):
        """Dies the first time; the call is made again on the restarted actor."""
        if not os.path.exists(path):
            open(path, "w").close()
            os._exit(1)
        os.unlink(path)
        return "the second try"

    def crash(self):
        os._exit(1)


@ray.remote
class Supervisor:
    """Makes a worker, and a new one when it is dead."""

    made = 0

    def start(self):
        self.worker = Worker.options(max_restarts=0, max_task_retries=0).remote()
        self.made += 1

    def do(self, n):
        try:
            if n == 3:
                ray.get(self.worker.crash.remote())
            return ray.get(self.worker.job.remote(n))[0]
        except RayActorError:
            self.start()
            return ray.get(self.worker.job.remote(n))[0]

    def workers(self):
        return self.made


ray.init()
worker = Worker.remote()
print("before:", ray.get([worker.job.remote(n) for n in (1, 2, 3)]))
mark = os.path.join("/tmp", f"supervision-{os.getpid()}")
print("crash:", ray.get(worker.crash_once.remote(mark)))
print("a new life:", ray.get(worker.job.remote(4)))

# One restart is left; its retry kills it for good.
try:
    ray.get(worker.crash.remote())
except (ActorDiedError, ActorUnavailableError):
    print("it died too often")
try:
    ray.get(worker.job.remote(5))
except ActorDiedError:
    print("dead for good")

boss = Supervisor.remote()
ray.get(boss.start.remote())
print("supervised:", ray.get([boss.do.remote(n) for n in range(6)]))
print("workers made:", ray.get(boss.workers.remote()))
