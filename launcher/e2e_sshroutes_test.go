package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"launcher/internal/testkit"
)

// everySSH skips what accept/ssh.sh runs and plain `go test` does not.
func everySSH(t *testing.T) {
	t.Helper()
	if os.Getenv("LAUNCHER_TEST_SSH") != "all" {
		t.Skip("SKIP: LAUNCHER_TEST_SSH=all runs what takes long")
	}
}

const relayedTasks = `import numpy as np
import launcher as ray
from launcher.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

ray.init()
a, b = sorted(n["NodeID"] for n in ray.nodes() if n["Alive"])

@ray.remote
def make(n):
    return np.arange(n)

@ray.remote
def total(x):
    return int(x.sum())

@ray.remote
class Counter:
    def __init__(self):
        self.n = 0
    def add(self, k):
        self.n += k
        return self.n

@ray.remote
def call(counter):
    return [ray.get(counter.add.remote(1)) for _ in range(10)][-1]

n = 2_000_000
for x, y in ((a, b), (b, a)):
    ref = make.options(scheduling_strategy=On(x, soft=False)).remote(n)
    assert ray.get(total.options(scheduling_strategy=On(y, soft=False)).remote(ref)) == n * (n - 1) // 2
    counter = Counter.options(scheduling_strategy=On(x, soft=False)).remote()
    assert ray.get(call.options(scheduling_strategy=On(y, soft=False)).remote(counter)) == 10
print("relayed")
`

const relayedRing = `import numpy as np
from launcher import collective

g = collective.init()
x = np.full(300_000, g.rank + 1, np.float32)
x = g.all_reduce(x)
assert x[0] == 3 and x[-1] == 3, x
print("rank", g.rank, "sees", x[0])
`

// TestSSHRelay: two hosts that reach neither the head nor each other work together by way
// of the head: objects, actor calls, collectives. What opens its own sockets is not started
// there, and why says so.
func TestSSHRelay(t *testing.T) {
	everySSH(t)
	py := testkit.Python(t, "numpy", "cloudpickle")
	l := testkit.SSHD(t)
	h := testkit.New(t)
	a := l.Start("a", testkit.ServerOptions{Lines: []string{noNetwork(t)}})
	b := l.Start("b", testkit.ServerOptions{Lines: []string{noNetwork(t)}})
	h.Write("boxes.toml", sshSpec(l, fmt.Sprintf("%q, %q", hostPort(a), hostPort(b)), fmt.Sprintf("min = 2\npython = %q\nshare = \"ignore\"", py)))
	t.Cleanup(func() { h.Run("down", "boxes") })
	h.Write("tasks.py", relayedTasks)
	h.Write("ring.py", relayedRing)
	h.OK("up", "boxes.toml")
	if out := h.OK("run", "--", py, "tasks.py"); out != "relayed\n" {
		t.Errorf("tasks: %q", out)
	}
	if out := h.OK("nodes"); !strings.Contains(out, "ssh, box-1 via the head") && !strings.Contains(out, "ssh, box-0 via the head") {
		t.Errorf("nodes does not show the relay:\n%s", out)
	}
	if out := h.OK("run", "--nodes", "2", "--", py, "ring.py"); strings.Count(out, "sees 3.0") != 2 {
		t.Errorf("a ring: %q", out)
	}
	r := h.Start("run", "--nodes", "2", "--", "sh", "-c", "echo $MASTER_ADDR")
	testkit.Eventually(t, testkit.Bound, func() string {
		if out := h.Run("why", "3").Out; !strings.Contains(out, "its ranks open sockets to each other, so they must be on nodes that reach each other: box-") || !strings.Contains(out, "does not reach") {
			return out
		}
		return ""
	})
	h.OK("cancel", "3")
	if got := r.Wait(); got.Code != 130 || got.Out != "" {
		t.Errorf("a gang that needs sockets: %s", got)
	}
	h.OK("down", "boxes")
}
