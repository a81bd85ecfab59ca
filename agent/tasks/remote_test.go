package tasks

import (
	"slices"
	"testing"

	"launcher/agent/core"
	"launcher/wire"
	"launcher/wire/sdk"
)

func (w *desk) TakeLeased(now int64, x wire.LeaseID) (core.Slot, bool) {
	if w.slots[x] == 0 {
		return core.Slot{}, false
	}
	w.slots[x]--
	return w.Take(now, core.Who{}, wire.Resources{CPU: wire.Unit}, 0)
}
func (w *desk) GiveLeased(x wire.LeaseID, need wire.Resources, s core.Slot) {
	w.slots[x]++
	w.Give(need, s)
}
func (w *desk) LendLeased(x wire.LeaseID, lend bool) {
	if w.slots[x]--; lend {
		w.slots[x] += 2
	}
}
func (w *desk) Leased(x wire.LeaseID, _ uint32) bool { _, ok := w.slots[x]; return ok }

// pair is two nodes whose agents are clients of each other.
type pair struct {
	t     *testing.T
	nodes [2]*desk
	links map[link]link // who a client of one node is at the other
	cut   bool          // the connection is broken
}

type link struct {
	node   int
	client uint32
}

func newPair(t *testing.T, cores ...int) *pair {
	p := &pair{t: t, links: map[link]link{}}
	for i := range p.nodes {
		w := newDesk(t, cores[i])
		w.slots = map[wire.LeaseID]int{}
		w.c.cfg.Number = uint32(7 + i)
		w.c.cfg.Node = wire.NodeID([]string{"a", "b"}[i])
		p.nodes[i] = w
	}
	return p
}

// pump lets both nodes settle and carries frames until nothing happens any more.
func (p *pair) pump() {
	p.t.Helper()
	for range 100 {
		busy := false
		for i, w := range p.nodes {
			w.take()
			fx := w.fx
			w.fx = nil
			for _, e := range fx {
				if _, ok := e.(Will); ok {
					w.wills = append(w.wills, e)
				}
				busy = p.effect(i, w, e) || busy
			}
			for id, frames := range w.in {
				far, ok := p.links[link{i, id}]
				if !ok || p.cut {
					continue
				}
				delete(w.in, id)
				busy = true
				o := p.nodes[far.node]
				for _, f := range frames {
					var err error
					if o.c.byClient[far.client] != nil {
						err = o.c.Remote(o.now, far.client, f.typ, f.body)
					} else if o.borrow == far.client {
						o.answered(f)
					} else {
						err = o.c.Frame(o.now, far.client, f.typ, f.body)
					}
					if err != nil {
						p.t.Fatalf("frame %#x to %d: %v", f.typ, far.node, err)
					}
				}
			}
		}
		if !busy {
			return
		}
	}
	p.t.Fatal("the two nodes never come to rest")
}

// answered takes answers to Fetch.
func (w *desk) answered(f frame) {
	switch x := id(f.body[:16]); f.typ {
	case sdk.MsgPeerCopied:
		w.c.Copied(w.now, x, w.other, string(f.body[16:]))
		return
	case sdk.MsgPeerSpare:
		v, nodes, _, err := sdk.CutGiven(f.body[16:])
		if err != nil {
			w.t.Fatal(err)
		}
		w.c.Spare(x, v, nodes)
		return
	case sdk.MsgObject:
	default:
		return
	}
	v, nodes, _, err := sdk.CutGiven(f.body[16:])
	if err != nil {
		w.t.Fatal(err)
	}
	kind := v.Kind
	if kind == sdk.Elsewhere {
		kind = sdk.Shared
		w.sealed[id(f.body[:16])] = true
		w.pulled = append(w.pulled, nodes...)
	}
	var refs []id
	for i := range v.NumRefs() {
		refs = append(refs, v.Ref(i))
	}
	w.c.Fetched(w.now, id(f.body[:16]), kind, v.Form, v.Size, append([]byte(nil), v.Bytes...), refs)
}

func (p *pair) effect(i int, w *desk, e Effect) bool {
	o := p.nodes[1-i]
	borrow := func(typ uint16, body []byte) {
		if w.borrow == 0 {
			w.borrow = 1 << 20
			x := Client{ID: o.c.NextClient(), Kind: sdk.KindPeer, Peer: w.c.cfg.Number}
			if err := o.c.Connect(o.now, x); err != nil {
				p.t.Fatal(err)
			}
			p.links[link{1 - i, x.ID}] = link{i, w.borrow}
			w.borrowAt = x.ID
		}
		if err := o.c.Frame(o.now, w.borrowAt, typ, body); err != nil {
			p.t.Fatal(err)
		}
	}
	switch e := e.(type) {
	case OpenPeer:
		if e.Number != o.c.cfg.Number {
			p.t.Fatalf("node %d opens a connection to %d", i, e.Number)
		}
		x := Client{Kind: sdk.KindPeer, Peer: w.c.cfg.Number, Job: e.Key.Job, Language: e.Key.Language, Program: e.Key.Program, Dir: e.Key.Dir}
		if x.ID = o.c.FindPeer(x); x.ID == 0 {
			x.ID = o.c.NextClient()
			if err := o.c.Connect(o.now, x); err != nil {
				p.t.Fatal(err)
			}
		} else {
			o.c.Back(o.now, x.ID)
		}
		p.links[link{i, e.ID}] = link{1 - i, x.ID}
		p.links[link{1 - i, x.ID}] = link{i, e.ID}
		w.c.RemoteOpen(w.now, e.ID)
	case ClosePeer:
		if far, ok := p.links[link{i, e.ID}]; ok && !p.cut {
			o.c.Gone(o.now, far.client, "it was closed")
		}
	case Borrow:
		borrow(sdk.MsgHold, e.ID[:])
	case Unfetch:
		borrow(sdk.MsgRelease, e.ID[:])
	case Fetch:
		borrow(sdk.MsgGet, append(append(le32(sdk.GetValue), le32(0)...), e.ID[:]...))
	case Copy:
		w.other = e.Number
		borrow(sdk.MsgPeerCopy, e.Body)
	case Uncopy:
		borrow(sdk.MsgPeerUncopy, e.ID[:])
	case Restore:
		w.pulled = append(w.pulled, e.Nodes...)
		if len(e.Nodes) > 0 {
			w.sealed[e.ID] = true
			w.c.Restored(w.now, e.ID, nil)
		}
	default:
		return false
	}
	return true
}

// lease gives node 0 slots on node 1.
func (p *pair) lease(x wire.LeaseID, shape uint32, slots int) {
	p.nodes[1].slots[x] = slots
	w := p.nodes[0]
	w.c.Leased(w.now, wire.Leased{Seq: uint64(x), Lease: x, Shape: shape, Node: "b", Number: 8, Slots: uint32(slots)})
}

// finish has every worker of a node end what it runs.
func (w *desk) finish(value func(id) []byte) (ran []id) {
	w.startAll()
	for c, fs := range w.in {
		cl := w.c.clients[c]
		if cl == nil || cl.pool == nil {
			continue
		}
		delete(w.in, c)
		for _, f := range fs {
			if f.typ == sdk.MsgExec {
				x := id(f.body[:16])
				ran = append(ran, x)
				w.frame(c, sdk.MsgResult, result(x, u32(f.body[32:]), 0, value(x)))
			}
		}
	}
	return ran
}

func inlined(x id) []byte { return sdk.AppendValue(nil, sdk.Inline, 1, nil, 1, []byte{byte(x.N())}) }

func large(refs ...id) func(id) []byte {
	return func(id) []byte {
		b := sdk.AppendValue(nil, sdk.Shared, 0, refs, 1<<20, nil)
		return append(append(b, le32(1)...), make([]byte, 12)...)
	}
}

// TestTasksRunElsewhere: tasks that find no room here run under leases, are told to the
// head in numbers, and their results are here.
func TestTasksRunElsewhere(t *testing.T) {
	p := newPair(t, 1, 2)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	for n := range uint64(10) {
		a.frame(1, sdk.MsgSubmit, submit(taskOf(1, n+1), 1, 1))
	}
	p.pump()
	d, _, changed := a.c.Demand()
	if len(d) != 1 || d[0].Waiting != 10 || !changed { // the only worker is being started
		t.Fatalf("demand %+v, %v", d, changed)
	}
	p.lease(5, d[0].ID, 2)
	p.pump()
	if d, seen, _ := a.c.Demand(); len(d) != 1 || d[0].Waiting != 8 || seen != 5 {
		t.Fatalf("demand %+v, seen %d", d, seen)
	}
	local, there := 0, 0
	for range 20 {
		local += len(a.finish(inlined))
		there += len(b.finish(inlined))
		p.pump()
	}
	var events []wire.TaskEvent
	for _, w := range p.nodes {
		events = append(events, w.c.Timeline(wire.TimelineQuery{}).Events...)
	}
	if len(events) != 10 || slices.ContainsFunc(events, func(e wire.TaskEvent) bool { return e.Worker == 0 }) {
		t.Errorf("the nodes' timelines have %d events: %+v", len(events), events)
	}
	if local+there != 10 || there < 5 {
		t.Errorf("%d tasks ran here, %d there", local, there)
	}
	for n := range uint64(10) {
		o := a.c.objects[taskOf(1, n+1).With(1)]
		if o == nil || o.state != here || o.data[0] != byte(n+1) {
			t.Errorf("task %d: %+v", n+1, o)
		}
	}
	if len(b.c.objects) != 0 || len(b.c.tasks) != 0 {
		t.Errorf("%d objects, %d tasks are left there", len(b.c.objects), len(b.c.tasks))
	}
	a.now += 2 * second
	a.c.Tick(a.now)
	a.take()
	back := 0
	for _, e := range a.fx {
		if e, ok := e.(LeaseIdle); ok {
			back += int(e.Slots)
		}
	}
	if back != 2 || b.slots[5] != 2 {
		t.Errorf("%d slots went back, %d are free there", back, b.slots[5])
	}
}

// TestTaskComesOnceMore: another node's task that was forgotten here and comes again has
// attempts of other numbers, so an old Result that a worker repeats is none of the new run.
func TestTaskComesOnceMore(t *testing.T) {
	w := newDesk(t, 1)
	w.slots = map[wire.LeaseID]int{5: 1}
	peer := Client{ID: w.c.NextClient(), Kind: sdk.KindPeer, Peer: 8, Job: "d1", Language: "python", Program: "python3"}
	if err := w.c.Connect(w.now, peer); err != nil {
		t.Fatal(err)
	}
	x := wire.NewObjectID(8, 1, 1, 0)
	var worker uint32
	run := func() (attempt uint32) {
		w.shape(peer.ID, 1, map[string]any{"name": "f"})
		w.frame(peer.ID, sdk.MsgPeerSubmit, sdk.AppendPeerSubmit(nil, 5, 1, 1, submit(x, 1, 1)))
		w.take()
		w.startAll()
		for id := range w.in {
			if cl := w.c.clients[id]; cl != nil && cl.pool != nil {
				worker = id
			}
		}
		if _, as := w.execs(worker); len(as) == 1 {
			return as[0]
		}
		t.Fatal("the task does not run")
		return 0
	}
	first := run()
	old := result(x, first, 0, large()(x))
	w.frame(worker, sdk.MsgResult, old)
	w.frame(peer.ID, sdk.MsgPeerKeep, nil) // its agent has forgotten the task
	if len(w.c.tasks) != 0 {
		t.Fatal("the task is not forgotten")
	}
	second := run()
	w.frame(worker, sdk.MsgResult, old)
	if o := w.c.objects[x.With(1)]; o == nil || o.state == here {
		t.Fatalf("an old result is taken for that of attempt %d: %+v", second, o)
	}
	w.frame(worker, sdk.MsgResult, result(x, second, 0, inlined(x)))
	if len(w.c.objects) != 0 { // it was told to its owner
		t.Fatalf("the task does not end: %v", w.c.objects)
	}
}

// TestLargeResults: what is large stays where it was made until it is wanted here, goes
// from there to where it is an argument, and is let go of with its last reference.
func TestLargeResults(t *testing.T) {
	p := newPair(t, 0, 2)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	x, y := taskOf(1, 1), taskOf(1, 2)
	a.frame(1, sdk.MsgSubmit, submit(x, 1, 1))
	a.frame(1, sdk.MsgSubmit, submit(y, 1, 1, x.With(1)))
	p.pump()
	d, _, _ := a.c.Demand()
	p.lease(1, d[0].ID, 1)
	p.pump()
	b.finish(large())
	p.pump()
	o := a.c.objects[x.With(1)]
	if o == nil || o.state != here || o.where != 8 || a.sealed[o.id] {
		t.Fatalf("the result is %+v", o)
	}
	b.finish(inlined) // the second task got the first's result where it was
	p.pump()
	if o := a.c.objects[y.With(1)]; o.state != here || len(b.pulled) != 0 {
		t.Fatalf("the second is %+v; pulled from %v", o, b.pulled)
	}
	a.frame(1, sdk.MsgGet, append(append(le32(sdk.GetValue), le32(0)...), bytesOf(x.With(1))...))
	p.pump()
	if len(a.pulled) != 1 || a.pulled[0] != 8 {
		t.Errorf("pulled from %v", a.pulled)
	}
	if fs := a.in[1]; len(fs) == 0 || fs[len(fs)-1].typ != sdk.MsgObject {
		t.Errorf("the driver got %v", fs)
	}
	a.frame(1, sdk.MsgRelease, append(bytesOf(x.With(1)), bytesOf(y.With(1))...))
	p.pump()
	a.take()
	if len(a.c.objects) != 0 || len(b.c.objects) != 0 || len(b.frees) != 1 {
		t.Errorf("%d objects here, %d there; freed there %v", len(a.c.objects), len(b.c.objects), b.frees)
	}
}

// TestBorrowed: a worker elsewhere that keeps a reference holds it with the owner; a
// reference in a result is held before the node that passed it on lets go.
func TestBorrowed(t *testing.T) {
	p := newPair(t, 0, 1)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	put := wire.NewObjectID(7, 1, 1, wire.PutIndex)
	a.frame(1, sdk.MsgPut, append(bytesOf(put), sdk.AppendValue(nil, sdk.Inline, 1, nil, 1, []byte{9})...))
	x := taskOf(1, 2)
	a.frame(1, sdk.MsgSubmit, submit(x, 1, 1, put))
	p.pump()
	d, _, _ := a.c.Demand()
	p.lease(1, d[0].ID, 1)
	p.pump()
	b.startAll()
	var w uint32
	for c, cl := range b.c.clients {
		if cl.pool != nil {
			w = c
		}
	}
	// The worker keeps its argument and gives back something of its own.
	mine := wire.NewObjectID(8, w, 1, wire.PutIndex)
	b.frame(w, sdk.MsgHold, bytesOf(put))
	b.frame(w, sdk.MsgPut, append(bytesOf(mine), sdk.AppendValue(nil, sdk.Inline, 1, nil, 1, []byte{4})...))
	b.finish(func(id) []byte { return sdk.AppendValue(nil, sdk.Inline, 1, []id{mine}, 1, []byte{5}) })
	b.frame(w, sdk.MsgRelease, bytesOf(mine))
	p.pump()
	a.frame(1, sdk.MsgRelease, bytesOf(put)) // the driver has no reference any more
	p.pump()
	if o := a.c.objects[put]; o == nil || o.data[0] != 9 {
		t.Fatalf("what is borrowed is %+v", o)
	}
	if o := b.c.objects[mine]; o == nil || o.data[0] != 4 {
		t.Fatalf("what was passed on is %+v", o)
	}
	b.frame(w, sdk.MsgRelease, bytesOf(put))
	a.frame(1, sdk.MsgGet, append(append(le32(sdk.GetValue), le32(0)...), bytesOf(mine)...))
	p.pump()
	if a.c.objects[put] != nil {
		t.Error("what nobody borrows any more is there")
	}
	if fs := a.in[1]; len(fs) == 0 || fs[len(fs)-1].typ != sdk.MsgObject {
		t.Errorf("the driver got %v", fs)
	}
	a.frame(1, sdk.MsgRelease, append(bytesOf(x.With(1)), bytesOf(mine)...))
	p.pump()
	if len(a.c.objects) != 0 || len(b.c.objects) != 0 {
		t.Errorf("%d objects here, %d there", len(a.c.objects), len(b.c.objects))
	}
}

// TestNodeDies: what ran on a node that is gone runs again, what was only there is made
// again, and a node whose owner is gone cancels.
func TestNodeDies(t *testing.T) {
	p := newPair(t, 0, 2)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	x, y := taskOf(1, 1), taskOf(1, 2)
	a.frame(1, sdk.MsgSubmit, submit(x, 1, 1))
	a.frame(1, sdk.MsgSubmit, submit(y, 1, 1))
	p.pump()
	d, _, _ := a.c.Demand()
	p.lease(1, d[0].ID, 1)
	p.pump()
	b.finish(large())
	p.pump()
	if o := a.c.objects[x.With(1)]; o.where != 8 {
		t.Fatalf("the first result is %+v", o)
	}
	b.startAll() // the second runs
	p.cut = true
	a.c.NodeGone(a.now, 8, "its guard says so")
	a.take()
	if q := a.c.tasks[y]; q.state != queued || q.attempt != 2 {
		t.Fatalf("the second task is %+v", q)
	}
	if o := a.c.objects[x.With(1)]; o.state != freed {
		t.Fatalf("the first result is %+v", o)
	}
	a.frame(1, sdk.MsgGet, append(append(le32(sdk.GetValue), le32(0)...), bytesOf(x.With(1))...))
	if q := a.c.tasks[x]; q.state != queued {
		t.Fatalf("the first task is %+v", q)
	}
	b.c.NodeGone(b.now, 7, "its guard says so")
	b.c.JobsOver(b.now, []string{"d1"})
	b.take()
	if n := len(b.stops); n == 0 {
		t.Error("the worker of a node that is gone is not stopped")
	}
}

// TestConnectionBreaks: the other node is told again; nothing runs twice.
func TestConnectionBreaks(t *testing.T) {
	p := newPair(t, 0, 2)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	x, y := taskOf(1, 1), taskOf(1, 2)
	a.frame(1, sdk.MsgSubmit, submit(x, 1, 1))
	a.frame(1, sdk.MsgSubmit, submit(y, 1, 1))
	p.pump()
	d, _, _ := a.c.Demand()
	p.lease(1, d[0].ID, 2)
	p.pump()
	b.startAll()
	var r *remote
	for _, r = range a.c.byClient {
	}
	peer := p.links[link{0, r.cl.ID}].client
	p.cut = true
	a.c.RemoteClosed(a.now, r.cl.ID)
	b.c.Away(b.now, peer)
	b.finish(inlined)
	b.take()
	delete(b.in, peer) // never arrives
	delete(a.in, r.cl.ID)
	p.cut = false
	b.c.Back(b.now, peer)
	a.c.RemoteOpen(a.now, r.cl.ID)
	p.pump()
	if n := len(b.finish(inlined)); n != 0 {
		t.Errorf("%d tasks ran twice", n)
	}
	for _, id := range []id{x, y} {
		if o := a.c.objects[id.With(1)]; o.state != here {
			t.Errorf("%s is %+v", id, o)
		}
	}
}

// TestLeaseOver: a task that comes under a lease that is over goes back unharmed.
func TestLeaseOver(t *testing.T) {
	p := newPair(t, 0, 2)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	x := taskOf(1, 1)
	a.frame(1, sdk.MsgSubmit, submit(x, 1, 1))
	p.pump()
	d, _, _ := a.c.Demand()
	p.lease(1, d[0].ID, 1)
	delete(b.slots, 1)
	p.pump()
	if q := a.c.tasks[x]; q.state != queued || q.attempt != 1 {
		t.Fatalf("the task is %+v", q)
	}
	if len(b.c.tasks) != 0 || len(b.c.objects) != 0 {
		t.Errorf("%d tasks, %d objects are left there", len(b.c.tasks), len(b.c.objects))
	}
	p.lease(2, d[0].ID, 1)
	p.pump()
	b.finish(inlined)
	p.pump()
	if o := a.c.objects[x.With(1)]; o.state != here {
		t.Errorf("the result is %+v", o)
	}
	// Impossible: it fails at once with what the head says.
	a.frame(1, sdk.MsgSubmit, submit(taskOf(1, 2), 1, 1))
	p.nodes[0].c.LeasesEnd(a.now)
	p.pump()
	a.c.NoRoomEver(a.now, wire.Infeasible{Shape: d[0].ID, Why: "the largest node has less"})
	if o := a.c.objects[taskOf(1, 2).With(1)]; o.kind != sdk.Failure {
		t.Errorf("an impossible task is %+v", o)
	}
}

func bytesOf(x id) []byte { return append([]byte(nil), x[:]...) }

// restored reads a node's log again, as the next agent does.
func (w *desk) restored() *Core {
	w.t.Helper()
	c := New(w.c.cfg, w, w)
	if err := c.Restore(w.log); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// TestRestartOfTheOwner: the next agent knows what came from other nodes, connects to
// those that have something, and runs again what it does not know to have ended.
func TestRestartOfTheOwner(t *testing.T) {
	p := newPair(t, 0, 2)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	x, y, z := taskOf(1, 1), taskOf(1, 2), taskOf(1, 3)
	for _, id := range []id{x, y, z} {
		a.frame(1, sdk.MsgSubmit, submit(id, 1, 1))
	}
	p.pump()
	d, _, _ := a.c.Demand()
	p.lease(1, d[0].ID, 1)
	p.pump()
	b.finish(large())
	p.pump()
	b.finish(inlined)
	p.pump()
	b.startAll() // the third runs
	c := a.restored()
	if o := c.objects[x.With(1)]; o == nil || o.state != here || o.where != 8 {
		t.Errorf("the first result is %+v", o)
	}
	if o := c.objects[y.With(1)]; o == nil || o.state != here || o.data[0] != 2 {
		t.Errorf("the second result is %+v", o)
	}
	if q := c.tasks[z]; q == nil || q.state != queued {
		t.Errorf("the third task is %+v", q)
	}
	c.Resume(a.now)
	var opened []OpenPeer
	for _, e := range c.Take(a.now).Effects {
		if e, ok := e.(OpenPeer); ok {
			opened = append(opened, e)
		}
	}
	if len(opened) != 1 || opened[0].Number != 8 {
		t.Errorf("opened %+v", opened)
	}
	c = b.restored() // the other side knows whose the task is
	if q := c.tasks[z]; q == nil || q.fence != 1 || c.FindPeer(Client{Kind: sdk.KindPeer, Peer: 7, Job: "d1", Language: "python", Program: "python3"}) == 0 {
		t.Errorf("there, the third task is %+v", q)
	}
}
