package tasks

import (
	"testing"

	"launcher/wire/sdk"
)

// yielded is the body of a Yield of attempt 1.
func yielded(x id, i uint32) []byte {
	return append(append(append(bytesOf(x), le32(1)...), le32(i)...), inline("item")...)
}

func (w *desk) stream(client uint32, n uint64) id {
	x := taskOf(client, n)
	w.frame(client, sdk.MsgSubmit, submit(x, 1, sdk.Stream))
	w.take()
	return x
}

// TestStreamThatIsLeft: nobody reads it any more, so its task is cancelled, wherever it is,
// and nothing of it is left.
func TestStreamThatIsLeft(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	runs := w.stream(1, 1)
	worker := w.starts[0].ID
	w.startAll()
	queues := w.stream(1, 2)
	w.frame(worker, sdk.MsgYield, yielded(runs, 0))
	w.in[worker] = nil
	w.frame(1, sdk.MsgRelease, append(bytesOf(runs), queues[:]...))
	w.take()
	if n := len(w.in[worker]); n != 1 || w.in[worker][0].typ != sdk.MsgCancelTask || id(w.in[worker][0].body[:16]) != runs {
		t.Fatalf("the worker got %v", w.in[worker])
	}
	if len(w.fx) != 1 || w.fx[0] != Effect(Interrupt{ID: worker}) {
		t.Fatalf("effects %v", w.fx)
	}
	if w.c.tasks[queues] != nil {
		t.Fatal("a stream that waits and is left is still there")
	}
	w.frame(worker, sdk.MsgYield, yielded(runs, 1))
	w.frame(worker, sdk.MsgResult, result(runs, 1, sdk.ResultCancelled, inline("cancelled")))
	w.take()
	if len(w.c.tasks) != 0 || len(w.c.objects) != 0 || w.free.CPU != w.total.CPU {
		t.Fatalf("left: %d tasks, %d objects, room %s", len(w.c.tasks), len(w.c.objects), w.free)
	}
}

// TestStreamThatIsLeftElsewhere: the node that makes it is told, also when it could not be
// reached just then.
func TestStreamThatIsLeftElsewhere(t *testing.T) {
	p := newPair(t, 0, 1)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	x := a.stream(1, 1)
	shapes, _, _ := a.c.Demand()
	p.lease(1, shapes[0].ID, 1)
	p.pump()
	worker := b.starts[0].ID
	b.startAll()
	p.pump()
	var far uint32
	for client := range a.c.byClient {
		far = client
	}
	a.c.RemoteClosed(a.now, far)
	a.frame(1, sdk.MsgRelease, x[:])
	a.take()
	a.c.RemoteOpen(a.now, far)
	b.in[worker] = nil
	p.pump()
	if n := len(b.in[worker]); n != 1 || b.in[worker][0].typ != sdk.MsgCancelTask {
		t.Fatalf("the worker got %v", b.in[worker])
	}
}

// TestOneOfManyEnds: the end of a stream, of a worker and of a task with children does not
// go through all tasks and objects that there are.
func TestOneOfManyEnds(t *testing.T) {
	const many = 50_000
	w := newDesk(t, 1)
	w.driver(1)
	x := w.stream(1, 1)
	worker := w.starts[0].ID
	w.startAll()
	for k := range uint64(many) {
		w.frame(1, sdk.MsgSubmit, submit(taskOf(1, k+2), 1, 1))
	}
	kid := taskOf(worker, 1)
	w.shape(worker, 1, map[string]any{"name": "g"})
	w.frame(worker, sdk.MsgSubmit, submit(kid, 1, 1))
	w.frame(worker, sdk.MsgGet, get(sdk.GetValue, kid.With(1), x.With(1)))
	w.take()
	cl, s := w.c.clients[worker], w.c.tasks[x].stream
	if len(cl.things) != 2 || len(s.ahead) != 1 || len(w.c.children[x]) != 1 {
		t.Fatalf("%d things, %d items ahead, %d children", len(cl.things), len(s.ahead), len(w.c.children[x]))
	}
	w.frame(worker, sdk.MsgYield, yielded(x, 0))
	w.frame(worker, sdk.MsgRelease, bytesOf(kid.With(1)))
	w.frame(1, sdk.MsgCancel, append(make([]byte, 8), kid[:]...))
	if len(cl.things) != 0 || len(s.ahead) != 0 || len(w.c.children[x]) != 0 {
		t.Fatalf("after that %d things, %d items ahead, %d children", len(cl.things), len(s.ahead), len(w.c.children[x]))
	}
}

// BenchmarkWorkerEnds is the end of a worker on a node with many objects.
func BenchmarkWorkerEnds(b *testing.B) {
	w := newDesk(b, 1)
	w.driver(1)
	w.take()
	for k := range uint64(200_000) {
		w.frame(1, sdk.MsgSubmit, submit(taskOf(1, k+1), 1, 1))
	}
	for b.Loop() {
		w.take()
		worker := w.starts[0].ID
		w.startAll()
		w.c.Gone(w.now, worker, "killed")
	}
}

// TestMaxCalls: a worker ends after so many calls of the function, and not before their
// results are there; what waits meanwhile gets another.
func TestMaxCalls(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	w.shape(1, 2, map[string]any{"name": "g", "max_calls": 2})
	for n := range uint64(5) {
		w.frame(1, sdk.MsgSubmit, submit(taskOf(1, n+1), 2, 1))
	}
	w.take()
	for n := uint64(1); n <= 5; n++ {
		if len(w.starts) > 0 {
			w.startAll()
		}
		var worker uint32
		for c := range w.in {
			if cl := w.c.clients[c]; cl != nil && cl.pool != nil && cl.busy() {
				worker = c
			}
		}
		if ran, _ := w.execs(worker); len(ran) != 1 || ran[0] != taskOf(1, n) {
			t.Fatalf("call %d: worker %d was given %v", n, worker, ran)
		}
		w.frame(worker, sdk.MsgResult, result(taskOf(1, n), 1, 0, inline("ok")))
		w.take()
		ended := len(w.stops) > 0
		if ended != (n%2 == 0) {
			t.Fatalf("after call %d: stops %v", n, w.stops)
		}
		if ended {
			if w.stops[0] != (StopWorker{ID: worker}) || w.c.objects[taskOf(1, n).With(1)].state != here {
				t.Fatalf("%v", w.stops)
			}
			again := w.restored()
			if cl := again.clients[worker]; cl == nil || !cl.ending {
				t.Fatal("the next agent does not know that it ends")
			}
			w.stops = nil
			w.c.Gone(w.now, worker, "it ended")
			w.take()
		}
	}
	if n := w.restored().clients[w.lastWorker()].calls[funcID{}]; n != 1 {
		t.Fatalf("the next agent knows of %d calls", n)
	}
}

func (w *desk) lastWorker() (last uint32) {
	for c, cl := range w.c.clients {
		if cl.pool != nil {
			last = max(last, c)
		}
	}
	return last
}
