package tasks

import (
	"slices"
	"testing"

	"launcher/wire"
	"launcher/wire/sdk"
)

// breaks the connections of a pair: both sides see it.
func (p *pair) breaks() {
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
		w.take()
		w.in, w.fx = map[uint32][]frame{}, nil
	}
}

// heals has them connect again, but for the conversations that were given up.
func (p *pair) heals() {
	p.cut = false
	for _, w := range p.nodes {
		for _, cl := range w.c.sortedClients() {
			if cl.Kind == sdk.KindPeer {
				w.c.Back(w.now, cl.ID)
			}
		}
		for id := range w.c.byClient {
			w.c.RemoteOpen(w.now, id)
		}
	}
	p.pump()
}

func (p *pair) later(s int64) {
	for _, w := range p.nodes {
		w.now += s * second
		w.c.Tick(w.now)
		w.take()
	}
}

// givesUp: node i cannot reach the other.
func (p *pair) givesUp(i int) {
	w := p.nodes[i]
	for id := range w.c.byClient {
		w.c.RemoteGone(w.now, id, "it cannot be reached", true)
	}
	w.take()
}

// failed is an error value.
func failed(msg string) []byte {
	e := sdk.Error{Code: "task", Message: msg}.Encode()
	return sdk.AppendValue(nil, sdk.Failure, 1, nil, int64(len(e)), e)
}

// TestActorOutOfReach: a caller that gave up a host which lives, and owns the actor, finds the same
// life again. What it had there may have run; later calls have lost nothing.
func TestActorOutOfReach(t *testing.T) {
	for _, restart := range []bool{false, true} {
		p := newPair(t, 1, 2)
		a, b := p.nodes[0], p.nodes[1]
		b.driver(1)
		x := b.makeActor(1, 1, map[string]any{"max_retries": -1}, map[string]any{})
		p.pump()
		worker := b.born(x, 1)
		a.driver(1)
		a.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
		h := handle(x)
		a.frame(1, sdk.MsgHold, h[:])
		c1 := a.call(1, 2, x, 5)
		p.pump()
		if got, _ := b.execs(worker); !slices.Equal(got, []id{c1}) {
			t.Fatalf("the actor got %v", got)
		}
		p.breaks()
		p.givesUp(0)
		if restart {
			a.c, a.in = a.restored(), map[uint32][]frame{}
			a.c.Resume(a.now)
			a.c.Back(a.now, 1)
		}
		c2 := a.call(1, 3, x, 5)
		delete(b.in, worker)
		p.heals()
		p.pump()
		if got, _ := b.execs(worker); !slices.Equal(got, []id{c2}) {
			t.Fatalf("restart %v: after the break the actor got %v: %s", restart, got, a.c.why(a.c.tasks[c2]))
		}
		if o := a.c.objects[c1.With(1)]; o.state != here || o.kind != sdk.Failure {
			t.Fatalf("restart %v: what may have run is in state %d", restart, o.state)
		}
	}
}

// TestActorOwnerOutOfReach: that the owner cannot be asked where an actor lives is not its death.
func TestActorOwnerOutOfReach(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	x := wire.NewObjectID(8, 1, 1, 0)
	w.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
	w.shape(1, 6, map[string]any{"name": "A.m", "method": "m", "max_retries": -1})
	c1, c2 := w.call(1, 1, x, 5), w.call(1, 2, x, 6)
	w.take()
	life := x.With(2)
	if !w.c.Unreached(w.now, life, "it is cut off") || w.c.Unreached(w.now, handle(x), "it is cut off") {
		t.Fatal("it is known by its life")
	}
	w.take()
	if o := w.c.objects[c1.With(1)]; o.state != here || o.kind != sdk.Failure {
		t.Fatalf("the call that may not wait is in state %d", o.state)
	}
	if n := w.c.tasks[c2]; n == nil || n.state != waiting || w.c.callees[x].dead != nil {
		t.Fatalf("the call that may is %+v", n)
	}
	asked := 0
	for _, e := range w.fx {
		if f, ok := e.(Fetch); ok && f.ID == life {
			asked++
		}
	}
	if asked != 2 {
		t.Fatalf("its owner was asked %d times", asked)
	}
}

// TestExclusiveActorEndsInTime: whatever it has come to, and whether its host's agent is restarted
// or the connection comes back for a moment, before its owner may have it live elsewhere.
func TestExclusiveActorEndsInTime(t *testing.T) {
	for _, k := range []string{"queued", "constructor", "restart", "snapshot", "moment"} {
		p := newPair(t, 1, 2)
		a, b := p.nodes[0], p.nodes[1]
		a.driver(1)
		a.frame(1, sdk.MsgSubmit, submit(a.idOf(1, 90), 1, 1)) // has the only core
		x := a.makeActor(1, 1, map[string]any{"max_retries": -1}, map[string]any{"exclusive": true})
		p.pump()
		p.leaseAll(5)
		if k != "queued" {
			b.startAll()
			b.take()
		}
		p.breaks()
		p.later(20)
		switch k {
		case "restart", "snapshot":
			n := b.restored()
			if k == "snapshot" {
				n = b.again()
			}
			b.c, b.free = n, b.total
			b.c.Resume(b.now)
			for _, cl := range b.c.sortedClients() {
				if cl.Kind == sdk.KindWorker {
					b.c.Back(b.now, cl.ID)
				}
			}
		case "moment":
			for _, cl := range b.c.sortedClients() {
				if cl.Kind == sdk.KindPeer {
					b.c.Back(b.now, cl.ID)
					b.c.Away(b.now, cl.ID)
				}
			}
		}
		b.stops = nil
		p.later(11)
		if n := b.c.tasks[x]; k == "queued" && n.state != done || k != "queued" && len(b.stops) != 1 {
			t.Errorf("%s: after 31 s it is in state %d, stops %v", k, n.state, b.stops)
		}
	}
}

// TestActorThatItsOwnerHasNot: an actor that its owner has given up ends when the two agents talk
// again, and its next life begins there only when the process is gone.
func TestActorThatItsOwnerHasNot(t *testing.T) {
	p, x, worker := abroad(t, map[string]any{"max_retries": 1}, map[string]any{})
	a, b := p.nodes[0], p.nodes[1]
	p.breaks()
	p.givesUp(0)
	p.heals()
	p.leaseAll(6)
	if len(b.stops) != 1 || b.stops[0].ID != worker {
		t.Fatalf("it was not ended: %v", b.stops)
	}
	if n := a.c.tasks[x]; n.state != queued {
		t.Fatalf("before its process is gone its owner has it in state %d", n.state)
	}
	b.c.Gone(b.now, worker, "killed")
	p.pump()
	p.leaseAll(7)
	b.born(x, 2)
	p.pump()
	if n := a.c.tasks[x]; n.state != running || n.actor.node != 8 || n.actor.life != 2 {
		t.Fatalf("its owner has it as %+v", n.actor)
	}
}

// TestActorRetryExceptionsAbroad: what a call used of its retries where it ran counts when its actor
// dies there.
func TestActorRetryExceptionsAbroad(t *testing.T) {
	p, x, worker := abroad(t, map[string]any{"max_retries": -1}, map[string]any{})
	a, b := p.nodes[0], p.nodes[1]
	a.shape(1, 6, map[string]any{"name": "A.m", "method": "m", "max_retries": 1})
	c1, c2 := a.call(1, 2, x, 6), a.call(1, 3, x, 5)
	p.pump()
	got, n := b.execs(worker)
	if !slices.Equal(got, []id{c1, c2}) {
		t.Fatalf("it got %v", got)
	}
	delete(b.in, worker)
	b.frame(worker, sdk.MsgResult, result(c1, n[0], sdk.ResultRetry, failed("no")))
	p.pump()
	if got, n = b.execs(worker); !slices.Equal(got, []id{c1}) {
		t.Fatalf("it got %v", got)
	}
	if q := a.c.tasks[c1]; q.retries != 0 || q.attempt != 2 {
		t.Fatalf("its agent counts %d retries left, attempt %d", q.retries, q.attempt)
	}
	delete(b.in, worker)
	b.frame(worker, sdk.MsgResult, result(c1, n[0], sdk.ResultRetry, failed("no")))
	p.pump()
	if o := a.c.objects[c1.With(1)]; o.state != here || o.kind != sdk.Failure {
		t.Fatalf("after its last retry it is in state %d", o.state)
	}
	for _, c := range []*Core{a.restored(), a.again()} {
		if o := c.objects[c1.With(1)]; o.state != here {
			t.Fatal("the next agent finds otherwise")
		}
	}
}

// TestConstructorLendsItsCore: that of a concurrent actor too, until it is up.
func TestConstructorLendsItsCore(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	x := w.makeActor(1, 1, nil, map[string]any{"concurrency": 8})
	w.take()
	w.startAll()
	worker := w.c.tasks[x].worker().ID
	w.frame(1, sdk.MsgSubmit, submit(w.idOf(1, 2), 1, 1))
	dep := w.idOf(1, 2).With(1)
	w.frame(worker, sdk.MsgGet, get(sdk.GetValue|sdk.GetBlocks, dep))
	w.take()
	if w.free.CPU == 0 && len(w.starts) == 0 {
		t.Fatalf("it keeps its core: %s", w.c.why(w.c.tasks[w.idOf(1, 2)]))
	}
	w.startAll()
	w.up(worker, x, 1) // a thread of its own waits still
	for cl := range w.in {
		if got, n := w.execs(cl); slices.Contains(got, w.idOf(1, 2)) {
			w.ok(cl, w.idOf(1, 2), n[0], "v")
		}
	}
	w.frame(worker, sdk.MsgAwake, nil)
	w.take()
	w.now += 10 * second
	w.c.Tick(w.now)
	w.take()
	if w.free.CPU != w.total.CPU {
		t.Fatalf("an actor that has no core once it is up leaves %d of %d", w.free.CPU, w.total.CPU)
	}
}

// TestEndedTwice: word that an actor is to end which has ended already lets go of nothing twice.
func TestEndedTwice(t *testing.T) {
	p, x, worker := abroad(t, nil, map[string]any{})
	b := p.nodes[1]
	peer := b.c.tasks[x].client
	p.cut = true
	b.c.Gone(b.now, worker, "killed")
	b.take()
	before := len(b.c.effects)
	b.frame(peer, sdk.MsgPeerEnd, bytesOf(x))
	b.take()
	if n := b.c.tasks[x]; n.bounced || len(b.c.effects) != before {
		t.Fatalf("it ended once more: %+v", n)
	}
}

// TestCallBouncedAndSentAgain: word of the bounce that is lost with a connection is not taken for
// the end of the life that the call was sent to next.
func TestCallBouncedAndSentAgain(t *testing.T) {
	p, x, worker := abroad(t, map[string]any{"max_retries": -1}, map[string]any{})
	b := p.nodes[1]
	var peer *client
	for _, cl := range b.c.sortedClients() {
		if cl.Kind == sdk.KindPeer && cl.Job != "" {
			peer = cl
		}
	}
	c1 := p.nodes[0].idOf(1, 7)
	sh := append(le32(9), wire.Marshal(map[string]any{"name": "A.m", "method": "m"})...)
	b.frame(peer.ID, sdk.MsgShape, sh)
	body := submit(c1, 9, 1)
	copy(body[16:], x[:])
	body[atFlags] = byte(sdk.SubmitCall)
	b.frame(peer.ID, sdk.MsgPeerSubmit, sdk.AppendPeerSubmit(nil, 99, 1, 9, body)) // of no life that is there
	b.take()
	if n := b.c.tasks[c1]; n == nil || !n.bounced {
		t.Fatalf("it is %+v", n)
	}
	delete(b.in, worker)
	b.frame(peer.ID, sdk.MsgPeerSubmit, sdk.AppendPeerSubmit(nil, uint64(b.c.attemptHere(b.c.tasks[x])), 1, 9, body))
	b.take()
	if got, _ := b.execs(worker); !slices.Equal(got, []id{c1}) {
		t.Fatalf("the actor got %v", got)
	}
}

// TestRepeatedHold: what a program that came back repeats of its references does not let go of what
// it holds, and what it has let go of is let go of.
func TestRepeatedHold(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	w.driver(2)
	x := w.makeActor(1, 1, nil, map[string]any{})
	w.born(x, 1)
	h := handle(x)
	says := func() {
		w.frame(2, sdk.MsgHold, h[:])
		w.frame(2, sdk.MsgRelease, h[:])
		w.frame(2, sdk.MsgHold, h[:])
		w.take()
	}
	says()
	w.frame(1, sdk.MsgRelease, h[:]) // the second holds it alone
	w.take()
	w.c.Away(w.now, 2)
	w.c.Back(w.now, 2)
	says()
	w.now += 2 * second
	w.c.Tick(w.now)
	w.take()
	if w.c.objects[h] == nil || w.c.tasks[x].actor.why != "" {
		t.Fatal("it is gone")
	}
	w.c.Away(w.now, 2)
	w.c.Back(w.now, 2)
	w.frame(2, sdk.MsgRelease, h[:])
	w.c.Synced(2, 0)
	w.take()
	if w.c.objects[h] != nil || w.restored().objects[h] != nil {
		t.Fatal("it is held still")
	}
}

// TestLateRelease: it is not forgotten when the agent dies before it has taken effect: the
// program may not say it again.
func TestLateRelease(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		w := newDesk(t, 1)
		w.driver(1)
		x := w.makeActor(1, 1, nil, map[string]any{})
		w.born(x, 1)
		h := handle(x)
		w.c.Away(w.now, 1)
		w.c.Back(w.now, 1)
		w.frame(1, sdk.MsgRelease, h[:])
		if w.take(); w.c.objects[h] == nil {
			t.Fatal("it took effect before all was repeated")
		}
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
		n.now += 2 * second
		n.c.Tick(n.now)
		n.take()
		if n.c.objects[h] != nil {
			t.Fatalf("snapshot %v: it is held still", snapshot)
		}
	}
}

// TestCallsOfANodeThatIsGone: an actor whose owner's node is gone ends, and so do the calls of
// that node, begun or not; there is nobody to give them back to.
func TestCallsOfANodeThatIsGone(t *testing.T) {
	p, x, worker := abroad(t, map[string]any{"max_retries": -1}, map[string]any{})
	a, b := p.nodes[0], p.nodes[1]
	a.shape(1, 6, map[string]any{"name": "A.m", "method": "m", "max_retries": 1})
	calls := []id{a.call(1, 99, x, 6)}
	for k := range uint64(3 * aheadCalls) {
		calls = append(calls, a.call(1, 100+k, x, 5))
	}
	p.pump()
	began := 0
	for _, c := range calls {
		if b.c.tasks[c].state == running {
			began++
		}
	}
	if began == 0 || began == len(calls) {
		t.Fatalf("%d of %d calls have begun", began, len(calls))
	}
	for _, cl := range b.c.sortedClients() {
		if cl.Kind == sdk.KindPeer {
			b.c.Gone(b.now, cl.ID, "its node is gone")
		}
	}
	b.take()
	if !slices.ContainsFunc(b.stops, func(s StopWorker) bool { return s.ID == worker }) {
		t.Fatal("the actor goes on")
	}
	_, n := b.execs(worker)
	b.frame(worker, sdk.MsgResult, result(calls[0], n[0], sdk.ResultRetry, failed("no")))
	b.take()
	b.c.Gone(b.now, worker, "killed")
	b.take()
	for _, c := range append(calls, x) {
		if n := b.c.tasks[c]; n != nil && n.state != done {
			t.Errorf("%s is in state %d", c, n.state)
		}
	}
}
