package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"launcher/internal/testkit"
)

// TestRootNetSpread: sixteen hosts come up over a narrow way from the laptop, which the
// binary goes once; a host that comes later takes it from them.
func TestRootNetSpread(t *testing.T) {
	if os.Getenv("LAUNCHER_TEST_SSH") != "all" {
		t.Skip("SKIP: LAUNCHER_TEST_SSH=all runs what takes long")
	}
	n := testkit.NewNet(t)
	const many = 16
	var hosts []*testkit.Host
	var names []string
	host := func() {
		name := fmt.Sprintf("h%d", len(hosts)+1)
		hosts, names = append(hosts, n.Host(name, testkit.HostOptions{})), append(names, name)
	}
	for range many {
		host()
	}
	h := n.Laptop
	n.Port.Rate("50mbit")
	up := func() (int64, time.Duration) {
		t.Helper()
		spec := netSpec(n, "here", "box: "+strings.Join(names, " "))
		h.Write("boxes.toml", strings.Replace(spec, "cpu = 2", "cpu = 1", 1))
		sent, began := n.Port.Sent(), time.Now()
		h.OK("up", "boxes.toml")
		return n.Port.Sent() - sent, time.Since(began)
	}
	sent, took := up()
	size := int64(40 << 20)
	if fi, err := os.Stat(testkit.Binary(t)); err == nil {
		size = fi.Size()
	}
	t.Logf("%d hosts in %s, over 50 Mbit/s; %d MB went out for a binary of %d MB", many, took.Round(100*time.Millisecond), sent/1e6, size/1e6)
	if sent > size { // packed it is less than half of that, and there is the rest
		t.Errorf("%d MB went out, more than one copy", sent/1e6)
	}
	host()
	sent, took = up()
	t.Logf("one more in %s; %d kB went out", took.Round(100*time.Millisecond), sent/1e3)
	if sent > 3e6 {
		t.Errorf("%d kB went out for one more host", sent/1e3)
	}
	h.OK("down", "boxes")
	onlyBinary(t, hosts...)
}
