package main

import (
	"strings"
	"testing"

	"launcher/internal/testkit"
)

// TestRootNetWays: hosts that reach each other on a network of their own only, which the
// laptop is not on and [network] interface names; two of them not even there: objects,
// calls and rings of those go through the third.
func TestRootNetWays(t *testing.T) {
	everySSH(t)
	n := testkit.NewNet(t, "numpy", "cloudpickle")
	var hosts []*testkit.Host
	for _, name := range []string{"h1", "h2", "h3"} {
		hosts = append(hosts, n.Host(name, testkit.HostOptions{}))
	}
	n.SecondOf(hosts...)
	first := func(h *testkit.Host) string { return h.IP }
	second := func(h *testkit.Host) string { return strings.Replace(h.IP, "10.77.", "10.78.", 1) }
	n.Wall(hosts[0], hosts[1], first)
	n.Wall(hosts[0], hosts[2], first)
	n.Wall(hosts[1], hosts[2], first)
	n.Wall(hosts[0], hosts[1], second)
	h := n.Laptop
	h.Write("boxes.toml", strings.Replace(netSpec(n, "here", "box: h1 h2 h3"), "[[pool]]", "[network]\ninterface = \"eth1\"\n[[pool]]", 1))
	h.Write("tasks.py", strings.Replace(relayedTasks, "a, b = ", "a, b, _ = ", 1))
	h.Write("ring.py", strings.ReplaceAll(relayedRing, "== 3", "== 6"))
	h.OK("up", "boxes.toml")
	if out := h.OK("run", "--", "python3", "tasks.py"); out != "relayed\n" {
		t.Errorf("tasks: %q", out)
	}
	if out := h.OK("nodes"); !strings.Contains(out, "box-1 via box-2") && !strings.Contains(out, "box-0 via box-2") {
		t.Errorf("nodes does not show the relay:\n%s", out)
	}
	if out := h.OK("run", "--nodes", "3", "--", "python3", "ring.py"); strings.Count(out, "sees 6.0") != 3 {
		t.Errorf("a ring: %q", out)
	}
	h.OK("down", "boxes")
	onlyBinary(t, hosts...)
}
