package tasks

import (
	"slices"
	"strings"
	"testing"

	"launcher/wire"
	"launcher/wire/sdk"
)

// TestActorOrderAfterACancelledCall: a lane that is empty, for its call was cancelled, is not
// taken for the one that later calls have begun.
func TestActorOrderAfterACancelledCall(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	w.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
	a := w.makeActor(1, 1, nil, map[string]any{})
	worker := w.born(a, 1)
	late := taskOf(1, 60)
	w.frame(1, sdk.MsgSubmit, submit(late, 1, 1))
	w.take()
	w.startAll()
	helper := w.c.tasks[late].worker().ID
	c1 := w.call(1, 61, a, 5)
	w.frame(1, sdk.MsgCancel, append(append(le32(0), le32(0)...), c1[:]...))
	c2 := w.call(1, 62, a, 5, late.With(1))
	w.take()
	c3 := w.call(1, 63, a, 5)
	w.take()
	if got, _ := w.execs(worker); len(got) != 0 {
		t.Fatalf("overtaken: %v", got)
	}
	w.ok(helper, late, 1, "v")
	if got, _ := w.execs(worker); !slices.Equal(got, []id{c2, c3}) {
		t.Fatalf("then %v", got)
	}
}

// TestActorGeneratorAbroad: the end of a generator on another node is accounted for, which
// has no outputs to be looked at one by one.
func TestActorGeneratorAbroad(t *testing.T) {
	p, x, worker := abroad(t, nil, map[string]any{})
	a, b := p.nodes[0], p.nodes[1]
	c1 := a.idOf(1, 2)
	body := submit(c1, 5, sdk.Stream)
	copy(body[16:], x[:])
	body[40] = byte(sdk.SubmitCall)
	a.frame(1, sdk.MsgSubmit, body)
	p.pump()
	b.execs(worker)
	attempt := b.c.tasks[c1].attempt
	b.frame(worker, sdk.MsgYield, append(append(append(bytesOf(c1), le32(attempt)...), le32(0)...), inline("i")...))
	b.frame(worker, sdk.MsgResult, result(c1, attempt, 0))
	p.pump()
	if n := b.c.tasks[c1]; n != nil {
		t.Fatalf("the host has %+v", n)
	}
}

// TestActorRetriesOfTheLog: what a call has used of its retries is known to the next agent.
func TestActorRetriesOfTheLog(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	w.shape(1, 5, map[string]any{"name": "A.m", "method": "m", "max_retries": 1})
	a := w.makeActor(1, 1, map[string]any{"max_retries": -1}, map[string]any{})
	worker := w.born(a, 1)
	c1 := w.call(1, 2, a, 5)
	w.take()
	w.c.Gone(w.now, worker, "killed by signal 9")
	w.born(a, 2)
	c := w.restored()
	c.Resume(w.now)
	if n := c.tasks[c1]; n.state != running || n.attempt != 2 || n.retries != 0 {
		t.Fatalf("attempt %d of the call has %d retries left", n.attempt, n.retries)
	}
}

// TestActorAwaitedOverARestart: a call that waits for an actor to be up still does when the
// log of the agent that was killed had been begun anew.
func TestActorAwaitedOverARestart(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	w.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
	a := w.makeActor(1, 1, nil, map[string]any{})
	w.call(1, 2, a, 5)
	w.take()
	n := newDesk(t, 1)
	for _, b := range w.c.Snapshot() {
		if err := n.c.Restore(b); err != nil {
			t.Fatal(err)
		}
	}
	n.c.Resume(n.now)
	if o := n.c.callees[a].wants; o == nil || !slices.Contains(n.c.tasks[a].actor.asked, o) {
		t.Fatalf("nobody tells the call of the life that is %+v", o)
	}
}

// TestStreamEndIsNotKept: the object that says that a stream is over is there for who asks.
func TestStreamEndIsNotKept(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	x := w.stream(1, 1)
	w.take()
	w.startAll()
	worker := w.c.tasks[x].worker().ID
	w.frame(worker, sdk.MsgResult, result(x, 1, 0))
	w.frame(1, sdk.MsgGet, get(sdk.GetValue, x.With(1)))
	w.take()
	if o := w.c.objects[x.With(1)]; o != nil {
		t.Fatalf("left: %+v", o)
	}
}

// TestActorWhy: what is said of an actor and of its calls.
func TestActorWhy(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	x := w.makeActor(1, 1, nil, map[string]any{"concurrency": 1, "groups": map[string]int{"io": 2}})
	w.take()
	why := func(of id, want string) {
		t.Helper()
		if got := w.c.Why(wire.SDKWhyQuery{ID: of.String()}).Lines; len(got) == 0 || !strings.Contains(got[0], want) {
			t.Fatalf("%q, not %q", got, want)
		}
	}
	worker := w.starts[0].ID
	w.startAll()
	why(x, "starts: its constructor runs in pid")
	w.up(worker, x, 1)
	why(x, "lives in pid")
	w.shape(1, 3, map[string]any{"name": "m"})
	w.shape(1, 4, map[string]any{"name": "m", "group": "io"})
	var calls []id
	for i, shape := range []uint32{3, 3, 4, 4, 4} {
		calls = append(calls, w.call(1, uint64(10+i), x, shape))
	}
	w.take()
	for i, want := range []string{"m (" + calls[0].String() + ") runs in pid", "behind 1 others", "runs in pid", "runs in pid", "behind 1 others"} {
		why(calls[i], want)
	}
	w.shape(worker, 1, map[string]any{"name": "inner"})
	y := taskOf(worker, 1)
	w.frame(worker, sdk.MsgSubmit, submit(y, 1, 1))
	w.frame(worker, sdk.MsgGet, get(sdk.GetValue|sdk.GetBlocks, y.With(1)))
	w.take()
	why(calls[0], "and waits for the result of inner ("+y.String())
	w.frame(1, sdk.MsgKill, killed(x, sdk.KillForGood))
	w.take()
	w.c.Gone(w.now, worker, "exited")
	w.take()
	why(x, "is dead: ")
}

// TestActorWhyDead: what an actor died of is said, whatever it was.
func TestActorWhyDead(t *testing.T) {
	for want, end := range map[string]func(w *desk, worker uint32, x id){
		"exited with code 3": func(w *desk, worker uint32, x id) { w.c.Gone(w.now, worker, "it exited with code 3") },
		"by its own will": func(w *desk, worker uint32, x id) {
			w.frame(worker, sdk.MsgResult, result(x, 1, sdk.ResultOK))
		},
	} {
		w := newDesk(t, 1)
		w.driver(1)
		x := w.makeActor(1, 1, nil, map[string]any{})
		end(w, w.born(x, 1), x)
		w.take()
		a := w.c.Actors(struct{}{})
		if len(a) != 1 || a[0].State != wire.ActorDead || !strings.Contains(a[0].Why, want) || strings.Contains(a[0].Why, "is dead") {
			t.Errorf("%+v", a)
		}
	}
}
