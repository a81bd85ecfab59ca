package slurmtest

import (
	"os"
	"strings"
	"testing"
)

// The smoke of every other test with Slurm: it comes, runs a job on all nodes and goes.
func TestSlurm(t *testing.T) {
	c := New(t, Options{Nodes: 2, GPUs: 2})
	if out := c.OK(t, "srun", "-N2", "-n2", "--gres=gpu:1", "sh", "-c", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"); strings.Count(out, "n") < 2 || !strings.Contains(out, "n2 0") {
		t.Errorf("srun on both nodes: %q", out)
	}
	c.OK(t, "sbatch", "--wrap", "sleep 600")
	c.Stop()
	if left := c.Left(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if _, err := os.Stat(c.Dir); err == nil {
		t.Errorf("%s is left", c.Dir)
	}
}
