"""Runs cells in a kernel as a notebook does, and prints what the last one gave."""

from jupyter_client.manager import start_new_kernel

CELLS = """
import ray
ray.init(ignore_reinit_error=True)
---
@ray.remote
def f(x):
    return x + offset
offset = 0
---
offset = 1  # a cell is changed and run again
---
ray.get(f.remote(40))
---
import ray as again
again.init(ignore_reinit_error=True)
from ray.exceptions import RayError
@ray.remote
def f(x):
    return x + offset + 1
---
await f.remote(40)
"""

manager, client = start_new_kernel(kernel_name="python3", startup_timeout=60)
try:
    for cell in CELLS.split("---"):
        reply = client.execute(cell.strip(), reply=True, timeout=60, user_expressions={"last": "_"})
        content = reply["content"]
        assert content["status"] == "ok", content
    print(content["user_expressions"]["last"]["data"]["text/plain"])
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
