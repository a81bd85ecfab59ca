package tasks

import (
	"slices"
	"testing"

	"launcher/wire/sdk"
)

// TestRestartAfterANodeWasLost: an actor that lived on a node which is gone lives here, and the
// next agent finds it here, not there.
func TestRestartAfterANodeWasLost(t *testing.T) {
	p, x, _ := abroad(t, map[string]any{"max_retries": -1}, map[string]any{})
	a := p.nodes[0]
	c1, c2 := a.call(1, 2, x, 5), a.idOf(1, 90)
	p.pump()
	a.startAll()
	a.c.NodeGone(a.now, 8, "its guard says so")
	for w := range a.in {
		if got, n := a.execs(w); slices.Contains(got, c2) {
			a.ok(w, c2, n[0], "v")
		}
	}
	worker := a.born(x, 2)
	for name, c := range map[string]*Core{"log": a.restored(), "snapshot": a.again()} {
		c.Resume(a.now)
		if n := c.tasks[x]; n.worker() == nil || n.worker().ID != worker || n.attempt != 2 {
			t.Errorf("%s: worker %d has it, and then %+v has", name, worker, n.worker())
		}
		if n := c.tasks[c1]; n != nil && n.state == running {
			t.Errorf("%s: its call is still with %+v", name, n.worker())
		}
	}
}

// TestRestartWhileAnExclusiveActorIsHeldBack: the next agent holds it back as well, and knows of
// its life after that.
func TestRestartWhileAnExclusiveActorIsHeldBack(t *testing.T) {
	p, x, _ := abroad(t, map[string]any{"max_retries": -1}, map[string]any{"exclusive": true})
	a := p.nodes[0]
	a.frame(1, sdk.MsgCancel, append(append(le32(1), le32(0)...), bytesOf(a.idOf(1, 90))...))
	p.cut = true
	a.now += 15 * second
	a.c.NodeSilent(a.now, 8, "silent for 15 s")
	a.take()
	for name, c := range map[string]*Core{"log": a.restored(), "snapshot": a.again()} {
		c.Resume(a.now + 40*second)
		c.Tick(a.now + 40*second)
		if n := c.tasks[x]; n.state != waiting || len(c.heldBack) != 1 {
			t.Errorf("%s: it may be in two places: %s", name, c.why(n))
		}
		c.Tick(a.now + 46*second)
		if n := c.tasks[x]; n.state == waiting {
			t.Errorf("%s: it never lives again: %s", name, c.why(n))
		}
	}
}

// TestRestartWhileAnActorStartsElsewhere: the next agent of its owner does not know its lease. Its
// host keeps that, or it would give the actor away as one of its own, and nobody would have it.
func TestRestartWhileAnActorStartsElsewhere(t *testing.T) {
	for _, came := range []bool{true, false} {
		p := newPair(t, 0, 2)
		a, b := p.nodes[0], p.nodes[1]
		a.driver(1)
		x := a.makeActor(1, 1, nil, map[string]any{})
		p.pump()
		p.cut = !came
		p.leaseAll(5)
		if came && b.c.tasks[x].state != queued {
			t.Fatalf("at the host it is %+v", b.c.tasks[x])
		}
		p.cut = false
		a.c, a.in = a.restored(), map[uint32][]frame{}
		a.c.Resume(a.now)
		p.pump()
		if came && b.c.tasks[x].lease != 5 {
			t.Fatalf("the host has it as its own: lease %d", b.c.tasks[x].lease)
		}
		if !came {
			if b.c.tasks[x] != nil || a.c.tasks[x].state != queued {
				t.Fatalf("it never came: owner %+v, host %+v", a.c.tasks[x], b.c.tasks[x])
			}
			p.leaseAll(6)
		}
		b.born(x, 1)
		p.pump()
		if n := a.c.tasks[x]; n.state != running || n.actor.node != 8 {
			t.Fatalf("its owner does not know that it lives: %+v", n.actor)
		}
	}
}

// again reads a snapshot of a node, as the next agent does.
func (w *desk) again() *Core {
	w.t.Helper()
	c := New(w.c.cfg, w, w)
	for _, b := range w.c.Snapshot() {
		if err := c.Restore(b); err != nil {
			w.t.Fatal(err)
		}
	}
	return c
}
