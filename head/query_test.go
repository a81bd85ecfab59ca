package head

import (
	"testing"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

// much is the size of answers of which one fits, and not two.
const much = 512 << 10

// TestQuery: a question reaches all nodes or one, and is over within its bound whatever
// they do.
func TestQuery(t *testing.T) {
	c := newCluster(t, 3)
	c.opts = func(o *Options) { o.maxAnswer = 2*much - 1 }
	c.start()
	s := c.client()
	nodes := func(q wire.Query) map[wire.NodeID]wire.NodeAnswer {
		t.Helper()
		return mustAsk[wire.QueryAnswer](t, s, wire.MsgQuery, q).Nodes
	}
	within(t, "all nodes answer", func() bool { return len(nodes(wire.Query{What: "tasks"})) == 3 })
	var some wire.NodeID
	for id, a := range nodes(wire.Query{What: "tasks", Args: []byte("{}")}) {
		if got, want := string(a.JSON), "tasks "+string(id)+" {}"; got != want || a.Err != nil {
			t.Errorf("%s answered %q, %v", id, got, a.Err)
		}
		some = id
	}
	one := nodes(wire.Query{What: "objects", Node: some})
	if a := one[some]; len(one) != 1 || string(a.JSON) != "objects "+string(some)+" " {
		t.Errorf("one node: %v", one)
	}
	for id, a := range nodes(wire.Query{What: "refuse"}) {
		if a.Err == nil || !errs.Is(a.Err.FromWire(), errs.NotFound) {
			t.Errorf("%s: %v", id, a)
		}
	}
	// A machine that is slow at the moment may take longer than nodes are waited for.
	within(t, "one whole answer, and two that say that they are too long", func() bool {
		whole := 0
		for id, a := range nodes(wire.Query{What: "much"}) {
			switch {
			case len(a.JSON) == much:
				whole++
			case a.Err == nil || !errs.Is(a.Err.FromWire(), errs.Exhausted) && !errs.Is(a.Err.FromWire(), errs.Timeout):
				t.Errorf("%s: %d bytes, %v", id, len(a.JSON), a.Err)
			case errs.Is(a.Err.FromWire(), errs.Timeout):
				return false
			}
		}
		return whole == 1
	})
	if _, err := ask[wire.QueryAnswer](s, wire.MsgQuery, wire.Query{What: "tasks", Node: "local-9"}); !errs.Is(err, errs.NotFound) {
		t.Errorf("of no node: %v", err)
	}
	began := time.Now()
	for id, a := range nodes(wire.Query{What: "silence"}) {
		if a.Err == nil || !errs.Is(a.Err.FromWire(), errs.Timeout) {
			t.Errorf("%s: %v", id, a)
		}
	}
	if d := time.Since(began); d < wire.QueryBound || d > testBound {
		t.Errorf("after %s", d)
	}
}
