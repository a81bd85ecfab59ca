"""The process that workers are forked from, without an agent."""

import json
import os
import socket
import subprocess
import sys
import unittest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BOUND = 60.0


class TemplateTest(unittest.TestCase):
    def setUp(self):
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(BOUND)
        self.addCleanup(self.ours.close)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "import os, sys; fd = int(sys.argv[1]); fd == 3 or (os.dup2(fd, 3), os.close(fd)); os.execv(sys.executable, [sys.executable, '-m', 'launcher._template'])", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONPATH": HERE},
            )  # fmt: skip
        self.addCleanup(self.process.wait, BOUND)
        self.addCleanup(self.process.kill)
        self.assertEqual(json.loads(self.ours.recv(1 << 16)), {"ready": True})

    def order(self, number):
        """Order a worker; the agent's end of its socket."""
        agent, theirs = socket.socketpair()
        agent.settimeout(BOUND)
        self.addCleanup(agent.close)
        with theirs, open(os.devnull, "w") as out:
            order = {"id": number, "env": {}, "cwd": "/", "name": f"w-{number}", "seed": number, "cpus": None}
            socket.send_fds(self.ours, [json.dumps(order).encode()], [theirs.fileno(), out.fileno(), out.fileno()])
        return agent

    def test_orders_that_come_together(self):
        agents = {n: self.order(n) for n in range(1, 41)}
        pids = {}
        for _ in agents:
            answer = json.loads(self.ours.recv(1 << 16))
            pids[answer["id"]] = answer["pid"]
        self.assertEqual(sorted(pids), sorted(agents))
        for n, agent in agents.items():
            self.assertEqual(agent.recv(4), b"LSDK")
            with open(f"/proc/{pids[n]}/comm") as name:
                self.assertEqual(name.read().strip(), f"w-{n}")
            sockets = [fd for fd in os.listdir(f"/proc/{pids[n]}/fd") if os.readlink(f"/proc/{pids[n]}/fd/{fd}").startswith("socket:")]
            self.assertEqual(sockets, ["3"])  # and none of the others'
            with open(f"/proc/{pids[n]}/status") as status:
                parent = next(line.split()[1] for line in status if line.startswith("PPid:"))
            self.assertNotEqual(int(parent), self.process.pid)

    def test_an_order_without_its_descriptors(self):
        self.ours.send(json.dumps({"id": 1}).encode())
        self.assertIn("0 descriptors", json.loads(self.ours.recv(1 << 16))["error"])
        agent = self.order(2)
        self.assertEqual(json.loads(self.ours.recv(1 << 16))["id"], 2)
        self.assertEqual(agent.recv(4), b"LSDK")

    def test_dropped(self):
        self.ours.close()
        self.assertEqual(self.process.wait(BOUND), 0)


if __name__ == "__main__":
    unittest.main()
