package tasks

import (
	"slices"
	"testing"

	"launcher/wire/sdk"
)

// restart has the next agent take over: it has read the log, and all processes are back.
func (w *desk) restart() {
	w.t.Helper()
	w.c, w.free = w.restored(), w.total
	w.c.Resume(w.now)
	clear(w.in)
	for _, cl := range w.c.sortedClients() {
		w.c.Back(w.now, cl.ID)
	}
	w.take()
}

// TestActorJudgementInTheLog: a call that failed because its actor died has failed for the
// next agent too: what it needed is let go of, and nothing is told twice.
func TestActorJudgementInTheLog(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	w.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
	a := w.makeActor(1, 1, map[string]any{"max_retries": -1}, map[string]any{})
	worker := w.born(a, 1)
	c1 := w.call(1, 2, a, 5)
	w.take()
	w.c.Gone(w.now, worker, "killed by signal 9")
	w.born(a, 2)
	for _, c := range []*Core{w.c, w.restored()} {
		if o := c.objects[c1.With(1)]; o.state != here || o.kind != sdk.Failure {
			t.Fatalf("the result is in state %d", o.state)
		}
	}
}

// TestActorOrphanInTheLog: what the call of a dead actor had submitted is cancelled for the
// next agent as it was: the call that wanted it had failed by then.
func TestActorOrphanInTheLog(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	w.shape(1, 5, map[string]any{"name": "A.m", "method": "m"})
	a, b := w.makeActor(1, 1, nil, map[string]any{}), w.makeActor(1, 2, nil, map[string]any{})
	worker := w.born(a, 1)
	w.born(b, 1)
	w.call(1, 3, a, 5)
	w.take()
	w.shape(worker, 5, map[string]any{"name": "A.m", "method": "m"})
	kid := w.call(worker, 1, b, 5)
	wants := w.call(worker, 2, a, 5, kid.With(1))
	h := wants.With(1)
	w.frame(1, sdk.MsgHold, h[:])
	w.take()
	w.c.Gone(w.now, worker, "killed by signal 9")
	w.take()
	for i, c := range []*Core{w.c, w.restored()} {
		if n := c.tasks[kid]; n == nil || !n.cancel {
			t.Fatalf("agent %d: what it had submitted is %+v", i, n)
		}
	}
}

// TestActorLifeThatIsOver: a call whose actor died under a new agent uses one retry, not one
// more for the life that it came from.
func TestActorLifeThatIsOver(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	w.shape(1, 5, map[string]any{"name": "A.m", "method": "m", "max_retries": 1})
	a := w.makeActor(1, 1, map[string]any{"max_retries": -1}, map[string]any{})
	worker := w.born(a, 1)
	c1 := w.call(1, 2, a, 5)
	w.take()
	w.restart()
	w.frame(1, sdk.MsgKill, killed(a, 0))
	w.c.Gone(w.now, worker, "killed by signal 9")
	delete(w.in, worker)
	next := w.born(a, 2)
	if got, _ := w.execs(next); !slices.Equal(got, []id{c1}) {
		t.Fatalf("the next life got %v", got)
	}
}
