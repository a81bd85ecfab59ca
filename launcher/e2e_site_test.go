package main

import (
	"strings"
	"testing"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// A pool's setup lines are run once on each node; a line that fails is named where people
// look, and what the lines leave is there for commands.
func TestSlurmSetup(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2})
	runs := h.Write("runs", "")
	good := slurmSpec("min = 2\nmax = 2\nsetup = [\"echo run >>" + runs + "\", \"export SITE=here; greet() { echo hello from $SITE; }; export -f greet\"]")
	h.Write("queue.toml", good)
	h.OK("up", "queue.toml")
	if out := h.OK("run", "--array", "0-9", "--", "bash", "-c", "greet"); strings.Count(out, "hello from here\n") != 10 {
		t.Errorf("what setup leaves: %q", out)
	}
	if n := strings.Count(h.Read("runs"), "run"); n != 2 {
		t.Errorf("setup ran %d times on two nodes", n)
	}
	h.OK("down", "queue")

	h.Write("queue.toml", slurmSpec(`min = 1
setup = ["true", "echo no such module; exit 4"]`))
	h.OK("up", "queue.toml")
	const want = "node burst-1: setup line 2 `echo no such module; exit 4` ended with 4: no such module"
	for _, show := range [][]string{{"status"}, {"why", "burst"}, {"nodes"}} {
		testkit.Eventually(t, testkit.Bound, func() string {
			if r := h.Run(show...); !strings.Contains(r.Out+r.Err, want) {
				return strings.Join(show, " ") + ": " + r.String()
			}
			return ""
		})
	}
	h.Fails(125, []string{want}, "run", "--", "true")
	h.OK("down", "queue")
	if left := c.OK(t, "squeue", "-h"); left != "" {
		t.Errorf("left in the queue: %q", left)
	}
}
