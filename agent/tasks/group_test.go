package tasks

import (
	"strings"
	"testing"

	"launcher/wire"
	"launcher/wire/sdk"
)

func groupShape(g wire.GroupID, bundle int) map[string]any {
	return map[string]any{"name": "g", "strategy": []any{"group", g[:], bundle, false}}
}

// TestGroupTask: a task of a placement group waits until a bundle of it is here, or the head
// leases a slot in one elsewhere.
func TestGroupTask(t *testing.T) {
	w := newDesk(t, 2)
	w.driver(1)
	g := wire.NewObjectID(7, 1, 1000, 0)
	w.shape(1, 2, groupShape(g, 0))
	x := taskOf(1, 1)
	w.frame(1, sdk.MsgSubmit, submit(x, 2, 1))
	w.take()
	d, _, _ := w.c.Demand()
	if len(w.starts) != 0 || len(d) != 1 || d[0].Shape.Strategy.Group != g || d[0].Shape.Strategy.Bundle != 0 {
		t.Fatalf("%d workers ordered, demand %+v", len(w.starts), d)
	}
	if why := w.c.why(w.c.tasks[x]); !strings.Contains(why, "placement group "+g.String()) {
		t.Fatalf("why: %s", why)
	}
	w.group = g
	w.take()
	if d, _, _ := w.c.Demand(); len(w.starts) != 1 || len(d) != 0 {
		t.Fatalf("%d workers ordered, demand %+v", len(w.starts), d)
	}
}

// TestGroupRemoved: what runs in a bundle that is gone ends and is not run again; what
// waits fails when the head says so, an actor too.
func TestGroupRemoved(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	g := wire.NewObjectID(7, 1, 1000, 0)
	w.group = g
	w.shape(1, 2, groupShape(g, -1))
	a, b := taskOf(1, 1), taskOf(1, 2)
	w.frame(1, sdk.MsgSubmit, submit(a, 2, 1))
	w.frame(1, sdk.MsgSubmit, submit(b, 2, 1))
	w.frame(1, sdk.MsgGet, get(sdk.GetValue, a.With(1), b.With(1)))
	w.take()
	worker := w.starts[0].ID
	w.startAll()
	w.group = wire.GroupID{}
	w.c.BundleOver(w.now, wire.BundleID{Group: g, Index: 5})
	w.take()
	if len(w.stops) != 0 {
		t.Fatal("a worker in another bundle is stopped")
	}
	w.c.BundleOver(w.now, wire.BundleID{Group: g})
	w.take()
	if len(w.stops) != 1 || !w.stops[0].Force || w.stops[0].ID != worker {
		t.Fatal("the worker runs on")
	}
	w.c.Gone(w.now, worker, "killed by signal 9")
	w.take()
	o := w.objects(1)
	if !strings.Contains(o[a.With(1)], "group_removed") || o[b.With(1)] != "" {
		t.Fatalf("got %q", o)
	}
	x := w.makeActor(1, 3, map[string]any{"strategy": groupShape(g, -1)["strategy"]}, map[string]any{})
	call := w.call(1, 4, x, 1)
	w.frame(1, sdk.MsgGet, get(sdk.GetValue, call.With(1)))
	w.take()
	d, _, _ := w.c.Demand()
	for _, s := range d {
		w.c.NoRoomEver(w.now, wire.Infeasible{Shape: s.ID, Why: "it was removed", Code: "group_removed"})
	}
	w.take()
	o = w.objects(1)
	if !strings.Contains(o[b.With(1)], "group_removed") || strings.Contains(o[b.With(1)], "actor_group") || !strings.Contains(o[call.With(1)], "actor_group_removed") {
		t.Fatalf("got %q", o)
	}
}

// TestTasksYield: a worker whose room is kept for others, who wait until it is free, gets no
// further task of its kind; why names them.
func TestTasksYield(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	for n := range uint64(3) {
		w.frame(1, sdk.MsgSubmit, submit(taskOf(1, n+1), 1, 1))
	}
	w.take()
	worker := w.starts[0].ID
	w.startAll()
	w.kept = "placement group g"
	w.frame(worker, sdk.MsgResult, result(taskOf(1, 1), 1, 0, inline("v")))
	w.take()
	if w.free.CPU != w.total.CPU || w.c.tasks[taskOf(1, 2)].state != queued {
		t.Fatalf("the room is not given back: free %s", w.free)
	}
	if why := w.c.why(w.c.tasks[taskOf(1, 2)]); !strings.Contains(why, "kept here for placement group g") {
		t.Fatalf("why: %s", why)
	}
	w.kept = ""
	w.take()
	if w.c.tasks[taskOf(1, 2)].state != running {
		t.Fatal("it does not go on")
	}
}
