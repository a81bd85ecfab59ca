package core

import (
	"testing"

	"launcher/internal/errs"
	"launcher/wire"
)

// queue is a core with one pool of a backend that gives several nodes at once.
func queue(t *testing.T, p wire.Pool) *Core {
	t.Helper()
	p.Name, p.Backend = "burst", "slurm"
	c := New(Config{Cluster: "lab", Nonce: "n", Pools: []wire.Pool{p}, Machines: testMachines}, NewDurable(testMachines))
	c.Step(second, Start{})
	return c
}

// The nodes of one allocation are given back together: while one of them works the
// others stay, since their places are not free before the last has gone.
func TestNodesOfOneAllocationGoTogether(t *testing.T) {
	c := queue(t, wire.Pool{Max: 3, Idle: 5 * second})
	o := c.Step(2*second, ClientReq{ID: 1, Req: wire.Submit{Token: "a", Spec: wire.JobSpec{Kind: wire.KindRun, Command: []string{"x"}, Nodes: 3, Ranks: 3, RanksPerNode: 1, Resources: wire.Resources{CPU: wire.Unit}}}})
	ask := asks(o)
	if len(ask) != 1 || len(ask[0].Nodes) != 3 {
		t.Fatalf("a gang that needs three nodes asks for %+v, wanted one request for three", ask)
	}
	c.Step(2*second, Submitted{Token: ask[0].Token, Allocs: []Alloc{{Handle: []byte("h"), Nodes: ask[0].Nodes}}})
	for i, id := range ask[0].Nodes {
		c.Step(2*second, AgentUp{Node: id, Epoch: ask[0].Epochs[i], Hello: wire.Hello{Total: wire.Resources{CPU: wire.Unit}}})
	}
	c.Step(3*second, ClientReq{ID: 2, Req: wire.Cancel{Job: 1}})
	drains := func() (n int) {
		for _, d := range c.d.st.Nodes {
			if d.Drain != nil {
				n++
			}
		}
		return n
	}
	for _, n := range c.order {
		n.idle = 3 * second
	}
	c.nodes[ask[0].Nodes[1]].idle = 0 // it works
	p := c.pools["burst"]
	p.wanted, c.now = 0, 20*second
	c.releaseIdle(p, 3)
	if n := drains(); n != 0 {
		t.Errorf("%d nodes are given back beside one that works", n)
	}
	c.nodes[ask[0].Nodes[1]].idle = 3 * second
	p.wanted = 1
	if c.releaseIdle(p, 3); drains() != 0 {
		t.Errorf("%d nodes are given back, and one is wanted", drains())
	}
	p.wanted = 0
	if c.releaseIdle(p, 3); drains() != 3 {
		t.Errorf("%d nodes of three are given back", drains())
	}
}

// What a backend refuses for good is told as such, until it is granted.
func TestRefusedForGood(t *testing.T) {
	c := queue(t, wire.Pool{Min: 1, Max: 1})
	token := sortedKeys(c.d.st.Subs)[0]
	c.Step(2*second, Submitted{Token: token, Err: errs.New(errs.Invalid, "no such partition")})
	if i := c.poolInfos()[0]; !i.Final || i.Why != "no such partition" {
		t.Errorf("after a refusal: %+v", i)
	}
	c.Step(2*second, Found{Pool: "burst", Tokens: []string{token}, Allocs: map[string][]Alloc{}})
	ask := asks(c.Step(10*second, Tick{}))
	if len(ask) != 1 {
		t.Fatalf("not asked again: %+v", ask)
	}
	c.Step(10*second, Submitted{Token: ask[0].Token, Allocs: []Alloc{{Handle: []byte("h"), Nodes: ask[0].Nodes}}})
	if i := c.poolInfos()[0]; i.Final {
		t.Errorf("after it was granted: %+v", i)
	}
}
