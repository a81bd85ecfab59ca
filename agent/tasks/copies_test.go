package tasks

import (
	"slices"
	"strings"
	"testing"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

var (
	copiedSmall = wire.NewObjectID(7, 1, 1, wire.PutIndex)
	copiedLarge = wire.NewObjectID(7, 1, 2, wire.PutIndex)
)

// withCopies are two nodes of which the second keeps copies of two objects of the first.
func withCopies(t *testing.T) (p *pair, a, b *desk) {
	t.Helper()
	p = newPair(t, 1, 1)
	a, b = p.nodes[0], p.nodes[1]
	a.driver(1)
	b.driver(1)
	a.frame(1, sdk.MsgPut, append(bytesOf(copiedSmall), sdk.AppendValue(nil, sdk.Inline, 1, nil, 1, []byte{9})...))
	a.frame(1, sdk.MsgPut, append(bytesOf(copiedLarge), shared()...))
	p.pump()
	for _, x := range []id{copiedSmall, copiedLarge} {
		if err := a.c.Copy(a.now, x, 1, 8); err != nil {
			t.Fatal(err)
		}
	}
	p.pump()
	for _, x := range []id{copiedSmall, copiedLarge} {
		if have, want := a.c.Copies(x); have != 1 || want != 1 {
			t.Fatalf("%d of %d copies of %s", have, want, x)
		}
	}
	if !b.sealed[copiedLarge] || !slices.Contains(b.owned, copiedLarge) || b.sealed[copiedSmall] {
		t.Fatalf("there: %v, of them kept %v", b.sealed, b.owned)
	}
	return p, a, b
}

func ask(ids ...id) []byte { return get(sdk.GetValue, ids...) }

// A value that another node keeps a copy of survives its owner for those who refer to it
// there, and without a word between nodes; after a while the copy goes.
func TestCopySurvivesItsOwner(t *testing.T) {
	for _, restart := range []string{"", "by its log", "by a snapshot"} {
		p, _, b := withCopies(t)
		b.frame(1, sdk.MsgHold, append(bytesOf(copiedSmall), copiedLarge[:]...))
		p.pump()
		switch restart {
		case "by its log":
			b.c = b.restored()
		case "by a snapshot":
			c := New(b.c.cfg, b, b)
			for _, piece := range b.c.Snapshot() {
				if err := c.Restore(piece); err != nil {
					t.Fatal(err)
				}
			}
			b.c = c
		}
		if restart != "" {
			b.c.Resume(b.now)
			for _, e := range b.c.Take(b.now).Effects {
				if e, ok := e.(Restore); ok {
					b.c.Restored(b.now, e.ID, nil)
				}
			}
			b.c.Sent()
			b.c.Back(b.now, 1)
		}
		p.cut = true
		b.c.NodeGone(b.now, 7, "it was killed")
		b.frame(1, sdk.MsgGet, ask(copiedSmall, copiedLarge))
		b.take()
		if got := b.objects(1); got[copiedSmall] != "1 \t" || !strings.HasPrefix(got[copiedLarge], "2 ") {
			t.Fatalf("after the owner's death%s: %q", restart, got)
		}
		b.now += orphanFor
		b.c.Tick(b.now)
		b.take()
		if len(b.c.spares) != 0 || len(b.frees) != 0 {
			t.Fatalf("%d copies are kept, %v freed", len(b.c.spares), b.frees)
		}
		b.frame(1, sdk.MsgRelease, append(bytesOf(copiedSmall), copiedLarge[:]...))
		b.take()
		if !slices.Equal(b.frees, []id{copiedLarge}) {
			t.Fatalf("freed %v", b.frees)
		}
	}
}

// A copy goes with its object, and those that nobody refers to when the owner died go after
// a while.
func TestCopyEnds(t *testing.T) {
	p, a, b := withCopies(t)
	a.frame(1, sdk.MsgRelease, append(bytesOf(copiedSmall), copiedLarge[:]...))
	p.pump()
	b.take()
	if len(a.c.objects)+len(b.c.objects)+len(a.c.copied)+len(b.c.spares) != 0 || !slices.Equal(b.frees, []id{copiedLarge}) {
		t.Fatalf("%d objects here, %d there, %d copied, %d copies, freed there %v", len(a.c.objects), len(b.c.objects), len(a.c.copied), len(b.c.spares), b.frees)
	}
	_, _, b = withCopies(t)
	b.c.NodeGone(b.now, 7, "it was killed")
	b.now += orphanFor - 1
	b.c.Tick(b.now)
	if b.take(); len(b.c.spares) != 2 {
		t.Fatalf("%d copies a moment later", len(b.c.spares))
	}
	b.now++
	b.c.Tick(b.now)
	if b.take(); len(b.c.spares) != 0 || !slices.Equal(b.frees, []id{copiedLarge}) {
		t.Fatalf("%d copies, freed %v", len(b.c.spares), b.frees)
	}
	// What its owner does not say it wants, after a break, goes too.
	_, a, b = withCopies(t)
	b.frame(a.borrowAt, sdk.MsgPeerKeep, bytesOf(copiedSmall))
	if b.take(); len(b.c.spares) != 1 || !slices.Equal(b.frees, []id{copiedLarge}) {
		t.Fatalf("%d copies, freed %v", len(b.c.spares), b.frees)
	}
}

// While its owner lives, a reference to an object that a copy is kept of is one like any
// other, and the copy stays when it goes.
func TestCopyIsNoReference(t *testing.T) {
	p, a, b := withCopies(t)
	b.frame(1, sdk.MsgHold, append(bytesOf(copiedSmall), copiedLarge[:]...))
	b.frame(1, sdk.MsgGet, ask(copiedSmall, copiedLarge))
	p.pump()
	if n := len(b.objects(1)); n != 2 {
		t.Fatalf("%d values", n)
	}
	a.frame(1, sdk.MsgRelease, append(bytesOf(copiedSmall), copiedLarge[:]...))
	p.pump()
	if len(a.c.objects) != 2 {
		t.Fatalf("%d objects are left for the other node", len(a.c.objects))
	}
	if _, again := a.c.Copies(copiedLarge); again != 1 {
		t.Fatal("the owner forgot the copy")
	}
	p2, _, b2 := withCopies(t)
	b2.frame(1, sdk.MsgHold, bytesOf(copiedLarge))
	b2.frame(1, sdk.MsgGet, ask(copiedLarge))
	p2.pump()
	b2.frame(1, sdk.MsgRelease, bytesOf(copiedLarge))
	p2.pump()
	if b2.take(); len(b2.frees) != 0 || !b2.c.Keeps(copiedLarge) {
		t.Fatalf("freed %v", b2.frees)
	}
}

// A third node that refers to the object takes the value from the one that keeps it.
func TestCopyFoundByOthers(t *testing.T) {
	p, a, _ := withCopies(t)
	third := newDesk(t, 1)
	third.c.cfg.Number = 9
	third.driver(1)
	third.frame(1, sdk.MsgHold, append(bytesOf(copiedSmall), copiedLarge[:]...))
	x := Client{ID: a.c.NextClient(), Kind: sdk.KindPeer, Peer: 9}
	if err := a.c.Connect(a.now, x); err != nil {
		t.Fatal(err)
	}
	a.frame(x.ID, sdk.MsgHold, append(bytesOf(copiedSmall), copiedLarge[:]...))
	p.pump()
	for _, f := range a.in[x.ID] {
		third.answered(f)
	}
	third.fx = nil
	third.frame(1, sdk.MsgGet, ask(copiedSmall, copiedLarge))
	if !third.c.Inherit(third.now, copiedSmall) || !third.c.Inherit(third.now, copiedLarge) {
		t.Fatal("it knows of no copies")
	}
	third.c.NodeGone(third.now, 7, "it was killed") // the news comes by two ways
	third.take()
	i := slices.IndexFunc(third.fx, func(e Effect) bool { _, ok := e.(Restore); return ok })
	if i < 0 || !slices.Equal(third.fx[i].(Restore).Nodes, []uint32{8}) {
		t.Fatalf("effects %+v", third.fx)
	}
	third.sealed[copiedLarge] = true
	third.c.Restored(third.now, copiedLarge, nil)
	third.take()
	if got := third.objects(1); got[copiedSmall] != "1 \t" || !strings.HasPrefix(got[copiedLarge], "2 ") {
		t.Fatalf("it got %q", got)
	}
}

// A node that keeps a copy and dies, or cannot, is replaced.
func TestCopyIsReplaced(t *testing.T) {
	choose := func(a *desk) (out []Choose) {
		a.take()
		for _, e := range a.fx {
			if e, ok := e.(Choose); ok {
				out = append(out, e)
			}
		}
		a.fx = nil
		return out
	}
	_, a, _ := withCopies(t)
	a.c.NodeGone(a.now, 8, "it was killed")
	if got := choose(a); len(got) != 2 || got[0].Want != 1 || len(got[0].Not) != 0 {
		t.Fatalf("chosen %+v", got)
	}
	a.now += copyAgain
	a.c.Tick(a.now)
	if got := choose(a); len(got) != 2 {
		t.Fatalf("chosen once more %+v", got)
	}
	if err := a.c.Copy(a.now, copiedLarge, 1, 9); err != nil {
		t.Fatal(err)
	}
	a.c.Copied(a.now, copiedLarge, 9, "there is no room")
	a.now += copyAgain
	a.c.Tick(a.now)
	if got := choose(a); len(got) != 2 {
		t.Fatalf("after a refusal %+v", got)
	}
	c := a.restored()
	if have, want := c.Copies(copiedLarge); have != 0 || want != 1 {
		t.Fatalf("after a restart %d of %d", have, want)
	}
}

// An owner that loses the bytes has them back from a copy.
func TestOwnerUsesCopy(t *testing.T) {
	_, a, _ := withCopies(t)
	a.sealed[copiedLarge] = false
	a.frame(1, sdk.MsgGet, ask(copiedLarge))
	a.take()
	a.fx = nil
	a.c.Lost(a.now, copiedLarge, "its file is damaged")
	a.take()
	if len(a.fx) != 1 || !slices.Equal(a.fx[0].(Restore).Nodes, []uint32{8}) {
		t.Fatalf("effects %+v", a.fx)
	}
	a.c.Restored(a.now, copiedLarge, errs.New(errs.Lost, "nor there"))
	a.take()
	if got := a.objects(1)[copiedLarge]; !strings.HasPrefix(got, "3 ") {
		t.Fatalf("it got %q", got)
	}
}
