package slurmtest

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
	if p := MissingAccounts(); p != "" && o.Accounts != nil {
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
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := c.Run(ctx, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Calls is how often the controller was asked what since it started, by its own count.
func (c *Cluster) Calls(t testing.TB) map[string]int {
	t.Helper()
	calls := map[string]int{}
	for line := range strings.Lines(c.OK(t, "sdiag")) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if strings.HasSuffix(line, "by user\n") { // the same once more
			break
		}
		for _, w := range f[1:] {
			if n, ok := strings.CutPrefix(w, "count:"); ok {
				calls[f[0]], _ = strconv.Atoi(n)
			}
		}
	}
	return calls
}

func (c *Cluster) dump(t testing.TB) {
	logs, _ := filepath.Glob(filepath.Join(c.Dir, "*.log"))
	for _, p := range logs {
		b, _ := os.ReadFile(p)
		t.Logf("%s:\n%s", p, b[max(0, len(b)-3000):])
	}
}
