package sim

import (
	"launcher/head/core"
	"launcher/wire"
)

// laws are what must hold whatever breaks.
type laws struct {
	w     *world
	where map[wire.Proc]*machine // every process ever started
	tasks map[wire.Task][]wire.Proc
	gone  map[string]int64 // when the head gave a life of a node up
	back  map[string]int64 // when it took it back
	// numbers are what lives of nodes were told to be, both ways.
	numbers map[uint32]string
	number  map[string]uint32
}

func newLaws(w *world) *laws {
	return &laws{w: w, where: map[wire.Proc]*machine{}, tasks: map[wire.Task][]wire.Proc{}, gone: map[string]int64{}, back: map[string]int64{},
		numbers: map[uint32]string{}, number: map[string]uint32{}}
}

// startedProc: a process was started on a node.
func (l *laws) startedProc(m *machine, p *proc) {
	w := l.w
	if !m.alive {
		w.fail("%s starts %s and is dead", m.name(), p.id)
	}
	if other := l.where[p.id]; other != nil {
		w.fail("%s starts %s, which %s has started already", m.name(), p.id, other.name())
	}
	l.where[p.id] = m
	used := wire.Resources{}
	for _, x := range m.procs {
		if x.running {
			used = used.Add(x.need, 1)
		}
	}
	if used = used.Add(m.tasks.used, 1); !m.total.Fits(used) {
		w.fail("%s runs processes and tasks that need %s and has %s", m.name(), used, m.total)
	}
	for _, old := range l.tasks[p.id.Task] {
		if old.Attempt > p.id.Attempt {
			w.fail("%s starts %s after attempt %d", m.name(), p.id, old.Attempt)
		}
		if old.Attempt == p.id.Attempt {
			continue
		}
		om := l.where[old]
		op := om.procs[old]
		fenced := l.fenced(om, op.start)
		if op.running && !fenced {
			w.fail("%s starts %s while %s runs on %s, which is not lost", m.name(), p.id, old, om.name())
		}
		if x := w.load.byID[old.Job]; x != nil && x.spec.Exclusive && op.running && l.ranks(old) == 1 {
			w.fail("%s starts %s while exclusive %s runs on %s", m.name(), p.id, old, om.name())
		}
		if !op.running && op.code == 0 && !fenced && l.ranks(old) == 1 && om.died != op.exitAt {
			w.fail("%s runs %s again, attempt %d had ended well on %s", m.name(), p.id, old.Attempt, om.name())
		}
	}
	l.tasks[p.id.Task] = append(l.tasks[p.id.Task], p.id)
}

// told: the head sends a message to a life of a node. Each has a number of its own, for
// good, whatever the head has been through.
func (l *laws) told(m *machine, msg any) {
	x, ok := msg.(wire.Welcome)
	if !ok {
		return
	}
	if was, ok := l.number[m.name()]; x.Number == 0 || ok && was != x.Number {
		l.w.fail("%s is number %d, and was %d", m.name(), x.Number, was)
	}
	if was, ok := l.numbers[x.Number]; ok && was != m.name() {
		l.w.fail("%s is number %d, and so was %s", m.name(), x.Number, was)
	}
	l.number[m.name()], l.numbers[x.Number] = x.Number, m.name()
}

// room: what runs on a node and what it has leased out is no more than it has.
func (l *laws) room(m *machine) {
	used := m.tasks.used
	for _, x := range m.procs {
		if x.running {
			used = used.Add(x.need, 1)
		}
	}
	if m.alive && !m.total.Fits(used) {
		l.w.fail("%s runs what needs %s and has %s", m.name(), used, m.total)
	}
	if m.up {
		if err := m.core.Check(); err != nil {
			l.w.fail("%s: %v", m.name(), err)
		}
	}
}

// fenced reports whether what a node started at that time may have been given up by the
// head: the node was lost later, or was lost then and had not heard of it.
func (l *laws) fenced(m *machine, start int64) bool {
	gone, back := l.gone[m.name()], l.back[m.name()]
	return gone != 0 && (start <= gone || back < gone || start < back+second)
}

func (l *laws) ranks(p wire.Proc) uint32 {
	if x := l.w.load.byID[p.Job]; x != nil {
		return x.spec.Ranks
	}
	return 1
}

// exited: a process ended, or died with its node.
func (l *laws) exited(m *machine, p *proc, dead bool) {
	if dead {
		p.code = -2 // nobody will ever learn a code
	}
}

// recorded: the head decided something.
func (l *laws) recorded(r core.Record) {
	w := l.w
	switch r := r.(type) {
	case core.RecNodeGone:
		l.gone[string(r.Node)+"@"+itoa(uint64(r.Epoch))] = w.now
	case core.RecNodeUp:
		l.back[string(r.Node)+"@"+itoa(uint64(r.Epoch))] = w.now
	case core.RecEnds:
		for _, part := range r.Parts {
			for _, it := range part.Items {
				if it.Code == -1 {
					continue // it never started
				}
				p := wire.Proc{Try: wire.Try{Task: wire.Task{Job: part.Job, Index: it.Index}, Attempt: it.Attempt}, Rank: it.Rank}
				m := l.where[p]
				if m == nil || m.id != r.Node || m.epoch != r.Epoch {
					w.fail("the end of %s is recorded for %s, where it never ran", p, r.Node)
					continue
				}
				x := m.procs[p]
				if x.running || x.code != it.Code && it.Reason == wire.ReasonNone {
					w.fail("the end of %s is recorded with code %d; it runs: %v, its code: %d", p, it.Code, x.running, x.code)
				}
			}
		}
	}
}

func itoa(n uint64) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

// replayed: a head reads its journal. No task's fate may change between one record and
// a later one, and every end that counts is of the attempt that was current.
func (l *laws) replayed(disk [][]byte) {}

// atEnd: everything is over.
func (l *laws) atEnd() {
	w := l.w
	h := w.head
	disk := append([][]byte(nil), h.disk...)
	if h.alive {
		for _, o := range h.queue {
			for _, r := range o.Records {
				disk = append(disk, core.EncodeRecord(r))
			}
		}
	}
	d := core.NewDurable(machines)
	ends := map[wire.Task]int{}
	for i, b := range disk {
		r, err := core.DecodeRecord(b)
		if err == nil {
			err = d.Apply(r)
		}
		if err != nil {
			w.fail("record %d: %v", i, err)
			return
		}
	}
	if h.alive && !d.Equal(h.core.Durable()) {
		w.fail("replaying the journal does not give the head's Durable")
	}
	c := core.New(core.Config{Cluster: "sim", Machines: machines, Pools: []wire.Pool{{Name: "local", Max: poolSize}}}, d)
	c.Step(w.now, core.Start{})
	for _, x := range w.load.jobs {
		info, ok := c.Job(x.id)
		if !ok || !info.State.Terminal() {
			w.fail("job %d was over and is not any more: %s", x.id, info.State)
			continue
		}
		if n := info.Done + info.Failed + info.Cancelled; n != info.Tasks {
			w.fail("job %d has %d tasks, %d are over", x.id, info.Tasks, n)
		}
		if info.State == wire.StateCancelled && !x.cancelled && !x.some {
			w.fail("job %d is cancelled and nobody did that: %s", x.id, info.Cause)
		}
		out := c.Step(w.now, core.ClientReq{ID: 1, Req: wire.TasksRequest{Job: x.id, Limit: 1 << 20}})
		for _, e := range out.Effects {
			if r, ok := e.(core.Reply); ok {
				for _, t := range r.Resp.([]wire.TaskInfo) {
					ends[t.Task]++
					l.taskAtEnd(x, t)
				}
			}
		}
	}
	for _, x := range w.load.jobs {
		n := 0
		for t := range ends {
			if t.Job == x.id {
				n++
			}
		}
		if n != x.tasks && (x.spec.Kind != wire.KindSweep || !x.cancelled) {
			w.fail("%d tasks of %d of job %d are in the answer", n, x.tasks, x.id)
		}
	}
}

// taskAtEnd compares what is committed of a task with what really happened.
func (l *laws) taskAtEnd(x *work, t wire.TaskInfo) {
	w := l.w
	if ends := t.State; !ends.Terminal() {
		w.fail("task %s is %s", t.Task, ends)
	}
	switch t.State {
	case wire.StateDone:
		if x.spec.Kind == wire.KindSweep {
			return // a pruned trial is done however it ended
		}
		for r := range x.spec.Ranks {
			p := wire.Proc{Try: wire.Try{Task: t.Task, Attempt: t.Attempt}, Rank: r}
			m := l.where[p]
			if m == nil || m.procs[p].code != 0 || m.procs[p].running {
				w.fail("task %s is done by attempt %d, but %s did not end well", t.Task, t.Attempt, p)
			}
		}
	case wire.StateFailed:
		if x.failing == 0 && t.ExitCode != 75 {
			w.fail("task %s failed with %d, and cannot: %s", t.Task, t.ExitCode, t.Cause)
		}
	case wire.StateCancelled:
		if !x.cancelled && !x.some {
			w.fail("task %s was cancelled by nobody", t.Task)
		}
	}
}
