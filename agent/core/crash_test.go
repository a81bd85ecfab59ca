package core

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"launcher/wire"
)

// TestCrashAnywhere kills the agent at every record of a schedule, with none, some or
// all of the effects of that step performed, and requires the same outcome as without:
// every task runs exactly once, every end reaches the head exactly once, the gang too.
func TestCrashAnywhere(t *testing.T) {
	for seed := range uint64(4) {
		calm := newSchedule(t, seed, -1)
		calm.run()
		want := calm.outcome()
		points := calm.records
		if points < 60 {
			t.Fatalf("only %d records: the schedule does too little", points)
		}
		for at := range points {
			s := newSchedule(t, seed, at)
			s.run()
			if got := s.outcome(); got != want {
				t.Fatalf("seed %d, killed at record %d: got\n%s\nwant\n%s", seed, at, got, want)
			}
			if s.crashes == 0 {
				t.Fatalf("seed %d: record %d was never reached", seed, at)
			}
		}
	}
}

// schedule is a small world: a head that gives an array and a gang to one node, a
// supervisor that starts what it is told and keeps ends until they are acknowledged.
type schedule struct {
	t       *testing.T
	rng     *rand.Rand
	cfg     Config
	c       *Core
	now     int64
	journal [][]byte
	records int
	crashAt int
	crashes int
	alive   bool

	// supervisor
	procs   map[wire.Proc]*simProc
	order   []wire.Proc
	starts  map[wire.Proc]int
	pending []Event // answers of the supervisor that the agent has not got yet

	// head
	given     map[wire.Try]bool
	acked     uint64
	done      map[wire.Proc][]int32
	reserved  bool
	gangGiven bool
	inbox     []Event // head -> agent
}

type simProc struct {
	left   int // steps to live
	exited bool
	acked  bool
}

const simTasks = 12

func newSchedule(t *testing.T, seed uint64, crashAt int) *schedule {
	s := &schedule{t: t, rng: rand.New(rand.NewPCG(seed, 7)), crashAt: crashAt, now: epoch0, procs: map[wire.Proc]*simProc{}, starts: map[wire.Proc]int{}, given: map[wire.Try]bool{}, done: map[wire.Proc][]int32{}}
	s.cfg = Config{Hello: wire.Hello{Node: "n0", Epoch: 1, Total: wire.Resources{CPU: 4 * wire.Unit}}, CPUs: []int{0, 1, 2, 3}}
	s.c = New(s.cfg, NewState())
	s.alive = true
	s.step(HeadUp{})
	return s
}

// step feeds one event and performs the outcome, up to the crash.
func (s *schedule) step(ev Event) {
	out := s.c.Step(s.now, ev)
	effects := len(out.Effects)
	for _, r := range out.Records {
		if s.records == s.crashAt && s.crashes == 0 {
			s.crashes++
			s.restart()
			return
		}
		s.records++
		s.journal = append(s.journal, Encode(nil, r))
		if s.records == s.crashAt && s.crashes == 0 && s.crashAt%2 == 1 && r.record() == out.Records[len(out.Records)-1].record() {
			effects = s.rng.IntN(effects + 1) // killed while performing
			s.crashes++
			defer s.restart()
		}
	}
	checkInvariants(s.t, s.c)
	for _, e := range slices.Clone(out.Effects[:effects]) {
		s.perform(e)
	}
}

// restart is the next life of the agent, with a new session.
func (s *schedule) restart() {
	st := NewState()
	for _, b := range s.journal {
		r, err := Decode(b)
		if err != nil {
			s.t.Fatal(err)
		}
		st.Apply(r)
	}
	s.c = New(s.cfg, st)
	s.inbox, s.pending = nil, nil
	var list []ProcInfo
	for _, p := range s.order {
		if x := s.procs[p]; !x.acked {
			list = append(list, ProcInfo{Proc: p, PID: 1, At: s.now, Exited: x.exited})
			if x.exited {
				s.pending = append(s.pending, ProcExited{Proc: p, At: s.now}, OutputDrained{Proc: p})
			}
		}
	}
	s.step(Recovered{Procs: list})
	s.step(HeadUp{})
}

func (s *schedule) perform(e Effect) {
	switch e := e.(type) {
	case Spawn:
		if s.procs[e.Proc] == nil {
			s.starts[e.Proc]++
			s.procs[e.Proc] = &simProc{left: 1 + s.rng.IntN(4)}
			s.order = append(s.order, e.Proc)
		}
		s.pending = append(s.pending, ProcStarted{Proc: e.Proc, PID: 1, At: s.now})
	case Signal:
		s.t.Fatalf("nothing is to be signalled here: %+v", e)
	case AckExit:
		if p := s.procs[e.Proc]; p != nil {
			p.acked = true
		}
	case ToHead:
		s.headGets(e.Msg)
	}
}

func (s *schedule) toAgent(m any) { s.inbox = append(s.inbox, FromHead{m}) }

var simGang = wire.Try{Task: wire.Task{Job: 2}, Attempt: 1}

func (s *schedule) headGets(m any) {
	take := func(d wire.Done) {
		for i, e := range d.Items {
			if seq := d.Seq - uint64(len(d.Items)-1-i); seq > s.acked {
				if seq != s.acked+1 {
					s.t.Fatalf("completion %d came after %d", seq, s.acked)
				}
				s.acked = seq
				s.done[e.Proc] = append(s.done[e.Proc], e.Code)
			}
		}
	}
	switch m := m.(type) {
	case wire.Hello:
		take(m.Unacked)
		known := map[wire.Try]bool{}
		for _, t := range m.Tries {
			known[t.Try] = true
		}
		s.toAgent(wire.Welcome{HeadEpoch: 1, Acked: s.acked, Number: 7})
		s.toAgent(wire.Job{Job: 1, Spec: wire.JobSpec{Kind: wire.KindArray, Resources: wire.Resources{CPU: wire.Unit}, Ranks: 1}})
		s.toAgent(wire.Job{Job: 2, Spec: wire.JobSpec{Kind: wire.KindTrain, Resources: wire.Resources{CPU: wire.Unit}, Ranks: 2}})
		for i := range uint32(simTasks) {
			t := wire.Try{Task: wire.Task{Job: 1, Index: i}, Attempt: 1}
			if !known[t] && len(s.done[wire.Proc{Try: t}]) == 0 {
				s.toAgent(wire.Assign{Job: 1, Ranges: []wire.Range{{From: i, To: i + 1}}})
			}
		}
		started := len(s.done[wire.Proc{Try: simGang}])+len(s.done[wire.Proc{Try: simGang, Rank: 1}]) > 0
		for _, g := range m.Gangs {
			started = started || g.Started
		}
		if !started {
			s.toAgent(wire.Reserve{Gang: simGang, Count: 2, Until: s.now + 1000*second})
		}
	case wire.Reserved:
		if !m.OK {
			s.toAgent(wire.Reserve{Gang: simGang, Count: 2, Until: s.now + 1000*second})
			return
		}
		s.toAgent(wire.Start{Gang: simGang, World: 2, Nodes: []wire.GangNode{{Node: "n0", Count: 2}}})
	case wire.Done:
		take(m)
		s.toAgent(wire.Ack{Seq: s.acked})
	case wire.GangGone:
		s.t.Fatalf("the gang failed: %s", m.Cause)
	case wire.Returned:
		s.t.Fatalf("given back: %+v", m)
	}
}

// run goes on until all ends are acknowledged.
func (s *schedule) run() {
	for range 4000 {
		s.now += 10 * millisecond
		for _, p := range s.order {
			if x := s.procs[p]; !x.exited {
				if x.left--; x.left < 0 {
					x.exited = true
					s.pending = append(s.pending, OutputDrained{Proc: p}, ProcExited{Proc: p, At: s.now})
				}
			}
		}
		for len(s.pending) > 0 {
			ev := s.pending[0]
			s.pending = s.pending[1:]
			s.step(ev)
		}
		for n := len(s.inbox); n > 0 && len(s.inbox) > 0; n-- {
			ev := s.inbox[0]
			s.inbox = s.inbox[1:]
			s.step(ev)
		}
		if s.rng.IntN(2) == 0 {
			s.step(Flush{})
		}
		s.step(Tick{})
		if int(s.acked) == simTasks+2 && len(s.c.s.unacked) == 0 {
			return
		}
	}
	s.t.Fatalf("not over: %d of %d ended; state: queued %d, with room %d", s.acked, simTasks+2, s.c.s.queued(), len(s.c.s.tries))
}

func (s *schedule) outcome() string {
	out := ""
	procs := slices.Clone(s.order)
	slices.SortFunc(procs, func(a, b wire.Proc) int {
		return slices.Compare([]uint32{uint32(a.Job), a.Index, a.Rank}, []uint32{uint32(b.Job), b.Index, b.Rank})
	})
	for _, p := range procs {
		out += fmt.Sprintf("%s started %d times, ends told %v\n", p, s.starts[p], s.done[p])
	}
	return out
}

// TestSnapshotIsTheState: the records of a snapshot give what the whole journal gives.
func TestSnapshotIsTheState(t *testing.T) {
	s := newSchedule(t, 1, -1)
	for range 12 {
		s.step(Tick{})
		for len(s.pending) > 0 {
			ev := s.pending[0]
			s.pending = s.pending[1:]
			s.step(ev)
		}
		for n := len(s.inbox); n > 0; n-- {
			ev := s.inbox[0]
			s.inbox = s.inbox[1:]
			s.step(ev)
		}
	}
	full, snap := NewState(), NewState()
	for _, b := range s.journal {
		r, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		full.Apply(r)
	}
	for _, r := range s.c.s.Snapshot() {
		r, err := Decode(Encode(nil, r))
		if err != nil {
			t.Fatal(err)
		}
		snap.Apply(r)
	}
	dump := func(s *State) (out string) {
		for _, r := range s.Snapshot() {
			out += show(r) + "\n"
		}
		return out
	}
	if len(full.tries) == 0 || full.queued() == 0 {
		t.Fatal("the state is too empty to say anything")
	}
	if a, b := dump(full), dump(snap); a != b {
		t.Errorf("the journal gives\n%s\nthe snapshot\n%s", a, b)
	}
}

func FuzzDecode(f *testing.F) {
	s := NewState()
	s.Apply(RecJob{Job: wire.Job{Job: 1}})
	for _, r := range append(s.Snapshot(), RecAdmit{Slot: Slot{CPUs: []int{1}}}, RecEnded{}, RecStart{}) {
		f.Add(Encode(nil, r))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := Decode(b); err == nil {
			s := NewState()
			s.Apply(RecJob{Job: wire.Job{Job: 1}})
			s.Apply(r)
		}
	})
}

// BenchmarkTask is what the core costs for one task from assignment to acknowledgement.
func BenchmarkTask(b *testing.B) {
	cfg := Config{Hello: wire.Hello{Node: "n0", Total: wire.Resources{CPU: 2 * wire.Unit}}, CPUs: []int{0, 1}}
	c := New(cfg, NewState())
	var buf []byte
	step := func(ev Event) []Effect {
		out := c.Step(epoch0, ev)
		for _, r := range out.Records {
			buf = Encode(buf[:0], r)
		}
		return out.Effects
	}
	step(HeadUp{})
	step(FromHead{wire.Welcome{HeadEpoch: 1}})
	step(FromHead{wire.Job{Job: 1, Spec: wire.JobSpec{Kind: wire.KindArray, Command: []string{"true"}, Resources: wire.Resources{CPU: wire.Unit}}}})
	step(FromHead{wire.Assign{Job: 1, Ranges: []wire.Range{{From: 0, To: uint32(b.N)}}}})
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		p := wire.Proc{Try: wire.Try{Task: wire.Task{Job: 1, Index: uint32(i)}, Attempt: 1}}
		step(ProcStarted{Proc: p, PID: 1, At: epoch0})
		step(ProcExited{Proc: p, At: epoch0})
		step(OutputDrained{Proc: p})
		if i%16 == 15 {
			step(Flush{})
			step(FromHead{wire.Ack{Seq: c.s.seq}})
		}
	}
	if c.s.seq != uint64(b.N) {
		b.Fatalf("%d of %d ended", c.s.seq, b.N)
	}
}
