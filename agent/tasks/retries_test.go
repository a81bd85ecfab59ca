package tasks

import (
	"strings"
	"testing"

	"launcher/wire"
	"launcher/wire/sdk"
)

// TestRetriesElsewhere: a task's own agent counts how often it runs, wherever that is: a node
// that gives it back when it crashed there does not begin to count anew.
func TestRetriesElsewhere(t *testing.T) {
	no := (&sdk.Error{Code: "task", Message: "no"}).Encode()
	for _, how := range []string{"crash", "exception"} {
		p := newPair(t, 0, 1)
		a, b := p.nodes[0], p.nodes[1]
		a.driver(1)
		a.shape(1, 5, map[string]any{"name": "f", "max_retries": 2})
		x := a.idOf(1, 1)
		a.frame(1, sdk.MsgSubmit, submit(x, 5, 1))
		p.pump()
		for try := range 3 {
			n := a.c.tasks[x]
			if n.retries != int32(2-try) {
				t.Fatalf("%s, try %d: %d retries are left", how, try, n.retries)
			}
			if n.state == queued {
				p.leaseAll(wire.LeaseID(10 * (try + 1)))
			}
			b.startAll()
			p.pump()
			far := b.c.tasks[x]
			if far == nil || far.worker() == nil {
				t.Fatalf("%s, try %d: the other node does not run it: %+v", how, try, far)
			}
			w := far.worker().ID
			if how == "crash" {
				b.c.Gone(b.now, w, "killed by signal 9")
			} else {
				b.frame(w, sdk.MsgResult, result(x, far.attempt, sdk.ResultRetry, sdk.AppendValue(nil, sdk.Failure, 1, nil, int64(len(no)), no)))
			}
			p.pump()
		}
		if b.c.tasks[x] != nil || b.c.objects[x.With(1)] != nil {
			t.Fatalf("%s: the other node still has it", how)
		}
		a.frame(1, sdk.MsgGet, get(sdk.GetValue, x.With(1)))
		a.take()
		want := map[string]string{"crash": "it was the last of its 3 attempts", "exception": "no"}[how]
		if got := a.objects(1)[x.With(1)]; !strings.Contains(got, want) {
			t.Fatalf("%s: got %q", how, got)
		}
	}
}

// TestNoRetryElsewhere: a task that may not run again is not, either, when it fails on another
// node while that does not reach the task's own.
func TestNoRetryElsewhere(t *testing.T) {
	no := (&sdk.Error{Code: "task", Message: "no"}).Encode()
	for how, want := range map[string]string{"crash": "killed by signal 9", "exception": "no"} {
		p := newPair(t, 0, 1)
		a, b := p.nodes[0], p.nodes[1]
		a.driver(1)
		a.shape(1, 5, map[string]any{"name": "f", "max_retries": 0})
		x := a.idOf(1, 1)
		a.frame(1, sdk.MsgSubmit, submit(x, 5, 1))
		p.pump()
		p.leaseAll(10)
		b.startAll()
		p.pump()
		far := b.c.tasks[x]
		if far == nil || far.worker() == nil {
			t.Fatalf("%s: the other node does not run it: %+v", how, far)
		}
		w := far.worker().ID
		p.breaks()
		if how == "crash" {
			b.c.Gone(b.now, w, "killed by signal 9")
		} else {
			b.frame(w, sdk.MsgResult, result(x, far.attempt, sdk.ResultRetry, sdk.AppendValue(nil, sdk.Failure, 1, nil, int64(len(no)), no)))
		}
		b.take()
		p.heals()
		p.leaseAll(20)
		b.startAll()
		p.pump()
		if far = b.c.tasks[x]; far != nil && far.state == running {
			t.Errorf("%s: it is run again", how)
		}
		a.frame(1, sdk.MsgGet, get(sdk.GetValue, x.With(1)))
		a.take()
		if got := a.objects(1)[x.With(1)]; !strings.Contains(got, want) {
			t.Errorf("%s: got %q", how, got)
		}
	}
}

// TestOneByOne: of tasks that were sent ahead of a worker nobody knows, when it dies, which it
// has begun or even ended: those that may not run again are not sent ahead.
func TestOneByOne(t *testing.T) {
	for retries, want := range map[int]bool{0: false, 1: true} {
		w := newDesk(t, 1)
		w.driver(1)
		w.shape(1, 5, map[string]any{"name": "f", "max_retries": retries})
		first := taskOf(1, 1)
		for n := range uint64(10) {
			w.frame(1, sdk.MsgSubmit, submit(taskOf(1, n+1), 5, 1))
		}
		w.take()
		worker := w.starts[0].ID
		w.startAll()
		w.execs(worker)
		w.frame(worker, sdk.MsgResult, result(first, 1, 0, inline("quick")))
		w.take()
		if xs, _ := w.execs(worker); len(xs) == 0 || len(xs) > 1 != want {
			t.Errorf("with %d retries %d tasks are given to the worker at a time", retries, len(xs))
		}
	}
}
