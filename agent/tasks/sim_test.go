package tasks

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"launcher/agent/core"
	"launcher/wire"
	"launcher/wire/sdk"
)

// sim is a node in memory: a reactor, and drivers and workers that speak the frames of
// docs/tasks.md to it as the SDKs do. What happens next is drawn from a seed. Workers and
// the agent die when the faults say so; programs must give what they give without.
type sim struct {
	t      testing.TB
	rng    *rand.Rand
	cfg    Config
	c      *Core
	now    int64
	room   *simRoom
	sealed map[id]uint64 // shared values
	disk   map[id]bool   // of them, on disk
	procs  map[uint32]*proc
	starts []uint32 // workers that are being started
	later  []func() // answers to effects
	log    [][]byte // records that are safe
	faults faults
	over   bool    // the drivers are gone
	ledger *ledger // of what acts do

	peer  *sim // the other node, if there is one
	pair  *simPair
	given int // tasks that the other node got

	restarts, crashes, runs, deepest, most int
}

// faults are how many of 1000 steps bring one.
type faults struct {
	crash, restart, lose, spill, away, nostart int
}

const simNode = 7

func newSim(t testing.TB, seed uint64, cpus int) *sim {
	s := &sim{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), now: 1_700_000_000 * second, procs: map[uint32]*proc{},
		cfg: Config{Number: simNode, Node: "n1", Cores: cpus}, sealed: map[id]uint64{}, disk: map[id]bool{},
	}
	s.room = &simRoom{total: wire.Resources{CPU: int64(cpus) * wire.Unit, Memory: 1 << 30}}
	s.c = New(s.cfg, s.room, s)
	return s
}

// simRoom counts.
type simRoom struct {
	oneJob
	total, used wire.Resources
	lent        int
	gives       map[wire.LeaseID]*simGiven
}

func (r *simRoom) Take(_ int64, _ core.Who, need wire.Resources, _ int64) (core.Slot, bool) {
	if !r.total.Add(r.used, -1).Fits(need) || !r.beside().Fits(need) {
		return core.Slot{}, false
	}
	r.used = r.used.Add(need, 1)
	return core.Slot{}, true
}
func (r *simRoom) Keep(need wire.Resources, _ core.Slot) { r.used = r.used.Add(need, 1) }
func (r *simRoom) Give(need wire.Resources, _ core.Slot) { r.used = r.used.Add(need, -1) }
func (r *simRoom) TakeGroup(*wire.Strategy, wire.Resources) (core.Slot, bool) {
	return core.Slot{}, false
}
func (r *simRoom) HasGroup(*wire.Strategy) bool { return false }
func (r *simRoom) Lend(_ string, lend bool) {
	if r.lent--; lend {
		r.lent += 2
	}
}
func (r *simRoom) Yields(int64, int64) bool       { return false }
func (r *simRoom) KeptFor(int64) string           { return "" }
func (r *simRoom) Could(need wire.Resources) bool { return r.total.Fits(need) }
func (r *simRoom) Total() wire.Resources          { return r.total }
func (s *sim) Own(id)                             {}
func (s *sim) Resident(x id) bool                 { _, ok := s.sealed[x]; return ok && !s.disk[x] }
func (s *sim) Seal(_ uint32, x id, _ byte, _ uint32, at, _ int64) error {
	if _, ok := s.sealed[x]; !ok {
		s.sealed[x] = uint64(at) / 64
	}
	return nil
}

// driver connects a program.
func (s *sim) driver(job string) *proc {
	p := s.proc(s.c.NextClient(), false)
	if err := s.c.Connect(s.now, Client{ID: p.id, Kind: sdk.KindDriver, Language: "go", Job: job, PID: int(p.id), Program: "/bin/prog"}); err != nil {
		s.t.Fatal(err)
	}
	s.take()
	return p
}

func (s *sim) proc(client uint32, worker bool) *proc {
	p := &proc{s: s, id: client, worker: worker, here: true, seen: map[attempt]bool{}, refs: map[id]int{}}
	if !worker {
		p.stack = []*run{{has: map[id]value{}}} // its main program
	}
	s.procs[client] = p
	s.most = max(s.most, len(s.procs))
	return p
}

// each gives the processes in order.
func (s *sim) each() []*proc {
	var out []*proc
	for _, p := range s.procs {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *proc) int { return int(a.id) - int(b.id) })
	return out
}

func (s *sim) pick(want func(*proc) bool) *proc {
	ps := slices.DeleteFunc(s.each(), func(p *proc) bool { return !want(p) })
	if len(ps) == 0 {
		return nil
	}
	return ps[s.rng.IntN(len(ps))]
}

func (s *sim) chance(of1000 int) bool { return of1000 > 0 && s.rng.IntN(1000) < of1000 }

// take lets the reactor settle, and does what it wants. An agent may die when what it
// decided is written down and not done.
func (s *sim) take() {
	out := s.c.Take(s.now)
	if len(out.Records) > 0 {
		s.log = append(s.log, slices.Clone(out.Records))
	}
	if s.chance(s.faults.restart) {
		s.restart()
		return
	}
	for _, x := range out.Sends {
		if p := s.procs[x.Client]; p != nil && p.here {
			for b := x.Frames; len(b) > 0; {
				n := int(binary.LittleEndian.Uint32(b)) + 4
				p.in = append(p.in, message{typ: binary.LittleEndian.Uint16(b[4:]), body: slices.Clone(b[8:n])})
				b = b[n:]
			}
		}
	}
	sends := slices.Clone(out.Sends)
	for _, e := range slices.Clone(out.Effects) {
		s.perform(e)
	}
	for _, x := range sends { // after the owners of what is in them were told
		if s.pair != nil && s.procs[x.Client] == nil {
			s.sendPeer(x.Client, x.Frames)
		}
	}
	s.c.Sent()
}

func (s *sim) perform(e Effect) {
	switch e := e.(type) {
	case StartWorker:
		s.starts = append(s.starts, e.ID)
	case StopWorker:
		if p := s.procs[e.ID]; p != nil && e.Force {
			s.later = append(s.later, func() { s.kill(p, "killed") })
		} else if i := slices.Index(s.starts, e.ID); i >= 0 && e.Force {
			s.starts = slices.Delete(s.starts, i, i+1)
			s.later = append(s.later, func() { s.c.Gone(s.now, e.ID, "killed") })
		}
	case Free:
		for _, x := range e.IDs {
			delete(s.sealed, x)
			delete(s.disk, x)
		}
	case Restore:
		s.later = append(s.later, func() {
			var err error
			if len(e.Nodes) > 0 {
				s.copies(e.ID)
			}
			if _, ok := s.sealed[e.ID]; !ok {
				err = errLost
			}
			delete(s.disk, e.ID)
			s.c.Restored(s.now, e.ID, err)
		})
	case Withdraw:
		if p := s.procs[e.Client]; p != nil {
			from, begun := e.From, max(p.ran, e.From-1)
			if p.from != 0 && p.begun+1 < p.to { // some withdrawn before are still on their way
				if from > p.to {
					begun, from = e.To, p.from
					e.To = p.to
				}
				from = min(from, p.from)
			}
			p.from, p.to = from, e.To
			s.later = append(s.later, func() { s.c.Withdrawn(s.now, e.Client, begun, e.To) })
		}
	default:
		if s.peer != nil {
			s.tellPeer(e)
		}
	}
}

// kill ends a process; some of what it had written arrives.
func (s *sim) kill(p *proc, cause string) {
	if s.procs[p.id] != p {
		return
	}
	if p.here {
		p.deliver(s.rng.IntN(len(p.out) - p.next + 1))
	}
	s.died(p)
	s.c.Gone(s.now, p.id, cause)
}

// died: a process is no more. Its agent hears of it later, if at all.
func (s *sim) died(p *proc) {
	delete(s.procs, p.id)
	if s.ledger == nil || !p.worker {
		return
	}
	s.ledger.orphaned = true
	if p.life != nil {
		s.ledger.died(p.life)
	}
	if cl := s.c.clients[p.id]; cl != nil && cl.actor != nil {
		s.ledger.actors[cl.actor.id].downs++
	}
}

// restart kills the agent: the next one has its log, and the processes that live on.
func (s *sim) restart() {
	s.restarts++
	if s.chance(200) && len(s.log) > 0 {
		s.log = s.c.Snapshot() // as if the log had been begun anew just before
	}
	s.room.used, s.room.lent, s.later = wire.Resources{}, 0, nil
	if s.pair != nil {
		s.pair.died(s)
	}
	old := s.c
	s.c = New(s.cfg, s.room, s)
	for _, b := range s.log {
		if err := s.c.Restore(b); err != nil {
			s.t.Fatal(err)
		}
	}
	s.c.Resume(s.now)
	s.same(old, s.c)
	for x := range s.sealed { // as the store's Free of what nobody knows
		if o := s.c.objects[x]; o == nil || o.state != here {
			delete(s.sealed, x)
		}
	}
	for _, p := range s.each() {
		p.here = false
		p.in = p.in[:s.rng.IntN(len(p.in)+1)]
	}
	for _, cl := range s.c.sortedClients() {
		switch {
		case cl.Kind == sdk.KindPeer: // it comes back by itself
		case s.procs[cl.ID] != nil || slices.Contains(s.starts, cl.ID):
		default:
			s.c.Gone(s.now, cl.ID, "died meanwhile")
		}
	}
	for _, p := range s.each() {
		if s.c.clients[p.id] == nil {
			s.died(p) // is refused when it comes back, and ends
		}
	}
	s.starts = slices.DeleteFunc(s.starts, func(x uint32) bool { return s.c.clients[x] == nil })
	s.take()
}

// step lets one thing happen; false = nothing can.
func (s *sim) step() bool {
	s.now += int64(s.rng.IntN(300_000))
	if s.ledger != nil {
		s.ledger.now = s.now
	}
	switch f := s.faults; {
	case s.chance(f.crash):
		if p := s.pick(func(p *proc) bool { return p.worker }); p != nil {
			s.crashes++
			s.kill(p, "killed by a test")
			s.take()
		}
		return true
	case s.chance(f.away):
		if p := s.pick(func(p *proc) bool { return p.here }); p != nil {
			p.here = false
			s.c.Away(s.now, p.id)
			p.in = p.in[:s.rng.IntN(len(p.in)+1)]
		}
		return true
	case s.chance(f.lose), s.chance(f.spill):
		var all []id
		for x := range s.sealed {
			all = append(all, x)
		}
		sortIDs(all)
		if len(all) > 0 {
			x := all[s.rng.IntN(len(all))]
			if f.lose == 0 || f.spill > 0 && s.rng.IntN(2) == 0 {
				s.disk[x] = true
			} else if !x.Put() {
				delete(s.sealed, x)
				if s.ledger != nil && s.ledger.tasks[x.Task()] != nil {
					s.ledger.tasks[x.Task()].lost++
				}
				s.c.Lost(s.now, x, "a test lost it")
				s.take()
			}
		}
		return true
	}
	var can []func()
	for _, p := range s.each() {
		if !p.here {
			can = append(can, p.comeBack)
			continue
		}
		if p.next < len(p.out) {
			can = append(can, func() { p.deliver(1 + s.rng.IntN(len(p.out)-p.next)); s.take() })
		}
		if len(p.in) > 0 {
			can = append(can, p.read)
		}
		if p.canRun() {
			can = append(can, p.run)
		}
	}
	if len(s.later) > 0 {
		can = append(can, func() {
			f := s.later[0]
			s.later = s.later[1:]
			f()
		})
	}
	if len(s.starts) > 0 {
		can = append(can, s.start)
	}
	if len(can) == 0 {
		return false
	}
	can[s.rng.IntN(len(can))]()
	if s.rng.IntN(20) == 0 {
		s.c.Tick(s.now)
	}
	s.take()
	return true
}

// start brings a worker up.
func (s *sim) start() {
	w := s.starts[0]
	s.starts = s.starts[1:]
	if s.c.clients[w] == nil {
		return
	}
	if s.chance(s.faults.nostart) {
		s.c.WorkerFailed(s.now, w, "a test failed it")
		return
	}
	s.proc(w, true)
	if err := s.c.Connect(s.now, Client{ID: w, Kind: sdk.KindWorker, Language: "go", PID: int(w)}); err != nil {
		s.t.Fatal(err)
	}
}
