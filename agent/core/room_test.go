package core

import (
	"testing"

	"launcher/wire"
)

// roomy is a core of a node with 4 cores that a head has greeted.
func roomy(t *testing.T) (*Core, func(Event) Output) {
	t.Helper()
	c := New(Config{Hello: wire.Hello{Node: "n", Total: wire.Resources{CPU: 4 * wire.Unit, Memory: 1 << 30}}, CPUs: []int{0, 1, 2, 3}}, NewState())
	now := int64(0)
	step := func(ev Event) Output {
		now += second
		return c.Step(now, ev)
	}
	step(HeadUp{})
	step(FromHead{wire.Welcome{HeadEpoch: 1}})
	return c, step
}

func jobWith(cpu int64) FromHead {
	return FromHead{wire.Job{Job: 1, Spec: wire.JobSpec{Resources: wire.Resources{CPU: cpu * wire.Unit}, Ranks: 1}}}
}

func spawns(o Output) (n int) {
	for _, e := range o.Effects {
		if _, ok := e.(Spawn); ok {
			n++
		}
	}
	return n
}

var cores3 = wire.Resources{CPU: 3 * wire.Unit}

// TestTasksAndTriesShareRoom: neither side is given what the other has.
func TestTasksAndTriesShareRoom(t *testing.T) {
	c, step := roomy(t)
	s, ok := c.TakeRoom(c.now, cores3)
	if !ok || len(s.CPUs) != 3 {
		t.Fatalf("took %v, %v", s, ok)
	}
	step(jobWith(2))
	if n := spawns(step(FromHead{wire.Assign{Job: 1, Ranges: []wire.Range{{From: 0, To: 2}}}})); n != 0 {
		t.Fatalf("%d started in one free core", n)
	}
	if !c.GiveRoom(cores3, s) {
		t.Fatal("the queue is not said to wait")
	}
	if n := spawns(step(Flush{})); n != 2 {
		t.Fatalf("%d started in four free cores", n)
	}
	if _, ok := c.TakeRoom(c.now, cores3); ok || c.RoomGiven() {
		t.Fatal("took what is in use")
	}
	p := wire.Proc{Try: wire.Try{Task: wire.Task{Job: 1}, Attempt: 1}}
	step(ProcStarted{Proc: p, PID: 1, At: c.now})
	c.LendRoom(p, true)
	c.LendRoom(p, true)
	if got := c.Free().CPU; got != 2*wire.Unit {
		t.Fatalf("free is %d after a rank lent its cores", got)
	}
	if s, ok = c.TakeRoom(c.now, wire.Resources{CPU: 2 * wire.Unit}); !ok {
		t.Fatal("lent cores are not to be had")
	}
	c.LendRoom(p, false)
	if got := c.Free().CPU; got != -2*wire.Unit {
		t.Fatalf("free is %d after it took them back", got)
	}
	c.LendRoom(p, true)
	step(ProcExited{Proc: p, At: c.now})
	step(OutputDrained{Proc: p})
	c.GiveRoom(wire.Resources{CPU: 2 * wire.Unit}, s)
	if got := c.Free().CPU; got != 2*wire.Unit || !c.RoomGiven() || c.RoomGiven() {
		t.Fatalf("free is %d after it ended while its cores were lent", got)
	}
}

// TestLimitedLends: what a task of a job with limits lends is the head's to give, not its
// lease's.
func TestLimitedLends(t *testing.T) {
	for _, limits := range []wire.Limits{nil, {"cpu": wire.Unit}} {
		c, step := roomy(t)
		shape := wire.Shape{Resources: wire.Resources{CPU: wire.Unit}, Owner: "1", Limits: limits}
		step(FromHead{wire.LeaseOffer{Lease: 1, Number: 3, Slots: 1, Until: c.now + 10*second, Shape: shape}})
		if _, ok := c.TakeLeased(c.now, 1); !ok {
			t.Fatal("no room under the lease")
		}
		c.LendLeased(1, true)
		c.GiveRoom(shape.Resources, Slot{CPUs: []int{0}})
		out := step(Tick{})
		if _, ok := c.TakeLeased(c.now, 1); ok == (limits != nil) {
			t.Errorf("limits %v: the slot that waits may be taken again: %v", limits, ok)
		}
		var lent int64
		for _, b := range answer[wire.Beat](out) {
			for _, j := range b.Jobs {
				lent += j.Lent.CPU
			}
		}
		if want := int64(len(limits)) * wire.Unit; lent != want {
			t.Errorf("limits %v: the head is told that %d are lent, not %d", limits, lent, want)
		}
	}
}

// TestNeitherStarves: whoever waits is let through after a while.
func TestNeitherStarves(t *testing.T) {
	c, step := roomy(t)
	one := wire.Resources{CPU: wire.Unit}
	var have []Slot
	for s, ok := c.TakeRoom(c.now, one); ok; s, ok = c.TakeRoom(c.now, one) {
		have = append(have, s)
	}
	step(jobWith(4))
	step(FromHead{wire.Assign{Job: 1, Ranges: []wire.Range{{From: 0, To: 1}}}})
	started := 0
	for range 10 { // a task ends and the next wants its room, for ever
		c.GiveRoom(one, have[0])
		started += spawns(step(Flush{}))
		if have = have[1:]; started > 0 {
			break
		}
		if s, ok := c.TakeRoom(c.now, one); ok {
			have = append(have, s)
		}
	}
	if started != 1 {
		t.Fatal("small tasks starve a try that wants the whole node")
	}
	step(FromHead{wire.Assign{Job: 1, Ranges: []wire.Range{{From: 1, To: 100}}}})
	c.Claim(c.now, nil) // they have all ended
	for i := range uint32(10) {
		p := wire.Proc{Try: wire.Try{Task: wire.Task{Job: 1, Index: i}, Attempt: 1}}
		if _, ok := c.TakeRoom(c.now, one); ok {
			return
		}
		step(ProcExited{Proc: p, At: c.now})
	}
	t.Fatal("an endless queue starves a task")
}

// TestGangGetsRoom: what comes free is kept for a gang that did not fit.
func TestGangGetsRoom(t *testing.T) {
	c, step := roomy(t)
	one := wire.Resources{CPU: wire.Unit}
	s, _ := c.TakeRoom(c.now, one)
	step(jobWith(2))
	gang := wire.Try{Task: wire.Task{Job: 1}, Attempt: 1}
	reserve := func() bool {
		for _, e := range step(FromHead{wire.Reserve{Gang: gang, Count: 2, Until: c.now + 100*second}}).Effects {
			if m, ok := e.(ToHead); ok && m.Type == wire.MsgReserved {
				return m.Msg.(wire.Reserved).OK
			}
		}
		t.Fatal("no answer")
		return false
	}
	if reserve() {
		t.Fatal("reserved what a task has")
	}
	if _, ok := c.TakeRoom(c.now, one); ok {
		t.Fatal("a task took what a gang waits for")
	}
	c.GiveRoom(one, s)
	if !reserve() {
		t.Fatal("not reserved although there is room")
	}
}
