// Package sim runs the head's core and the cores of three agents, the very packages
// that production links, in virtual time against models of the rest of the world: a
// backend and its nodes, supervisors with their process tables, processes, and a
// network that delays, breaks and parts. Everything random comes from one seed, so a
// schedule that fails can be played again.
//
// What holds throughout is checked while it runs (check.go): nothing is lost, nothing
// is committed twice, no attempt runs twice, no resource is given out twice, and the
// work is over in bounded time.
package sim

import (
	"container/heap"
	"fmt"
	"io"
	"math/rand/v2"

	"launcher/wire"
)

const (
	millisecond int64 = 1_000_000
	second            = 1000 * millisecond
	begin             = 1_700_000_000 * second
)

// Options choose a schedule.
type Options struct {
	Seed  uint64
	Calm  bool      // nothing breaks
	Flood bool      // with Calm: tasks without end on all nodes, and a gang that wants them all
	Trace io.Writer // every message and fault, nil = none
}

// Result says what a schedule did.
type Result struct {
	Virtual int64 // nanoseconds
	Events  int
	Jobs    int
	Tasks   int
	Faults  map[string]int
}

// world is one schedule.
type world struct {
	rng    *rand.Rand
	opt    Options
	now    int64
	agenda agenda
	seq    uint64
	events int

	head    *head
	backend *backend
	nodes   map[wire.NodeID]*machine // the newest life of each
	load    *load
	laws    *laws
	faults  map[string]int
	calmAt  int64 // nothing breaks after this
	err     error
}

// Run plays one schedule to its end.
func Run(opt Options) (Result, error) {
	w := &world{rng: rand.New(rand.NewPCG(opt.Seed, 0x6c61756e63)), opt: opt, now: begin, nodes: map[wire.NodeID]*machine{}, faults: map[string]int{}}
	w.laws = newLaws(w)
	w.backend = &backend{w: w, subs: map[string][]*machine{}}
	w.load = newLoad(w)
	w.head = newHead(w)
	w.head.start()
	if opt.Flood {
		w.load.flood()
	} else {
		w.load.begin()
	}
	if !opt.Calm {
		w.planFaults()
	}
	// Work that is not over long after the last fault never will be.
	limit := w.calmAt + 400*second
	for len(w.agenda) > 0 && w.err == nil && !w.load.over() {
		e := heap.Pop(&w.agenda).(*entry)
		w.now = max(w.now, e.at)
		w.events++
		if w.now > limit || w.events > 2_000_000 {
			w.fail("not over after %d s: %s", (w.now-begin)/second, w.load.missing())
			break
		}
		e.do()
	}
	if w.err == nil && !w.load.over() {
		w.fail("nothing happens any more: %s", w.load.missing())
	}
	if w.err == nil {
		w.laws.atEnd()
	}
	return Result{Virtual: w.now - begin, Events: w.events, Jobs: len(w.load.jobs), Tasks: w.load.tasks, Faults: w.faults}, w.err
}

// fail ends the schedule.
func (w *world) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf("at %.3f s: %s", float64(w.now-begin)/1e9, fmt.Sprintf(format, args...))
		w.trace("FAIL %v", w.err)
	}
}

func (w *world) trace(format string, args ...any) {
	if w.opt.Trace != nil {
		fmt.Fprintf(w.opt.Trace, "%9.4f %s\n", float64(w.now-begin)/1e9, fmt.Sprintf(format, args...))
	}
}

// fault counts something that broke.
func (w *world) fault(name string, format string, args ...any) {
	w.faults[name]++
	w.trace("*** "+name+" "+format, args...)
}

// between is a random time from a to b.
func (w *world) between(a, b int64) int64 { return a + w.rng.Int64N(b-a+1) }

// after does something later.
func (w *world) after(d int64, do func()) {
	w.seq++
	heap.Push(&w.agenda, &entry{at: w.now + d, seq: w.seq, do: do})
}

// entry is something that will happen.
type entry struct {
	at  int64
	seq uint64
	do  func()
}

// agenda is a heap by time; equal times keep their order.
type agenda []*entry

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	if a[i].at != a[j].at {
		return a[i].at < a[j].at
	}
	return a[i].seq < a[j].seq
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(*entry)) }
func (a *agenda) Pop() any {
	old := *a
	x := old[len(old)-1]
	*a = old[:len(old)-1]
	return x
}

// planFaults spreads faults over the first part of the schedule.
func (w *world) planFaults() {
	span := w.between(10*second, 60*second)
	w.calmAt = w.now + span + 30*second
	for range w.rng.IntN(12) + 2 {
		at := w.between(second, span)
		switch w.rng.IntN(10) {
		case 0, 1:
			w.after(at, func() { w.head.crash() })
		case 2, 3, 4:
			w.after(at, func() { w.withNode(func(m *machine) { m.crashAgent() }) })
		case 5:
			w.after(at, func() { w.withNode(func(m *machine) { m.die(w.rng.IntN(3) > 0) }) })
		case 6, 7, 8:
			w.after(at, func() { w.withNode(func(m *machine) { m.cut(w.between(0, 2*second)) }) })
		case 9:
			w.after(at, func() { w.withNode(func(m *machine) { m.cut(w.between(5*second, 28*second)) }) })
		}
	}
}

// withNode does something to a random living node.
func (w *world) withNode(do func(*machine)) {
	var alive []*machine
	for i := range poolSize {
		if m := w.nodes[nodeName(i)]; m != nil && m.alive {
			alive = append(alive, m)
		}
	}
	if len(alive) > 0 {
		do(alive[w.rng.IntN(len(alive))])
	}
}
