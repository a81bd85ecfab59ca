package tasks

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"launcher/agent/core"
	"launcher/wire"
	"launcher/wire/sdk"
)

// simPair is two nodes whose agents are clients of each other, and a head that leases what
// one has free to the other.
type simPair struct {
	nodes  [2]*sim
	leases wire.LeaseID
	seq    [2]uint64
}

// simLink is what a client of one agent, which is the other agent, is told.
type simLink struct {
	far  uint32 // the client that it is there
	shut bool   // what is sent is lost until it opens
	out  []message
}

const simBorrow = 1 << 20 // the client that stands for references to the other's objects

func newSimPair(t testing.TB, seed uint64, cpus, workers int) *simPair {
	p := &simPair{}
	for i := range p.nodes {
		s := newSim(t, seed, cpus)
		s.cfg.Number, s.cfg.Node, s.cfg.MaxWorkers = uint32(simNode+i), wire.NodeID(fmt.Sprint("n", i)), workers
		s.room.gives, s.links = map[wire.LeaseID]*simGiven{}, map[uint32]*simLink{}
		s.c = New(s.cfg, s.room, s)
		p.nodes[i] = s
	}
	p.nodes[1].rng = p.nodes[0].rng
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

// tellPeer does what one agent wants of the other.
func (s *sim) tellPeer(e Effect) {
	o := s.peer
	borrow := func(typ uint16, body []byte) {
		if s.links[simBorrow] == nil {
			far := o.c.NextClient()
			s.links[simBorrow], o.links[far] = &simLink{far: far}, &simLink{far: simBorrow}
			if err := o.c.Connect(o.now, Client{ID: far, Kind: sdk.KindPeer, Peer: s.cfg.Number}); err != nil {
				s.t.Fatal(err)
			}
		}
		if err := o.c.Frame(o.now, s.links[simBorrow].far, typ, body); err != nil {
			s.t.Fatal(err)
		}
	}
	switch e := e.(type) {
	case OpenPeer:
		x := Client{Kind: sdk.KindPeer, Peer: s.cfg.Number, Job: e.Key.Job, Language: e.Key.Language, Program: e.Key.Program, Dir: e.Key.Dir}
		if x.ID = o.c.FindPeer(x); x.ID == 0 {
			x.ID = o.c.NextClient()
			if err := o.c.Connect(o.now, x); err != nil {
				s.t.Fatal(err)
			}
		}
		l := &simLink{far: x.ID, shut: true}
		s.links[e.ID], o.links[x.ID] = l, &simLink{far: e.ID}
		s.later = append(s.later, func() { l.shut = false; s.c.RemoteOpen(s.now, e.ID) })
	case ClosePeer:
		o.c.Gone(o.now, s.links[e.ID].far, "it was closed")
	case Borrow:
		borrow(sdk.MsgHold, e.ID[:])
	case Unfetch:
		borrow(sdk.MsgRelease, e.ID[:])
	case Fetch:
		borrow(sdk.MsgGet, append(append(le32(sdk.GetValue), le32(0)...), e.ID[:]...))
	case LeaseIdle:
		if g := o.room.gives[e.Lease]; g != nil {
			if g.slots -= int(e.Slots); g.slots <= 0 {
				delete(o.room.gives, e.Lease)
			}
		}
	}
}

// hear takes a frame that the other agent sent to a client that stands for it.
func (s *sim) hear(client uint32, m message) {
	var err error
	switch {
	case s.c.byClient[client] != nil:
		err = s.c.Remote(s.now, client, m.typ, m.body)
	case m.typ == sdk.MsgPeerSubmit:
		s.given++
		err = s.c.Frame(s.now, client, m.typ, m.body)
	case client == simBorrow && m.typ == sdk.MsgObject:
		x := id(m.body[:16])
		v, _, _, cut := sdk.CutGiven(m.body[16:])
		if err = cut; v.Kind == sdk.Elsewhere {
			v.Kind = sdk.Shared
			s.copies(x)
		}
		s.c.Fetched(s.now, x, v.Kind, v.Form, v.Size, slices.Clone(v.Bytes), idsOf(v.Refs))
	case s.c.clients[client] != nil:
		err = s.c.Frame(s.now, client, m.typ, m.body)
	}
	if err != nil {
		s.t.Fatalf("frame %#x: %v", m.typ, err)
	}
}

// copies brings a shared value from the other node.
func (s *sim) copies(x id) {
	if v, ok := s.peer.sealed[x]; ok {
		s.sealed[x] = v
	}
}

// links that have something to bring, in order.
func (s *sim) laden() (out []*simLink) {
	ids := []uint32{}
	for x, l := range s.links {
		if len(l.out) > 0 {
			ids = append(ids, x)
		}
	}
	slices.Sort(ids)
	for _, x := range ids {
		out = append(out, s.links[x])
	}
	return out
}

// send keeps frames for the other agent until they are brought.
func (l *simLink) send(b []byte) {
	for len(b) > 0 && !l.shut {
		n := int(binary.LittleEndian.Uint32(b)) + 4
		l.out = append(l.out, message{typ: binary.LittleEndian.Uint16(b[4:]), body: slices.Clone(b[8:n])})
		b = b[n:]
	}
}

func (p *simPair) step() bool {
	i := p.nodes[0].rng.IntN(2)
	s := p.nodes[i]
	if s.rng.IntN(10) == 0 {
		p.lend(i)
	}
	if ls := s.laden(); len(ls) > 0 && s.rng.IntN(3) == 0 {
		l := ls[s.rng.IntN(len(ls))]
		m := l.out[0]
		l.out = l.out[1:]
		s.peer.hear(l.far, m)
		s.peer.take()
		return true
	}
	return s.step()
}

// finish runs both nodes until all programs are over.
func (p *simPair) finish(over ...func() bool) {
	s := p.nodes[0]
	s.t.Helper()
	idle := 0
	for n := 0; len(over) > 0; n++ {
		if n > 3_000_000 || idle > 30_000 {
			s.t.Fatalf("no end: %s\n%s", s.state(), p.nodes[1].state())
		}
		if idle++; p.step() {
			idle = 0
		} else if idle%100 == 0 {
			for _, x := range p.nodes {
				x.now += second / 10
				x.c.Tick(x.now)
				x.take()
			}
		}
		for _, x := range p.nodes {
			if n%64 == 0 {
				x.check()
			}
			workers := len(x.starts)
			for _, q := range x.procs {
				if q.worker {
					workers++
				}
			}
			if workers > x.c.cfg.MaxWorkers {
				s.t.Fatalf("%d processes on node %s, %d are allowed", workers, x.cfg.Node, x.c.cfg.MaxWorkers)
			}
		}
		for len(over) > 0 && over[0]() {
			over = over[1:]
		}
	}
}

// TestProgramsOverNodes: nested programs that need far more workers than two nodes may have
// come to their end, whatever is given to whom.
func TestProgramsOverNodes(t *testing.T) {
	for _, k := range []struct {
		name    string
		workers int
		faults
	}{{"few workers", 3, faults{}}, {"more", 16, faults{}}, {"workers die", 4, faults{crash: 1}}} {
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
