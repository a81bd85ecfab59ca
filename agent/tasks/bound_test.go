package tasks

import (
	"slices"
	"strings"
	"testing"

	"launcher/wire"
	"launcher/wire/sdk"
)

// gone takes the ends of the workers that were told to end.
func (w *desk) gone() (n int) {
	for _, s := range w.stops {
		w.c.Gone(w.now, s.ID, "exited")
		n++
	}
	w.stops = nil
	w.take()
	return n
}

// asks has a worker submit a task of a shape and wait for it.
func (w *desk) asks(worker uint32, n uint64, shape uint32) id {
	x := taskOf(worker, n)
	w.frame(worker, sdk.MsgSubmit, submit(x, shape, 1))
	w.frame(worker, sdk.MsgGet, get(sdk.GetValue|sdk.GetBlocks, x.With(1)))
	w.take()
	return x
}

var otherKind = map[string]any{"name": "g", "env": map[string]string{"KIND": "other"}}

// TestBoundCountsProcesses: a worker that is told to end makes room when it has ended.
func TestBoundCountsProcesses(t *testing.T) {
	w := newDesk(t, 2)
	w.c.cfg.MaxWorkers = 2
	w.driver(1)
	w.shape(1, 2, otherKind)
	a, b := taskOf(1, 1), taskOf(1, 2)
	w.frame(1, sdk.MsgSubmit, submit(a, 1, 1))
	w.frame(1, sdk.MsgSubmit, submit(b, 1, 1))
	w.take()
	w.startAll()
	w.finish(inlined)
	w.take()
	for n := range uint64(2) {
		w.frame(1, sdk.MsgSubmit, submit(taskOf(1, 3+n), 2, 1))
		w.take()
	}
	if len(w.starts) != 0 || len(w.stops) != 2 {
		t.Fatalf("%d started while the bound's worth of processes is there, %d told to end", len(w.starts), len(w.stops))
	}
	if w.gone(); len(w.starts) != 2 {
		t.Fatalf("%d started when there was room", len(w.starts))
	}
}

// TestOthersAreKeptRoom: tasks of a driver do not take all workers when they may wait for
// tasks of another kind.
func TestOthersAreKeptRoom(t *testing.T) {
	w := newDesk(t, 1)
	w.c.cfg.MaxWorkers = 16
	w.driver(1)
	for n := range uint64(40) {
		w.frame(1, sdk.MsgSubmit, submit(taskOf(1, n+1), 1, 1))
	}
	w.take()
	done, begun := map[id]bool{}, map[id]uint32{}
	for range 400 {
		w.startAll()
		for _, cl := range w.c.sortedClients() {
			xs, _ := w.execs(cl.ID)
			for _, x := range xs {
				if begun[x] = cl.ID; x.Client() == 1 {
					w.shape(cl.ID, 2, otherKind)
					w.asks(cl.ID, x.N(), 2)
				} else {
					w.frame(cl.ID, sdk.MsgResult, result(x, 1, 0, inline("r")))
				}
			}
			for x := range w.objects(cl.ID) {
				top := w.c.clients[cl.ID].top()
				if len(top.tasks) > 0 && begun[top.tasks[0].id] == cl.ID {
					done[top.tasks[0].id] = true
					w.frame(cl.ID, sdk.MsgResult, result(top.tasks[0].id, 1, 0, inline(x.String())))
				}
			}
		}
		w.take()
		w.gone()
		if w.c.workers > 16 {
			t.Fatalf("%d workers", w.c.workers)
		}
	}
	if len(done) != 40 {
		t.Fatalf("%d of 40 tasks that wait for one of another kind are done", len(done))
	}
}

// TestHopeless: when all workers wait for what none can run, one such task fails.
func TestHopeless(t *testing.T) {
	w := newDesk(t, 2)
	w.c.cfg.MaxWorkers = 2
	w.driver(1)
	for n := range uint64(2) {
		w.frame(1, sdk.MsgSubmit, submit(taskOf(1, n+1), 1, 1))
	}
	w.take()
	both := []uint32{w.starts[0].ID, w.starts[1].ID}
	w.startAll()
	var kids []id
	for i, worker := range both {
		w.shape(worker, 2, otherKind)
		kids = append(kids, w.asks(worker, uint64(i+1), 2))
	}
	for range 9 {
		w.now += second
		w.c.Tick(w.now)
		w.take()
	}
	if w.c.tasks[kids[0]] == nil || w.c.tasks[kids[1]] == nil {
		t.Fatal("it was given up too soon")
	}
	for range 3 {
		w.now += second
		w.c.Tick(w.now)
		w.take()
	}
	got := w.objects(both[0])[kids[0].With(1)]
	if !strings.Contains(got, "unschedulable") || w.c.tasks[kids[1]] == nil {
		t.Fatalf("got %q; the other task: %v", got, w.c.tasks[kids[1]])
	}
}

// TestCancelledTaskSubmits: what a task submits after it was cancelled with all its
// children is cancelled too.
func TestCancelledTaskSubmits(t *testing.T) {
	w := newDesk(t, 2)
	w.driver(1)
	x := taskOf(1, 1)
	w.frame(1, sdk.MsgSubmit, submit(x, 1, 1))
	w.take()
	worker := w.starts[0].ID
	w.startAll()
	w.shape(worker, 1, map[string]any{"name": "f"})
	w.frame(1, sdk.MsgCancel, append(append(le32(sdk.CancelRecursive), le32(0)...), x[:]...))
	kid := w.asks(worker, 1, 1)
	if got := w.objects(worker)[kid.With(1)]; !strings.Contains(got, "cancelled") || w.c.tasks[kid] != nil {
		t.Fatalf("the child's value: %q", got)
	}
}

// TestOrphans: what a task submitted ends when its worker dies, unless others wait for it.
func TestOrphans(t *testing.T) {
	w := newDesk(t, 3)
	w.driver(1)
	x := taskOf(1, 1)
	w.frame(1, sdk.MsgSubmit, submit(x, 1, 1))
	w.take()
	worker := w.starts[0].ID
	w.startAll()
	w.shape(worker, 1, map[string]any{"name": "f"})
	lone, shown := taskOf(worker, 1), taskOf(worker, 2)
	for _, k := range []id{lone, shown} {
		w.frame(worker, sdk.MsgSubmit, submit(k, 1, 1))
	}
	w.frame(1, sdk.MsgHold, flat([]id{shown.With(1)}))
	w.take()
	w.startAll()
	w.c.Gone(w.now, worker, "killed")
	w.take()
	var told []id
	for _, fs := range w.in {
		for _, f := range fs {
			if f.typ == sdk.MsgCancelTask {
				told = append(told, id(f.body[:16]))
			}
		}
	}
	if !slices.Equal(told, []id{lone}) || w.c.tasks[shown].cancel {
		t.Fatalf("told to end: %v", told)
	}
	if y := w.c.tasks[x]; y == nil || y.attempt != 2 {
		t.Fatalf("the task whose worker died: %+v", y)
	}
}

// TestCancelHalfReady: a task is cancelled of whose arguments one is there and one is not.
func TestCancelHalfReady(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	put := wire.NewObjectID(7, 1, 1, wire.PutIndex)
	w.frame(1, sdk.MsgPut, append(append([]byte(nil), put[:]...), inline("x")...))
	a, b := taskOf(1, 2), taskOf(1, 3)
	w.frame(1, sdk.MsgSubmit, submit(a, 1, 1))
	w.frame(1, sdk.MsgSubmit, submit(b, 1, 1, put, a.With(1)))
	w.frame(1, sdk.MsgCancel, append(append(le32(0), le32(0)...), b[:]...))
	w.frame(1, sdk.MsgGet, get(sdk.GetValue, b.With(1)))
	w.take()
	if got := w.objects(1)[b.With(1)]; !strings.Contains(got, "cancelled") {
		t.Fatalf("got %q", got)
	}
}

// TestSpreadBeginsEvenly: quick tasks that are spread do not all run where there happened to
// be a worker first.
func TestSpreadBeginsEvenly(t *testing.T) {
	p := newPair(t, 2, 2)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	a.shape(1, 2, map[string]any{"name": "s", "strategy": []any{"spread"}})
	for n := range uint64(20) {
		a.frame(1, sdk.MsgSubmit, submit(taskOf(1, n+1), 2, 1))
	}
	p.pump()
	d, _, _ := a.c.Demand()
	a.slots[4] = 2
	a.c.Leased(a.now, wire.Leased{Seq: 1, Lease: 4, Shape: d[0].ID, Node: "a", Number: 7, Slots: 2})
	p.pump()
	if ran := a.finish(inlined); len(ran) != 0 {
		t.Fatalf("%d ran before the other node's lease could be there", len(ran))
	}
	a.now += 50 * millisecond
	p.lease(5, d[0].ID, 2)
	here, there := 0, 0
	for range 60 {
		p.pump()
		there += len(b.finish(inlined))
		p.pump()
		here += len(a.finish(inlined))
	}
	if here < 5 || there < 5 || here+there != 20 {
		t.Fatalf("%d ran here, %d there", here, there)
	}
}

// TestAnsweredBeforeOnTop: a worker that has handed back drops what comes before the answer;
// what it is given on top in the same turn comes after it.
func TestAnsweredBeforeOnTop(t *testing.T) {
	w := newDesk(t, 2)
	w.c.cfg.MaxWorkers = 1
	w.driver(1)
	w.frame(1, sdk.MsgSubmit, submit(taskOf(1, 1), 1, 1))
	w.take()
	worker := w.starts[0].ID
	w.startAll()
	w.shape(worker, 1, map[string]any{"name": "f"})
	w.in[worker] = nil
	x := taskOf(worker, 1)
	w.frame(worker, sdk.MsgSubmit, submit(x, 1, 1))
	w.frame(worker, sdk.MsgHandBack, le32(2))
	w.c.Synced(worker, 9)
	w.frame(worker, sdk.MsgGet, get(sdk.GetValue|sdk.GetBlocks, x.With(1)))
	w.take()
	answered := false
	for _, f := range w.in[worker] {
		switch {
		case f.typ == sdk.MsgAnswer && u32(f.body) == 9:
			answered = true
		case f.typ == sdk.MsgExec && !answered:
			t.Fatal("it was given a task before the answer")
		case f.typ == sdk.MsgExec && id(f.body[:16]) == x:
			return
		}
	}
	t.Fatal("what it waits for was not given to it")
}
