package tasks

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"launcher/agent/core"
	"launcher/wire"
)

// simPair is two nodes whose agents are clients of each other, and a head that leases what
// one has free to the other.
type simPair struct {
	rng    *rand.Rand
	nodes  [2]*sim
	leases wire.LeaseID
	seq    [2]uint64
	conns  []*simConn
	now    int64

	leaving bool // the second node is drained
	left    bool // it is gone

	cutting int  // of 1000 steps: one that breaks all connections
	cut     bool // until then
	until   int64
	broken  int
}

func newSimPair(t testing.TB, seed uint64, cpus, workers int) *simPair {
	p := &simPair{}
	for i := range p.nodes {
		s := newSim(t, seed, cpus)
		s.cfg.Number, s.cfg.Node, s.cfg.MaxWorkers = uint32(simNode+i), wire.NodeID(fmt.Sprint("n", i)), workers
		s.room.gives, s.pair = map[wire.LeaseID]*simGiven{}, p
		s.c = New(s.cfg, s.room, s)
		p.nodes[i] = s
	}
	p.rng, p.now = p.nodes[0].rng, p.nodes[0].now
	p.nodes[1].rng = p.rng
	p.nodes[0].peer, p.nodes[1].peer = p.nodes[1], p.nodes[0]
	return p
}

type simGiven struct {
	need              wire.Resources
	slots, used, lent int
}

func (r *simRoom) TakeLeased(_ int64, x wire.LeaseID) (core.Slot, bool) {
	g := r.gives[x]
	if g == nil || g.used-g.lent >= g.slots || !r.total.Add(r.used, -1).Fits(g.need) {
		return core.Slot{}, false
	}
	g.used++
	r.used = r.used.Add(g.need, 1)
	return core.Slot{}, true
}

func (r *simRoom) GiveLeased(x wire.LeaseID, need wire.Resources, s core.Slot) {
	if g := r.gives[x]; g != nil {
		g.used--
	}
	r.Give(need, s)
}

func (r *simRoom) Leased(x wire.LeaseID, _ uint32) bool { return r.gives[x] != nil }

func (r *simRoom) LendLeased(x wire.LeaseID, lend bool) {
	if g := r.gives[x]; g != nil {
		if g.lent--; lend {
			g.lent += 2
		}
	}
}

// beside is what leases leave free.
func (r *simRoom) beside() wire.Resources {
	free := r.total.Add(r.used, -1)
	for _, g := range r.gives {
		free = free.Add(g.need, -int64(max(0, g.slots-g.used)))
	}
	return free
}

// lend is a look of the head at what a node wants.
func (p *simPair) lend(i int) {
	if i == 0 && p.leaving {
		return
	}
	s, o := p.nodes[i], p.nodes[1-i]
	shapes, _, _ := s.c.Demand()
	for _, d := range shapes {
		n := o.room.beside().Times(d.Shape.Resources, int(d.Waiting))
		if n == 0 || o.c.Crowded() {
			continue
		}
		p.leases++
		p.seq[i]++
		o.room.gives[p.leases] = &simGiven{need: d.Shape.Resources, slots: n}
		s.c.Leased(s.now, wire.Leased{Seq: p.seq[i], Lease: p.leases, Shape: d.ID, Node: o.cfg.Node, Number: o.cfg.Number, Slots: uint32(n)})
	}
	s.take()
}

// copies brings a shared value from the other node.
func (s *sim) copies(x id) {
	if v, ok := s.peer.sealed[x]; ok {
		s.sealed[x] = v
	}
}

// leap lets time pass on both nodes.
func (p *simPair) leap(d int64) {
	for _, s := range p.nodes {
		s.now = p.now
	}
	for p.now += d; ; {
		for _, s := range p.nodes {
			if s.now += min(second, p.now-s.now); s.ledger != nil {
				s.ledger.now = s.now
			}
			s.c.Tick(s.now)
			s.take()
		}
		if p.nodes[0].now == p.now {
			break
		}
	}
	if p.cut && p.now >= p.until {
		p.cut = false
	}
	p.late()
	for _, s := range p.nodes {
		s.take()
	}
}

// cuts breaks all connections between the nodes for a while.
func (p *simPair) cuts(d int64) {
	p.cut, p.until = true, p.now+d
	p.broken++
	for _, c := range slices.Clone(p.conns) {
		p.breaks(c)
	}
	p.sweep()
}

func (p *simPair) step() bool {
	i := p.rng.IntN(2)
	if p.left {
		i = 0
	}
	s := p.nodes[i]
	s.now = max(s.now, p.now)
	if p.rng.IntN(10) == 0 {
		p.lend(i)
	}
	switch joined := !slices.ContainsFunc(p.conns, func(c *simConn) bool { return !c.live }); {
	case !p.cut && joined && s.chance(p.cutting):
		p.cuts(int64(p.rng.IntN(55_000)) * millisecond)
		return true
	case p.cut && p.rng.IntN(40) == 0:
		p.leap(int64(p.rng.IntN(4000)) * millisecond)
		return true
	}
	if can := p.links(); len(can) > 0 && p.rng.IntN(3) == 0 {
		can[p.rng.IntN(len(can))]()
		return true
	}
	did := s.step()
	p.now = max(p.now, s.now)
	return did
}

// finish runs both nodes until all programs are over.
func (p *simPair) finish(over ...func() bool) {
	s := p.nodes[0]
	s.t.Helper()
	idle := 0
	for n := 0; len(over) > 0; n++ {
		if n > 3_000_000 || idle > 30_000 || s.ledger != nil && n > 400_000 {
			s.t.Fatalf("no end: %s", p.state())
		}
		if s.ledger != nil && n == faultyFor {
			p.peace() // all must come to its end now
		}
		if idle++; p.step() {
			idle = 0
		} else if idle%100 == 0 {
			p.leap(second / 10)
		}
		for _, x := range p.nodes {
			if n%64 == 0 {
				x.check()
			}
			workers := len(x.starts)
			for _, q := range x.procs {
				if q.worker && q.life == nil {
					workers++
				}
			}
			if x.ledger == nil && workers > x.c.cfg.MaxWorkers {
				s.t.Fatalf("%d processes on node %s, %d are allowed", workers, x.cfg.Node, x.c.cfg.MaxWorkers)
			}
		}
		for len(over) > 0 && over[0]() {
			over = over[1:]
		}
	}
}

// peace ends all faults.
func (p *simPair) peace() {
	p.cutting, p.until = 0, p.now
	for _, s := range p.nodes {
		s.faults = faults{}
	}
}

// rest runs both nodes until nothing happens any more.
func (p *simPair) rest() {
	for n, idle := 0, 0; idle < 100; n++ {
		if idle++; p.step() {
			idle = 0
		}
		if n > 300_000 {
			p.nodes[0].t.Fatalf("no rest: %s", p.state())
		}
	}
}

// end lets all drivers of both nodes go; nothing may be left.
func (p *simPair) end() {
	p.nodes[0].t.Helper()
	p.peace()
	p.leap(second)
	p.rest()
	for _, s := range p.nodes {
		s.over = true
		s.closes()
	}
	for _, s := range p.nodes {
		s.leave()
	}
	for range 200 {
		p.rest()
		p.leap(second)
		p.endJobs()
	}
	p.rest()
	for _, c := range slices.Clone(p.conns) {
		if c.id == simBorrow && len(c.held)+len(c.wanted) == 0 {
			c.to().c.Gone(p.now, c.far, "a test is over")
			c.to().take()
		}
	}
	for _, s := range p.nodes {
		s.c.Tick(p.now + 2*second)
		s.take()
		s.empty()
	}
}

// endJobs is the head: a job is over when no node has a driver of it.
func (p *simPair) endJobs() {
	for _, s := range p.nodes {
		for _, key := range sortedKeys(s.c.jobs) {
			o := s.peer.c.jobs[key]
			if s.c.jobs[key].drivers == 0 && (o == nil || o.drivers == 0) {
				s.c.JobsOver(s.now, []string{key})
				s.c.JobsNeverAgain(s.now, []string{key})
				s.take()
			}
		}
	}
}

func (p *simPair) state() string {
	out := fmt.Sprintf("cut %v\n", p.cut)
	for _, c := range p.conns {
		out += fmt.Sprintf("  node %d client %d is client %d of %q live %v here %v there %v ends %v gone %v out %d back %d held %d wanted %v told %d of %d\n",
			c.from.cfg.Number, c.id, c.far, c.who.Job, c.live, c.here, c.there, c.ends, c.gone, len(c.out), len(c.back), len(c.held), sorted(c.wanted), c.acked, c.seq)
	}
	return out + p.nodes[0].state() + p.nodes[1].state()
}

// TestProgramsOverNodes: nested programs that need far more workers than two nodes may have
// come to their end, whatever is given to whom.
func TestProgramsOverNodes(t *testing.T) {
	for _, k := range []struct {
		name    string
		workers int
		faults
	}{{"few workers", 3, faults{}}, {"more", 16, faults{}}, {"workers die", 4, faults{crash: 1}}, {"agents die", 8, faults{restart: 2}}} {
		t.Run(k.name, func(t *testing.T) {
			runs, there := 0, 0
			for seed := range uint64(60) {
				t.Run(fmt.Sprint(seed), func(t *testing.T) {
					p := newSimPair(t, seed, 2, k.workers)
					var over []func() bool
					for i, s := range p.nodes {
						s.faults = k.faults
						d := s.driver("a")
						over = append(over, s.program(d, 3, 3), s.program(s.driver(fmt.Sprint("b", i)), 1, 60))
					}
					p.finish(over...)
					for _, s := range p.nodes {
						runs += s.runs
						there += s.given
					}
				})
			}
			if t.Logf("%d runs of tasks, %d given to the other node", runs, there); there == 0 {
				t.Error("no task ran on the other node")
			}
		})
	}
}
