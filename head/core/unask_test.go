package core

import (
	"strings"
	"testing"

	"launcher/wire"
)

func pendings(handles ...string) AllocStatus {
	st := AllocStatus{Pool: "burst"}
	for _, h := range handles {
		st.Items = append(st.Items, AllocItem{Handle: []byte(h), State: AllocPending, Why: "other jobs are before it"})
	}
	return st
}

// cancels are the allocations that are given back.
func cancels(o Output) (out []string) {
	for _, e := range o.Effects {
		if x, ok := e.(CancelAllocs); ok {
			for _, h := range x.Handles {
				out = append(out, string(h))
			}
		}
	}
	return out
}

// A job that has not begun is taken back some time after the work that needed it is gone, not
// at once, and not when work comes that needs it; it does not count for max_jobs, and nothing
// has failed.
func TestWhatNothingNeedsIsTakenBack(t *testing.T) {
	for _, x := range []struct {
		name     string
		do       func(c *Core) // at 10 s
		from, to int64
	}{
		{"cancelled", func(c *Core) { c.Step(10*second, ClientReq{ID: 2, Req: wire.Cancel{Job: 1}}) }, 29, 32},
		{"needed", func(*Core) {}, 0, 0},
		{"needed again", func(c *Core) {
			c.Step(10*second, ClientReq{ID: 2, Req: wire.Cancel{Job: 1}})
			first(c, 11, 20, func(Output) bool { return false })
			submitOne(c, 20*second, wire.JobSpec{})
		}, 0, 0},
	} {
		c := queue(t, wire.Pool{Max: 2, MaxJobs: 2})
		submitOne(c, second, wire.JobSpec{})
		token := sortedKeys(c.d.st.Subs)[0]
		c.Step(2*second, Submitted{Token: token, Allocs: []Alloc{{Handle: []byte("h"), Nodes: c.d.st.Subs[token].Nodes}}})
		c.Step(3*second, pendings("h"))
		x.do(c)
		var o Output
		at := first(c, 21, 120, func(out Output) bool { o = out; return len(cancels(out)) > 0 })
		if at < x.from || at > x.to {
			t.Errorf("%s: taken back at %d s", x.name, at)
		}
		if x.to == 0 {
			continue
		}
		if got := cancels(o); len(got) != 1 || got[0] != "h" {
			t.Errorf("%s: %v is given back", x.name, got)
		}
		if again := first(c, at+1, at+60, func(out Output) bool { return len(cancels(out)) > 0 }); again != 0 {
			t.Errorf("%s: and once more at %d s", x.name, again)
		}
		c.Step((at+61)*second, AllocStatus{Pool: "burst", Items: []AllocItem{{Handle: []byte("h"), State: AllocDone, Why: "ended as asked"}}})
		p := c.pools["burst"]
		if p.failures != 0 || c.mayAsk(p) != 2 || len(p.waits) != 0 {
			t.Errorf("%s: %d failures, %d more may be asked for, %v", x.name, p.failures, c.mayAsk(p), p.waits)
		}
		if lines := strings.Join(c.whyPool(p), "\n"); !strings.Contains(lines, "nothing needed it any more") {
			t.Errorf("%s: why says %s", x.name, lines)
		}
		submitOne(c, (at+62)*second, wire.JobSpec{})
		if at := first(c, at+63, at+70, func(Output) bool { return len(c.d.st.Subs) > 0 }); at == 0 {
			t.Errorf("%s: no other is asked for afterwards", x.name)
		}
	}
}

// The newest go first, whole, and no more of them than nothing needs; what has begun stays
// until it is idle.
func TestTheNewestIsTakenBack(t *testing.T) {
	c := queue(t, wire.Pool{Max: 9, PerAlloc: 2})
	gang := func(id wire.JobID, nodes uint32) {
		c.Step(second, ClientReq{ID: uint64(id), Req: wire.Submit{Token: strings.Repeat("x", int(id)), Spec: wire.JobSpec{Kind: wire.KindRun, Command: []string{"x"},
			Nodes: nodes, Ranks: nodes, RanksPerNode: 1, Resources: wire.Resources{CPU: wire.Unit}}}})
	}
	gang(1, 2)
	gang(2, 3)
	k := 0
	var all []string
	for range 2 { // the second is asked for when the first is answered
		token := sortedKeys(c.d.st.Subs)[len(c.d.st.Subs)-1]
		var as []Alloc
		for nodes := c.d.st.Subs[token].Nodes; len(nodes) > 0; k++ {
			n := min(2, len(nodes))
			all = append(all, string(rune('a'+k)))
			as, nodes = append(as, Alloc{Handle: []byte(all[k]), Nodes: nodes[:n]}), nodes[n:]
		}
		c.Step(2*second, Submitted{Token: token, Allocs: as})
	}
	if strings.Join(all, "") != "abc" {
		t.Fatalf("asked for as %v: %+v", all, c.d.st.Subs)
	}
	c.Step(3*second, pendings("a", "b", "c"))
	c.Step(4*second, ClientReq{ID: 9, Req: wire.Cancel{Job: 2}})
	var got []string
	first(c, 5, 60, func(o Output) bool { got = append(got, cancels(o)...); return false })
	if strings.Join(got, "") != "cb" && strings.Join(got, "") != "bc" {
		t.Errorf("%v are given back, wanted b and c", got)
	}
}

// An allocation whose node has joined has begun, whatever the backend has said of it last: work
// may be there.
func TestWhatHasJoinedIsNotTakenBack(t *testing.T) {
	c := queue(t, wire.Pool{Max: 2})
	gang := func(id uint64, at int64) {
		c.Step(at, ClientReq{ID: id, Req: wire.Submit{Token: strings.Repeat("x", int(id)), Spec: wire.JobSpec{Kind: wire.KindRun, Command: []string{"x"},
			Nodes: 1, Ranks: 1, RanksPerNode: 1, Resources: wire.Resources{CPU: wire.Unit}}}})
	}
	gang(1, second)
	old := sortedKeys(c.d.st.Subs)[0]
	c.Step(2*second, Submitted{Token: old, Allocs: []Alloc{{Handle: []byte("old"), Nodes: c.d.st.Subs[old].Nodes}}})
	gang(2, 3*second)
	first(c, 4, 8, func(Output) bool { return len(c.d.st.Subs) > 1 })
	var young string
	for token := range c.d.st.Subs {
		if token != old {
			young = token
		}
	}
	c.Step(9*second, Submitted{Token: young, Allocs: []Alloc{{Handle: []byte("young"), Nodes: c.d.st.Subs[young].Nodes}}})
	c.Step(9*second, pendings("old", "young"))
	c.Step(10*second, ClientReq{ID: 90, Req: wire.Cancel{Job: 1}})
	c.Step(10*second, ClientReq{ID: 91, Req: wire.Cancel{Job: 2}})
	j := c.jobs[submitOne(c, 11*second, wire.JobSpec{})]
	s := c.d.st.Subs[young]
	c.Step(15*second, AgentUp{Node: s.Nodes[0], Epoch: s.Epochs[0], Hello: wire.Hello{Total: wire.Resources{CPU: wire.Unit}}})
	c.Step(15*second, AgentMsg{Node: s.Nodes[0], Epoch: s.Epochs[0], Msg: wire.Running{Items: []wire.TryState{{Try: j.try(0), Running: true, Started: 15 * second}}}})
	if j.running != 1 {
		t.Fatal("the node that has joined has no work")
	}
	var got []string
	first(c, 16, 60, func(o Output) bool { got = append(got, cancels(o)...); return false })
	if strings.Join(got, " ") != "old" {
		t.Errorf("%q are given back, wanted the one that waits", got)
	}
}

// max_jobs holds however many nodes are asked for at once.
func TestMaxJobsIsNotOverrun(t *testing.T) {
	for _, x := range []struct{ jobs, per, ask, want int }{{2, 1, 4, 2}, {2, 2, 4, 4}, {1, 3, 4, 3}, {1, 0, 4, 4}, {3, 2, 5, 5}} {
		c := queue(t, wire.Pool{Min: x.ask, Max: x.ask, MaxJobs: x.jobs, PerAlloc: x.per})
		nodes := 0
		count := func() {
			for _, s := range c.d.st.Subs {
				nodes += len(s.Nodes)
			}
		}
		count()
		if nodes != x.want {
			t.Errorf("%+v: %d nodes are asked for", x, nodes)
		}
		if more := first(c, 2, 20, func(o Output) bool { return len(asks(o)) > 0 }); more != 0 {
			t.Errorf("%+v: more are asked for while there is no answer yet", x)
		}
	}
}

// What the last task of a node leaves is known to be needed only some time after it: by then
// a node that is drained has not left.
func TestLastTaskLeavesNeededValues(t *testing.T) {
	c := queue(t, wire.Pool{Max: 2})
	submitOne(c, second, wire.JobSpec{})
	join(c, sortedKeys(c.d.st.Subs)[0], "h", 2*second)
	c.Step(3*second, AgentMsg{Node: "burst-0", Epoch: 1, Msg: wire.Done{Seq: 1, Items: []wire.Ended{{Proc: wire.Proc{Try: wire.Try{Task: wire.Task{Job: 1}, Attempt: 1}}}}}})
	ends := int64(0)
	look := func(o Output) bool {
		for _, e := range o.Effects {
			if s, ok := e.(SendAgent); ok && s.Typ == wire.MsgShutdown {
				ends = c.now
			}
		}
		return ends != 0
	}
	one := wire.Resources{CPU: wire.Unit}
	beat := func(at int64, b wire.Beat) { look(c.Step(at, AgentMsg{Node: "burst-0", Epoch: 1, Msg: b})) }
	beat(5*second, wire.Beat{Tasks: one})
	look(c.Step(6*second, ClientReq{ID: 9, Req: wire.DrainRequest{Node: "burst-0"}}))
	beat(7*second, wire.Beat{Free: one})
	look(c.Step(7*second, Tick{}))
	beat(8*second, wire.Beat{Free: one, Needed: true})
	if at := first(c, 9, 30, look); at != 0 || ends != 0 {
		t.Fatalf("it leaves at %v with what its last task has left", ends)
	}
	beat(31*second, wire.Beat{Free: one})
	if at := first(c, 32, 60, look); at == 0 {
		t.Error("it never leaves")
	}
}

// A node with values that others need is not idle; one that is drained stays until they are
// elsewhere, or its time is over, and who follows its life is told.
func TestNeededValuesKeepANode(t *testing.T) {
	for _, deadline := range []bool{false, true} {
		c := queue(t, wire.Pool{Max: 2, Idle: 5 * second})
		submitOne(c, second, wire.JobSpec{})
		join(c, sortedKeys(c.d.st.Subs)[0], "h", 2*second)
		c.Step(2500*second/1000, AgentMsg{Node: "burst-0", Epoch: 1, Msg: wire.Beat{Needed: true}})
		if lines := strings.Join(c.whyPool(c.pools["burst"]), "\n"); strings.Contains(lines, "has values") {
			t.Errorf("of an agent that has not looked: %s", lines)
		}
		c.Step(3*second, AgentMsg{Node: "burst-0", Epoch: 1, Msg: wire.Done{Seq: 1, Items: []wire.Ended{{Proc: wire.Proc{Try: wire.Try{Task: wire.Task{Job: 1}, Attempt: 1}}}}}})
		beat := func(at int64, needed bool) {
			c.Step(at*second, AgentMsg{Node: "burst-0", Epoch: 1, Msg: wire.Beat{Free: wire.Resources{CPU: wire.Unit}, Needed: needed}})
		}
		beat(4, true)
		if at := first(c, 5, 60, drained(c, "burst-0")); at != 0 {
			t.Fatalf("it is given back after %d s though others need what it has", at)
		}
		c.Step(61*second, AgentMsg{Node: "burst-0", Epoch: 1, Msg: wire.PeerAsk{Numbers: []uint32{c.durable(c.nodes["burst-0"]).Number}}})
		r := wire.DrainRequest{Node: "burst-0"}
		if deadline {
			r.Grace = 40 * second
		}
		told, ends := false, int64(0)
		look := func(o Output) bool {
			for _, e := range o.Effects {
				if s, ok := e.(SendAgent); ok {
					switch m := s.Msg.(type) {
					case wire.Peer:
						told = told || m.Leaves
					case wire.Shutdown:
						ends = c.now / second
					}
				}
			}
			return ends != 0
		}
		look(c.Step(62*second, ClientReq{ID: 9, Req: r}))
		if lines := strings.Join(c.whyPool(c.pools["burst"]), "\n"); !strings.Contains(lines, "has values that others need") {
			t.Errorf("why: %s", lines)
		}
		switch at := first(c, 63, 90, look); {
		case !told:
			t.Error("it is not told that it is to leave")
		case at != 0:
			t.Errorf("it leaves at %d s though others need what it has", at)
		}
		if !deadline {
			beat(91, false)
		}
		if at := first(c, 91, 120, look); at == 0 || deadline && at < 102 {
			t.Errorf("with a deadline %v it leaves at %d s", deadline, at)
		}
	}
	// Without them it is idle.
	c := queue(t, wire.Pool{Max: 2, Idle: 5 * second})
	submitOne(c, second, wire.JobSpec{})
	join(c, sortedKeys(c.d.st.Subs)[0], "h", 2*second)
	c.Step(3*second, AgentMsg{Node: "burst-0", Epoch: 1, Msg: wire.Done{Seq: 1, Items: []wire.Ended{{Proc: wire.Proc{Try: wire.Try{Task: wire.Task{Job: 1}, Attempt: 1}}}}}})
	c.Step(4*second, AgentMsg{Node: "burst-0", Epoch: 1, Msg: wire.Beat{Free: wire.Resources{CPU: wire.Unit}, Needed: true}})
	c.Step(20*second, AgentMsg{Node: "burst-0", Epoch: 1, Msg: wire.Beat{Free: wire.Resources{CPU: wire.Unit}}})
	if at := first(c, 21, 60, drained(c, "burst-0")); at < 24 || at > 27 {
		t.Errorf("when nobody needs them any more it is given back at %d s", at)
	}
}

// One that begins when it is to be taken back stays, and is given back like any other later.
func TestBeginsWhenTakenBack(t *testing.T) {
	c := queue(t, wire.Pool{Max: 2})
	submitOne(c, second, wire.JobSpec{})
	token := sortedKeys(c.d.st.Subs)[0]
	c.Step(2*second, Submitted{Token: token, Allocs: []Alloc{{Handle: []byte("h"), Nodes: c.d.st.Subs[token].Nodes}}})
	c.Step(3*second, pendings("h"))
	c.Step(10*second, ClientReq{ID: 2, Req: wire.Cancel{Job: 1}})
	at := first(c, 11, 120, func(o Output) bool {
		for _, e := range o.Effects {
			if x, ok := e.(CancelAllocs); ok {
				if !x.Waiting {
					t.Error("one that may have begun is cancelled")
				}
				return true
			}
		}
		return false
	})
	if at == 0 {
		t.Fatal("it is not taken back")
	}
	c.Step((at+1)*second, AllocStatus{Pool: "burst", Items: []AllocItem{{Handle: []byte("h"), State: AllocRunning}}})
	if p := c.pools["burst"]; len(p.cancel) != 0 || len(p.waits) != 0 {
		t.Errorf("it has begun, and is taken for cancelled: %v %v", p.cancel, p.waits)
	}
}

// What a backend says of allocations that do not end, `down` says.
func TestDownSaysWhy(t *testing.T) {
	c := queue(t, wire.Pool{Max: 2})
	submitOne(c, second, wire.JobSpec{})
	token := sortedKeys(c.d.st.Subs)[0]
	c.Step(2*second, Submitted{Token: token, Allocs: []Alloc{{Handle: []byte("h"), Nodes: c.d.st.Subs[token].Nodes}}})
	c.Step(3*second, ClientReq{ID: 2, Req: wire.Down{}})
	var left []string
	at := first(c, 4, 120, func(o Output) bool {
		for _, e := range o.Effects {
			switch e := e.(type) {
			case CancelAllocs:
				st := pendings("h")
				st.Items[0].Why = "Slurm cannot be asked: it sleeps"
				defer c.Step(c.now, st)
			case CloseDown:
				left = e.Left
				return true
			}
		}
		return false
	})
	if at == 0 || len(left) != 1 || !strings.HasSuffix(left[0], " (Slurm cannot be asked: it sleeps)") {
		t.Errorf("at %d s: %q", at, left)
	}
}
