package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"launcher/internal/testkit"
)

// headHost waits until one host but for some has a head, and gives it.
func headHost(t *testing.T, hosts []*testkit.Host, bound time.Duration, not ...*testkit.Host) (at *testkit.Host) {
	t.Helper()
	testkit.Eventually(t, bound, func() string {
		all := slices.DeleteFunc(having(hosts, "head-supervise"), func(h *testkit.Host) bool { return slices.Contains(not, h) })
		if len(all) != 1 {
			return fmt.Sprintf("%d hosts have a head", len(all))
		}
		at = all[0]
		return ""
	})
	return at
}

// TestRootNetHead: the head's host, the only one of its pool, is cut off in the middle of an
// array for a minute and lives, and later the next one loses its power in another. Each
// time a host of another pool has the head, the old one is fenced when it is back, and what
// comes out is as if nothing had been.
func TestRootNetHead(t *testing.T) {
	n := netTest(t)
	var hosts []*testkit.Host
	for i := range 4 {
		hosts = append(hosts, n.Host(fmt.Sprintf("h%d", i+1), testkit.HostOptions{}))
	}
	h := n.Laptop
	digits(t, h)
	h.Write("boxes.toml", netSpec(n, "auto", "first: h1; box: h2 h3 h4"))
	h.OK("up", "boxes.toml")
	if at := headHost(t, hosts, testkit.Bound); at != hosts[0] {
		t.Fatalf("the head is on %s", at.Name)
	}
	h.OK("train", "-n", "3", "--per-node", "1", "train.py", "--out", "/tmp/w0.npy")
	undisturbed := weights(t, hosts, "/tmp/w0.npy")
	copies := func() {
		t.Helper()
		testkit.Eventually(t, testkit.Bound, func() string {
			out := h.OK("status")
			for l := range strings.Lines(out) {
				if strings.HasPrefix(l, "journal ") && strings.Count(l, ",") == 1 {
					return ""
				}
			}
			return "the journal is not copied: " + out
		})
	}
	copies()
	array := func() *testkit.Running {
		r := h.Start("run", "--array", "0-199", "--", "sh", "-c", "sleep 0.2; echo $LAUNCHER_TASK_INDEX")
		testkit.Eventually(t, testkit.Bound, func() string {
			if n := strings.Count(r.Out(), "\n"); n < 20 {
				return fmt.Sprintf("%d elements have ended: %s", n, r.Err())
			}
			return ""
		})
		return r
	}
	ended := func(r *testkit.Running) {
		t.Helper()
		if got := r.Wait(); got.Code != 0 {
			t.Errorf("the array: %s", got)
		}
	}
	r := array()
	old := hosts[0]
	old.Down()
	cut := time.Now()
	at := headHost(t, hosts, time.Minute, old)
	t.Logf("the head was on %s %s after the cut", at.Name, time.Since(cut).Round(100*time.Millisecond))
	testkit.Eventually(t, time.Minute, func() string {
		if r := h.Run("status"); r.Code != 0 || !strings.Contains(r.Out, "head      "+at.Name+",") {
			return r.String()
		}
		return ""
	})
	t.Logf("it answered %s after the cut", time.Since(cut).Round(100*time.Millisecond))
	linkIsCut(t, time.Until(cut.Add(time.Minute)))
	old.Up()
	up := time.Now()
	if headHost(t, hosts, testkit.Bound) != at {
		t.Error("the old head is back")
	}
	t.Logf("the old head was gone %s after the link came back", time.Since(up).Round(100*time.Millisecond))
	ended(r)
	testkit.Eventually(t, testkit.Bound, func() string {
		if out := h.OK("nodes"); strings.Count(out, " up ") != 4 {
			return "the host that was cut is no node again: " + out
		}
		return ""
	})
	h.OK("train", "-n", "3", "--per-node", "1", "train.py", "--out", "/tmp/w2.npy")
	if weights(t, hosts, "/tmp/w2.npy") != undisturbed {
		t.Error("the weights are not those of before")
	}
	copies()
	// The next one loses its power.
	r = array()
	at.PowerOff()
	off := time.Now()
	hosts = slices.DeleteFunc(hosts, func(x *testkit.Host) bool { return x == at })
	next := headHost(t, hosts, time.Minute)
	t.Logf("the head was on %s %s after the power went", next.Name, time.Since(off).Round(100*time.Millisecond))
	ended(r)
	h.Fails(124, []string{"nothing confirmed the end of", at.Name}, "down", "boxes")
	for _, x := range hosts {
		for i := range 3 {
			_ = os.Remove(filepath.Join(x.Seen("/tmp"), fmt.Sprintf("w%d.npy", i)))
		}
	}
	onlyBinary(t, hosts...)
}
