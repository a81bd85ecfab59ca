"""A template of few lines: its workers print what they were given and read their socket."""

import array
import json
import os
import socket
import sys

if os.environ.get("TEMPLATE") == "broken":
    sys.exit("this python is too old")
orders = socket.socket(fileno=3)
orders.send(b'{"ready": true}')


def work(order, fds):
    os.setsid()
    for to, fd in ((3, fds[0]), (1, fds[1]), (2, fds[2])):
        os.dup2(fd, to)
    os.closerange(4, 64)
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    print("name", order["name"], "x", os.environ["X"], "in", os.getcwd(), flush=True)
    print("warning", file=sys.stderr, end="", flush=True)
    link = socket.socket(fileno=3)
    while True:
        word = link.recv(100)
        if not word:
            os._exit(7)
        if word == b"loop":
            for i in range(100000):
                print("line", i)
            sys.stdout.flush()
        else:
            link.send(word.upper())


while True:
    data, anc, _, _ = orders.recvmsg(65536, socket.CMSG_SPACE(12))
    if not data:
        os._exit(0)
    order, fds = json.loads(data), array.array("i")
    fds.frombytes(anc[0][2])
    if order["name"] == "refused":
        orders.send(json.dumps({"id": order["id"], "error": "no memory"}).encode())
    elif order["name"] == "unsafe":
        orders.send(json.dumps({"id": order["id"], "error": "threads", "unsafe": True}).encode())
    else:
        child = os.fork()
        if child == 0:
            pid = os.fork()
            if pid == 0:
                work(order, fds)
            orders.send(json.dumps({"id": order["id"], "pid": pid}).encode())
            os._exit(0)
        os.waitpid(child, 0)
    for fd in fds:
        os.close(fd)
