package main

import (
	"fmt"
	"strings"
	"testing"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// slurmHome is a Home whose commands talk to a Slurm of the test's own.
func slurmHome(t *testing.T, o slurmtest.Options) (*testkit.Home, *slurmtest.Cluster) {
	t.Helper()
	c := slurmtest.New(t, o)
	h := testkit.New(t)
	h.Env = append(h.Env, c.Env()...)
	return h, c
}

func slurmSpec(more string) string {
	return fmt.Sprintf(`version = 1
name = "queue"
[[pool]]
name = "burst"
backend = "slurm"
partition = "main"
cpus = 2
time = "10m"
resources = { cpu = 2, slot = 2 }
%s
`, more)
}

func TestSlurmCluster(t *testing.T) {
	h, c := slurmHome(t, slurmtest.Options{Nodes: 4})
	h.Write("queue.toml", slurmSpec("min = 2\nmax = 4"))
	out := h.OK("up", "queue.toml")
	if !strings.Contains(out, "cluster queue is up: 2 nodes") {
		t.Errorf("up: %q", out)
	}
	if jobs := c.OK(t, "squeue", "-h", "-o", "%A %D %T %k"); strings.Count(jobs, "\n") != 1 || !strings.Contains(jobs, " 2 RUNNING launcher:queue:burst:") {
		t.Errorf("two nodes are not one job: %q", jobs)
	}
	out = h.OK("run", "--array", "0-19", "--", "sh", "-c", "echo ${SLURM_JOB_ID-hidden}")
	if strings.Count(out, "hidden\n") != 20 {
		t.Errorf("an array of 20: %q", out)
	}
	if out := h.OK("run", "--nodes", "2", "--", "sh", "-c", "echo rank $RANK of $WORLD_SIZE"); strings.Count(out, "of 2") != 2 {
		t.Errorf("a gang on two nodes: %q", out)
	}
	h.OK("down", "queue")
	if left := c.OK(t, "squeue", "-h"); left != "" {
		t.Errorf("left in the queue: %q", left)
	}
	if bad := c.OK(t, "sinfo", "-h", "-R"); strings.TrimSpace(bad) != "" {
		t.Errorf("nodes were drained: %q", bad)
	}
}
