package tasks

import (
	"slices"
	"strings"
	"testing"

	"launcher/wire"
	"launcher/wire/sdk"
)

// willOf is the newest will that a node has left of an actor.
func (w *desk) willOf(x id) (will *wire.ActorWill) {
	for _, e := range append(w.wills, w.fx...) {
		if e, ok := e.(Will); ok && e.Actor == x {
			will = &e.ActorWill
		}
	}
	return will
}

// widow is a node on which a detached actor of another one lived that is dead, and the will.
func widow(t *testing.T, o map[string]any) (p *pair, x id, worker uint32, will wire.ActorWill) {
	t.Helper()
	p = newPair(t, 1, 2)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	a.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
	a.frame(1, sdk.MsgSubmit, submit(a.idOf(1, 90), 1, 1)) // has the only core
	x = a.makeActor(1, 1, o, map[string]any{"detached": true, "namespace": "n", "name": "a"})
	p.pump()
	p.leaseAll(5)
	worker = b.born(x, 1)
	p.pump()
	w := a.willOf(x)
	if w == nil || w.Host != 8 || w.Name.Name != "a" {
		t.Fatalf("the will is %+v", w)
	}
	return p, x, worker, *w
}

// TestDetachedActorOutlivesItsOwner: where it lives it goes on, its state and its callers'
// connections with it, and from then on belongs to that node, also after a restart of the
// agent; its restarts count on.
func TestDetachedActorOutlivesItsOwner(t *testing.T) {
	p, x, worker, will := widow(t, map[string]any{"max_retries": 1})
	b := p.nodes[1]
	b.driver(70)
	b.shape(70, 5, map[string]any{"name": "A.m", "method": "m"})
	h := handle(x)
	b.frame(70, sdk.MsgHold, h[:])
	early := b.call(70, 1, x, 5) // asks the owner where the actor is
	p.cut = true
	b.take()
	b.c.Moved(b.now, []wire.ActorMoved{{Actor: x, Number: 8}})
	b.c.NodeGone(b.now, 7, "its power is gone")
	b.take()
	if len(b.stops) != 0 {
		t.Fatalf("stops %+v", b.stops)
	}
	if err := b.c.TakeActor(b.now, x, will.Body); err != nil {
		t.Fatal(err)
	}
	b.take()
	if got, _ := b.execs(worker); !slices.Contains(got, early) {
		t.Fatalf("the call of before came to nothing: given %v", got)
	}
	b.ok(worker, early, 1, "v")
	if p, _ := b.c.Programs(); !slices.Contains(p.Jobs, will.Job) {
		t.Fatalf("its job does not live here: %+v", p)
	}
	for _, snapshot := range []bool{false, true} {
		log := b.log
		if snapshot {
			log = slices.Concat(b.c.Snapshot()...)
		}
		n := newDesk(t, 2)
		n.c.cfg.Number = 8
		if err := n.c.Restore(log); err != nil {
			t.Fatal(err)
		}
		n.c.Resume(n.now)
		n.c.Back(n.now, 70)
		n.c.Back(n.now, worker)
		n.take()
		late := n.call(70, 2, x, 5)
		n.take()
		if got, _ := n.execs(worker); !slices.Contains(got, late) {
			t.Fatalf("snapshot %v: after a restart of the agent a call came to nothing: given %v", snapshot, got)
		}
		n.ok(worker, late, 1, "v")
		n.c.Gone(n.now, worker, "killed by signal 9")
		delete(n.in, worker)
		n.take()
		again := n.call(70, 3, x, 5)
		n.take()
		n.startAll()
		var next uint32
		for cl := range n.in {
			if got, at := n.execs(cl); slices.Contains(got, x) {
				next = cl
				n.up(cl, x, at[0])
			}
		}
		if got, _ := n.execs(next); !slices.Equal(got, []id{again}) {
			t.Fatalf("snapshot %v: its next life is given %v", snapshot, got)
		}
		n.c.Gone(n.now, next, "killed by signal 9")
		n.take()
		if q := n.c.tasks[x]; q == nil || q.state != done || !strings.Contains(string(q.actor.dead), "killed by signal 9") {
			t.Fatalf("snapshot %v: it had one restart: %+v", snapshot, q)
		}
	}
}

// TestDetachedActorIsMadeAnew: elsewhere than where it lived it begins again, with what it was
// made of, if it may.
func TestDetachedActorIsMadeAnew(t *testing.T) {
	for retries := range 2 {
		_, x, _, will := widow(t, map[string]any{"max_retries": retries})
		n := newDesk(t, 1)
		n.c.cfg.Number = 9
		n.c.Moved(n.now, []wire.ActorMoved{{Actor: x, Number: 9}})
		if err := n.c.TakeActor(n.now, x, will.Body); err != nil {
			t.Fatal(err)
		}
		n.take()
		if retries == 0 {
			if len(n.starts) != 0 || !slices.ContainsFunc(n.fx, func(e Effect) bool { o, ok := e.(ActorOver); return ok && o.ID == x }) {
				t.Fatalf("it lives again: %+v, %+v", n.starts, n.fx)
			}
			continue
		}
		n.startAll()
		for cl := range n.in {
			if got, at := n.execs(cl); slices.Contains(got, x) {
				n.up(cl, x, at[0])
			}
		}
		if w := n.willOf(x); w == nil || w.Host != 9 || !n.c.mine(x) {
			t.Fatalf("the will is %+v", w)
		}
		n.driver(1)
		n.frame(1, sdk.MsgKill, killed(x, sdk.KillForGood))
		n.take()
		if len(n.stops) != 1 {
			t.Fatalf("stops %+v", n.stops)
		}
	}
}

// TestNoWill: what cannot be kept is said to the job's drivers.
func TestNoWill(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	big := wire.NewObjectID(7, 1, 5, wire.PutIndex)
	w.frame(1, sdk.MsgPut, append(bytesOf(big), shared()...))
	w.shape(1, 11, map[string]any{"name": "A", "actor": map[string]any{"detached": true}})
	w.frame(1, sdk.MsgSubmit, submit(w.idOf(1, 1), 11, 0, big))
	w.take()
	if !slices.ContainsFunc(w.fx, func(e Effect) bool { n, ok := e.(NoWill); return ok && strings.Contains(n.Why, "an argument") }) {
		t.Fatalf("%+v", w.fx)
	}
}
