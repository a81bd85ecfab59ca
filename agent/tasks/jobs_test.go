package tasks

import (
	"slices"
	"testing"

	"launcher/wire"
	"launcher/wire/sdk"
)

// guest is a node that runs a task for another one's driver, and the worker of that.
func guest(t *testing.T) (w *desk, peer, worker uint32) {
	w = newDesk(t, 2)
	w.slots = map[wire.LeaseID]int{5: 2}
	peer = w.c.NextClient()
	if err := w.c.Connect(w.now, Client{ID: peer, Kind: sdk.KindPeer, Peer: 8, Job: "d8-1", Language: "python", Program: "python3"}); err != nil {
		t.Fatal(err)
	}
	x := wire.NewObjectID(8, 1, 1, 0)
	w.shape(peer, 1, map[string]any{"name": "f"})
	w.frame(peer, sdk.MsgPeerSubmit, sdk.AppendPeerSubmit(nil, 5, 1, 1, submit(x, 1, 1)))
	w.take()
	worker = w.starts[0].ID
	w.startAll()
	w.shape(worker, 1, map[string]any{"name": "f"})
	return w, peer, worker
}

// TestJobOutlivesTheConversation: what a worker has made for another node's job does not end
// when that node wants nothing more here, but when the job does, also after a restart of the
// agent.
func TestJobOutlivesTheConversation(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		w, peer, maker := guest(t)
		a := w.makeActor(maker, 1, map[string]any{"cpu": 0}, map[string]any{})
		far := w.c.NextClient() // the driver's node, which has the handle
		if err := w.c.Connect(w.now, Client{ID: far, Kind: sdk.KindPeer, Peer: 8}); err != nil {
			t.Fatal(err)
		}
		h := handle(a)
		w.frame(far, sdk.MsgHold, h[:])
		actor := w.born(a, 1)
		w.frame(maker, sdk.MsgResult, result(wire.NewObjectID(8, 1, 1, 0), 1, 0, inline("v")))
		w.take()
		w.c.Gone(w.now, peer, "it needs nothing here any more")
		w.take()
		if q := w.c.tasks[a]; q == nil || q.state != running || len(w.stops) != 0 {
			t.Fatalf("the actor is %+v, stops %+v", q, w.stops)
		}
		if p, _ := w.c.Programs(); !slices.Equal(p.Left, []string{"d8-1"}) || len(p.Jobs) != 0 {
			t.Fatalf("told %+v", p)
		}
		w.c.Gone(w.now, maker, "it was not needed") // and with it the options that it told
		w.take()
		log := w.log
		if snapshot {
			log = slices.Concat(w.c.Snapshot()...)
		}
		n := newDesk(t, 2)
		if err := n.c.Restore(log); err != nil {
			t.Fatal(err)
		}
		n.c.Resume(n.now)
		n.c.Back(n.now, actor)
		n.c.Back(n.now, far)
		n.now += 5 * second
		n.c.Tick(n.now)
		n.take()
		if q := n.c.tasks[a]; q == nil || q.state != running || !q.actor.up || len(n.stops) != 0 {
			t.Fatalf("snapshot %v: after a restart it is %+v, stops %+v", snapshot, q, n.stops)
		}
		if p, _ := n.c.Programs(); !slices.Equal(p.Left, []string{"d8-1"}) {
			t.Fatalf("snapshot %v: told %+v", snapshot, p)
		}
		n.c.JobsOver(n.now, []string{"d8-1"})
		n.take()
		if len(n.stops) == 0 || n.c.jobs["d8-1"] != nil {
			t.Fatalf("snapshot %v: its job is over, stops %+v", snapshot, n.stops)
		}
	}
}

// TestJobThatIsHeld: what another node's part of a job holds here ends when the head says that
// the job never lives again, and not before; of one with a driver it does not.
func TestJobThatIsHeld(t *testing.T) {
	w, _, maker := guest(t)
	a := w.makeActor(maker, 1, map[string]any{"cpu": 0}, map[string]any{})
	actor := w.born(a, 1)
	if p, _ := w.c.Programs(); !slices.Equal(p.Held, []string{"d8-1"}) || len(p.Left)+len(p.Jobs) != 0 {
		t.Fatalf("told %+v", p)
	}
	w.c.JobsOver(w.now, []string{"d8-1"})
	w.take()
	if q := w.c.tasks[a]; q == nil || q.state != running || len(w.stops) != 0 {
		t.Fatalf("the actor is %+v, stops %+v", q, w.stops)
	}
	w.c.JobsNeverAgain(w.now, []string{"d8-1"})
	w.take()
	if len(w.stops) == 0 || w.c.jobs["d8-1"] != nil {
		t.Fatalf("stops %+v", w.stops)
	}
	w.c.Gone(w.now, actor, "killed")
	if w.take(); w.c.tasks[a] != nil && w.c.tasks[a].state != done {
		t.Fatalf("the actor is %+v", w.c.tasks[a])
	}
	n := newDesk(t, 2)
	if err := n.c.Restore(w.log); err != nil {
		t.Fatal(err)
	}
	n.c.Resume(n.now)
	n.take()
	if q := n.c.tasks[a]; q != nil && q.state != done {
		t.Fatalf("after a restart it is %+v", q)
	}
	w.driver(1)
	w.take()
	w.c.JobsNeverAgain(w.now, []string{"d1"})
	if w.take(); w.c.jobs["d1"] == nil {
		t.Fatal("a job was ended that has its driver here")
	}
}

// TestJobWithNothingLeft: it ends here at once when nothing of it is left, as that of a driver
// which was started by hand does whatever is left.
func TestJobWithNothingLeft(t *testing.T) {
	w, peer, worker := guest(t)
	w.frame(worker, sdk.MsgResult, result(wire.NewObjectID(8, 1, 1, 0), 1, 0, inline("v")))
	w.take()
	w.c.Gone(w.now, peer, "it needs nothing here any more")
	w.now += 2 * second
	w.c.Tick(w.now)
	w.take()
	if len(w.stops) != 1 || len(w.c.jobs) != 0 {
		t.Fatalf("stops %+v, jobs %v", w.stops, w.c.jobs)
	}
	w.driver(1)
	w.frame(1, sdk.MsgSubmit, submit(w.idOf(1, 1), 1, 1))
	w.take()
	w.startAll()
	if p, _ := w.c.Programs(); !slices.Equal(p.Jobs, []string{"d1"}) {
		t.Fatalf("told %+v", p)
	}
	w.c.Gone(w.now, 1, "it exited")
	w.take()
	if p, _ := w.c.Programs(); len(w.c.jobs) != 0 || len(w.stops) != 2 || len(p.Jobs)+len(p.Left) != 0 {
		t.Fatalf("stops %+v, told %+v", w.stops, p)
	}
}
