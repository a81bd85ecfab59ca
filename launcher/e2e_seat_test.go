package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
	"launcher/wire"
)

// seatOf says on which node the head is, and how often it has moved.
func seatOf(t *testing.T, h *testkit.Home) (node string, moves float64) {
	t.Helper()
	cl, _ := lastJSON(t, h.OK("status", "--json"))["cluster"].(map[string]any)
	hd, _ := cl["head"].(map[string]any)
	node, _ = hd["node"].(string)
	moves, _ = hd["moves"].(float64)
	return node, moves
}

// awaitSeat waits until the head is on another node than was.
func awaitSeat(t *testing.T, h *testkit.Home, was string) (node string) {
	t.Helper()
	testkit.Eventually(t, testkit.Bound, func() string {
		if node, _ = seatOf(t, h); node == was {
			return fmt.Sprintf("the head is on %q", node)
		}
		return ""
	})
	return node
}

// eachOnce checks what an array printed.
func eachOnce(t *testing.T, out string, n int) {
	t.Helper()
	lines := strings.Fields(out)
	slices.Sort(lines)
	if got := len(slices.Compact(slices.Clone(lines))); len(lines) != n || got != n {
		t.Errorf("an array of %d printed %d lines, %d different ones", n, len(lines), got)
	}
}

// seatPIDs are the processes of a kind that have the head's place on a node as an argument.
func seatPIDs(h *testkit.Home, kind, node string) (out []int) {
	for _, p := range h.Processes() {
		if p.Kind() == kind && strings.Contains(strings.Join(p.Args, " "), "/"+node+"/") {
			out = append(out, p.PID)
		}
	}
	return out
}

// agentOf is a node's agent, and how often it was started anew.
func agentOf(t *testing.T, h *testkit.Home, node string) (pid int, restarts float64) {
	t.Helper()
	nodes, _ := lastJSON(t, h.OK("nodes", "--json"))["nodes"].([]any)
	for _, n := range nodes {
		if n, _ := n.(map[string]any); n["id"] == node {
			p, _ := n["pid"].(float64)
			restarts, _ = n["agent_restarts"].(float64)
			return int(p), restarts
		}
	}
	t.Fatalf("there is no node %s: %v", node, nodes)
	return 0, 0
}

// killNode kills all processes of the node that has the head.
func killNode(t *testing.T, h *testkit.Home, node string) {
	t.Helper()
	all := h.Processes()
	parent := map[int]int{}
	guard := 0
	for _, p := range all {
		if parent[p.PID] = p.PPID; p.Kind() == "head-supervise" && strings.Contains(p.Args[3], "/"+node+"/") {
			guard = p.PPID
		}
	}
	if guard = parent[guard]; guard == 0 {
		t.Fatalf("the guard of node %s is not found", node)
	}
	for _, p := range all {
		for up := p.PID; up != 0; up = parent[up] {
			if up == guard {
				_ = syscall.Kill(p.PID, syscall.SIGKILL)
			}
		}
	}
}

// jobOfNode is the Slurm job that a node is of.
func jobOfNode(t *testing.T, h *testkit.Home, node string) string {
	t.Helper()
	records, _ := filepath.Glob(filepath.Join(h.Dir, "clusters/queue/slurm/*.json"))
	for _, f := range records {
		var r struct {
			Job   string
			Nodes []string
			End   *struct{}
		}
		if b, err := os.ReadFile(f); err == nil && json.Unmarshal(b, &r) == nil && r.End == nil && slices.Contains(r.Nodes, node) {
			return r.Job
		}
	}
	t.Fatalf("no job has node %s", node)
	return ""
}

// awaitBoth waits until the head has heard of both nodes, and so knows where else it may go.
func awaitBoth(t *testing.T, h *testkit.Home) {
	t.Helper()
	testkit.Eventually(t, testkit.Bound, func() string {
		if status := h.OK("status"); !strings.Contains(status, "2 of 2 nodes up") {
			return status
		}
		return ""
	})
}

// A head goes into the pool and on with it: from a node that is drained, over its own death
// and that of its supervisor, and home at the end; an array meanwhile does each task once.
func TestHeadMoves(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	h := testkit.New(t)
	h.Write("roam.toml", "version = 1\nname = \"roam\"\n[head]\nwhere = \"pool:p\"\n[[pool]]\nname = \"p\"\nbackend = \"local\"\nnodes = 2\n")
	h.OK("up", "roam.toml")
	// It is there before a node looks for it and stays: NFS remembers for a while that a file is not.
	seat := filepath.Join(h.Dir, "clusters", "roam", wire.HeadSeatFile)
	if _, err := os.Stat(seat); err != nil {
		t.Error(err)
	}
	first := awaitSeat(t, h, "")
	log := h.Write("done", "")
	out := make(chan testkit.Result, 1)
	h.Write("gate", "")
	cmd := h.Cmd(t.Context(), "run", "--array", "0-59", "--", "sh", "-c",
		`while [ -e gate ] && [ $LAUNCHER_TASK_INDEX -ge 20 ]; do sleep 0.1; done; echo $LAUNCHER_TASK_INDEX; echo $LAUNCHER_TASK_INDEX >>`+log)
	go func() { out <- testkit.Finish(cmd) }()
	testkit.Eventually(t, testkit.Bound, func() string {
		if n := strings.Count(h.Read("done"), "\n"); n < 20 {
			return fmt.Sprintf("%d of the first 20", n)
		}
		return ""
	})
	awaitBoth(t, h)
	h.OK("drain", first)
	second := awaitSeat(t, h, first)
	if _, moves := seatOf(t, h); second == "" || moves != 2 {
		t.Errorf("after the drain of %s the head is on %q, after %g moves", first, second, moves)
	}
	// The head is not its agent's: it stays the same one when that is killed.
	was := seatPIDs(h, "head", second)
	pid, _ := agentOf(t, h, second)
	_ = syscall.Kill(pid, syscall.SIGKILL)
	testkit.Eventually(t, testkit.Bound, func() string {
		if _, n := agentOf(t, h, second); n == 0 {
			return "the agent has not come back"
		}
		return ""
	})
	if now := seatPIDs(h, "head", second); len(was) != 1 || !slices.Equal(now, was) {
		t.Errorf("after its node's agent was killed the head is process %v, before it was %v", now, was)
	}
	_ = os.Remove(filepath.Join(h.Work, "gate"))
	for _, kind := range []string{"head", "head-supervise"} {
		was := h.PIDs(kind)
		for _, pid := range was {
			if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); strings.Contains(string(b), second) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		testkit.Eventually(t, testkit.Bound, func() string {
			if slices.Equal(h.PIDs(kind), was) {
				return "it is the same " + kind
			}
			return ""
		})
		if node, _ := seatOf(t, h); node != second {
			t.Errorf("started again the head is on %q, not on %s", node, second)
		}
	}
	r := <-out
	if r.Code != 0 {
		t.Fatalf("%s", r)
	}
	eachOnce(t, r.Out, 60)
	eachOnce(t, h.Read("done"), 60)
	h.OK("down", "roam")
	if left := h.Leaks(); len(left) > 0 {
		t.Errorf("left after down:\n%s", strings.Join(left, "\n"))
	}
	eachOnce(t, h.OK("logs", "1"), 60)
	var at wire.HeadSeat
	if b, err := os.ReadFile(seat); err != nil || wire.Unmarshal(b, &at) != nil || at.Node != "" {
		t.Errorf("after down the head is on %q, by its file: %v", at.Node, err)
	}
}

// All of the head's node dies at once: it goes on at home, and from there into another node.
func TestHeadNodeLost(t *testing.T) {
	slurmtest.Whole(t)
	h := testkit.New(t)
	h.Write("roam.toml", "version = 1\nname = \"roam\"\n[head]\nwhere = \"pool:p\"\n[[pool]]\nname = \"p\"\nbackend = \"local\"\nnodes = 2\n")
	h.OK("up", "roam.toml")
	first := awaitSeat(t, h, "")
	cmd := h.Cmd(t.Context(), "run", "--array", "0-99", "--", "sh", "-c", "sleep 0.2; echo $LAUNCHER_TASK_INDEX")
	out := make(chan testkit.Result, 1)
	go func() { out <- testkit.Finish(cmd) }()
	killNode(t, h, first)
	awaitSeat(t, h, first)
	r := <-out
	if r.Code != 0 {
		t.Fatalf("%s", r)
	}
	eachOnce(t, r.Out, 100)
	h.OK("down", "roam")
	if left := h.Leaks(); len(left) > 0 {
		t.Errorf("left after down:\n%s", strings.Join(left, "\n"))
	}
}

// Slurm suspends the head's job under an array: the head goes on at home and from there into
// another allocation, as after a loss. What is resumed after that finds the journal taken.
func TestSlurmHeadSuspended(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2})
	h.Write("queue.toml", strings.Replace(slurmSpec("min = 2\nmax = 2\nnodes_per_job = 1"), "[[pool]]", "[head]\nwhere = \"pool:burst\"\n[[pool]]", 1))
	h.OK("up", "queue.toml")
	first := awaitSeat(t, h, "")
	job := jobOfNode(t, h, first)
	run := h.Start("run", "--array", "0-39", "--", "sh", "-c", "until test -e enough || test $LAUNCHER_TASK_INDEX -lt 4; do sleep 0.1; done; echo $LAUNCHER_TASK_INDEX")
	testkit.Eventually(t, testkit.Bound, func() string {
		if n := strings.Count(run.Out(), "\n"); n < 4 {
			return fmt.Sprintf("%d of the first 4", n)
		}
		return ""
	})
	c.OK(t, "scontrol", "suspend", job)
	testkit.Eventually(t, 3*testkit.Bound, func() string {
		if r := h.Run("status", "--json"); r.Code != 0 || strings.Contains(r.Out, `"node":"`+first+`"`) {
			return r.String()
		}
		return ""
	})
	_ = testkit.Finish(h.Program(t.Context(), "scontrol", "resume", job)) // unless it was cancelled meanwhile
	h.Write("enough", "")
	if r := run.Within(3 * testkit.Bound); r.Code != 0 {
		t.Fatalf("%s", r)
	} else {
		eachOnce(t, r.Out, 40)
	}
	h.OK("down", "queue")
	nothingOfOurs(t, c)
}

// The head goes into an allocation, and on to another when its own is cancelled, with its
// node's processes ended by Slurm; then the last one's, and it is at home.
func TestSlurmHeadMoves(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 3, Lines: []string{"KillWait=30"}}) // as it is by default
	h.Write("queue.toml", strings.Replace(slurmSpec("min = 2\nmax = 2\nnodes_per_job = 1"), "[[pool]]", "[head]\nwhere = \"pool:burst\"\n[[pool]]", 1))
	h.OK("up", "queue.toml")
	first := awaitSeat(t, h, "")
	cmd := h.Cmd(t.Context(), "run", "--array", "0-199", "--", "sh", "-c", "sleep 0.2; echo $LAUNCHER_TASK_INDEX")
	out := make(chan testkit.Result, 1)
	go func() { out <- testkit.Finish(cmd) }()
	awaitBoth(t, h)
	c.OK(t, "scancel", jobOfNode(t, h, first))
	second := awaitSeat(t, h, first)
	if _, moves := seatOf(t, h); moves != 2 {
		t.Errorf("after a scancel the head is on %q, after %g moves", second, moves)
	}
	if status := h.OK("status"); !strings.Contains(status, "on node "+second) || !strings.Contains(status, "after 2 moves") {
		t.Errorf("status: %s", status)
	}
	r := <-out
	if r.Code != 0 {
		t.Fatalf("%s", r)
	}
	eachOnce(t, r.Out, 200)
	h.OK("down", "queue")
	nothingOfOurs(t, c)
}
