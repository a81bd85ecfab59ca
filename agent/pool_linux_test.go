package agent

import (
	"context"
	"os"
	"strings"
	"testing"

	"launcher/agent/core"
	"launcher/agent/supervisor/supervisortest"
	"launcher/wire"
)

// TestNodeTellsWhatItLacks: what the pool says and the node does not have is in the
// greeting, before any task meets it.
func TestNodeTellsWhatItLacks(t *testing.T) {
	h := startHead(t, 0)
	for id, c := range map[wire.NodeID]struct {
		change func(*wire.NodeConfig)
		want   string
	}{
		"p-1": {func(c *wire.NodeConfig) { c.Setup = []string{"true", "exit 3"} }, "node p-1: setup line 2 `exit 3` ended with 3"},
		"p-2": {func(c *wire.NodeConfig) { c.Python = "/no/such" }, "/no/such"},
		"p-3": {func(c *wire.NodeConfig) { c.Setup = []string{"export X=1"} }, ""},
	} {
		cfg := h.config(t, id)
		c.change(&cfg)
		inProcess(t, h, cfg, supervisortest.Start(t))
		n := h.up(id, 1)
		h.mu.Lock()
		why := n.hellos[0].Why
		h.mu.Unlock()
		if !strings.Contains(why, c.want) || c.want == "" && why != "" || strings.Contains(why, ": :") {
			t.Errorf("%s greets with %q, want %q", id, why, c.want)
		}
	}
}

// TestPythonOfThePool: a python that is not there is an error, not another python.
func TestPythonOfThePool(t *testing.T) {
	e := newEnvironment(testAgent(t))
	e.outer = []string{"PATH=" + os.Getenv("PATH")}
	j := &wire.Job{Job: 1, Python: "/no/such/python", Spec: wire.JobSpec{Command: []string{"python", "x.py"}}}
	if _, err := e.of(context.Background(), &core.Spawn{Job: j}, nil); err == nil || !strings.Contains(err.Error(), "/no/such/python") {
		t.Errorf("got %v", err)
	}
	other := *j
	other.Job, other.Spec.Command = 2, []string{"sh"}
	if _, err := e.of(context.Background(), &core.Spawn{Job: &other}, nil); err != nil {
		t.Errorf("a command that is no python: %v", err)
	}
}

// TestNoGPUs: gpu = 0 of a pool is not the same as nothing said.
func TestNoGPUs(t *testing.T) {
	found := wire.Resources{CPU: wire.Unit, GPU: 2 * wire.Unit}
	for _, c := range []struct{ spec, want int64 }{{0, 2 * wire.Unit}, {wire.NoGPUs, 0}, {wire.Unit, wire.Unit}} {
		if got := override(found, wire.Resources{GPU: c.spec}).GPU; got != c.want {
			t.Errorf("%d: %d GPUs, want %d", c.spec, got, c.want)
		}
	}
}
