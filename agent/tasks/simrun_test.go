package tasks

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"launcher/wire"
	"launcher/wire/sdk"
)

// program runs a driver to its end: some programs, whose results must be right.
func (s *sim) program(p *proc, n int, depth uint8) (over func() bool) {
	var want []value
	var ids []id
	for range n {
		pr := program{s.rng.Uint64(), uint8(s.rng.IntN(int(depth) + 1))}
		arg := value{n: s.rng.Uint64N(1000)}
		x := p.put(arg, false)
		want = append(want, pr.result([]value{arg}))
		ids = append(ids, p.submit(pr, x))
		p.release(x)
	}
	main := p.stack[0]
	p.wait(main, ids...)
	return func() bool {
		if len(main.open) > 0 {
			return false
		}
		for i, x := range ids {
			if got := main.val(x); got != want[i] {
				s.t.Fatalf("program %d gave %v, not %v", i, got, want[i])
			}
		}
		p.forgets(main)
		p.release(ids...)
		return true
	}
}

// faultyFor is for how many steps acts have faults.
const faultyFor = 20_000

// finish runs until all programs are over.
func (s *sim) finish(over ...func() bool) {
	s.t.Helper()
	for n := 0; len(over) > 0; n++ {
		if n > 3_000_000 || s.ledger != nil && n > 300_000 {
			s.t.Fatalf("no end: %s", s.state())
		}
		if s.ledger != nil && n == faultyFor {
			s.faults = faults{} // all must come to its end now
		}
		if !s.step() && !s.wakes() {
			s.t.Fatalf("nothing happens any more: %s", s.state())
		}
		if n%64 == 0 {
			s.check()
		}
		for len(over) > 0 && over[0]() {
			over = over[1:]
		}
	}
}

// wakes lets time pass until something happens.
func (s *sim) wakes() bool {
	for range 100 {
		s.now += second
		s.c.Tick(s.now)
		s.take()
		for _, p := range s.each() {
			if !p.here || len(p.in) > 0 || p.canRun() {
				return true
			}
		}
		if len(s.starts) > 0 || len(s.later) > 0 {
			return true
		}
	}
	return false
}

// end lets all drivers go; nothing may be left.
func (s *sim) end() {
	s.t.Helper()
	s.faults, s.over = faults{}, true
	if s.ledger != nil {
		s.quiet() // what was submitted is there
		s.closes()
	}
	s.leave()
	s.quiet()
	for range 100 {
		s.now += second
		s.c.Tick(s.now)
		s.take()
		s.quiet()
	}
	s.empty()
}

// leave ends all drivers.
func (s *sim) leave() {
	for _, p := range s.each() {
		if !p.worker {
			if !p.here {
				p.comeBack()
			}
			s.kill(p, "exited")
			s.take()
		}
	}
}

// empty fails when anything is left.
func (s *sim) empty() {
	s.t.Helper()
	c := s.c
	if len(c.clients) != 0 || len(c.tasks) != 0 || len(c.objects) != 0 || len(c.jobs) != 0 || len(c.pools) != 0 || len(c.active) != 0 ||
		c.workers != 0 || c.queued != 0 || c.running != 0 || c.lineage != 0 || len(c.kept) != 0 || len(c.callees) != 0 || len(c.children) != 0 || len(c.hosts) != 0 || len(c.heldBack) != 0 || len(c.byClient) != 0 || len(s.sealed) != 0 || len(s.procs) != 0 ||
		s.room.used.CPU != 0 || s.room.lent != 0 {
		s.t.Fatalf("left: %s", s.state())
	}
}

// quiet runs until nothing happens any more.
func (s *sim) quiet() {
	s.t.Helper()
	for n := 0; s.step(); n++ {
		if n > 300_000 {
			s.t.Fatalf("no rest: %s", s.state())
		}
	}
}

func (s *sim) state() string {
	c := s.c
	out := fmt.Sprintf("%d clients, %d tasks, %d objects, %d jobs, %d pools, %d active, %d workers, %d bytes queued, %d running, %d lineage, %d kept, %d sealed, %d processes, room %s, lent %d, %d starts, %d answers\n",
		len(c.clients), len(c.tasks), len(c.objects), len(c.jobs), len(c.pools), len(c.active), c.workers, c.queued, c.running, c.lineage, len(c.kept), len(s.sealed), len(s.procs), s.room.used, s.room.lent, len(s.starts), len(s.later))
	for i, t := range c.sortedTasks() {
		if i < 40 {
			out += fmt.Sprintf("  task %s state %d attempt %d missing %d: %s\n", t.id, t.state, t.attempt, t.missing, c.why(t))
			if t.actor != nil {
				out += fmt.Sprintf("    %+v\n", *t.actor)
			}
		}
	}
	for _, p := range s.each() {
		out += fmt.Sprintf("  process %d worker %v here %v out %d in %d queue %d drop %d exit %v:", p.id, p.worker, p.here, len(p.out)-p.next, len(p.in), len(p.queue), p.drop, p.exit)
		if p.life != nil {
			out += fmt.Sprintf(" actor %s up %v over %v ends %v", p.life.id, p.life.up, p.life.over, p.life.ends)
		}
		for _, r := range p.stack {
			out += fmt.Sprintf(" [%s.%d waits for %s]", r.task, r.n, r.open)
			if r.act != nil {
				out += fmt.Sprintf("[kind %d deps %s left %d]", r.act.kind, r.deps, r.act.left)
			}
		}
		out += "\n"
	}
	n := 0
	for x, o := range c.objects {
		if n++; n < 20 {
			out += fmt.Sprintf("  object %s state %d kind %d uses %d lineage %d holder %d %v subs %d waiters %d\n", x, o.state, o.kind, o.uses, o.lineage, o.holder, o.holders(), len(o.subs), len(o.waiters()))
		}
	}
	return out
}

// depth is how many tasks are below one on its worker's stack.
func depth(t *task) (n int) {
	for _, l := range t.worker().levels {
		if l == t.level {
			break
		}
		n += min(1, len(l.tasks))
	}
	return n
}

// same compares an agent that was killed with the one after it.
func (s *sim) same(a, b *Core) {
	s.t.Helper()
	anew := map[id]bool{}
	about := func(c *Core) map[id]string {
		out := map[id]string{}
		for x, t := range c.tasks {
			out[x] = fmt.Sprintf("state %d cancel %v kept %v alive %d client %d parent %s", t.state, t.cancel && t.state != done, t.kept, t.alive, t.client, t.parent)
			// Calls that wait count them when they are given, and may end before that.
			if t.state != waiting && !(t.state == done && t.isCall()) {
				out[x] += fmt.Sprintf(" attempt %d retries %d", t.attempt, t.retries)
			}
			if w := t.worker(); w != nil && w.remote != nil {
				if t.away() == nil { // the next agent gives it out anew
					anew[x] = true
				}
				out[x] += fmt.Sprintf(" at %d", w.remote.number)
			} else if t.state == running {
				out[x] += fmt.Sprintf(" worker %d level %d at %d seq %d", t.worker().ID, depth(t), slices.Index(t.level.tasks, t), t.seq)
			}
		}
		for x, o := range c.objects {
			if c.standsForLife(o) || o.state == pending && o.task == nil && o.holder == 0 && o.uses == 0 {
				continue // it was only asked for, and is asked for again
			}
			size := o.size
			if o.kind == sdk.Failure {
				size = 0 // the text may be another
			}
			h := append([]uint32{o.holder}, o.holders()...)
			slices.Sort(h)
			out[x] = fmt.Sprintf("state %d kind %d size %d uses %d lineage %d holders %v task %v", o.state, o.kind, size, o.uses, o.lineage, h, o.task != nil)
		}
		return out
	}
	if s.pair != nil && os.Getenv("SIM_SAME") == "" {
		return // not all of what two nodes tell each other follows from the logs
	}
	x, y := about(a), about(b)
	for t := range anew {
		if a.tasks[t] != nil && a.tasks[t].cancel {
			return // the next agent ends it, with all that this brings
		}
	}
	for k := range y {
		if _, ok := x[k]; !ok {
			x[k] = ""
		}
	}
	for k, v := range x {
		if y[k] != v && !anew[k] {
			s.t.Fatalf("%s was %q before the restart and is %q", k, v, y[k])
		}
	}
}

// check holds the reactor's counts against what they count.
func (s *sim) check() {
	s.t.Helper()
	c := s.c
	uses, lineage := map[id]int{}, map[id]int{}
	var queuedBytes, kept int64
	alive := map[*task]int{}
	runs, away := 0, 0
	for _, t := range c.tasks {
		if t.state == waiting || t.state == queued {
			queuedBytes += int64(len(t.body))
		}
		if t.state == running && t.actor == nil {
			runs++
			if t.worker().remote != nil {
				away++
			}
		}
		if t.kept {
			kept += t.cost
		}
		for d := range t.deps().all() {
			if t.state != done {
				uses[d]++
			}
			if t.kept {
				lineage[d]++
			}
		}
		for d := range t.held().all() {
			if t.state != done {
				uses[d]++
			}
		}
	}
	for _, g := range c.callees {
		if len(g.calls) > 0 && c.objects[handle(g.id)] != nil {
			uses[handle(g.id)]++
		}
		if g.wants != nil {
			uses[g.wants.id]++
		}
	}
	for _, t := range c.tasks {
		if t.actor != nil && t.shape.actor.Detached && t.state != done && t.id.Node() == c.cfg.Number {
			uses[handle(t.id)]++
		}
	}
	for _, k := range c.spares {
		for _, r := range k.refs {
			uses[r]++
		}
	}
	waits := map[*level]int{}
	for x, o := range c.objects {
		for _, r := range o.refs() {
			uses[r]++
		}
		if o.task != nil {
			alive[o.task]++
		}
		for _, b := range o.subs {
			if b.level != nil {
				waits[b.level]++
			}
			if c.clients[b.client] == nil {
				s.t.Fatalf("object %s has a reader that is gone", x)
			}
		}
		for _, h := range append([]uint32{o.holder}, o.holders()...) {
			if h != 0 && c.clients[h] == nil {
				s.t.Fatalf("object %s is held by client %d, which is gone", x, h)
			}
		}
	}
	for x, o := range c.objects {
		if o.fetched { // its owner keeps what it is made of
			lineage[x] = 0
		}
		if int(o.uses) != uses[x] || int(o.lineage) != lineage[x] {
			s.t.Fatalf("object %s has %d uses, counted %d; lineage %d, counted %d", x, o.uses, uses[x], o.lineage, lineage[x])
		}
		if !o.needed() && o.lineage == 0 && o.state == here {
			s.t.Fatalf("object %s is needed by nothing: kind %d, of %v", x, o.kind, c.tasks[x.Task()])
		}
	}
	for _, t := range c.tasks {
		if int(t.alive) != alive[t] {
			s.t.Fatalf("task %s has %d outputs, counted %d", t.id, t.alive, alive[t])
		}
	}
	used := wire.Resources{}
	workers, shared, tasks := 0, 0, 0
	for _, cl := range c.clients {
		ls := cl.levels
		if cl.pool == nil {
			ls = []*level{&cl.level0}
		} else if cl.actor == nil {
			workers++
			if sh := ls[0].shape; sh == nil || sh.actor == nil { // else it was started for an actor
				shared++
			}
		}
		for _, l := range ls {
			if l.waits != waits[l] {
				s.t.Fatalf("client %d waits for %d objects, counted %d", cl.ID, l.waits, waits[l])
			}
			for _, t := range l.tasks {
				if t.actor == nil {
					tasks++
				}
			}
			if need := l.need; l.has {
				if l.blocked {
					need.CPU = 0
				}
				used = used.Add(need, 1)
			}
			if len(l.tasks) > 0 && !l.has && cl.actor == nil {
				s.t.Fatalf("client %d has tasks and no room", cl.ID)
			}
		}
	}
	if used.CPU != s.room.used.CPU || runs != c.running || tasks+away != runs || workers != c.workers || queuedBytes != c.queued || kept != c.lineage {
		s.t.Fatalf("room %s, counted %s; %d running, counted %d with %d given; %d workers, counted %d; %d bytes queued, counted %d; %d bytes kept, counted %d",
			s.room.used, used, c.running, runs, tasks, c.workers, workers, c.queued, queuedBytes, c.lineage, kept)
	}
	for _, p := range s.each() {
		if p.here && c.clients[p.id] == nil {
			s.t.Fatalf("process %d is connected to an agent that does not know it", p.id)
		}
	}
	if shared > c.cfg.MaxWorkers {
		s.t.Fatalf("%d workers for tasks", shared)
	}
}

// TestPrograms: programs of nested tasks give the right results, whatever is killed.
func TestPrograms(t *testing.T) {
	kinds := []struct {
		name string
		faults
		workers, seeds int
	}{
		{name: "peace", seeds: 40},
		{name: "few workers", workers: 3, seeds: 40},
		{name: "workers die", faults: faults{crash: 2}, seeds: 40},
		{name: "the agent dies", faults: faults{restart: 3}, seeds: 40},
		{name: "connections break", faults: faults{away: 3}, seeds: 40},
		{name: "objects are lost", faults: faults{lose: 5}, seeds: 40},
		{name: "all", workers: 6, faults: faults{crash: 1, restart: 1, away: 1, lose: 2, spill: 2, nostart: 10}, seeds: 80},
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			var total sim
			for seed := range uint64(k.seeds) {
				t.Run(fmt.Sprint(seed), func(t *testing.T) {
					s := newSim(t, seed, 2)
					if k.workers > 0 {
						s.cfg.MaxWorkers = k.workers
						s.c.cfg.MaxWorkers = k.workers
					}
					a, b := s.driver("a"), s.driver("b")
					s.faults = k.faults
					s.finish(s.program(a, 6, 3), s.program(b, 2, 4))
					s.end()
					total.restarts += s.restarts
					total.crashes += s.crashes
					total.runs += s.runs
					total.deepest = max(total.deepest, s.deepest)
				})
			}
			t.Logf("%d runs of tasks, %d restarts, %d deaths of workers, stacks of %d", total.runs, total.restarts, total.crashes, total.deepest)
		})
	}
}
