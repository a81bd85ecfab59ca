package slurmtest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// New starts a cluster for a test, or skips the test where the packages are missing. It
// is stopped when the test ends.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	if p := Missing(); p != "" {
		t.Skipf("SKIP: no %s (make setup as root on Debian)", p)
	}
	c, err := Start(context.Background(), o)
	if err != nil {
		t.Fatalf("Slurm does not start: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			c.dump(t)
		}
		c.Stop()
	})
	return c
}

// Whole skips a test that takes long unless everything about Slurm is to be tested, as
// accept/slurm.sh does.
func Whole(t testing.TB) {
	t.Helper()
	if os.Getenv("LAUNCHER_TEST_SLURM") == "" {
		t.Skip("SKIP: accept/slurm.sh runs it (LAUNCHER_TEST_SLURM=all)")
	}
}

// OK runs a client command that must work.
func (c *Cluster) OK(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := c.Run(ctx, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (c *Cluster) dump(t testing.TB) {
	logs, _ := filepath.Glob(filepath.Join(c.Dir, "*.log"))
	for _, p := range logs {
		b, _ := os.ReadFile(p)
		t.Logf("%s:\n%s", p, b[max(0, len(b)-3000):])
	}
}
