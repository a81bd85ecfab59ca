package tasks

import (
	"bytes"
	"testing"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// Things that are allowed one by one make no frame that is not.

func TestManyArgumentsAreGivenApart(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	const n = wire.MaxFrame/sdk.InlineMax + 10
	value := inline(string(make([]byte, sdk.InlineMax)))
	var deps []id
	for i := range uint64(n) {
		x := wire.NewObjectID(7, 1, i+1, wire.PutIndex)
		w.frame(1, sdk.MsgPut, append(bytesOf(x), value...))
		deps = append(deps, x)
	}
	w.frame(1, sdk.MsgSubmit, submit(taskOf(1, n+1), 1, 1, deps...))
	w.take()
	worker := w.starts[0].ID
	w.startAll()
	var exec []byte
	for _, f := range w.in[worker] {
		if f.typ == sdk.MsgExec {
			exec = f.body
		}
	}
	if len(exec) == 0 || len(exec) > sdk.InlineSum+48*n {
		t.Fatalf("the worker got a task of %d bytes", len(exec))
	}
	b := exec[56+u32(exec[52:]):]
	var apart []id
	for range n {
		if b[16] == sdk.Apart {
			apart = append(apart, id(b[:16]))
			b = b[32:]
			continue
		}
		_, rest, err := sdk.CutValue(b[16:])
		if err != nil {
			t.Fatal(err)
		}
		b = rest
	}
	if string(b) != "args" || n-len(apart) != sdk.InlineSum/sdk.InlineMax {
		t.Fatalf("%d of %d arguments are apart, then %q", len(apart), n, b)
	}
	w.frame(worker, sdk.MsgGet, get(sdk.GetValue|sdk.GetBlocks, apart...))
	w.take()
	if got := w.objects(worker); len(got) != len(apart) {
		t.Fatalf("%d of them came when they were asked for", len(got))
	}
}

func TestTooLongIsRefused(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	many := submit(taskOf(1, 1), 1, sdk.ManyMax+1)
	deps := submit(taskOf(1, 2), 1, 1, make([]id, sdk.ManyMax+1)...)
	long := append(submit(taskOf(1, 3), 1, 1), make([]byte, sdk.PayloadMax)...)
	for _, b := range [][]byte{many, deps, long} {
		if err := w.c.Frame(w.now, 1, sdk.MsgSubmit, b); !errs.Is(err, errs.Invalid) {
			t.Errorf("a Submit of %d bytes: %v", len(b), err)
		}
	}
	if err := w.c.Frame(w.now, 1, sdk.MsgShape, append(le32(9), make([]byte, sdk.OptionsMax+1)...)); !errs.Is(err, errs.Invalid) {
		t.Errorf("long options: %v", err)
	}
}

// TestValuesWaitForTheirReader: of a client that does not read what it asked for.
func TestValuesWaitForTheirReader(t *testing.T) {
	w := newDesk(t, 1)
	unread := 0
	w.c.cfg.Unread = func(client uint32) int { return unread }
	w.c.cfg.MaxUnread = 3 * sdk.InlineMax
	w.driver(1)
	var ids []id
	for i := range uint64(10) {
		x := wire.NewObjectID(7, 1, i+1, wire.PutIndex)
		w.frame(1, sdk.MsgPut, append(bytesOf(x), inline(string(make([]byte, sdk.InlineMax)))...))
		ids = append(ids, x)
	}
	ask := func() (whole, later int) {
		w.frame(1, sdk.MsgGet, get(sdk.GetValue, ids...))
		out := w.c.Take(w.now)
		defer w.c.Sent()
		for _, s := range out.Sends {
			for b := s.Frames; len(b) > 0; b = b[4+u32(b):] {
				switch flags := uint16(b[6]); {
				case flags == sdk.ReadyOnly|sdk.Later && u32(b) < 100:
					later++
				case flags == 0 && u32(b) > sdk.InlineMax:
					whole++
				}
			}
		}
		return whole, later
	}
	if whole, later := ask(); whole != 3 || later != 7 {
		t.Errorf("%d values came at once, %d later", whole, later)
	}
	unread = 4 * sdk.InlineMax
	if whole, later := ask(); whole != 0 || later != 10 {
		t.Errorf("%d values came at once, %d later, when nothing was read", whole, later)
	}
}

// TestOneErrorForAll: many outputs fail with one long error, here and on another node.
func TestOneErrorForAll(t *testing.T) {
	const n = 100
	long := bytes.Repeat([]byte("x"), wire.MaxFrame/n*2)
	value := sdk.AppendValue(nil, sdk.Failure, 1, nil, int64(len(long)), long)
	p := newPair(t, 1, 1)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	near, far := taskOf(1, 1), taskOf(1, 2)
	a.frame(1, sdk.MsgSubmit, submit(near, 1, n))
	a.frame(1, sdk.MsgSubmit, submit(far, 1, n))
	a.take()
	shapes, _, _ := a.c.Demand()
	if len(shapes) != 1 {
		t.Fatalf("demand %v", shapes)
	}
	p.lease(5, shapes[0].ID, 1)
	p.pump()
	for i, w := range p.nodes {
		for _, s := range w.starts {
			if err := w.c.Connect(w.now, Client{ID: s.ID, Kind: sdk.KindWorker, PID: 1}); err != nil {
				t.Fatal(err)
			}
		}
		p.pump()
		for _, s := range w.starts {
			ran, attempts := w.execs(s.ID)
			if len(ran) != 1 {
				t.Fatalf("node %d runs %v", i, ran)
			}
			w.frame(s.ID, sdk.MsgResult, result(ran[0], attempts[0], sdk.ResultFailed, value))
		}
		w.starts = nil
		w.take()
		for _, fs := range w.in {
			for _, f := range fs {
				if len(f.body) > wire.MaxFrame-4 {
					t.Fatalf("node %d sends a frame of %d bytes", i, len(f.body))
				}
			}
		}
		p.pump()
	}
	if len(b.c.objects) != 0 || len(b.c.tasks) != 0 {
		t.Errorf("left on the other node: %d objects, %d tasks", len(b.c.objects), len(b.c.tasks))
	}
	for _, x := range []id{near, far} {
		for i := range uint32(n) {
			o := a.c.objects[x.With(i+1)]
			if o == nil || o.state != here || o.kind != sdk.Failure || &o.data[0] != &a.c.objects[x.With(1)].data[0] {
				t.Fatalf("output %d of %s: %+v", i, x, o)
			}
		}
	}
}

// TestKeepInParts: what an agent still wants is told in as many frames as it takes.
func TestKeepInParts(t *testing.T) {
	w := newDesk(t, 1)
	x := Client{ID: 3, Kind: sdk.KindPeer, Peer: 8}
	if err := w.c.Connect(w.now, x); err != nil {
		t.Fatal(err)
	}
	w.driver(1)
	var ids []byte
	for i := range uint64(4) {
		o := wire.NewObjectID(7, 1, i+1, wire.PutIndex)
		w.frame(1, sdk.MsgPut, append(bytesOf(o), inline("x")...))
		w.frame(3, sdk.MsgHold, o[:])
		ids = append(ids, o[:]...)
	}
	w.frame(3, sdk.MsgPeerKeeps, ids[:16])
	w.frame(3, sdk.MsgPeerKeeps, ids[16:32])
	w.frame(3, sdk.MsgPeerKeep, ids[32:48])
	for i := range 4 {
		if held := w.c.objects[id(ids[16*i:16*i+16])].heldBy(3); held != (i < 3) {
			t.Errorf("object %d is held: %v", i, held)
		}
	}
	w.frame(3, sdk.MsgPeerKeep, nil)
	if w.c.objects[id(ids[:16])].heldBy(3) {
		t.Error("parts of an earlier PeerKeep count for the next")
	}
}
