package tasks

import (
	"fmt"
	"testing"

	"launcher/wire"
	"launcher/wire/sdk"
)

// leaves: the second node is to be drained. What the first has there and has not begun comes
// back.
func (p *simPair) leaves() {
	a, b := p.nodes[0], p.nodes[1]
	p.leaving = true
	clear(b.room.gives)
	for _, x := range a.c.leases.sorted() {
		a.c.LeaseCut(a.now, wire.LeaseCut{Lease: x.Lease, Slots: uint32(x.slots)})
	}
	for _, s := range p.nodes {
		s.c.NodeLeaves(s.now, b.cfg.Number)
		s.take()
	}
}

// mayLeave is what the head asks of a node that is drained: no leases, nothing runs, nothing
// that others need, and what was under way has had the time to arrive (head/core/drain.go).
func (p *simPair) mayLeave() bool {
	b := p.nodes[1]
	if !p.leaving || p.left || b.room.used.CPU != 0 || len(b.room.gives) > 0 || b.c.OnlyHere() {
		return false
	}
	for _, t := range b.c.tasks {
		if t.state != done {
			return false
		}
	}
	for _, c := range p.conns {
		if len(c.out)+len(c.back) > 0 || !c.live {
			return false
		}
	}
	return len(p.nodes[0].later)+len(b.later) == 0
}

// leave ends the second node.
func (p *simPair) leave() {
	a, b := p.nodes[0], p.nodes[1]
	attempts := map[id]uint32{}
	for x, t := range a.c.tasks {
		attempts[x] = t.attempt
	}
	p.left, p.conns = true, nil
	clear(b.sealed)
	clear(a.room.gives)
	for _, x := range a.c.leases.sorted() {
		a.c.LeaseCut(a.now, wire.LeaseCut{Lease: x.Lease, Slots: uint32(x.slots)})
	}
	a.c.NodeGone(a.now, b.cfg.Number, "it has left")
	a.take()
	for x, t := range a.c.tasks {
		if n, ok := attempts[x]; ok && n != t.attempt && p.broken == 0 {
			a.t.Errorf("task %s is run again", x)
		}
	}
}

// tellNobody does what an agent wants of one that is gone.
func (s *sim) tellNobody(e Effect) {
	switch e := e.(type) {
	case OpenPeer:
		s.later = append(s.later, func() { s.c.RemoteGone(s.now, e.ID, "its node is gone", false) })
	case Fetch:
		s.later = append(s.later, func() {
			if !s.c.Inherit(s.now, e.ID) {
				data := s.c.errorOf("owner_died", "its node has left", nil)
				s.c.Fetched(s.now, e.ID, sdk.Failure, 1, int64(len(data)), data, nil)
			}
		})
	}
}

// TestProgramsThatAreLeft: a node that is drained takes nothing with it that programs on
// another one need: values that its tasks made for them, and those that these refer to.
func TestProgramsThatAreLeft(t *testing.T) {
	for _, k := range []struct {
		name string
		faults
	}{
		{name: "peace"},
		{name: "workers die", faults: faults{crash: 1}},
		{name: "agents die", faults: faults{restart: 2}},
	} {
		t.Run(k.name, func(t *testing.T) {
			moved, left := 0, 0
			for seed := range uint64(seeds(60)) {
				t.Run(fmt.Sprint(seed), func(t *testing.T) {
					p := newSimPair(t, seed, 2, 8)
					for _, s := range p.nodes {
						s.faults = k.faults
					}
					a := p.nodes[0]
					over := []func() bool{a.program(a.driver("a"), 6, 4), a.program(a.driver("b"), 6, 4)}
					for n, after := 0, 300+p.rng.IntN(4000); len(over) > 0; n++ {
						if n > 400_000 {
							t.Fatalf("no end: %s", p.state())
						}
						if !p.step() && n%100 == 0 || p.leaving && !p.left && n%50 == 0 {
							p.leap(second / 10)
						}
						if n%64 == 0 {
							a.check()
						}
						switch {
						case n == after:
							p.leaves()
						case p.mayLeave() && p.rng.IntN(20) == 0:
							for _, s := range a.c.spares {
								if s.done {
									moved++
								}
							}
							p.leave()
							left++
						}
						for len(over) > 0 && over[0]() {
							over = over[1:]
						}
					}
				})
			}
			if t.Logf("%d times left, %d copies of values kept then", left, moved); left == 0 || moved == 0 {
				t.Error("nothing was moved")
			}
		})
	}
}
