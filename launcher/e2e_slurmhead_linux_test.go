package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
	"launcher/wire"
)

// headSpec is a cluster of jobs of one node, with the head in them.
func headSpec(nodes int) string {
	return strings.Replace(slurmSpec(fmt.Sprintf("min = %d\nmax = %d\nnodes_per_job = 1", nodes, nodes)), "[[pool]]", "[head]\nwhere = \"pool:burst\"\n[[pool]]", 1)
}

// The login node may not connect to the nodes, they may to it: the head stays at home and
// says why, and goes into an allocation when the way is free.
func TestRootSlurmHeadWall(t *testing.T) {
	slurmtest.Whole(t)
	s := slurmSite(t, siteOptions{nodes: 2})
	h := s.home
	h.Write("queue.toml", headSpec(2))
	s.wall(t, "chain o { type filter hook output priority 0; "+strings.Replace(slurmOnly, "iif", "oif", 1)+"}")
	h.OK("up", "queue.toml")
	for _, node := range []string{"burst-0", "burst-1"} {
		testkit.Eventually(t, testkit.Bound, func() string {
			if st := h.OK("status"); !strings.Contains(st, "the login node does not reach node "+node+" by TCP: no answer from ") {
				return st
			}
			return ""
		})
	}
	if node, moves := seatOf(t, h); node != "" || moves != 0 {
		t.Errorf("the head is on %q after %g moves", node, moves)
	}
	eachOnce(t, h.OK("run", "--array", "0-19", "--", "sh", "-c", "echo $LAUNCHER_TASK_INDEX"), 20)
	line := append(s.net.Enter(), "nft", "delete", "table", "inet", "wall")
	if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("nft: %v %s", err, out)
	}
	awaitSeat(t, h, "")
	eachOnce(t, h.OK("run", "--array", "0-19", "--", "sh", "-c", "echo $LAUNCHER_TASK_INDEX"), 20)
	if _, moves := seatOf(t, h); moves != 1 {
		t.Errorf("%g moves", moves)
	}
	h.OK("down", "queue")
	s.clean(t, s.hosts...)
}

// The head's node has no power: the head goes on at home and from there into another
// allocation, from the same journal; what ran on that node runs again, nothing else does.
func TestRootSlurmHeadLost(t *testing.T) {
	slurmtest.Whole(t)
	s := slurmSite(t, siteOptions{nodes: 3})
	h := s.home
	h.Write("queue.toml", headSpec(2))
	h.OK("up", "queue.toml")
	first := awaitSeat(t, h, "")
	run := h.Start("run", "--array", "0-3", "--", "sh", "-c", held)
	testkit.Eventually(t, testkit.Bound, func() string {
		if strings.Count(run.Out(), "start ") != 4 {
			return "started: " + run.Out()
		}
		return ""
	})
	off := hostWithHead(t, s)
	off.PowerOff()
	second := awaitSeat(t, h, first)
	t.Logf("from %s on %s to %q", first, off.Name, second)
	testkit.Eventually(t, 3*testkit.Bound, func() string {
		if out := run.Out(); strings.Count(out, "start ") != 6 {
			return "started: " + out
		}
		return ""
	})
	h.Write("go", "")
	r := run.Within(3 * testkit.Bound)
	if r.Code != 0 || strings.Count(r.Out, "start ") != 6 || strings.Contains(r.Out, "done "+off.Name) {
		t.Errorf("%s", r)
	}
	for i := range 4 {
		if strings.Count(r.Out, fmt.Sprintf("done 1.%d ", i)) != 1 {
			t.Errorf("element %d: %s", i, r.Out)
		}
	}
	awaitSeat(t, h, "")
	h.OK("down", "queue")
	for _, x := range s.hosts {
		if x != off {
			s.clean(t, x)
		}
	}
}

// hostWithHead is the host that the head is on.
func hostWithHead(t *testing.T, s *site) *testkit.Host {
	t.Helper()
	for _, x := range s.hosts {
		if strings.Contains(strings.Join(x.Processes(), "\n"), "head-supervise") {
			return x
		}
	}
	t.Fatal("no host has the head")
	return nil
}

// homePIDs are the processes of a kind that stand for the head on the login node.
func homePIDs(h *testkit.Home, kind string) (out []int) {
	for _, p := range h.Processes() {
		if p.Kind() == kind && slices.Contains(p.Args, filepath.Join(h.Dir, "clusters", "queue")) {
			out = append(out, p.PID)
		}
	}
	return out
}

// killFront kills what is left of the head on the login node, and what would start it again.
func killFront(t *testing.T, h *testkit.Home) {
	t.Helper()
	pids := homePIDs(h, "head")
	if len(pids) == 0 {
		t.Fatal("there is no front")
	}
	for _, pid := range append(homePIDs(h, "head-supervise"), pids...) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// What is left on the login node is killed, and with its supervisor, while the head is in
// an allocation: work goes on, the head moves on, commands find it where it is, and those
// that wait, and programs that do, go on.
func TestSlurmHeadFront(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 3, Lines: []string{"KillWait=30"}}) // as it is by default
	h.Write("queue.toml", headSpec(2))
	h.OK("up", "queue.toml")
	first := awaitSeat(t, h, "")
	was := homePIDs(h, "head") // also one that it is just starting
	for _, pid := range was {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	testkit.Eventually(t, testkit.Bound, func() string {
		if now := homePIDs(h, "head"); len(now) == 0 || slices.ContainsFunc(now, func(pid int) bool { return slices.Contains(was, pid) }) {
			return fmt.Sprint("the front is ", now)
		}
		return ""
	})
	if node, moves := seatOf(t, h); node != first || moves != 1 {
		t.Errorf("after a kill of the front the head is on %q after %g moves, before it was on %s", node, moves, first)
	}

	// Nobody is there who would start it again: work goes on, and the head moves.
	h.OK("run", "--detach", "--array", "0-39", "--cpus", "0.5", "--", "sh", "-c", "test $LAUNCHER_TASK_INDEX -lt 4 || until test -e gate; do sleep 0.1; done; echo $LAUNCHER_TASK_INDEX >> detached")
	awaitBoth(t, h)
	job := jobOfNode(t, h, first)
	killFront(t, h)
	h.Write("gate", "")
	testkit.Eventually(t, testkit.Bound, func() string {
		if n := strings.Count(h.Read("detached"), "\n"); n != 40 {
			return fmt.Sprintf("%d of 40", n)
		}
		return ""
	})
	c.OK(t, "scancel", job)
	testkit.Eventually(t, testkit.Bound, func() string {
		var at wire.HeadSeat
		if b, err := os.ReadFile(filepath.Join(h.Dir, "clusters", "queue", wire.HeadSeatFile)); err != nil || wire.Unmarshal(b, &at) != nil || at.Node == "" || string(at.Node) == first {
			return fmt.Sprintf("the head is on %q", at.Node)
		}
		return ""
	})
	if pids := homePIDs(h, "head"); len(pids) > 0 {
		t.Errorf("on the login node is %v", pids)
	}
	second, moves := seatOf(t, h)
	if second == "" || second == first || moves != 2 {
		t.Errorf("the head is on %q after %g moves", second, moves)
	}
	eachOnce(t, h.Read("detached"), 40)

	// Those that wait for it start it again, and go on; a move more.
	h.Write("prog.py", `import os, time
import launcher as ray
ray.init()

@ray.remote(num_cpus=0)
class Count:
    def __init__(self):
        self.n = 0
    def add(self):
        self.n += 1
        return self.n

@ray.remote(num_cpus=0, max_retries=3)
def wait(x):
    while not os.path.exists("go"):
        time.sleep(0.1)  # sleep: a file is looked for
    return x

c = Count.options(max_restarts=-1).remote()
waiting = [wait.remote(x) for x in range(4)]
print("begun", ray.get(c.add.remote()), flush=True)
print(ray.get(waiting), ray.get(wait.remote(9)))
`)
	prog := h.Start("run", "--cpus", "0.1", "--", testkit.Python(t, "msgpack", "cloudpickle"), "prog.py")
	run := h.Start("run", "--array", "0-3", "--cpus", "0.1", "--", "sh", "-c", held)
	testkit.Eventually(t, testkit.Bound, func() string {
		if strings.Count(run.Out(), "start ") != 4 || !strings.Contains(prog.Out(), "begun 1\n") {
			return "started: " + run.Out() + prog.Out() + prog.Err()
		}
		return ""
	})
	killFront(t, h)
	h.OK("nodes")
	h.OK("drain", second)
	third := awaitSeat(t, h, second)
	h.Write("go", "")
	if r := run.Within(2 * testkit.Bound); r.Code != 0 || strings.Count(r.Out, "done ") != 4 {
		t.Errorf("%s", r)
	}
	if r := prog.Within(2 * testkit.Bound); r.Code != 0 || !strings.HasSuffix(r.Out, "[0, 1, 2, 3] 9\n") {
		t.Errorf("%s", r)
	}
	t.Logf("the head was on %s, %s, %q", first, second, third)
	h.OK("down", "queue")
	nothingOfOurs(t, c)
}

// Nodes that cannot connect to the login node, and are reached from there, take the head
// and hand it on; what waits through the login node goes on.
func TestRootSlurmHeadGate(t *testing.T) {
	slurmtest.Whole(t)
	s := slurmSite(t, siteOptions{nodes: 3, slurm: slurmtest.Options{Lines: []string{"KillWait=30"}}}) // as it is by default
	h := s.home
	h.Write("queue.toml", headSpec(2))
	s.wall(t, "chain i { type filter hook input priority 0; "+slurmOnly+"}")
	h.OK("up", "queue.toml")
	first := awaitSeat(t, h, "")
	run := h.Start("run", "--array", "0-3", "--cpus", "0.1", "--", "sh", "-c", held)
	h.OK("drain", first)
	second := awaitSeat(t, h, first)
	testkit.Eventually(t, testkit.Bound, func() string {
		if strings.Count(run.Out(), "start ") < 4 {
			return "started: " + run.Out()
		}
		return ""
	})
	if second == "" {
		second = awaitSeat(t, h, "")
	}
	s.OK(t, "scancel", jobOfNode(t, h, second))
	awaitSeat(t, h, second)
	h.Write("go", "")
	r := run.Within(3 * testkit.Bound)
	if r.Code != 0 || strings.Count(r.Out, "done ") != 4 {
		t.Errorf("%s", r)
	}
	h.OK("down", "queue")
	s.clean(t, s.hosts...)
}
