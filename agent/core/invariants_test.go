package core

import (
	"testing"

	"launcher/wire"
)

// checkInvariants holds after every step.
func checkInvariants(t *testing.T, c *Core) {
	t.Helper()
	used := wire.Resources{}
	cores, gpus := map[int]int64{}, map[string]int64{}
	for _, try := range c.s.tries {
		for i := range try.Ranks {
			r := &try.Ranks[i]
			if r.Ended || r.freed {
				continue
			}
			need := try.need()
			used = used.Add(need, 1)
			left := need.CPU
			for _, id := range r.Slot.CPUs {
				cores[id] += min(left, wire.Unit)
				left -= min(left, wire.Unit)
			}
			for _, g := range r.Slot.GPUs {
				gpus[g.UUID] += g.Units
			}
		}
	}
	if got, want := c.pool.total.Add(c.pool.free, -1), used; got.CPU != want.CPU || got.GPU != want.GPU || got.Memory != want.Memory || got.Custom["license"] != want.Custom["license"] {
		t.Fatalf("the pool says %s is in use, the tries %s", got, want)
	}
	if !c.pool.total.Fits(used) && !shrunk(c) {
		t.Fatalf("over-committed: %s of %s", used, c.pool.total)
	}
	for id, n := range cores {
		if n > wire.Unit {
			t.Fatalf("core %d is given away %d/10000 times", id, n)
		}
	}
	for id, n := range gpus {
		if n > wire.Unit {
			t.Fatalf("GPU %s is given away %d/10000 times", id, n)
		}
	}
	if uint64(len(c.s.unacked)) > c.s.seq {
		t.Fatalf("%d unacknowledged of %d", len(c.s.unacked), c.s.seq)
	}
	if len(c.s.byTry) != len(c.s.tries) || len(c.s.byJob) != len(c.s.jobs) {
		t.Fatal("an index is out of step")
	}
}

// shrunk reports whether the node has less than it was started with.
func shrunk(c *Core) bool { return c.pool.free.Negative() }
