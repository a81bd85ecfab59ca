package main

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
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
	for awaitSeat(t, h, first) == "" {
		awaitSeat(t, h, "")
	}
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
