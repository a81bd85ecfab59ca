"""The run contract against a fake agent on a unix socket, and outside a run."""

import http.server
import importlib
import json
import math
import os
import pickle
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import unittest


class Handler(http.server.BaseHTTPRequestHandler):
    def do(self):
        agent = self.server.agent
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        agent.requests.append((self.command, self.path, self.headers.get("X-Launcher-Proc"), json.loads(body) if body else None))
        status, answer = agent.answers.pop(0) if agent.answers else (200, {})
        if status == 0:  # break off, as an agent that is killed does
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do

    def address_string(self):
        return "test"

    def log_message(self, *args):
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class Agent:
    """A fake agent: records requests, gives the answers it was told to."""

    def __init__(self, path):
        self.requests, self.answers = [], []
        self.server = Server(path, Handler)
        self.server.agent = self
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


RUN_VARIABLES = [
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LAUNCHER_SOCKET", "LAUNCHER_PROC", "LAUNCHER_PARAMS",
    "LAUNCHER_JOB_ID", "LAUNCHER_TASK_ID", "LAUNCHER_TASK_INDEX", "LAUNCHER_ATTEMPT", "LAUNCHER_DEADLINE",
]


class Case(unittest.TestCase):
    def setUp(self):
        self.saved = dict(os.environ)
        for name in RUN_VARIABLES:
            os.environ.pop(name, None)
        self.dir = tempfile.mkdtemp()
        for name in [n for n in sys.modules if n == "launcher" or n.startswith("launcher.")]:
            del sys.modules[name]
        self.launcher = importlib.import_module("launcher")

    def tearDown(self):
        os.environ.clear()
        os.environ.update(self.saved)
        shutil.rmtree(self.dir)


class InRun(Case):
    def setUp(self):
        super().setUp()
        path = os.path.join(self.dir, "agent.sock")
        self.agent = Agent(path)
        os.environ.update(LAUNCHER_SOCKET=path, LAUNCHER_PROC="7.3#2/1", RANK="1", WORLD_SIZE="4", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2",
                          LAUNCHER_JOB_ID="7", LAUNCHER_TASK_ID="7.3", LAUNCHER_TASK_INDEX="3", LAUNCHER_ATTEMPT="2", LAUNCHER_DEADLINE="1700000000")

    def tearDown(self):
        self.agent.close()
        super().tearDown()

    def test_report(self):
        self.agent.answers = [(200, {"leave": "", "deadline": 0}), (200, {"leave": "pruned", "deadline": 1700000000})]
        go = self.launcher.report({"loss": 0.5}, step=3, acc=1)
        self.assertFalse(go)
        self.assertEqual((go.reason, go.deadline, str(go)), ("", None, ""))
        leave = self.launcher.report(loss=float("nan"), up=math.inf, down=-math.inf, flag=True, step=4, checkpoint=self.dir)
        self.assertTrue(leave)
        self.assertEqual((leave.reason, leave.deadline), ("pruned", 1700000000.0))
        self.assertEqual(leave, self.launcher.Leave("pruned", 1700000000.0))
        self.assertEqual(self.agent.requests, [
            ("POST", "/v1/report", "7.3#2/1", {"metrics": {"loss": 0.5, "acc": 1.0}, "step": 3}),
            ("POST", "/v1/report", "7.3#2/1", {"metrics": {"loss": "NaN", "up": "Infinity", "down": "-Infinity", "flag": 1.0}, "step": 4, "checkpoint": self.dir}),
        ])

    def test_steps_count_on_from_the_checkpoint(self):
        self.agent.answers = [(200, {"path": self.dir, "step": 5})]
        for kw in ({}, {}, {"step": 20}, {}):
            self.launcher.report(loss=1.0, **kw)
        self.assertEqual([r[3]["step"] for r in self.agent.requests if r[0] == "POST"], [6, 7, 20, 21])

    def test_bad_arguments(self):
        report = self.launcher.report
        for error, text, call in [
            (TypeError, "'loss' is '0.5'", lambda: report(loss="0.5")),
            (TypeError, "'loss' is list", lambda: report({"loss": [1]})),
            (TypeError, "mapping", lambda: report(0.5)),
            (TypeError, "must be a string", lambda: report({3: 1})),
            (ValueError, "given twice", lambda: report({"loss": 1}, loss=2)),
            (TypeError, "step must be a whole number", lambda: report(loss=1, step=1.5)),
            (ValueError, "'loss' is too large", lambda: report(loss=10**400)),
            (ValueError, "0 or more", lambda: report(loss=1, step=-1)),
            (ValueError, "not a directory", lambda: report(loss=1, step=1, checkpoint="/nonexistent/x")),
        ]:
            with self.assertRaisesRegex(error, text):
                call()
        self.assertEqual([r for r in self.agent.requests if r[0] == "POST"], [])

    def test_should_leave(self):
        self.agent.answers = [(200, {"leave": "preempted", "deadline": 0})]
        self.assertEqual(self.launcher.should_leave(), self.launcher.Leave("preempted"))
        self.assertEqual(self.agent.requests[0][:3], ("GET", "/v1/should-leave", "7.3#2/1"))

    def test_checkpoint(self):
        self.agent.answers = [(200, {"path": self.dir, "step": 5})]
        self.assertEqual(self.launcher.checkpoint(), self.dir)
        os.mkdir(os.path.join(self.dir, "rank-3"))
        self.assertEqual(self.launcher.checkpoint(), os.path.join(self.dir, "rank-3"))
        os.mkdir(os.path.join(self.dir, "rank-0"))
        self.assertEqual(self.launcher.checkpoint(), os.path.join(self.dir, "rank-0"))
        os.mkdir(os.path.join(self.dir, "rank-1"))
        self.assertEqual(self.launcher.checkpoint(), os.path.join(self.dir, "rank-1"))
        self.assertEqual(self.launcher.checkpoint(rank=0), os.path.join(self.dir, "rank-0"))
        self.assertEqual(self.launcher.checkpoint_step(), 5)
        self.assertEqual(len(self.agent.requests), 1)

    def test_checkpoint_is_a_shard(self):
        mine, other = os.path.join(self.dir, "rank-1"), os.path.join(self.dir, "rank-0")
        os.mkdir(mine)
        os.mkdir(other)
        self.agent.answers = [(200, {"path": mine, "step": 2})]
        self.assertEqual(self.launcher.checkpoint(), mine)
        self.assertEqual(self.launcher.checkpoint(rank=0), other)

    def test_checkpoint_is_gone(self):
        self.agent.answers = [(200, {"path": os.path.join(self.dir, "step-3.a1"), "step": 3})]
        with self.assertRaisesRegex(self.launcher.Error, "step-3.a1 is gone: newer ones"):
            self.launcher.checkpoint()

    def test_no_checkpoint(self):
        self.agent.answers = [(200, {"path": "", "step": 0})]
        self.assertIsNone(self.launcher.checkpoint())
        self.assertEqual(self.launcher.checkpoint_step(), 0)

    def test_params(self):
        self.agent.answers = [(200, {"lr": 0.1}), (200, None)]
        self.assertEqual(self.launcher.params({"lr": 1.0, "hidden": 8}), {"lr": 0.1, "hidden": 8})
        self.assertEqual(self.launcher.params(), {})
        path = os.path.join(self.dir, "params.json")
        with open(path, "w", encoding="utf-8") as f:
            json.dump({"lr": 0.2, "opt": {"name": "adam"}}, f)
        os.environ["LAUNCHER_PARAMS"] = path
        p = self.launcher.params({"opt": {"beta": 0.9, "name": "sgd"}, "seed": 1})
        self.assertEqual(p, {"lr": 0.2, "opt": {"beta": 0.9, "name": "adam"}, "seed": 1})
        self.assertEqual((p.lr, p.opt.name, p.opt.beta), (0.2, "adam", 0.9))
        with self.assertRaisesRegex(AttributeError, "no parameter 'rl'; there are: lr, opt, seed"):
            p.rl
        for text in ("{", "[1]"):
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
            with self.assertRaises(self.launcher.Error):
                self.launcher.params()

    def test_place(self):
        L = self.launcher
        self.assertEqual((L.in_run(), L.rank(), L.world_size(), L.local_rank(), L.local_world_size()), (True, 1, 4, 1, 2))
        self.assertEqual((L.job_id(), L.task_id(), L.task_index(), L.attempt(), L.deadline()), (7, "7.3", 3, 2, 1700000000.0))
        os.environ.update(RANK="x", LAUNCHER_DEADLINE="0")
        self.assertIsNone(L.deadline())
        with self.assertRaisesRegex(L.Error, "RANK is 'x'"):
            L.rank()

    def test_broken_connection_is_made_again(self):
        self.agent.answers = [(0, None), (0, None), (200, {"leave": "resize"})]
        self.assertEqual(self.launcher.report(loss=1, step=1).reason, "resize")
        self.assertEqual(len(self.agent.requests), 3)

    def test_refusals(self):
        for status, answer, kind, text in [
            (409, {"kind": "fenced", "msg": "attempt 2 was replaced", "hints": ["end now"]}, "fenced", "attempt 2 was replaced\nhint: end now"),
            (400, {"error": {"kind": "invalid", "msg": "no"}}, "invalid", "no"),
            (500, b"oops", "unavailable", "the agent answered 500"),
            (200, b"oops", "corrupt", "is no JSON"),
            (200, [1], "corrupt", "is list, not a table"),
            (500, {"msg": "m", "hints": 7}, "unknown", "m"),
        ]:
            self.agent.answers = [(status, answer)]
            with self.assertRaises(self.launcher.Error) as caught:
                self.launcher.report(loss=1, step=1)
            self.assertEqual(caught.exception.kind, kind)
            self.assertIn(text, str(caught.exception))
            again = pickle.loads(pickle.dumps(caught.exception))
            self.assertEqual((again.kind, str(again)), (kind, str(caught.exception)))

    def test_long_socket_path(self):
        deep = os.path.join(self.dir, "d" * 100, "agent.sock")
        os.mkdir(os.path.dirname(deep))
        with open(deep + ".at", "w", encoding="utf-8") as f:
            f.write(os.environ["LAUNCHER_SOCKET"])
        os.environ["LAUNCHER_SOCKET"] = deep
        self.assertFalse(self.launcher.should_leave())


class Gone(Case):
    def test_agent_gone(self):
        os.environ.update(LAUNCHER_SOCKET=os.path.join(self.dir, "no.sock"), LAUNCHER_PROC="1.0#1/0")
        with self.assertRaises(self.launcher.Error) as caught:
            self.launcher.should_leave()
        self.assertEqual(caught.exception.kind, "unavailable")
        self.assertIn("does not answer", str(caught.exception))

    def test_agent_silent(self):
        path = os.path.join(self.dir, "s")
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(path)
            s.listen(5)
            os.environ.update(LAUNCHER_SOCKET=path, LAUNCHER_PROC="1.0#1/0")
            from launcher._http import call

            with self.assertRaises(self.launcher.Error) as caught:
                call("GET", "/v1/should-leave", timeout=0.3)
            self.assertEqual(caught.exception.kind, "timeout")


    def test_agent_dripping(self):
        # Each byte is in time, the whole never is.
        path, done = os.path.join(self.dir, "s"), threading.Event()

        def drip(s):
            try:
                c = s.accept()[0]
                with c:
                    while not done.wait(0.05):
                        c.sendall(b"H")
            except OSError:
                pass

        with socket.socket(socket.AF_UNIX) as s:
            s.bind(path)
            s.listen(5)
            s.settimeout(30)
            t = threading.Thread(target=drip, args=(s,))
            t.start()
            giving_up = threading.Timer(20, done.set)
            giving_up.start()
            os.environ.update(LAUNCHER_SOCKET=path, LAUNCHER_PROC="1.0#1/0")
            from launcher._http import call

            with self.assertRaises(self.launcher.Error) as caught:
                call("GET", "/v1/should-leave", timeout=0.5)
            in_time = not done.is_set()
            giving_up.cancel()
            done.set()
            t.join()
        self.assertTrue(in_time)
        self.assertEqual(caught.exception.kind, "timeout")

    def test_fork_while_another_thread_reports(self):
        code = (
            "import os, sys, launcher\nfrom launcher import _run\n"
            "_run._lock.acquire()  # as a thread does that reports just now\n"
            "if os.fork() == 0:\n    launcher.report(loss=1)\n    os._exit(7)\n"
            "assert os.wait()[1] == 7 << 8\n"
        )
        p = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=dict(os.environ), start_new_session=True)
        self.assertEqual(p.returncode, 0, p.stderr)


class Outside(Case):
    def test_everything_goes_on(self):
        L = self.launcher
        self.assertFalse(L.in_run())
        self.assertFalse(L.should_leave())
        self.assertIsNone(L.checkpoint())
        self.assertEqual((L.checkpoint_step(), L.rank(), L.world_size(), L.job_id(), L.task_id(), L.attempt(), L.deadline()), (0, 0, 1, None, None, 1, None))
        self.assertEqual(L.params({"lr": 0.1}), {"lr": 0.1})

    def test_one_note(self):
        code = "import launcher\nfor i in range(3): assert not launcher.report(loss=i)\nassert launcher.LEFT == 75\n"
        p = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=dict(os.environ))
        self.assertEqual((p.returncode, p.stdout, p.stderr), (0, "", "launcher: not in a run, reports go nowhere\n"))

    def test_no_third_party_and_no_thread(self):
        code = ("import sys, threading, launcher\nlauncher.report(loss=1)\n"
                "third = {'numpy', 'msgpack', 'cloudpickle'} & set(sys.modules)\n"
                "assert not third, third\nassert threading.active_count() == 1\nassert 'collective' in dir(launcher)\n"
                "try: launcher.nothing\nexcept AttributeError: pass\nelse: raise SystemExit('nothing was there')\n")
        p = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=dict(os.environ))
        self.assertEqual(p.returncode, 0, p.stderr)


if __name__ == "__main__":
    unittest.main()
