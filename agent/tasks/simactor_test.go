package tasks

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"launcher/wire"
	"launcher/wire/sdk"
)

// act is a program that makes actors, calls them and passes them on. What it does is drawn
// from its seed; what comes of it is for the ledger to judge.
type act struct {
	kind    actKind
	depth   uint8
	rng     *rand.Rand
	left    int // things to do
	items   int // of a generator, still to give
	made    uint32
	handles []id // of actors, that it has references to
	results []id // of what it submitted
	streams []id // items that it reads next
	closing bool
	life    *simLife // that runs it
	group   string
}

// actThings is how much the acts of a schedule submit in all.
const actThings = 120

type actKind byte

const (
	actTask actKind = iota
	actMake         // the constructor of an actor
	actCall
	actItems // a generator
	actLeave // the actor ends by its own will
)

// actorKind is a class of actors.
type actorKind struct {
	restarts  int
	most      int
	groups    map[string]int
	exclusive bool
	unordered bool
	detached  bool
	cpu       any
}

var actorKinds = []actorKind{
	{restarts: 0},
	{restarts: 1},
	{restarts: -1},
	{restarts: 3, exclusive: true},
	{restarts: -1, unordered: true, most: 3},
	{restarts: 3, most: 4},
	{restarts: 2, most: 2, groups: map[string]int{"io": 2, "one": 1}},
	{restarts: 1, detached: true},
	{restarts: 6, exclusive: true, cpu: 500},
	{restarts: 5, cpu: 0},
}

func (k *actorKind) options() map[string]any {
	a := map[string]any{}
	if k.most > 0 {
		a["concurrency"] = k.most
	}
	if k.groups != nil {
		a["groups"] = k.groups
	}
	for name, on := range map[string]bool{"exclusive": k.exclusive, "unordered": k.unordered, "detached": k.detached} {
		if on {
			a[name] = true
		}
	}
	if k.detached {
		a["name"], a["namespace"] = "known", "sim"
	}
	o := map[string]any{"name": "A", "max_retries": k.restarts, "actor": a}
	if k.cpu != nil {
		o["cpu"] = k.cpu
	}
	return o
}

// shapeOf tells the agent of options once, and gives their number.
func (p *proc) shapeOf(key string, o map[string]any) uint32 {
	if p.shapes == nil {
		p.shapes = map[string]uint32{}
		p.send(sdk.MsgFunc, simFunc[:], le32(3), []byte("simcode"))
	}
	n, ok := p.shapes[key]
	if !ok {
		n = uint32(100 + len(p.shapes))
		p.shapes[key] = n
		p.send(sdk.MsgShape, le32(n), wire.Marshal(o))
	}
	return n
}

// keep counts the references that a process has, as SDKs do; said: the agent knows of it.
func (p *proc) keep(x id, said bool) {
	if p.refs[x]++; p.refs[x] == 1 && !said {
		p.send(sdk.MsgHold, x[:])
	}
}

func (p *proc) lose(xs ...id) {
	for _, x := range xs {
		if p.refs[x]--; p.refs[x] == 0 {
			delete(p.refs, x)
			p.send(sdk.MsgRelease, x[:])
		}
	}
}

// order submits what an act wants done. handles go with it.
func (p *proc) order(fn funcID, shape, returns, flags uint32, k actKind, r *run, depth uint8, deps, handles []id) id {
	p.n++
	t := wire.NewObjectID(p.s.cfg.Number, p.id, p.n, 0)
	pay := append(binary.LittleEndian.AppendUint64(nil, r.act.rng.Uint64()), 0x80|depth, byte(k), byte(len(handles)))
	p.send(sdk.MsgSubmit, t[:], fn[:], le32(shape), le32(returns), le32(flags), le32(uint32(len(deps))), le32(uint32(len(handles))), flat(deps), flat(handles), append(pay, flat(handles)...))
	return t
}

// actOf reads what a task is to do.
func actOf(b []byte, attempt uint32) *act {
	a := &act{kind: actKind(b[9]), depth: b[8] & 0x7f, rng: rand.New(rand.NewPCG(binary.LittleEndian.Uint64(b), uint64(attempt)))}
	for i := range int(b[10]) {
		a.handles = append(a.handles, id(b[11+16*i:]))
	}
	if a.left = a.rng.IntN(2 + int(a.depth)); a.depth == 0 {
		a.left = 0
	}
	if a.kind == actItems {
		a.items = a.rng.IntN(5)
	}
	return a
}

func (a *act) pick(xs []id) (id, bool) {
	if len(xs) == 0 {
		return id{}, false
	}
	return xs[a.rng.IntN(len(xs))], true
}

func (a *act) some(xs []id, most int) (out []id) {
	for range a.rng.IntN(most + 1) {
		if x, ok := a.pick(xs); ok && !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}

// mayWait reports whether an act may wait for what others do. Methods do not: two actors
// could wait for one another.
func (a *act) mayWait() bool { return a.kind == actTask }

// takes is an act that has begun: it holds what it was given.
func (p *proc) takes(r *run) {
	a, l := r.act, p.s.ledger
	for _, h := range a.handles {
		p.keep(h, false)
	}
	if a.kind == actMake {
		p.life = l.born(r.task, fmt.Sprintf("as process %d of node %d", p.id, p.s.cfg.Number))
		a.life = p.life
		return
	}
	l.begins(p.life, r.task)
	if t := l.tasks[r.task]; t.actor != nil {
		a.life = p.life
		if _, ok := p.life.left[t.group]; ok {
			a.group = t.group
		}
		p.life.left[a.group]--
	}
}

// does is one step of an act.
func (p *proc) does(r *run) {
	a, l := r.act, p.s.ledger
	a.next(p, r)
	switch {
	case r.gone && (a.life == nil || a.life.kind.most > 1) && a.kind != actMake:
		p.finishes(r, sdk.ResultCancelled, true)
	case a.items > 0:
		a.items--
		n := l.next()
		l.tasks[r.task].items = append(l.tasks[r.task].items, simEnd{n: n})
		p.send(sdk.MsgYield, r.task[:], le32(r.n), le32(a.made), value{n: n}.encode(false))
		a.made++
	case a.left > 0:
		a.left--
		p.acts(r)
	case !a.closing && p.worker:
		a.closing = true
		if a.mayWait() && a.rng.IntN(2) == 0 {
			p.wait(r, append(slices.Clone(a.results), a.streams...)...)
		}
	case !a.closing:
		a.closing = true
		p.wait(r, append(slices.Clone(a.results), a.streams...)...)
	case !p.worker && len(a.streams) > 0: // to the end
		p.wait(r, a.streams...)
	case !p.worker:
		p.lose(a.results...)
		p.lose(a.handles...)
		a.results, a.handles, r.gone = nil, nil, true
	default:
		p.ends(r)
	}
}

// next takes up what has come: items of streams lead to those after them.
func (a *act) next(p *proc, r *run) {
	l := p.s.ledger
	for i := 0; i < len(a.streams); i++ {
		x := a.streams[i]
		v, ok := r.has[x]
		switch {
		case !ok:
			continue
		case v.end || v.bad:
			if v.bad {
				if why := l.judge(x, v); why != "" {
					l.t.Fatalf("item %s ended as %+v: %s", x, v, why)
				}
			}
			task := x.Task()
			p.send(sdk.MsgRelease, task[:])
			a.streams = slices.Delete(a.streams, i, i+1)
			i--
		default:
			if why := l.judge(x, v); why != "" {
				l.t.Fatalf("item %s is %+v: %s", x, v, why)
			}
			p.send(sdk.MsgRelease, x[:])
			a.streams[i] = x.Task().With(x.Index() + 1)
		}
		delete(r.has, x)
	}
	for _, x := range a.results {
		if v, ok := r.has[x]; ok && !v.judged {
			if why := l.judge(x, v); why != "" {
				t := l.tasks[x.Task()]
				l.t.Fatalf("%s gave %+v: %s (begun %d times, %d retries)", x, v, why, t.begins, t.retries)
			}
			v.judged = true
			r.has[x] = v
		}
	}
}

// ends is a program that is done.
func (p *proc) ends(r *run) {
	a := r.act
	switch n := a.rng.IntN(40); {
	case a.kind == actMake && n == 0:
		a.life.simActor.ends("its constructor failed")
		p.finishes(r, sdk.ResultFailed, true)
	case a.kind == actMake:
		a.life.up = true
		p.lets(r)
		p.pop(r)
		p.send(sdk.MsgUp, r.task[:], le32(r.n))
		p.creation = r
	case n < 2 && p.worker:
		p.finishes(r, sdk.ResultFailed, true)
	case n < 4 && a.life != nil:
		p.finishes(r, sdk.ResultRetry, true)
	default:
		p.finishes(r, sdk.ResultOK, false)
	}
}

func (p *proc) pop(r *run) {
	p.stack = slices.DeleteFunc(p.stack, func(x *run) bool { return x == r })
}

// lets goes of what an act had; an instance may keep some.
func (p *proc) lets(r *run) {
	a := r.act
	for _, h := range a.handles {
		if a.life != nil && len(a.life.kept) < 3 && a.rng.IntN(3) == 0 && !slices.Contains(a.life.kept, h) && h != handle(a.life.id) {
			a.life.kept = append(a.life.kept, h)
		} else {
			p.lose(h)
		}
	}
	p.lose(a.results...)
	for _, x := range a.streams {
		task := x.Task()
		p.send(sdk.MsgRelease, task[:])
	}
	a.handles, a.results, a.streams = nil, nil, nil
}

// finishes reports the end of an act.
func (p *proc) finishes(r *run, status uint32, bad bool) {
	a, l := r.act, p.s.ledger
	v := value{n: l.next(), bad: bad}
	if t := l.tasks[r.task]; t == nil {
		a.life.ended = append(a.life.ended, simEnd{v.n, v.bad})
	} else {
		t.ended = append(t.ended, simEnd{v.n, v.bad})
		if status == sdk.ResultRetry {
			t.asked++
		}
		if t.actor != nil {
			a.life.left[a.group]++
		}
	}
	var values [][]byte
	var refs []id
	if a.kind != actItems || bad {
		if !bad && a.life == nil {
			refs = a.some(a.handles, 1)
		}
		values = append(values, v.with(refs, a.kind == actTask && a.depth == 0 && !bad && a.rng.IntN(4) == 0))
	}
	p.lets(r)
	p.pop(r)
	now := binary.LittleEndian.AppendUint64(nil, uint64(p.s.now))
	p.send(sdk.MsgResult, r.task[:], le32(r.n), le32(status), now, now, le32(uint32(len(values))), slices.Concat(values...))
	if a.kind == actLeave && !bad {
		a.life.simActor.ends("by its own will")
		a.life.ends = true
		c := p.creation
		p.send(sdk.MsgResult, c.task[:], le32(c.n), le32(sdk.ResultOK), now, now, le32(0))
	}
}

// with is a value that has references inside.
func (v value) with(refs []id, big bool) []byte {
	if len(refs) == 0 || v.bad {
		return v.encode(big && !v.bad)
	}
	return sdk.AppendValue(nil, sdk.Inline, 2, refs, 8, binary.LittleEndian.AppendUint64(nil, v.n))
}

// acts does one thing.
func (p *proc) acts(r *run) {
	a, l := r.act, p.s.ledger
	if len(l.tasks)+len(l.actors) > actThings {
		a.left = 0
		return
	}
	n := a.rng.IntN(100)
	if a.depth == 0 {
		n = 20 + n%75 // no more programs
	}
	if a.life != nil {
		for _, h := range a.life.kept {
			if !slices.Contains(a.handles, h) && a.rng.IntN(2) == 0 {
				p.keep(h, false)
				a.handles = append(a.handles, h)
			}
		}
	}
	h, ok := a.pick(a.handles)
	switch {
	case n < 12 && a.depth > 0 || n < 20 && a.depth > 0 && len(a.handles) == 0:
		k := a.rng.IntN(len(actorKinds))
		kind := &actorKinds[k]
		var deps []id
		if a.mayWait() && !kind.detached { // what it waits for could find it by its name, and wait for it
			deps = a.some(a.results, 1)
		}
		t := p.order(simFunc, p.shapeOf(fmt.Sprint("A", k), kind.options()), 0, 0, actMake, r, a.depth-1, deps, a.some(a.handles, 1))
		l.made(t, kind)
		l.actors[t].deps = deps
		p.keep(handle(t), true)
		a.handles = append(a.handles, handle(t))
	case n < 20 && a.depth > 0:
		deps := a.some(a.results, 2)
		t := p.order(simFunc, p.shapeOf("task", map[string]any{"name": "act", "max_retries": -1}), 1, 0, actTask, r, a.depth-1, deps, a.some(a.handles, 3))
		l.submitted(&simTask{id: t, retries: -1, deps: deps})
		p.keep(t.With(1), true)
		a.results = append(a.results, t.With(1))
	case n < 75 && ok:
		for range 1 + a.rng.IntN(4) {
			p.calls(r, h)
		}
	case n < 80:
		if x, ok := a.pick(a.results); ok && a.mayWait() {
			p.wait(r, x)
		}
	case n < 83 && ok:
		flags := uint32(a.rng.IntN(8) / 7) // mostly to live again
		if x := h.Task(); flags == sdk.KillForGood {
			l.actors[x].ends("it was killed")
			p.send(sdk.MsgKill, x[:], le32(flags))
		} else {
			p.send(sdk.MsgKill, x[:], le32(flags))
		}
	case n < 86:
		if x, ok := a.pick(a.results); ok {
			t := x.Task()
			l.tasks[t].cancel = true
			p.send(sdk.MsgCancel, le32(0), le32(0), t[:])
		}
	case n < 90 && ok && (p.worker || len(a.handles) > 2):
		a.handles = slices.DeleteFunc(a.handles, func(x id) bool { return x == h })
		p.lose(h)
	case n < 93 && len(a.results) > 0 && p.worker: // it does not want to know
		x := a.results[0]
		a.results = a.results[1:]
		p.lose(x)
	case n < 95:
		p.finds(r)
	}
}

// calls is a call of an actor.
func (p *proc) calls(r *run, h id) {
	a, l := r.act, p.s.ledger
	x := l.actors[h.Task()]
	retries := int32(a.rng.IntN(3)) - 1
	if x.kind.exclusive {
		retries = 0
	}
	group := []string{"", "io", "one", "none"}[a.rng.IntN(4)]
	if x.kind.groups == nil {
		group = ""
	}
	o := map[string]any{"name": "A.m", "method": "m", "max_retries": retries}
	if group != "" {
		o["group"] = group
	}
	kind, returns := actCall, uint32(1)
	switch n := a.rng.IntN(60); {
	case n < 8:
		kind, returns = actItems, sdk.Stream
	case n == 8:
		kind = actLeave
	}
	deps := a.some(a.results, 2)
	t := p.order(funcID(h.Task()), p.shapeOf(fmt.Sprint("m", retries, group), o), returns, sdk.SubmitCall, kind, r, max(a.depth, 1)-1, deps, a.some(a.handles, 2))
	if _, ok := x.kind.groups[group]; !ok {
		group = ""
	}
	l.submitted(&simTask{id: t, actor: x, group: group, retries: retries, deps: deps})
	if returns == sdk.Stream {
		if p.worker && a.rng.IntN(2) == 0 { // nobody reads it
			p.send(sdk.MsgRelease, t[:])
			l.tasks[t].cancel = true
			return
		}
		a.streams = append(a.streams, t.With(1))
		return
	}
	p.keep(t.With(1), true)
	a.results = append(a.results, t.With(1))
}

// finds looks for a named actor, as the head knows them.
func (p *proc) finds(r *run) {
	for _, s := range []*sim{p.s, p.s.peer} {
		if s == nil {
			continue
		}
		if ns := s.c.NamedActors(); len(ns) > 0 {
			h := handle(ns[r.act.rng.IntN(len(ns))].Actor)
			if !slices.Contains(r.act.handles, h) {
				p.keep(h, false)
				r.act.handles = append(r.act.handles, h)
			}
			return
		}
	}
}

// moves are what an actor can do: begin the next call of a group that has a place, or go on
// with one.
func (p *proc) moves() (out []func()) {
	if p.life == nil || !p.life.up || p.life.ends {
		return nil
	}
	full := map[string]bool{}
	for i, r := range p.queue {
		g := p.s.ledger.tasks[r.task].group
		if _, ok := p.life.left[g]; !ok {
			g = ""
		}
		if p.seen[r.attempt] || !full[g] && p.life.left[g] > 0 {
			out = append(out, func() {
				p.queue = slices.Delete(p.queue, i, i+1)
				p.start(r)
			})
		}
		full[g] = true
	}
	for _, r := range p.stack {
		if len(r.open) == 0 {
			out = append(out, func() { p.does(r) })
		}
	}
	return out
}

// closes is a driver that ends the actors which live on by themselves: those that are detached.
func (s *sim) closes() {
	p := s.driver("closing")
	for _, x := range sortedActors(s.ledger.actors) {
		if a := s.ledger.actors[x]; a.kind.detached && a.id.Node() == s.cfg.Number {
			a.ends("it was killed")
			p.send(sdk.MsgKill, a.id[:], le32(sdk.KillForGood))
		}
	}
	p.deliver(len(p.out) - p.next)
	s.take()
}

func sortedActors(m map[id]*simActor) []id {
	out := slices.Collect(maps.Keys(m))
	sortIDs(out)
	return out
}

// main is a driver whose program makes actors.
func (s *sim) main(job string, depth uint8, things int) (*proc, func() bool) {
	p := s.driver(job)
	r := p.stack[0]
	r.act = &act{depth: depth, left: things, rng: rand.New(rand.NewPCG(s.rng.Uint64(), 3))}
	return p, func() bool { return r.gone || s.procs[p.id] != p }
}
