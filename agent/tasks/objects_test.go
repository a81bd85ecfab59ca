package tasks

import (
	"strings"
	"testing"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// A value that there is no room for is not lost: who asks is told, and may ask again.
func TestNoRoomIsNoLoss(t *testing.T) {
	w := newDesk(t, 2)
	w.driver(1)
	x := wire.NewObjectID(7, 1, 1, wire.PutIndex)
	w.frame(1, sdk.MsgPut, append(bytesOf(x), shared()...))
	w.sealed[x] = false // it is spilled
	for _, full := range []bool{true, false} {
		w.fx = nil
		w.frame(1, sdk.MsgGet, get(sdk.GetValue, x))
		w.take()
		if len(w.fx) != 1 || w.fx[0].(Restore).ID != x {
			t.Fatalf("effects %+v", w.fx)
		}
		w.in = map[uint32][]frame{}
		var err error
		if full {
			err = errs.New(errs.Exhausted, "memory is full").Hint("let go")
		} else {
			w.sealed[x] = true
		}
		w.c.Restored(w.now, x, err)
		w.take()
		got := w.objects(1)[x]
		if full && (!strings.HasPrefix(got, "3 ") || !strings.Contains(got, "full") || !strings.Contains(got, "let go")) {
			t.Errorf("with no room: %q", got)
		}
		if !full && !strings.HasPrefix(got, "2 ") {
			t.Errorf("with room again: %q", got)
		}
	}
}

// The same for another node's.
func TestNoRoomForAnotherNodes(t *testing.T) {
	w := newDesk(t, 2)
	w.driver(1)
	x := wire.NewObjectID(8, 1, 1, wire.PutIndex)
	for range 2 {
		w.fx = nil
		w.frame(1, sdk.MsgHold, bytesOf(x))
		w.frame(1, sdk.MsgGet, get(sdk.GetValue, x))
		w.take()
		if n := len(w.fx); n == 0 || w.fx[n-1].(Fetch).ID != x {
			t.Fatalf("effects %+v", w.fx)
		}
		w.in = map[uint32][]frame{}
		w.c.NoRoom(w.now, x, errs.New(errs.Exhausted, "memory is full"))
		w.take()
		if v, _, err := sdk.CutValue(w.in[1][0].body[16:]); err != nil || v.Kind != sdk.Failure {
			t.Fatalf("%+v, %v", v, err)
		}
	}
	w.c.Fetched(w.now, x, sdk.Inline, 1, 1, []byte{1}, nil)
	w.in = map[uint32][]frame{}
	w.frame(1, sdk.MsgGet, get(sdk.GetValue, x))
	w.take()
	if v, _, err := sdk.CutValue(w.in[1][0].body[16:]); err != nil || v.Kind != sdk.Inline {
		t.Fatalf("with room again: %+v, %v", v, err)
	}
	if got := w.c.Objects(wire.SDKObjectQuery{}).Objects[0]; got.State != wire.ObjectInline {
		t.Errorf("shown as %s", got.State)
	}
}

// What another node has is not shown as spilled.
func TestShownWhereItIs(t *testing.T) {
	w := newDesk(t, 2)
	w.driver(1)
	x, here := wire.NewObjectID(8, 1, 1, wire.PutIndex), wire.NewObjectID(7, 1, 1, wire.PutIndex)
	w.frame(1, sdk.MsgHold, bytesOf(x))
	w.c.Fetched(w.now, x, sdk.Shared, 1, 1<<20, nil, nil) // and its copy was dropped
	w.frame(1, sdk.MsgPut, append(bytesOf(here), shared()...))
	w.sealed[here] = false
	state := map[string]string{}
	for _, o := range w.c.Objects(wire.SDKObjectQuery{}).Objects {
		state[o.ID] = o.State
		if o.ID == x.String() && (len(o.At) != 1 || o.At[0] != 8) {
			t.Errorf("it is on %v", o.At)
		}
	}
	if state[x.String()] != wire.ObjectElsewhere || state[here.String()] != wire.ObjectSpilled {
		t.Errorf("shown as %v", state)
	}
}
