package tasks

import (
	"slices"
	"strings"
	"testing"
	"time"

	"launcher/wire"
	"launcher/wire/sdk"
)

// makeActor submits a creation; shapes 1, 10 and 11 of the client are f, the class and its method.
func (w *desk) makeActor(client uint32, n uint64, o map[string]any, actor map[string]any) id {
	w.t.Helper()
	all := map[string]any{"name": "A", "actor": actor}
	for k, v := range o {
		all[k] = v
	}
	w.shape(client, 10+uint32(n), all)
	x := w.idOf(client, n)
	w.frame(client, sdk.MsgSubmit, submit(x, 10+uint32(n), 0))
	return x
}

func (w *desk) idOf(client uint32, n uint64) id {
	return wire.NewObjectID(w.c.cfg.Number, client, n, 0)
}

func (w *desk) call(client uint32, n uint64, actor id, shape uint32, deps ...id) id {
	w.t.Helper()
	x := w.idOf(client, n)
	b := submit(x, shape, 1, deps...)
	copy(b[16:], actor[:])
	b[40] = byte(sdk.SubmitCall)
	w.frame(client, sdk.MsgSubmit, b)
	return x
}

func (w *desk) up(worker uint32, actor id, attempt uint32) {
	w.t.Helper()
	w.frame(worker, sdk.MsgUp, append(append([]byte(nil), actor[:]...), le32(attempt)...))
	w.take()
}

// born starts the worker of an actor and has it be up.
func (w *desk) born(actor id, attempt uint32) (worker uint32) {
	w.t.Helper()
	w.take()
	for len(w.starts) > 0 {
		w.startAll()
	}
	for cl := range w.in {
		if got, a := w.execs(cl); slices.Contains(got, actor) {
			if n := w.c.attemptHere(w.c.tasks[actor]); n != attempt {
				w.t.Fatalf("attempt %d of the creation, not %d", n, attempt)
			}
			w.up(cl, actor, a[0])
			return cl
		}
	}
	w.t.Fatalf("nobody makes actor %s", actor)
	return 0
}

func (w *desk) ok(worker uint32, x id, attempt uint32, v string) {
	w.t.Helper()
	if t := w.c.tasks[x]; t != nil && w.c.attemptHere(t) == attempt {
		attempt = t.attempt // another node's have numbers of their own here
	}
	w.frame(worker, sdk.MsgResult, result(x, attempt, 0, inline(v)))
	w.take()
}

func TestActorTakesCallsInOrder(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	w.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
	slow := taskOf(1, 50)
	w.frame(1, sdk.MsgSubmit, submit(slow, 1, 1))
	w.take()
	w.startAll()
	helper := w.c.tasks[slow].worker().ID
	w.execs(helper)
	a := w.makeActor(1, 1, nil, map[string]any{})
	c1 := w.call(1, 2, a, 5)
	c2 := w.call(1, 3, a, 5, slow.With(1))
	c3 := w.call(1, 4, a, 5)
	w.take()
	if len(w.starts) != 0 {
		t.Fatal("the only core is in use")
	}
	w.ok(helper, slow, 1, "v")
	worker := w.born(a, 1)
	if w.free.CPU != w.total.CPU {
		t.Fatalf("the core that it started with is not given back: %s", w.free)
	}
	got, _ := w.execs(worker)
	if !slices.Equal(got, []id{c1, c2, c3}) {
		t.Fatalf("calls came as %v", got)
	}
	w.frame(1, sdk.MsgGet, get(sdk.GetValue, c1.With(1), c2.With(1), c3.With(1)))
	for i, x := range got {
		w.ok(worker, x, 1, string('a'+rune(i)))
	}
	if o := w.objects(1); o[c1.With(1)] != "1 a" || o[c3.With(1)] != "1 c" {
		t.Fatalf("got %q", o)
	}
	// A call whose argument is late holds the later ones up.
	late := taskOf(1, 60)
	w.frame(1, sdk.MsgSubmit, submit(late, 1, 1))
	c5, c6 := w.call(1, 61, a, 5, late.With(1)), w.call(1, 62, a, 5)
	w.take()
	w.startAll()
	if got, _ := w.execs(worker); len(got) != 0 && got[0] != late {
		t.Fatalf("overtaken: %v", got)
	}
	w.ok(w.c.tasks[late].worker().ID, late, 1, "v")
	if got, _ := w.execs(worker); !slices.Equal(got, []id{c5, c6}) {
		t.Fatalf("then %v", got)
	}
	// The last handle goes: it ends, when its calls have.
	h := handle(a)
	w.frame(1, sdk.MsgRelease, h[:])
	w.take()
	if len(w.stops) != 0 {
		t.Fatal("it ends under its calls")
	}
	w.ok(worker, c5, 1, "")
	w.ok(worker, c6, 1, "")
	if len(w.stops) != 1 || w.stops[0].ID != worker || w.stops[0].Force {
		t.Fatalf("stops %+v", w.stops)
	}
	w.c.Gone(w.now, worker, "exit 0")
	w.take()
	if w.c.tasks[a] != nil || w.c.objects[h] != nil {
		t.Fatal("it is still known")
	}
}

func TestActorRestarts(t *testing.T) {
	w := newDesk(t, 2)
	w.driver(1)
	w.shape(1, 5, map[string]any{"name": "A.m", "max_retries": 0})
	w.shape(1, 6, map[string]any{"name": "A.r", "max_retries": 1})
	a := w.makeActor(1, 1, map[string]any{"max_retries": 1}, map[string]any{})
	worker := w.born(a, 1)
	once := w.call(1, 2, a, 5)
	again := w.call(1, 3, a, 6)
	w.take()
	w.execs(worker)
	w.frame(1, sdk.MsgGet, get(sdk.GetValue, once.With(1), again.With(1)))
	w.c.Gone(w.now, worker, "killed by signal 9")
	late := w.call(1, 4, a, 5)
	w.take()
	if o := w.objects(1); len(o) != 0 {
		t.Fatalf("told before it is known what becomes of the actor: %q", o)
	}
	worker = w.born(a, 2)
	got, attempts := w.execs(worker)
	if !slices.Equal(got, []id{again, late}) || attempts[0] != 2 || attempts[1] != 1 {
		t.Fatalf("the new life got %v %v", got, attempts)
	}
	if o := w.objects(1); !strings.Contains(o[once.With(1)], "actor_unavailable") || len(o) != 1 {
		t.Fatalf("got %q", o)
	}
	w.frame(1, sdk.MsgGet, get(sdk.GetValue, late.With(1)))
	w.c.Gone(w.now, worker, "killed by signal 9")
	w.take()
	last := w.call(1, 5, a, 5)
	w.frame(1, sdk.MsgGet, get(sdk.GetValue, last.With(1)))
	w.take()
	o := w.objects(1)
	for _, x := range []id{again, late, last} {
		if !strings.Contains(o[x.With(1)], "actor_died") {
			t.Errorf("%s: %q", x, o[x.With(1)])
		}
	}
}

func TestActorConstructorFails(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	w.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
	a := w.makeActor(1, 1, map[string]any{"max_retries": 3}, map[string]any{})
	w.take()
	worker := w.starts[0].ID
	w.startAll()
	x := w.call(1, 2, a, 5)
	w.frame(1, sdk.MsgGet, get(sdk.GetValue, x.With(1)))
	data := sdk.Error{Code: "task", Message: "no such thing", Cause: []byte("pickled")}.Encode()
	w.frame(worker, sdk.MsgResult, result(a, 1, 1, sdk.AppendValue(nil, sdk.Failure, 1, nil, int64(len(data)), data)))
	w.take()
	o := w.objects(1)[x.With(1)]
	if !strings.Contains(o, "actor_died") || !strings.Contains(o, "no such thing") || !strings.Contains(o, "pickled") {
		t.Fatalf("got %q", o)
	}
	if len(w.stops) != 1 || len(w.starts) != 0 {
		t.Fatalf("stops %v, starts %v", w.stops, w.starts)
	}
}

func TestActorGroupsAndKill(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	w.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
	w.shape(1, 6, map[string]any{"name": "A.io", "group": "io"})
	a := w.makeActor(1, 1, nil, map[string]any{"groups": map[string]int{"io": 2}})
	worker := w.born(a, 1)
	for n := range uint64(300) {
		w.call(1, 10+n, a, 5)
	}
	io := w.call(1, 1000, a, 6)
	w.take()
	got, _ := w.execs(worker)
	if !slices.Contains(got, io) || len(got) >= 300 {
		t.Fatalf("the calls of one group hold up another's: %d given", len(got))
	}
	w.frame(1, sdk.MsgKill, append(a.Bytes(), le32(sdk.KillForGood)...))
	w.take()
	if len(w.stops) != 1 || !w.stops[0].Force {
		t.Fatalf("stops %v", w.stops)
	}
	w.frame(1, sdk.MsgGet, get(sdk.GetValue, io.With(1)))
	w.c.Gone(w.now, worker, "killed by signal 9")
	w.take()
	if o := w.objects(1)[io.With(1)]; !strings.Contains(o, "it was killed") {
		t.Fatalf("got %q", o)
	}
	if w.c.queued != 0 || w.c.running != 0 {
		t.Fatalf("left: %d bytes queued, %d running", w.c.queued, w.c.running)
	}
}

// TestActorElsewhere: made by one node, living on the other, called from both; its process
// dies and it lives again.
func TestActorElsewhere(t *testing.T) {
	p := newPair(t, 1, 2)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	a.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
	a.shape(1, 6, map[string]any{"name": "A.r", "method": "r", "max_retries": -1})
	busy := a.idOf(1, 90)
	a.frame(1, sdk.MsgSubmit, submit(busy, 1, 1)) // has the only core
	x := a.makeActor(1, 1, map[string]any{"max_retries": -1}, map[string]any{})
	first := a.call(1, 2, x, 5)
	p.pump()
	d, _, _ := a.c.Demand()
	lease := func(n wire.LeaseID) {
		for _, s := range d {
			p.lease(n, s.ID, 1)
		}
		p.pump()
	}
	lease(5)
	worker := b.born(x, 1)
	p.pump()
	got, _ := b.execs(worker)
	if !slices.Equal(got, []id{first}) {
		t.Fatalf("the other node got %v", got)
	}
	b.ok(worker, first, 1, "v")
	p.pump()
	a.frame(1, sdk.MsgGet, get(sdk.GetValue, first.With(1)))
	a.take()
	if o := a.objects(1); o[first.With(1)] != "1 v" {
		t.Fatalf("got %q", o)
	}
	if ts := b.c.tasks[first]; ts != nil {
		t.Fatal("the host still has a call that is accounted for")
	}
	// A program of the host's node calls it, too.
	if err := b.c.Connect(b.now, Client{ID: 70, Kind: sdk.KindDriver, Language: "python", Job: "d1", Program: "python3"}); err != nil {
		t.Fatal(err)
	}
	b.shape(70, 5, map[string]any{"name": "A.m", "method": "m"})
	h := handle(x)
	b.frame(70, sdk.MsgHold, h[:])
	near := b.call(70, 1, x, 5)
	c2, c3 := a.call(1, 3, x, 5), a.call(1, 4, x, 6)
	p.pump()
	if got, _ := b.execs(worker); len(got) != 3 || !slices.Contains(got, near) {
		t.Fatalf("the worker got %v", got)
	}
	b.c.Gone(b.now, worker, "killed by signal 9")
	late := a.call(1, 5, x, 5)
	p.pump()
	if a.c.leases.by[5] == nil {
		d, _, _ = a.c.Demand()
		lease(6)
	}
	worker = b.born(x, 2)
	p.pump()
	got, _ = b.execs(worker)
	if !slices.Equal(got, []id{c3, late}) || b.c.attemptHere(b.c.tasks[c3]) != 2 {
		t.Fatalf("the next life got %v", got)
	}
	a.frame(1, sdk.MsgGet, get(sdk.GetValue, c2.With(1)))
	b.frame(70, sdk.MsgGet, get(sdk.GetValue, near.With(1)))
	p.pump()
	if o := a.objects(1)[c2.With(1)]; !strings.Contains(o, "actor_unavailable") {
		t.Fatalf("got %q", o)
	}
	if o := b.objects(70)[near.With(1)]; !strings.Contains(o, "actor_unavailable") {
		t.Fatalf("got %q", o)
	}
	b.ok(worker, c3, 2, "")
	b.ok(worker, late, 1, "")
	p.pump()
	// Handles go, the far one last.
	a.frame(1, sdk.MsgRelease, h[:])
	p.pump()
	if len(b.stops) != 0 {
		t.Fatal("it ends while the other node has a handle")
	}
	b.frame(70, sdk.MsgRelease, h[:])
	p.pump()
	if len(b.stops) != 1 || b.stops[0].ID != worker {
		t.Fatalf("stops %v", b.stops)
	}
	b.c.Gone(b.now, worker, "exit 0")
	p.pump()
	if a.c.tasks[x] != nil || b.c.tasks[x] != nil {
		t.Fatal("it is still known")
	}
}

// TestActorsSurviveTheAgent: the log gives the next agent actors and calls as they were.
func TestActorsSurviveTheAgent(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		w := newDesk(t, 2)
		w.driver(1)
		w.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
		a := w.makeActor(1, 1, nil, map[string]any{})
		worker := w.born(a, 1)
		c1 := w.call(1, 2, a, 5)
		w.frame(1, sdk.MsgSubmit, submit(w.idOf(1, 9), 1, 1))
		c2 := w.call(1, 10, a, 5, w.idOf(1, 9).With(1))
		w.take()
		log := w.log
		if snapshot {
			log = slices.Concat(w.c.Snapshot()...)
		}
		n := newDesk(t, 2)
		if err := n.c.Restore(log); err != nil {
			t.Fatal(err)
		}
		n.c.Resume(n.now)
		for _, cl := range n.c.sortedClients() {
			if cl.pool != nil && !cl.up {
				n.c.Gone(n.now, cl.ID, "it was not started")
			}
		}
		n.c.Back(n.now, 1)
		n.c.Back(n.now, worker)
		n.take()
		if got, _ := n.execs(worker); !slices.Equal(got, []id{a, c1}) {
			t.Fatalf("snapshot %v: given again %v", snapshot, got)
		}
		n.ok(worker, c1, 1, "v")
		n.startAll()
		for cl := range n.in {
			if cl == worker {
				continue
			}
			if got, _ := n.execs(cl); slices.Contains(got, n.idOf(1, 9)) {
				n.ok(cl, n.idOf(1, 9), 1, "v")
			}
		}
		if got, _ := n.execs(worker); !slices.Equal(got, []id{c2}) {
			t.Fatalf("snapshot %v: then %v", snapshot, got)
		}
	}
}

// TestManyActors: as many as are asked for, beyond the bound of workers that tasks share,
// with a core each only while they start.
func TestManyActors(t *testing.T) {
	w := newDesk(t, 2)
	w.c.cfg.MaxWorkers = 3
	w.driver(1)
	w.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
	w.shape(1, 10, map[string]any{"name": "A", "actor": map[string]any{}})
	for n := range uint64(40) {
		a := w.idOf(1, 2*n+1)
		w.frame(1, sdk.MsgSubmit, submit(a, 10, 0))
		w.call(1, 2*n+2, a, 5)
	}
	up := 0
	for range 100 {
		w.take()
		w.startAll()
		for cl := range w.in {
			got, _ := w.execs(cl)
			for _, x := range got {
				if w.c.tasks[x].actor != nil {
					w.up(cl, x, 1)
				} else {
					up++
					w.ok(cl, x, 1, "v")
				}
			}
		}
	}
	if up != 40 || w.free.CPU != w.total.CPU {
		t.Fatalf("%d calls of 40, room %s", up, w.free)
	}
}

// TestOneConnectionForAllEnvironments: the agent of another node is one client there, whatever
// variables the tasks have.
func TestOneConnectionForAllEnvironments(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	k := w.c.clients[1].key()
	other := k
	other.Env = "A=1"
	if w.c.remoteOf(9, k) != w.c.remoteOf(9, other) {
		t.Fatal("two conversations that are one client at the other end")
	}
}

// TestExclusiveActorIsNotInTwoPlaces: while its node is silent it does not live again, and
// its host ends it in time; proof of death has it live at once.
func TestExclusiveActorIsNotInTwoPlaces(t *testing.T) {
	for _, proof := range []bool{false, true} {
		p := newPair(t, 1, 2)
		a, b := p.nodes[0], p.nodes[1]
		a.driver(1)
		a.frame(1, sdk.MsgSubmit, submit(a.idOf(1, 90), 1, 1)) // has the only core
		x := a.makeActor(1, 1, map[string]any{"max_retries": -1}, map[string]any{"exclusive": true})
		p.pump()
		d, _, _ := a.c.Demand()
		for _, s := range d {
			p.lease(5, s.ID, 1)
		}
		p.pump()
		worker := b.born(x, 1)
		p.pump()
		p.cut = true
		for _, w := range p.nodes {
			for id := range w.c.byClient {
				w.c.RemoteClosed(w.now, id)
			}
			for _, cl := range w.c.sortedClients() {
				if cl.Kind == sdk.KindPeer {
					w.c.Away(w.now, cl.ID)
				}
			}
		}
		later := func(s int64) {
			for _, w := range p.nodes {
				w.now += s * second
				w.c.Tick(w.now)
				w.take()
			}
		}
		later(15)
		a.c.NodeSilent(a.now, 8, "silent for 15 s")
		a.take()
		if proof {
			a.c.NodeGone(a.now, 8, "its guard says so")
			a.take()
			if got := a.c.tasks[x]; got.state != queued && got.state != running {
				t.Fatalf("it waits though its node is dead: %s", a.c.why(got))
			}
			continue
		}
		if got := a.c.tasks[x]; got.state != waiting || !strings.Contains(a.c.why(got), "never in two places") {
			t.Fatalf("it may be in two places: %s", a.c.why(got))
		}
		later(16)
		if len(b.stops) != 1 || b.stops[0].ID != worker || !b.stops[0].Force {
			t.Fatalf("its host does not end it: %v", b.stops)
		}
		if a.c.tasks[x].state != waiting {
			t.Fatal("too early")
		}
		later(15)
		if a.c.tasks[x].state == waiting {
			t.Fatalf("it never lives again: %s", a.c.why(a.c.tasks[x]))
		}
	}
}

// TestActorStreamElsewhere: a method that yields, on another node, ends like any call: what
// it takes to account for it does not grow with the items that a stream might have.
func TestActorStreamElsewhere(t *testing.T) {
	p := newPair(t, 0, 1)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	a.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
	x := a.makeActor(1, 1, nil, map[string]any{})
	p.pump()
	p.leaseAll(1)
	worker := b.born(x, 1)
	y := a.idOf(1, 2)
	body := submit(y, 5, sdk.Stream)
	copy(body[16:], x[:])
	body[40] = byte(sdk.SubmitCall)
	a.frame(1, sdk.MsgSubmit, body)
	p.pump()
	if got, _ := b.execs(worker); !slices.Equal(got, []id{y}) {
		t.Fatalf("the other node got %v", got)
	}
	n := b.c.tasks[y].attempt
	b.frame(worker, sdk.MsgYield, append(append(append(bytesOf(y), le32(n)...), le32(0)...), inline("item")...))
	begin := time.Now()
	b.frame(worker, sdk.MsgResult, result(y, n, sdk.ResultOK))
	p.pump()
	if d := time.Since(begin); d > 5*time.Second {
		t.Fatalf("its end took %v", d)
	}
	if b.c.tasks[y] != nil {
		t.Fatal("the host still has a call that is accounted for")
	}
	if n := a.c.tasks[y]; n == nil || n.state != done || n.stream.made != 1 {
		t.Fatalf("its owner has %+v", n)
	}
}
