package tasks

import (
	"slices"
	"strings"
	"testing"

	"launcher/wire/sdk"
)

// What a node that leaves owns and another one refers to is kept by one that stays, all of it
// by the one that was chosen first, and is there when the node is gone; a node without such
// values says so.
func TestOwnerLeaves(t *testing.T) {
	p := newPair(t, 1, 1)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	b.driver(1)
	a.frame(1, sdk.MsgPut, append(bytesOf(copiedSmall), sdk.AppendValue(nil, sdk.Inline, 1, nil, 1, []byte{9})...))
	a.frame(1, sdk.MsgPut, append(bytesOf(copiedLarge), shared()...))
	p.pump()
	if a.c.OnlyHere() {
		t.Error("what only its own driver refers to is said to be needed")
	}
	b.frame(1, sdk.MsgHold, append(bytesOf(copiedSmall), copiedLarge[:]...))
	p.pump()
	if !a.c.OnlyHere() || b.c.OnlyHere() {
		t.Fatalf("needed: %v %v", a.c.OnlyHere(), b.c.OnlyHere())
	}
	a.c.NodeLeaves(a.now, 7)
	a.take()
	chosen := 0
	for _, e := range a.fx {
		if e, ok := e.(Choose); ok {
			chosen++
			if err := a.c.Copy(a.now, e.ID, e.Want, 8); err != nil {
				t.Fatal(err)
			}
		}
	}
	a.c.NodeLeaves(a.now, 7) // it is told again
	a.now += lookAgain
	a.c.Tick(a.now)
	p.pump()
	if chosen != 1 || a.c.OnlyHere() {
		t.Fatalf("a node was looked for %d times; still needed: %v", chosen, a.c.OnlyHere())
	}
	p.cut = true
	b.c.NodeGone(b.now, 7, "it has left")
	b.frame(1, sdk.MsgGet, ask(copiedSmall, copiedLarge))
	b.take()
	if got := b.objects(1); got[copiedSmall] != "1 \t" || !strings.HasPrefix(got[copiedLarge], "2 ") {
		t.Fatalf("after it has left: %q", got)
	}
}

// leaver is a node that leaves and has a third one keep a copy of what another refers to.
func leaver(t *testing.T) *desk {
	t.Helper()
	p := newPair(t, 1, 1)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	b.driver(1)
	a.frame(1, sdk.MsgPut, append(bytesOf(copiedLarge), shared()...))
	b.frame(1, sdk.MsgHold, bytesOf(copiedLarge))
	p.pump()
	a.c.NodeLeaves(a.now, 7)
	if err := a.c.Copy(a.now, copiedLarge, 1, 9); err != nil {
		t.Fatal(err)
	}
	return a
}

// Those who refer to what was moved may be told that the node is gone while that still ends:
// they let go of it, and the copies stay.
func TestToldBeforeItHasLeft(t *testing.T) {
	a := leaver(t)
	a.c.Copied(a.now, copiedLarge, 9, "")
	a.frame(1, sdk.MsgRelease, bytesOf(copiedLarge))
	a.take()
	a.fx = nil
	for id, cl := range a.c.clients {
		if cl.Kind == sdk.KindPeer {
			a.c.Gone(a.now, id, "it needs nothing here any more")
		}
	}
	a.take()
	if a.c.objects[copiedLarge] == nil || slices.ContainsFunc(a.fx, func(e Effect) bool { _, ok := e.(Uncopy); return ok }) {
		t.Fatalf("it is let go of: %v", a.fx)
	}
}

// One that cannot keep it is followed by another one.
func TestHavenIsFull(t *testing.T) {
	a := leaver(t)
	a.c.Copied(a.now, copiedLarge, 9, "it is full")
	a.fx = nil
	a.now += copyAgain
	a.c.Tick(a.now)
	a.take()
	if !slices.ContainsFunc(a.fx, func(e Effect) bool { x, ok := e.(Choose); return ok && x.ID == copiedLarge }) || a.c.going.haven != 0 {
		t.Errorf("no other node is looked for: %+v, haven %d", a.fx, a.c.going.haven)
	}
}

// What a node that leaves has made for another is brought by that, once, and is not made
// again when the node is gone.
func TestProducerLeaves(t *testing.T) {
	for _, resident := range []bool{false, true} {
		p := newPair(t, 0, 2)
		a, b := p.nodes[0], p.nodes[1]
		a.driver(1)
		task := taskOf(1, 1)
		x := task.With(1)
		a.frame(1, sdk.MsgSubmit, submit(task, 1, 1))
		p.pump()
		d, _, _ := a.c.Demand()
		p.lease(1, d[0].ID, 1)
		p.pump()
		b.finish(large())
		p.pump()
		if resident {
			a.frame(1, sdk.MsgGet, ask(x))
			p.pump()
		}
		if !b.c.OnlyHere() || a.c.OnlyHere() {
			t.Fatalf("needed: %v %v", a.c.OnlyHere(), b.c.OnlyHere())
		}
		b.c.NodeLeaves(b.now, 8)
		a.c.NodeLeaves(a.now, 8)
		p.pump()
		a.now += lookAgain
		a.c.Tick(a.now)
		p.pump()
		b.take()
		if b.c.OnlyHere() || !slices.Equal(b.frees, []id{x}) || !slices.Equal(a.owned, []id{x}) || !slices.Equal(a.pulled, []uint32{8}) {
			t.Fatalf("resident %v: still needed %v, freed there %v, owned here %v, pulled from %v", resident, b.c.OnlyHere(), b.frees, a.owned, a.pulled)
		}
		p.cut = true
		a.c.NodeGone(a.now, 8, "it has left")
		a.frame(1, sdk.MsgGet, ask(x))
		a.take()
		if got := a.objects(1); !strings.HasPrefix(got[x], "2 ") || a.c.tasks[task].attempt != 1 {
			t.Fatalf("resident %v: %q", resident, got)
		}
		a.frame(1, sdk.MsgRelease, bytesOf(x))
		a.take()
		if len(a.c.objects) != 0 || !slices.Equal(a.frees, []id{x}) {
			t.Errorf("resident %v: %d objects, freed %v", resident, len(a.c.objects), a.frees)
		}
	}
}
