package sim

import (
	"fmt"
	"strings"

	agent "launcher/agent/core"
	"launcher/wire"
)

// load is the work of a schedule: what is submitted when, how its processes behave, and
// what users do to it.
type load struct {
	w     *world
	jobs  []*work
	byID  map[wire.JobID]*work
	tasks int
	known map[asked]*proc // who asked
	on    map[*proc]*machine
}

// asked names a request of a process to its agent.
type asked struct {
	m   *machine
	req uint64
}

// work is one job.
type work struct {
	spec      wire.JobSpec
	id        wire.JobID
	mean      int64 // how long its processes run
	tasks     int
	failing   int  // one in so many attempts fails; 0 = none
	cancelled bool // by a user, whole
	some      bool // single tasks of it were
	info      wire.JobInfo
	over      bool
}

func newLoad(w *world) *load {
	return &load{w: w, byID: map[wire.JobID]*work{}, known: map[asked]*proc{}, on: map[*proc]*machine{}}
}

// begin plans the work.
func (l *load) begin() {
	w := l.w
	for k := range w.rng.IntN(4) + 2 {
		x := &work{spec: wire.JobSpec{Command: []string{"x"}, Ranks: 1, Resources: wire.Resources{CPU: wire.Unit * int64(1+w.rng.IntN(4)) / 2}, Grace: 2 * second, Priority: w.rng.IntN(3) - 1}}
		x.mean = []int64{5 * millisecond, 50 * millisecond, 500 * millisecond, 3 * second}[w.rng.IntN(4)]
		n := 1
		switch w.rng.IntN(6) {
		case 0:
			x.spec.Kind = wire.KindRun
		case 1, 2, 3:
			x.spec.Kind = wire.KindArray
			n = 10 + w.rng.IntN(90)
			if x.mean < 100*millisecond {
				n *= 3
			}
			x.spec.Array = &wire.ArraySpec{Ranges: []wire.Range{{From: 0, To: uint32(n)}}}
			if w.rng.IntN(4) == 0 { // with lines, tries go one by one
				for i := range n {
					x.spec.Array.Lines = append(x.spec.Array.Lines, fmt.Sprint("line ", i))
				}
			}
			if w.rng.IntN(8) == 0 { // an array of gangs
				n = 3
				x.spec.Array = &wire.ArraySpec{Ranges: []wire.Range{{From: 0, To: 3}}}
				x.spec.Ranks, x.spec.Resources.CPU = 3, wire.Unit
			}
		case 4:
			x.spec.Kind = wire.KindTrain
			x.spec.Ranks = uint32(1 + w.rng.IntN(8))
			x.spec.Resources.CPU = wire.Unit
			x.spec.Train = &wire.TrainSpec{Workers: x.spec.Ranks, MinWorkers: x.spec.Ranks, MaxRestarts: 3, Keep: 1 + w.rng.IntN(2)}
			x.mean = w.between(500*millisecond, 8*second)
		case 5:
			x.spec.Kind = wire.KindSweep
			x.mean = w.between(500*millisecond, 5*second)
			n = 3 + w.rng.IntN(10)
			x.spec.Sweep = &wire.SweepSpec{Method: "random", Metric: "loss", RunCap: n, Concurrent: w.rng.IntN(4), Seed: 7,
				Early:      &wire.EarlySpec{Type: "asha", MinIter: 1, MaxIter: 9, Eta: 3},
				Parameters: []wire.Parameter{{Name: "lr", Distribution: "uniform", Min: 0, Max: 1}}}
			if w.rng.IntN(4) == 0 {
				x.spec.Ranks = 2
			}
		}
		if w.rng.IntN(3) == 0 {
			x.failing = 5 + w.rng.IntN(40)
			x.spec.RetryFailed = w.rng.IntN(3)
		}
		if w.rng.IntN(10) == 0 {
			x.spec.Exclusive = true
		}
		x.tasks = n
		l.tasks += n
		l.jobs = append(l.jobs, x)
		at := w.between(0, 8*second)
		if k == 0 {
			at = 0
		}
		token := fmt.Sprint("job ", k)
		w.after(at, func() {
			w.head.ask(wire.Submit{Token: token, Spec: x.spec}, func(v any, err error) {
				if err != nil {
					w.fail("submit: %v", err)
					return
				}
				x.id = v.(wire.Submitted).Job
				l.byID[x.id] = x
			})
		})
		switch w.rng.IntN(8) {
		case 0:
			w.after(at+w.between(0, 10*second), func() { l.cancel(x, nil) })
		case 1:
			for range 3 {
				i := uint32(w.rng.IntN(n))
				w.after(at+w.between(0, 10*second), func() { l.cancel(x, &i) })
			}
		}
	}
	if w.rng.IntN(3) == 0 {
		i := w.rng.IntN(poolSize)
		w.after(w.between(second, 15*second), func() {
			w.trace("user drains %s", nodeName(i))
			w.head.ask(wire.DrainRequest{Node: nodeName(i), Simulate: true, Grace: w.between(0, 5*second)}, func(any, error) {})
		})
	}
	if w.rng.IntN(2) == 0 {
		for range w.rng.IntN(3) + 1 {
			i := w.rng.IntN(poolSize)
			shape := wire.Shape{Resources: wire.Resources{CPU: wire.Unit * int64(1+w.rng.IntN(4)) / 2}, Priority: w.rng.IntN(3) - 1, Job: wire.JobID(100 + i), Owner: fmt.Sprint(100 + i)}
			shape.Strategy.Kind = wire.StrategyKind(w.rng.IntN(4) / 3) // some spread
			n, mean := 10+w.rng.IntN(100), []int64{20 * millisecond, 200 * millisecond, 2 * second}[w.rng.IntN(3)]
			w.after(w.between(second, 8*second), func() {
				if m := w.nodes[nodeName(i)]; m != nil && m.alive {
					m.tasks.flood(shape, n, mean, false)
				}
			})
		}
	}
	w.calmAt = w.now + 10*second
	l.poll()
}

// floodGang is how long after the gang of a flood was handed in it must run: its hold
// stops what is new, what runs takes up to 3 s.
const floodGang = 10 * second

// flood plans tasks without end, far more than there is room for, that spread over
// leases, and then a gang that needs every core.
func (l *load) flood() {
	w := l.w
	w.after(second, func() {
		for i := range poolSize {
			if m := w.nodes[nodeName(i)]; m != nil {
				for k := range 3 {
					shape := wire.Shape{Resources: wire.Resources{CPU: wire.Unit * int64(1+k) / 2}, Job: wire.JobID(100 + i), Owner: fmt.Sprint(100 + i)}
					m.tasks.flood(shape, 500, []int64{10 * millisecond, 100 * millisecond, 2 * second}[k], true)
				}
			}
		}
	})
	x := &work{spec: wire.JobSpec{Kind: wire.KindTrain, Command: []string{"x"}, Ranks: 4 * poolSize, Resources: wire.Resources{CPU: wire.Unit}, Grace: second,
		Train: &wire.TrainSpec{Workers: 4 * poolSize, MinWorkers: 4 * poolSize, MaxRestarts: 3, Keep: 1}}, mean: second, tasks: 1}
	l.jobs, l.tasks = append(l.jobs, x), 1
	w.after(5*second, func() {
		w.head.ask(wire.Submit{Token: "gang", Spec: x.spec}, func(v any, _ error) {
			x.id = v.(wire.Submitted).Job
			l.byID[x.id] = x
		})
	})
	w.after(5*second+floodGang, func() {
		if x.info.Started == 0 {
			w.fail("a gang does not start among small tasks: %s", l.missing())
		}
	})
	w.calmAt = w.now + 10*second
	l.poll()
}

func (l *load) cancel(x *work, task *uint32) {
	if x.id == 0 {
		return
	}
	l.w.trace("user cancels %d %v", x.id, task)
	if task == nil {
		x.cancelled = true
	} else {
		x.some = true
	}
	l.w.head.ask(wire.Cancel{Job: x.id, Task: task, Grace: -1}, func(any, error) {})
}

// poll looks how the jobs are doing, as a user would.
func (l *load) poll() {
	w := l.w
	if h := w.head; h.alive {
		for _, x := range l.jobs {
			if x.id == 0 || x.over {
				continue
			}
			// Only what is safe counts: the head may die before the rest is.
			if info, ok := h.core.Job(x.id); !ok {
				w.fail("job %d is gone", x.id)
			} else if x.info = info; info.State.Terminal() && len(h.queue) == 0 && !h.busy {
				x.over = true
				w.trace("job %d is over: %s %q", x.id, info.State, info.Cause)
			}
		}
	}
	w.after(100*millisecond, l.poll)
}

// over reports whether all is done and nothing is left running.
func (l *load) over() bool {
	for _, x := range l.jobs {
		if !x.over {
			return false
		}
	}
	for _, ms := range l.w.backend.subs {
		for _, m := range ms {
			for _, p := range m.procs {
				if p.running {
					return false
				}
			}
			if !m.tasks.over() {
				return false
			}
		}
	}
	return true
}

// missing says what is not over.
func (l *load) missing() string {
	var s []string
	for _, x := range l.jobs {
		if !x.over {
			why := ""
			if h := l.w.head; h.alive && x.id != 0 {
				h.ask(wire.Why{Job: x.id}, func(v any, err error) { why = fmt.Sprint(v, err) })
				for len(h.queue) > 0 { // the answer is the last effect
					for _, e := range h.queue[0].Effects {
						h.perform(e)
					}
					h.queue = h.queue[1:]
				}
			}
			s = append(s, fmt.Sprintf("job %d (%s, %d ranks, %s): %s %d/%d/%d/%d %s", x.id, x.spec.Kind, x.spec.Ranks, x.spec.Resources, x.info.State, x.info.Waiting, x.info.Running, x.info.Done, x.info.Failed, why))
		}
	}
	for _, ms := range l.w.backend.subs {
		for _, m := range ms {
			for _, k := range m.tasks.kinds {
				if m.alive && k.waiting+k.out > 0 {
					s = append(s, fmt.Sprintf("%s has %d tasks waiting, %d out, of %s", m.name(), k.waiting, k.out, k.shape.Resources))
					for _, l := range m.tasks.leases {
						s = append(s, fmt.Sprintf("lease %d on %s: %d of %d slots used", l.Lease, l.Node, l.used, l.slots))
					}
				}
			}
			for _, id := range m.order {
				if m.procs[id].running {
					s = append(s, fmt.Sprintf("%s runs on %s", id, m.name()))
				}
			}
		}
	}
	return strings.Join(s, "; ")
}

// fate says how long a process runs and how it ends.
func (l *load) fate(p wire.Proc) (d int64, code int32) {
	w, x := l.w, l.byID[p.Job]
	if x == nil {
		// Its submitter has not heard of it yet.
		return w.between(millisecond, second), 0
	}
	d = w.between(x.mean/2, x.mean*3/2)
	if x.failing > 0 && w.rng.IntN(x.failing) == 0 {
		d, code = w.between(0, d), 3
	}
	if w.rng.IntN(200) == 0 {
		code = 75 // without having been told to leave: a failure
	}
	return d, code
}

// spawned lets the ranks of trainings report.
func (l *load) spawned(m *machine, p *proc, e agent.Spawn) {
	l.on[p] = m
	kind := e.Job.Spec.Kind
	if kind != wire.KindTrain && kind != wire.KindSweep && l.w.rng.IntN(4) > 0 {
		return
	}
	step := int64(0)
	var next func()
	next = func() {
		if !p.running {
			return
		}
		step++
		if m.up {
			m.reqs++
			l.known[asked{m, m.reqs}] = p
			ev := agent.Local{Req: m.reqs, Proc: p.id, Op: agent.OpReport, Step: step, Metrics: map[string]float64{"loss": float64(p.id.Index%5+1) / float64(step)}}
			if step%3 == 0 {
				ev.Checkpoint = fmt.Sprintf("/c/step-%d.a%d/rank-%d", step, p.id.Attempt, p.id.Rank)
			}
			m.step(ev)
		}
		l.w.after(l.w.between(100*millisecond, 600*millisecond), next)
	}
	l.w.after(l.w.between(0, 300*millisecond), next)
}

// told: a program learns that it should leave; most do, with exit code 75.
func (l *load) told(m *machine, req uint64) {
	if p := l.known[asked{m, req}]; p != nil && p.running && l.w.rng.IntN(5) > 0 {
		l.w.after(l.w.between(0, 500*millisecond), func() { m.exit(p, 75, 0) })
	}
}
