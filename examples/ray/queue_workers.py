"""A queue between tasks: bounded, first in first out, shared by whoever has it."""

import ray
import ray.util.queue
from ray.util.queue import Empty, Full, Queue


@ray.remote(num_cpus=0)
def produce(queue, name, n):
    for i in range(n):
        queue.put((name, i))  # waits while the queue is full
    return n


@ray.remote(num_cpus=0)
def consume(queue):
    got = []
    while True:
        item = queue.get(timeout=60)
        if item is None:
            return got
        got.append(item)


ray.init()
queue = Queue(maxsize=3)
readers = [consume.remote(queue) for _ in range(2)]
print("produced:", sum(ray.get([produce.remote(queue, name, 10) for name in "ab"])))
for _ in readers:
    queue.put(None)
parts = ray.get(readers)
print("consumed:", sorted(sum(parts, []))[:3], "and so on,", sum(map(len, parts)))
print("in order for each reader:", all([i for who, i in part if who == name] == sorted(i for who, i in part if who == name) for part in parts for name in "ab"))

queue.put_nowait_batch([1, 2])
print("size:", queue.qsize(), "empty:", queue.empty(), "full:", queue.full())
queue.put_nowait(3)
try:
    queue.put_nowait(4)
except Full:
    print("full")
try:
    queue.put(4, timeout=0.1)
except ray.util.queue.Full:
    print("still full")
print("batch:", queue.get_nowait_batch(2), "then", queue.get())
try:
    queue.get(block=False)
except Empty:
    print("empty")
queue.shutdown()
