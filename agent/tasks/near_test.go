package tasks

import (
	"strings"
	"testing"

	"launcher/wire"
	"launcher/wire/sdk"
)

// big is a value of 8 MiB in shared memory.
func big(id) []byte {
	b := sdk.AppendValue(nil, sdk.Shared, 0, nil, 8<<20, nil)
	return append(append(b, le32(1)...), make([]byte, 12)...)
}

// made are two nodes of two cores, the first with a result of its own on the second.
func made(t *testing.T, value func(id) []byte) (p *pair, a, b *desk, x id) {
	t.Helper()
	p = newPair(t, 2, 2)
	a, b = p.nodes[0], p.nodes[1]
	a.driver(1)
	a.shape(1, 2, map[string]any{"name": "make", "strategy": []any{"node", "b", false}})
	x = taskOf(1, 1)
	a.frame(1, sdk.MsgSubmit, submit(x, 2, 1))
	p.pump()
	d, _, _ := a.c.Demand()
	p.lease(1, d[0].ID, 1)
	p.pump()
	b.finish(value)
	p.pump()
	if o := a.c.objects[x.With(1)]; o.state != here || o.where != 8 {
		t.Fatalf("what is there is %+v", o)
	}
	return p, a, b, x.With(1)
}

// A task with a large argument on another node waits a moment for room there, and nothing
// is brought here meanwhile.
func TestGoesToItsArguments(t *testing.T) {
	p, a, b, x := made(t, big)
	y := taskOf(1, 2)
	a.frame(1, sdk.MsgSubmit, submit(y, 1, 1, x))
	p.pump()
	d, _, _ := a.c.Demand()
	if len(a.starts) != 0 || len(a.pulled) != 0 || len(d) != 1 || d[0].Near != 8 {
		t.Fatalf("%d workers started here, pulled from %v, demand %+v", len(a.starts), a.pulled, d)
	}
	// Room on a third node is none.
	a.c.Leased(a.now, wire.Leased{Seq: 2, Lease: 2, Shape: d[0].ID, Node: "c", Number: 9, Slots: 1})
	p.pump()
	if q := a.c.tasks[y]; q.state != queued {
		t.Fatalf("with room elsewhere it is %+v", q)
	}
	p.lease(3, d[0].ID, 1)
	p.pump()
	if n := len(b.finish(inlined)); n != 1 || len(a.pulled) != 0 {
		t.Fatalf("%d ran there, pulled from %v", n, a.pulled)
	}
	p.pump()
	if o := a.c.objects[y.With(1)]; o.state != here {
		t.Fatalf("the result is %+v", o)
	}
}

// When there is no room there, it runs here all the same.
func TestDoesNotWaitLongForItsArguments(t *testing.T) {
	p, a, _, x := made(t, big)
	a.frame(1, sdk.MsgSubmit, submit(taskOf(1, 2), 1, 1, x))
	p.pump()
	a.now += nearWait - 1
	a.c.Tick(a.now)
	if p.pump(); len(a.starts) != 0 {
		t.Fatal("it did not wait")
	}
	a.now++
	a.c.Tick(a.now)
	p.pump()
	if ran := a.finish(inlined); len(ran) != 1 || len(a.pulled) != 1 {
		t.Fatalf("%d ran here, pulled from %v", len(ran), a.pulled)
	}
}

// It does not wait for what is quickly brought here, nor when the head is away.
func TestWaitsForLargeArgumentsOnly(t *testing.T) {
	for _, k := range []struct {
		value func(id) []byte
		alone bool
	}{{large(), false}, {big, true}} {
		p, a, _, x := made(t, k.value)
		a.c.Alone(k.alone)
		a.frame(1, sdk.MsgSubmit, submit(taskOf(1, 2), 1, 1, x))
		if p.pump(); len(a.starts) != 1 || len(a.pulled) != 1 {
			t.Fatalf("%d workers started here, pulled from %v", len(a.starts), a.pulled)
		}
	}
}

// TestShownOnce: a task that its owner gave to another node is counted by that one alone, which
// says what it does and what it waits for.
func TestShownOnce(t *testing.T) {
	p := newPair(t, 1, 1)
	a, b := p.nodes[0], p.nodes[1]
	a.driver(1)
	a.shape(1, 2, map[string]any{"name": "outer", "strategy": []any{"node", "b", false}})
	x := taskOf(1, 1)
	a.frame(1, sdk.MsgSubmit, submit(x, 2, 1))
	p.pump()
	p.leaseAll(1)
	worker := b.starts[0].ID
	b.startAll()
	p.pump()
	b.shape(worker, 1, map[string]any{"name": "inner"})
	y := wire.NewObjectID(8, worker, 1, 0)
	b.frame(worker, sdk.MsgSubmit, submit(y, 1, 1))
	b.frame(worker, sdk.MsgGet, get(sdk.GetValue|sdk.GetBlocks, y.With(1)))
	p.pump()

	owner, runs := a.c.Tasks(wire.SDKTaskQuery{Limit: 9}), b.c.Tasks(wire.SDKTaskQuery{Limit: 9, Name: "outer"})
	if len(owner.Tasks) != 1 || !owner.Tasks[0].Away || owner.Tasks[0].Node != "" || len(owner.Counts) != 0 || a.c.Numbers().Tasks[wire.TaskRunning] != 0 {
		t.Fatalf("the owner says %+v", owner)
	}
	if len(runs.Tasks) != 1 || runs.Tasks[0].Away || runs.Tasks[0].State != wire.TaskBlocked || runs.Tasks[0].Node != "b" || len(runs.Counts) != 1 {
		t.Fatalf("the node that runs it says %+v", runs)
	}
	if s := a.c.Tasks(wire.SDKTaskQuery{Limit: 9, States: []string{wire.TaskRunning}}); len(s.Tasks) != 0 {
		t.Fatalf("it does not run but waits: %+v", s)
	}
	q := wire.SDKWhyQuery{ID: x.String()}
	if w := a.c.Why(q); !w.Away || len(w.Lines) != 1 {
		t.Fatalf("why, from its owner: %+v", w)
	}
	w := b.c.Why(q)
	if w.Away || len(w.Lines) != 2 || !strings.Contains(w.Lines[0], "waits for the result of inner ("+y.String()) || !strings.HasPrefix(w.Lines[1], "inner (") {
		t.Fatalf("why, from who runs it: %+v", w)
	}
}
