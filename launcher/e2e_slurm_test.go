package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
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

// batch runs a script by sbatch to its end and gives what it printed.
func batch(t *testing.T, h *testkit.Home, c *slurmtest.Cluster, options, script string) string {
	t.Helper()
	path := h.Write("job.sh", "#!/bin/bash\n#SBATCH --output=job.out --open-mode=append "+options+"\n"+script)
	_ = os.Remove(filepath.Join(h.Work, "job.out"))
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Bound)
	defer cancel()
	r := testkit.Finish(h.Program(ctx, "sbatch", "--wait", path))
	out := h.Read("job.out")
	if r.Code != 0 {
		t.Fatalf("sbatch: %s\n%s", r, out)
	}
	return out
}

// In a batch script of the user's own, launcher uses exactly the allocation.
func TestSlurmAllocation(t *testing.T) {
	h, c := slurmHome(t, slurmtest.Options{Nodes: 3, CPUs: 4})
	out := batch(t, h, c, "-N 2 -n 4 --ntasks-per-node=2", `
launcher run --nodes 2 -- sh -c 'echo rank $RANK of $WORLD_SIZE ${SLURM_JOB_ID-hidden}'
launcher run --keep-env -- sh -c 'echo kept $SLURM_JOB_ID'
launcher run -- sh -c 'exit 7'
echo code $?
launcher run -- echo one & launcher run -- echo two & wait
launcher run --detach -- true; echo detach $?
squeue -h -s -j $SLURM_JOB_ID -o %i | grep -v -e batch -e extern | wc -l
`)
	for _, want := range []string{"rank 0 of 2 hidden\n", "rank 1 of 2 hidden\n", "kept 1\n", "code 7\n", "one\n", "two\n", "detach 125\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not there: %s", want, out)
		}
	}
	if !strings.HasSuffix(out, "\n0\n") {
		t.Errorf("steps are left at the end: %s", out)
	}
	if left, _ := filepath.Glob(filepath.Join(h.Dir, "local", "*")); len(left) > 0 {
		t.Errorf("left in the state directory: %q", left)
	}
}
