package tasks

import (
	"slices"
	"strings"
	"testing"

	"launcher/wire"
	"launcher/wire/sdk"
)

// killed is a Kill frame.
func killed(actor id, flags uint32) []byte { return append(bytesOf(actor), le32(flags)...) }

// abroad is an actor that node 0 owns and node 1 hosts, up, with the lease that it came by.
func abroad(t *testing.T, o, actor map[string]any) (p *pair, x id, worker uint32) {
	t.Helper()
	p = newPair(t, 1, 2)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	a.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
	a.frame(1, sdk.MsgSubmit, submit(a.idOf(1, 90), 1, 1)) // has the only core
	x = a.makeActor(1, 1, o, actor)
	p.pump()
	p.leaseAll(5)
	worker = b.born(x, 1)
	p.pump()
	return p, x, worker
}

// leaseAll gives node 0 a slot on node 1 for each shape that it asks for.
func (p *pair) leaseAll(n wire.LeaseID) {
	p.t.Helper()
	d, _, _ := p.nodes[0].c.Demand()
	for _, s := range d {
		p.lease(n, s.ID, 1)
		n++
	}
	p.pump()
}

// TestActorRetryAfterKill: a call that asks to be run again when its actor was killed already.
func TestActorRetryAfterKill(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	w.shape(1, 5, map[string]any{"name": "A.m", "method": "m", "max_retries": 3})
	a := w.makeActor(1, 1, map[string]any{"max_retries": 1}, map[string]any{})
	worker := w.born(a, 1)
	c1, c2 := w.call(1, 2, a, 5), w.call(1, 3, a, 5)
	w.take()
	w.frame(1, sdk.MsgKill, killed(a, 0))
	w.frame(worker, sdk.MsgResult, result(c1, 1, sdk.ResultRetry, sdk.AppendValue(nil, sdk.Failure, 1, nil, 1, []byte{0xc0})))
	w.take()
	w.c.Gone(w.now, worker, "killed by signal 9")
	next := w.born(a, 2)
	if got, _ := w.execs(next); !slices.Equal(got, []id{c1, c2}) {
		t.Fatalf("the next life got %v", got)
	}
}

// TestActorReplayOfCancelAbroad: the log of a cancelled call that is on another node can be read.
func TestActorReplayOfCancelAbroad(t *testing.T) {
	p, x, _ := abroad(t, nil, map[string]any{})
	a := p.nodes[0]
	c1 := a.call(1, 2, x, 5)
	p.pump()
	a.frame(1, sdk.MsgCancel, append(append(le32(0), le32(0)...), c1[:]...))
	p.pump()
	c := a.restored()
	c.Resume(a.now)
	if n := c.tasks[c1]; n == nil || !n.cancel {
		t.Fatalf("the call is %+v", n)
	}
	a.c.Gone(a.now, 1, "exit 0")
	p.pump()
	a.restored().Resume(a.now)
}

// TestStreamAbroadSurvivesItsOwner: a generator on another node of which items have come.
func TestStreamAbroadSurvivesItsOwner(t *testing.T) {
	p := newPair(t, 0, 2)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	x := a.stream(1, 1)
	p.pump()
	p.leaseAll(1)
	b.startAll()
	var worker uint32
	for cl := range b.in {
		if got, _ := b.execs(cl); slices.Contains(got, x) {
			worker = cl
		}
	}
	b.frame(worker, sdk.MsgYield, append(append(append(bytesOf(x), le32(b.c.tasks[x].attempt)...), le32(0)...), inline("i")...))
	p.pump()
	c := a.restored()
	c.Resume(a.now)
	_ = c.Tasks(wire.SDKTaskQuery{})
	if n := c.tasks[x]; n == nil || n.state == running && n.worker() == nil {
		t.Fatalf("nobody runs it, and nobody will: %+v", n)
	}
}

// TestActorDetachedHostLosesItsOwner: the programs of the host's node go on.
func TestActorDetachedHostLosesItsOwner(t *testing.T) {
	p, x, worker := abroad(t, nil, map[string]any{"detached": true})
	b := p.nodes[1]
	b.driver(70)
	b.frame(70, sdk.MsgSubmit, submit(b.idOf(70, 1), 1, 1))
	h := handle(x)
	b.frame(70, sdk.MsgHold, h[:])
	b.take()
	p.cut = true
	b.c.NodeGone(b.now, 7, "lost")
	b.take()
	if len(b.stops) != 1 || b.stops[0].ID != worker {
		t.Fatalf("stops %+v", b.stops)
	}
	b.c.Gone(b.now, worker, "killed by signal 9")
	b.take()
	if j := b.c.jobs["d1"]; j == nil || j.drivers != 1 {
		t.Fatalf("the job of this node's program is %+v", j)
	}
	if b.c.tasks[x] != nil {
		t.Fatal("the actor is still known")
	}
	if o := b.c.objects[h]; o != nil && o.uses != 0 {
		t.Fatalf("the handle is %+v", o)
	}
}

// TestActorKillBeforeTheConnection: Kill of another node's actor waits for the connection to it.
func TestActorKillBeforeTheConnection(t *testing.T) {
	p := newPair(t, 1, 1)
	a, b := p.nodes[0], p.nodes[1]
	b.driver(1)
	x := b.makeActor(1, 1, nil, map[string]any{})
	worker := b.born(x, 1)
	a.driver(1)
	h := handle(x)
	a.frame(1, sdk.MsgHold, h[:])
	a.frame(1, sdk.MsgKill, killed(x, sdk.KillForGood))
	p.pump()
	if len(b.stops) != 1 || b.stops[0].ID != worker {
		t.Fatalf("stops %+v", b.stops)
	}
}

// TestActorKillOverABrokenConnection: what was said while it was broken is said again.
func TestActorKillOverABrokenConnection(t *testing.T) {
	p := newPair(t, 1, 1)
	a, b := p.nodes[0], p.nodes[1]
	b.driver(1)
	x := b.makeActor(1, 1, nil, map[string]any{})
	worker := b.born(x, 1)
	a.driver(1)
	a.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
	h := handle(x)
	a.frame(1, sdk.MsgHold, h[:])
	a.call(1, 2, x, 5)
	p.pump()
	var r *remote
	for _, r = range a.c.byClient {
	}
	a.c.RemoteClosed(a.now, r.cl.ID)
	a.frame(1, sdk.MsgKill, killed(x, sdk.KillForGood))
	a.take()
	delete(a.in, r.cl.ID)
	a.c.RemoteOpen(a.now, r.cl.ID)
	p.pump()
	if len(b.stops) != 1 || b.stops[0].ID != worker {
		t.Fatalf("stops %+v", b.stops)
	}
}

// TestActorKilledWhileItWaitsElsewhere: it comes back from the other node, and is over.
func TestActorKilledWhileItWaitsElsewhere(t *testing.T) {
	p := newPair(t, 1, 1)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	a.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
	a.frame(1, sdk.MsgSubmit, submit(a.idOf(1, 90), 1, 1))
	x := a.makeActor(1, 1, nil, map[string]any{})
	c1 := a.call(1, 2, x, 5)
	p.pump()
	d, _, _ := a.c.Demand()
	for i, s := range d {
		p.lease(wire.LeaseID(5+i), s.ID, 1)
		b.slots[wire.LeaseID(5+i)] = 0 // there is no room for it yet
	}
	p.pump()
	if n := b.c.tasks[x]; n == nil || n.state != queued {
		t.Fatalf("there it is %+v", n)
	}
	a.frame(1, sdk.MsgKill, killed(x, sdk.KillForGood))
	p.pump()
	a.frame(1, sdk.MsgGet, get(sdk.GetValue, c1.With(1)))
	p.pump()
	if o := a.objects(1)[c1.With(1)]; !strings.Contains(o, "actor_died") {
		t.Fatalf("got %q; the actor is %+v", o, a.c.tasks[x])
	}
}

// TestActorKillSurvivesTheAgent: the agent dies between the word and the deed.
func TestActorKillSurvivesTheAgent(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		w := newDesk(t, 1)
		w.driver(1)
		w.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
		a := w.makeActor(1, 1, map[string]any{"max_retries": 1}, map[string]any{})
		worker := w.born(a, 1)
		w.frame(1, sdk.MsgKill, killed(a, 0))
		w.take()
		log := w.log
		if snapshot {
			log = slices.Concat(w.c.Snapshot()...)
		}
		n := newDesk(t, 1)
		if err := n.c.Restore(log); err != nil {
			t.Fatal(err)
		}
		n.c.Resume(n.now)
		n.c.Back(n.now, 1)
		n.c.Back(n.now, worker)
		n.take()
		if len(n.stops) != 1 || n.stops[0].ID != worker || !n.stops[0].Force {
			t.Fatalf("snapshot %v: stops %+v", snapshot, n.stops)
		}
		n.c.Gone(n.now, worker, "killed by signal 9")
		delete(n.in, worker)
		n.born(a, 2)
	}
}

// TestActorWithValues: a creation that is refused leaves nothing.
func TestActorWithValues(t *testing.T) {
	for _, returns := range []uint32{2, sdk.Stream} {
		w := newDesk(t, 1)
		w.driver(1)
		w.shape(1, 10, map[string]any{"name": "A", "actor": map[string]any{}})
		if err := w.c.Frame(w.now, 1, sdk.MsgSubmit, submit(w.idOf(1, 1), 10, returns)); err == nil {
			t.Fatal("accepted")
		}
		w.c.Gone(w.now, 1, "refused")
		w.take()
		if len(w.c.objects)+len(w.c.tasks) != 0 {
			t.Fatalf("left: %v %v", w.c.objects, w.c.tasks)
		}
	}
}

// TestActorOddGroups: sizes that make no sense are refused, not waited for.
func TestActorOddGroups(t *testing.T) {
	for _, o := range []map[string]any{{"concurrency": -5}, {"concurrency": int64(1) << 62}, {"groups": map[string]any{"g": -100}}, {"groups": map[string]any{"g": int64(1<<63 - 1)}}} {
		w := newDesk(t, 1)
		w.driver(1)
		b := append(le32(10), wire.Marshal(map[string]any{"name": "A", "actor": o})...)
		if err := w.c.Frame(w.now, 1, sdk.MsgShape, b); err == nil {
			t.Errorf("accepted: %v", o)
		}
	}
}

// TestActorShortLives: actors that ended soon do not have others sent ahead of their room.
func TestActorShortLives(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	a := w.makeActor(1, 1, nil, map[string]any{})
	worker := w.born(a, 1)
	w.frame(worker, sdk.MsgResult, result(a, 1, 0))
	w.take()
	if d := w.c.jobs["d1"].shapes; len(d) == 0 {
		t.Fatal("no shapes")
	} else {
		for _, s := range d {
			if s.actor != nil && s.depth() != 1 {
				t.Fatalf("%d at a time", s.depth())
			}
		}
	}
}

// TestActorResubmittedAfterItsEnd: a host that was not told that the end of an attempt is
// accounted for does not take the next one for it.
func TestActorResubmittedAfterItsEnd(t *testing.T) {
	p, x, worker := abroad(t, map[string]any{"max_retries": 2}, map[string]any{})
	a, b := p.nodes[0], p.nodes[1]
	p.cut = true
	b.c.Gone(b.now, worker, "killed by signal 9")
	b.take()
	ended := b.c.tasks[x]
	if ended == nil || ended.state != done {
		t.Fatalf("the host has %+v", ended)
	}
	body := append([]byte(nil), a.c.tasks[x].body...)
	b.slots[6] = 1
	if err := b.c.Frame(b.now, ended.client, sdk.MsgPeerSubmit, sdk.AppendPeerSubmit(nil, 6, 2, 1, body)); err != nil {
		t.Fatal(err)
	}
	b.take()
	if n := b.c.tasks[x]; n == nil || n.state == done {
		t.Fatalf("the second attempt is taken for the first: %+v", n)
	}
}

// TestActorForgedFrames: nothing that a peer or a program makes up breaks the agent.
func TestActorForgedFrames(t *testing.T) {
	p, x, worker := abroad(t, map[string]any{"max_retries": 2}, map[string]any{})
	a, b := p.nodes[0], p.nodes[1]
	peer := b.c.tasks[x].client
	try := func(w *desk, client uint32, typ uint16, body []byte) {
		_ = w.c.Frame(w.now, client, typ, body)
		w.take()
	}
	for _, y := range []id{{}, x, x.With(1), x.With(2), x.With(0xFFFFF), taskOf(9, 9), wire.NewObjectID(99, 1, 1, 0), wire.NewObjectID(8, 3, 3, 0)} {
		for _, w := range []*desk{a, b} {
			for _, client := range []uint32{1, peer, worker} {
				try(w, client, sdk.MsgUp, append(bytesOf(y), le32(1)...))
				try(w, client, sdk.MsgRelease, bytesOf(y.Task()))
				try(w, client, sdk.MsgHold, bytesOf(y))
				try(w, client, sdk.MsgGet, append(append(le32(1), le32(0)...), y[:]...))
				try(w, client, sdk.MsgRelease, bytesOf(y))
				try(w, client, sdk.MsgPeerEnd, bytesOf(y))
				try(w, client, sdk.MsgResult, result(y, 1, sdk.ResultGone))
				try(w, client, sdk.MsgResult, result(y, 1, sdk.ResultBounced))
				try(w, client, sdk.MsgResult, result(y, 1, sdk.ResultRetry))
				s := submit(wire.NewObjectID(7, 1, 500, 0), 1, 1)
				copy(s[16:], y[:])
				s[40] = byte(sdk.SubmitCall)
				try(w, client, sdk.MsgPeerSubmit, sdk.AppendPeerSubmit(nil, 1, 1, 1, s))
				try(w, client, sdk.MsgHandBack, le32(0))
				try(w, client, sdk.MsgCancel, append(append(le32(3), le32(0)...), y[:]...))
				try(w, client, sdk.MsgKill, killed(y, 0))
			}
			_, _ = w.c.Tasks(wire.SDKTaskQuery{}), w.c.Actors(struct{}{})
			_ = w.c.Objects(wire.SDKObjectQuery{})
			w.restored().Resume(w.now)
			w.c.Snapshot()
		}
	}
}
