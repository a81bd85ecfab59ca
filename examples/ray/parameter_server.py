"""A parameter server: workers compute gradients of their share, the server applies them.

Linear regression with numpy; first all together in each step, then each at its own pace.
"""

import numpy as np

import ray

TRUE = np.array([2.0, -3.0, 0.5])


@ray.remote(num_cpus=0)
class Server:
    def __init__(self, rate):
        self.weights = np.zeros(len(TRUE))
        self.rate = rate
        self.updates = 0

    def apply(self, *gradients):
        self.weights = self.weights - self.rate * np.mean(gradients, axis=0)
        self.updates += 1
        return self.weights

    def state(self):
        return self.weights, self.updates


class Share:
    """A worker's part of the data; a plain class, from which actors may derive."""

    def __init__(self, seed, n=200):
        r = np.random.default_rng(seed)
        self.x = r.normal(size=(n, len(TRUE)))
        self.y = self.x @ TRUE

    def gradient(self, weights):
        return 2 * self.x.T @ (self.x @ weights - self.y) / len(self.y)


@ray.remote(num_cpus=0)
class Worker(Share):
    def run(self, server, steps):
        """At its own pace: what the others do meanwhile is in the weights it gets."""
        weights, _ = ray.get(server.state.remote())
        for _ in range(steps):
            weights = ray.get(server.apply.remote(self.gradient(weights)))
        return steps


ray.init()
workers = [Worker.remote(seed) for seed in range(3)]

server = Server.remote(0.2)
weights = ray.get(server.state.remote())[0]
for step in range(30):
    # The weights are put once and shared by all.
    shared = ray.put(weights)
    weights = ray.get(server.apply.remote(*[w.gradient.remote(shared) for w in workers]))
    if step % 10 == 0:
        print(f"step {step}: error {np.abs(weights - TRUE).max():.4f}")
print("together:", np.round(weights, 3))

server = Server.remote(0.1)
steps = ray.get([w.run.remote(server, 40) for w in workers])
weights, updates = ray.get(server.state.remote())
print("apart:", np.round(weights, 2), "after", updates, "updates of", steps)
