package core

import (
	"slices"
	"testing"

	"launcher/wire"
)

func cpus(n int64) wire.Resources { return wire.Resources{CPU: n * wire.Unit} }

// answer gives what a Step told the head of one kind.
func answer[T any](o Output) (out []T) {
	for _, e := range o.Effects {
		if m, ok := e.(ToHead); ok {
			if x, ok := m.Msg.(T); ok {
				out = append(out, x)
			}
		}
	}
	return out
}

func reserve(g wire.GroupID, commit bool, until int64, needs ...wire.Resources) FromHead {
	o := wire.BundleOrder{What: wire.BundleReserve, Group: g, Round: 1, Commit: commit, Until: until}
	for i, n := range needs {
		o.Bundles = append(o.Bundles, wire.Bundle{Index: uint32(i), Need: n})
	}
	return FromHead{o}
}

func in(g wire.GroupID, bundle int32) *wire.Strategy {
	return &wire.Strategy{Kind: wire.StrategyGroup, Group: g, Bundle: bundle}
}

var group1 = wire.NewObjectID(1, 1, 1, 0)

// TestBundleIsRoomOfItsOwn: what is in a bundle counts against it alone, and comes back to
// the node when the bundle is dropped and nothing has any of it.
func TestBundleIsRoomOfItsOwn(t *testing.T) {
	c, step := roomy(t)
	if a := answer[wire.BundleNews](step(reserve(group1, true, 0, cpus(1), cpus(2)))); len(a) != 1 || !a[0].OK {
		t.Fatalf("%+v", a)
	}
	if c.Free().CPU != wire.Unit || c.tasksUse().CPU != 3*wire.Unit {
		t.Fatalf("free %s, tasks have %s", c.Free(), c.tasksUse())
	}
	if _, ok := c.TakeGroup(in(group1, 0), cpus(2)); ok {
		t.Fatal("a bundle gave what it has not")
	}
	s, ok := c.TakeGroup(in(group1, -1), cpus(2))
	if !ok || s.Bundle.Index != 1 || len(s.CPUs) != 2 || slices.Contains(c.pool.bundles[wire.BundleID{Group: group1}].Slot.CPUs, s.CPUs[0]) {
		t.Fatalf("%+v, %v", s, ok)
	}
	if _, ok := c.TakeGroup(in(group1, 1), cpus(1)); ok {
		t.Fatal("a bundle that is used up gave more")
	}
	if _, ok := c.TakeRoom(c.now, cpus(2)); ok {
		t.Fatal("a task took room of a bundle")
	}
	if a := answer[wire.BundleNews](step(reserve(wire.NewObjectID(1, 1, 2, 0), true, 0, cpus(1), cpus(1)))); a[0].OK || c.Free().CPU != wire.Unit {
		t.Fatalf("%+v: a part of a group was taken", a)
	}
	drop := FromHead{wire.BundleOrder{What: wire.BundleDrop, Group: group1, Bundles: []wire.Bundle{{Index: 0}, {Index: 1}}}}
	over := 0
	for _, e := range step(drop).Effects {
		if _, ok := e.(BundleOver); ok {
			over++
		}
	}
	if over != 2 || c.Free().CPU != 2*wire.Unit || c.HasGroup(in(group1, -1)) {
		t.Fatalf("%d bundles are over, free are %s", over, c.Free())
	}
	c.GiveRoom(cpus(2), s)
	if c.Free().CPU != 4*wire.Unit || c.tasksUse().CPU != 0 || len(c.pool.bundles) != 0 || !c.RoomGiven() {
		t.Fatalf("free are %s, tasks have %s", c.Free(), c.tasksUse())
	}
}

// TestBundleExpires: one that is not committed in time goes.
func TestBundleExpires(t *testing.T) {
	c, step := roomy(t)
	step(reserve(group1, false, c.now+10*second, cpus(1)))
	if c.HasGroup(in(group1, 0)) || c.Free().CPU != 3*wire.Unit {
		t.Fatal("a bundle is used before it is committed")
	}
	if due := c.Due(); due > c.now+10*second {
		t.Fatalf("due at %d, the bundle at %d", due, c.now+10*second)
	}
	c.Step(c.now+11*second, Tick{})
	if c.Free().CPU != 4*wire.Unit || len(c.s.bundles) != 0 {
		t.Fatal("it is kept for ever")
	}
	step(reserve(group1, false, c.now+10*second, cpus(1)))
	step(FromHead{wire.BundleOrder{What: wire.BundleCommit, Group: group1, Bundles: []wire.Bundle{{}}}})
	c.Step(c.now+100*second, Tick{})
	if !c.HasGroup(in(group1, 0)) || !c.RoomGiven() {
		t.Fatal("a committed bundle is not there")
	}
}

// TestBundleGPUs: the GPUs of a bundle stay the same, a part of one too.
func TestBundleGPUs(t *testing.T) {
	c, step := roomy(t)
	step(ResourcesChanged{Total: wire.Resources{CPU: 4 * wire.Unit, GPU: 3 * wire.Unit}, GPUs: []wire.GPU{{UUID: "a"}, {UUID: "b"}, {UUID: "c"}}})
	half := wire.Resources{GPU: wire.Unit / 2}
	if _, ok := c.TakeRoom(c.now, half); !ok {
		t.Fatal("no half GPU")
	}
	step(reserve(group1, true, 0, wire.Resources{GPU: wire.Unit}, half))
	whole, ok := c.TakeGroup(in(group1, 0), wire.Resources{GPU: wire.Unit})
	if !ok || whole.GPUs[0].UUID != "b" {
		t.Fatalf("%+v, %v", whole, ok)
	}
	part, ok := c.TakeGroup(in(group1, 1), half)
	if !ok || part.GPUs[0].UUID != "a" {
		t.Fatalf("%+v, %v", part, ok)
	}
	if _, ok := c.TakeGroup(in(group1, 1), half); ok {
		t.Fatal("half a GPU was given twice")
	}
	c.GiveRoom(half, part)
	if again, ok := c.TakeGroup(in(group1, -1), half); !ok || again.GPUs[0].UUID != "a" {
		t.Fatalf("%+v, %v", again, ok)
	}
}

// TestBundleLease: a lease for tasks of a group is granted out of its bundles.
func TestBundleLease(t *testing.T) {
	c, step := roomy(t)
	step(reserve(group1, true, 0, cpus(1), cpus(2)))
	offer := func(id wire.LeaseID, bundle int32, slots uint32) uint32 {
		a := answer[wire.LeaseGrant](step(FromHead{wire.LeaseOffer{Lease: id, Number: 3, Until: c.now + 10*second, Slots: slots, Shape: wire.Shape{Resources: cpus(1), Strategy: *in(group1, bundle)}}}))
		return a[0].Slots
	}
	if n := offer(1, 1, 5); n != 2 {
		t.Fatalf("%d slots of a bundle with two cores", n)
	}
	if n := offer(2, -1, 5); n != 1 {
		t.Fatalf("%d slots of what is left", n)
	}
	if c.Free().CPU != wire.Unit || c.Check() != nil {
		t.Fatalf("free are %s, %v", c.Free(), c.Check())
	}
	s, ok := c.TakeLeased(c.now, 1)
	if !ok || s.Bundle.Index != 1 {
		t.Fatalf("%+v, %v", s, ok)
	}
	step(FromHead{wire.BundleOrder{What: wire.BundleDrop, Group: group1, Bundles: []wire.Bundle{{Index: 1}}}})
	if c.Leased(1, 3) {
		t.Fatal("a lease on a bundle that is gone stands")
	}
	c.GiveLeased(1, cpus(1), s)
	if c.Free().CPU != 3*wire.Unit {
		t.Fatalf("free are %s", c.Free())
	}
}

// TestGroupHere: a group that fits on its owner's node is there at once, and outlives a
// restart of the agent with what is in its bundles; the head hears of it.
func TestGroupHere(t *testing.T) {
	c, step := roomy(t)
	spec := wire.GroupSpec{ID: group1, Bundles: []wire.Resources{cpus(1), cpus(1)}, Job: "d1", Owner: 1}
	step(MakeGroup{Spec: spec})
	told := answer[wire.GroupTell](step(Flush{}))
	if g, ok := c.Group(group1); !ok || g.State != wire.GroupCreated || len(told) != 1 || len(told[0].Made[0].Nodes) != 2 {
		t.Fatalf("%+v, told %+v", g, told)
	}
	far := wire.GroupSpec{ID: wire.NewObjectID(1, 1, 2, 0), Strategy: wire.GroupStrictSpread, Bundles: spec.Bundles, Job: "d1", Detached: true}
	step(MakeGroup{Spec: far})
	if told := answer[wire.GroupTell](step(Flush{})); len(told) != 1 || told[0].Made[0].Nodes != nil {
		t.Fatalf("told %+v", told)
	}
	slot, _ := c.TakeGroup(in(group1, 0), cpus(1))

	s := NewState()
	for _, r := range c.s.Snapshot() {
		s.Apply(r)
	}
	c2 := New(c.cfg, s)
	c2.KeepRoom(cpus(1), slot)
	if _, ok := c2.TakeGroup(in(group1, 0), cpus(1)); ok || c2.Free().CPU != 2*wire.Unit || c2.tasksUse().CPU != 2*wire.Unit {
		t.Fatalf("after a restart: free are %s, tasks have %s", c2.Free(), c2.tasksUse())
	}
	up := c2.Step(100*second, HeadUp{})
	if h := answer[wire.Hello](up); len(h) != 1 || len(h[0].Bundles) != 2 {
		t.Fatalf("%+v", h)
	}
	if told := answer[wire.GroupTell](c2.Step(101*second, FromHead{wire.Welcome{HeadEpoch: 2}})); len(told) != 1 || len(told[0].Made) != 2 {
		t.Fatalf("told %+v", told)
	}
	c2.Step(102*second, FromHead{wire.GroupNews{ID: group1, State: wire.GroupRemoved, Why: "its job is over"}})
	if _, ok := c2.Group(group1); ok {
		t.Fatal("the group is there still")
	}
	if c2.GiveRoom(cpus(1), slot); c2.Free().CPU != 4*wire.Unit {
		t.Fatalf("free are %s", c2.Free())
	}
}
