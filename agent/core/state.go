package core

import (
	"cmp"
	"maps"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
)

// State is everything that must survive the agent's death. It changes by Apply only.
type State struct {
	headEpoch wire.Epoch
	grace     int64
	lost      int64 // since when there is no head; 0 = there is one
	phase     RecPhase
	jobs      []*job // by priority, then number
	byJob     map[wire.JobID]*job
	tries     []*Try // that have room, in the order they got it
	byTry     map[wire.Try]*Try
	unacked   []wire.Ended
	seq       uint64 // number of the newest completion
	number    uint32
	bundles   map[wire.BundleID]RecBundle
	groups    map[wire.GroupID]*ownGroup // made on this node
}

// job is what the agent knows of a job.
type job struct {
	spec  *wire.Job // replaced, never changed: effects refer to it
	queue queue
	live  int // tries that have room
	// blocked is since when its first try waits for room while others run; it is not kept.
	blocked int64
	over    bool // the head has forgotten it, but something still runs
}

// Try is an attempt that has room on this node: a gang's part or a single process.
type Try struct {
	ID        wire.Try
	Item      wire.Item
	At        int64 // when it was admitted, reserved or started
	Until     int64 // of a reservation that has not started; 0 otherwise
	Gang      *wire.Start
	First     uint32 // rank of Ranks[0]
	Ranks     []Rank
	Stop      *RecStop
	Fault     *RecFault
	Leave     wire.LeaveReason
	Deadline  int64
	Commit    int64 // newest committed step, with HasCommit
	HasCommit bool

	job *job
	err *errs.Wire // what this node found wrong with it
}

// Rank is one process of a try.
type Rank struct {
	Slot    Slot
	Started int64 // 0 = not yet
	PID     int
	Joined  bool
	Ended   bool

	// What follows is told again after a restart of the agent, so it is not kept.
	exit     *ProcExited
	drained  bool
	logEnd   int64
	drainBy  int64
	freed    bool  // its room was given back before its output was in
	lent     bool  // its cores are lent out: it waits for tasks
	spawned  bool  // the effect was given by this life of the agent
	sent     int   // signal that was sent to end it
	byItself bool  // it ended before anyone asked it to
	step     int64 // of its newest report
}

// NewState is the state of a node that has never done anything.
func NewState() *State {
	return &State{byJob: map[wire.JobID]*job{}, byTry: map[wire.Try]*Try{}, bundles: map[wire.BundleID]RecBundle{}, groups: map[wire.GroupID]*ownGroup{}}
}

// HeadEpoch is that of the newest head that has greeted.
func (s *State) HeadEpoch() wire.Epoch { return s.headEpoch }

// Number is what the head calls this life of the node (wire.Welcome); 0 until it has
// greeted for the first time.
func (s *State) Number() uint32 { return s.number }

func (t *Try) reserved() bool { return t.Until != 0 }

// live counts ranks that have not ended.
func (t *Try) live() (n int) {
	for i := range t.Ranks {
		if !t.Ranks[i].Ended {
			n++
		}
	}
	return n
}

// joined reports whether any rank maps the group's memory.
func (t *Try) joined() bool {
	return slices.ContainsFunc(t.Ranks, func(r Rank) bool { return r.Joined })
}

// grouped reports whether the try has group memory: a gang always, one process once it
// asked for it.
func (t *Try) grouped() bool { return t.Gang != nil && t.Gang.World > 1 || t.joined() }

func (t *Try) proc(i int) wire.Proc { return wire.Proc{Try: t.ID, Rank: t.First + uint32(i)} }

// rank finds the process of a rank.
func (s *State) rank(p wire.Proc) (*Try, int) {
	t := s.byTry[p.Try]
	if t == nil || p.Rank < t.First || int(p.Rank-t.First) >= len(t.Ranks) {
		return nil, 0
	}
	return t, int(p.Rank - t.First)
}

// queued counts waiting tries.
func (s *State) queued() (n uint32) {
	for _, j := range s.jobs {
		n += j.queue.n
	}
	return n
}

// Apply makes one decision true. It is the only thing that changes a State, so that
// replaying the journal gives the same one. A record that does not fit the state (the
// journal is not ours, or a bug) is ignored rather than fatal: an agent that refuses to
// start would end the work of a whole node.
func (s *State) Apply(r Record) {
	switch r := r.(type) {
	case RecHead:
		s.headEpoch, s.grace, s.lost = r.Epoch, r.Grace, 0
		s.ack(r.Acked)
		if r.Number != 0 {
			s.number = r.Number
		}
	case RecLost:
		s.lost = r.At
	case RecJob:
		s.applyJob(r.Job)
	case RecAssign:
		if j := s.byJob[r.Job]; j != nil {
			for _, x := range r.Ranges {
				j.queue.push(seg{r: x})
			}
			for _, x := range r.Items {
				j.queue.push(seg{item: &x})
			}
		}
	case RecWithdraw:
		if j := s.byJob[r.Job]; j != nil {
			j.queue.cut(r.N, func(wire.Item) {})
		}
	case RecDrop:
		if j := s.byJob[r.Try.Job]; j != nil {
			j.queue.remove(r.Try.Index, r.Try.Attempt)
		}
	case RecAdmit:
		if j := s.byJob[r.Try.Job]; j != nil {
			if item, ok := j.queue.find(r.Try.Index, r.Try.Attempt); ok {
				j.queue.remove(r.Try.Index, r.Try.Attempt)
				s.add(&Try{ID: r.Try, Item: item, At: r.At, Ranks: []Rank{{Slot: r.Slot}}})
			}
		}
	case RecReserve:
		if t := s.byTry[r.Gang]; t != nil {
			t.Until = r.Until
			return
		}
		t := &Try{ID: r.Gang, Until: r.Until}
		for _, slot := range r.Slots {
			t.Ranks = append(t.Ranks, Rank{Slot: slot})
		}
		s.add(t)
	case RecStart:
		if t := s.byTry[r.Start.Gang]; t != nil && t.reserved() && int(r.Count) <= len(t.Ranks) {
			t.Until, t.At, t.Gang, t.Item, t.First = 0, r.At, &r.Start, r.Start.Item, r.First
			t.Ranks = t.Ranks[:r.Count]
		}
	case RecRelease:
		if t := s.byTry[r.Gang]; t != nil && t.reserved() {
			s.drop(t)
		}
	case RecStarted:
		if t, i := s.rank(r.Proc); t != nil {
			t.Ranks[i].Started, t.Ranks[i].PID = r.At, r.PID
		}
	case RecJoined:
		if t, i := s.rank(r.Proc); t != nil {
			t.Ranks[i].Joined = true
		}
	case RecFault:
		if t := s.byTry[r.Gang]; t != nil {
			t.Fault = &r
		}
	case RecStop:
		if t := s.byTry[r.Try]; t != nil {
			t.Stop = &r
		}
	case RecAdvice:
		if t := s.byTry[r.Try]; t != nil {
			t.Leave, t.Deadline = r.Leave, r.Deadline
		}
	case RecCommitted:
		if t := s.byTry[r.Try]; t != nil {
			t.Commit, t.HasCommit = r.Step, true
		}
	case RecEnded:
		s.applyEnded(r.Ended)
	case RecStopQueue:
		if j := s.byJob[r.Job]; j != nil {
			j.queue.each(func(it wire.Item) {
				s.push(wire.Ended{Proc: wire.Proc{Try: tryOf(r.Job, it)}, Code: -1, Reason: r.Reason, Ended: r.At})
			})
			j.queue.clear()
		}
	case RecAck:
		s.ack(r.Seq)
	case RecForget:
		if j := s.byJob[r.Job]; j != nil && j.live == 0 {
			delete(s.byJob, r.Job)
			s.jobs = slices.DeleteFunc(s.jobs, func(x *job) bool { return x == j })
		}
	case RecPhase:
		s.phase = r
	case RecTry:
		t := r.Try
		t.Ranks = slices.Clone(t.Ranks)
		s.add(&t)
	case RecUnacked:
		s.unacked, s.seq = r.Done.Items, r.Done.Seq
	case RecBundle:
		s.bundles[r.ID] = r
	case RecBundleOver:
		delete(s.bundles, r.ID)
	case RecGroup:
		s.groups[r.Spec.ID] = &ownGroup{Spec: r.Spec, State: r.State, Nodes: r.Nodes}
	case RecGroupOver:
		delete(s.groups, r.ID)
	}
}

func tryOf(j wire.JobID, it wire.Item) wire.Try {
	return wire.Try{Task: wire.Task{Job: j, Index: it.Index}, Attempt: it.Attempt}
}

func (s *State) applyJob(x wire.Job) {
	j := s.byJob[x.Job]
	if j == nil {
		j = &job{}
		s.byJob[x.Job] = j
		s.jobs = append(s.jobs, j)
	}
	j.spec = &x
	slices.SortFunc(s.jobs, func(a, b *job) int {
		return cmp.Or(cmp.Compare(b.spec.Spec.Priority, a.spec.Spec.Priority), cmp.Compare(a.spec.Job, b.spec.Job))
	})
}

func (s *State) add(t *Try) {
	j := s.byJob[t.ID.Job]
	if j == nil || s.byTry[t.ID] != nil {
		return
	}
	t.job = j
	j.live++
	s.byTry[t.ID] = t
	s.tries = append(s.tries, t)
}

func (s *State) drop(t *Try) {
	t.job.live--
	delete(s.byTry, t.ID)
	i := slices.Index(s.tries, t)
	s.tries = slices.Delete(s.tries, i, i+1)
}

func (s *State) applyEnded(e wire.Ended) {
	t, i := s.rank(e.Proc)
	switch {
	case t != nil:
		t.Ranks[i].Ended = true
		if t.live() == 0 {
			s.drop(t)
		}
	default: // a queued try that was stopped
		if j := s.byJob[e.Proc.Job]; j != nil {
			j.queue.remove(e.Proc.Index, e.Proc.Attempt)
		}
	}
	s.push(e)
}

func (s *State) push(e wire.Ended) {
	s.unacked = append(s.unacked, e)
	s.seq++
}

// ack forgets completions up to a number.
func (s *State) ack(seq uint64) {
	first := s.seq - uint64(len(s.unacked)) + 1
	if seq < first {
		return
	}
	n := min(seq-first+1, uint64(len(s.unacked)))
	if s.unacked = s.unacked[n:]; len(s.unacked) == 0 {
		s.unacked = nil
	}
}

// Snapshot gives the state as few records, for a journal that has grown too long.
func (s *State) Snapshot() []Record {
	out := []Record{RecHead{Epoch: s.headEpoch, Grace: s.grace, Number: s.number}, RecLost{At: s.lost}, s.phase}
	for _, j := range s.jobs {
		out = append(out, RecJob{Job: *j.spec})
		out = append(out, j.queue.records(j.spec.Job)...)
	}
	for _, t := range s.tries {
		out = append(out, RecTry{Try: *t})
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.bundles), order) {
		out = append(out, s.bundles[id])
	}
	for _, id := range s.groupIDs() {
		g := s.groups[id]
		out = append(out, RecGroup{Spec: g.Spec, State: g.State, Nodes: g.Nodes})
	}
	return append(out, RecUnacked{Done: wire.Done{Seq: s.seq, Items: s.unacked}})
}
