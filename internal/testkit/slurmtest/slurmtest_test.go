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

// One with accounts refuses who has none, and has all of it ended with it.
func TestAccounts(t *testing.T) {
	Whole(t)
	c := New(t, Options{Accounts: []string{"add account phys", "add user USER account=phys"}})
	if out, err := c.Run(t.Context(), "sbatch", "-A", "nosuch", "--wrap", "true"); err == nil || !strings.Contains(err.Error(), "Invalid account") {
		t.Errorf("an account that is none: %q %v", out, err)
	}
	c.OK(t, "sbatch", "-A", "phys", "-J", "kept", "-o", "/dev/null", "--wrap", "sleep 600")
	if out := c.OK(t, "sacctmgr", "-n", "-P", "show", "assoc", "account=phys", "format=Account,User"); !strings.Contains(out, "phys|") {
		t.Errorf("the accounting has %q", out)
	}
	c.Stop()
	if left := c.Left(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}
