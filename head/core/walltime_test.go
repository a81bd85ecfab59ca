package core

import (
	"cmp"
	"strconv"
	"strings"
	"testing"

	"launcher/wire"
)

// granted is a queue whose first submission, of n nodes, was granted and has joined at 2 s.
func granted(t *testing.T, p wire.Pool, n int) *Core {
	t.Helper()
	p.Min, p.Max = n, n
	c := queue(t, p)
	join(c, sortedKeys(c.d.st.Subs)[0], "h1", 2*second)
	return c
}

// join lets the backend grant a submission as one allocation and its nodes come.
func join(c *Core, token, handle string, at int64) (ids []wire.NodeID) {
	s := c.d.st.Subs[token]
	c.Step(at, Submitted{Token: token, Allocs: []Alloc{{Handle: []byte(handle), Nodes: s.Nodes}}})
	for i, id := range s.Nodes {
		c.Step(at, AgentUp{Node: id, Epoch: s.Epochs[i], Hello: wire.Hello{Total: wire.Resources{CPU: wire.Unit}}})
	}
	return s.Nodes
}

func ends(handle string, at int64) AllocStatus {
	return AllocStatus{Pool: "burst", Items: []AllocItem{{Handle: []byte(handle), State: AllocRunning, Deadline: at}}}
}

// first gives the first second, up to one, in which something is so.
func first(c *Core, from, to int64, is func(Output) bool) int64 {
	for now := from; now <= to; now++ {
		for _, n := range c.order {
			n.seen = now * second // they are not silent
		}
		if is(c.Step(now*second, Tick{})) {
			return now
		}
	}
	return 0
}

func drained(c *Core, id wire.NodeID) func(Output) bool {
	return func(Output) bool { return c.d.st.Nodes[id].Drain != nil }
}

func submitOne(c *Core, at int64, s wire.JobSpec) wire.JobID {
	s.Kind, s.Command = wire.KindRun, []string{"x"}
	if s.Resources.Nothing() {
		s.Resources = wire.Resources{CPU: wire.Unit}
	}
	c.Step(at, ClientReq{ID: uint64(at), Req: wire.Submit{Token: strconv.FormatInt(at, 10), Spec: s}})
	return c.d.st.NextJob
}

// A node is drained before its time is over: by what stopping takes; by what saving takes
// where it has work, once that has shown how long; never by more than a quarter of it.
func TestLead(t *testing.T) {
	for _, x := range []struct {
		name string
		end  int64
		work func(c *Core)
		want int64 // before the end
	}{
		{"idle", 5000, func(*Core) {}, 30},
		{"unknown", 5000, func(c *Core) { submitOne(c, 3*second, wire.JobSpec{}) }, 120},
		{"reports", 5000, func(c *Core) {
			j := c.jobs[submitOne(c, 3*second, wire.JobSpec{})]
			for k := range int64(3) {
				c.Step(4*second, AgentMsg{Node: "burst-0", Epoch: 1, Msg: wire.Report{Proc: wire.Proc{Try: j.try(0)}, Step: k, Time: (4 + 100*k) * second}})
			}
		}, 230},
		{"checkpoints", 5000, func(c *Core) {
			j := c.jobs[submitOne(c, 3*second, wire.JobSpec{})]
			for k := range int64(3) {
				c.Step(4*second, AgentMsg{Node: "burst-0", Epoch: 1, Msg: wire.Report{Proc: wire.Proc{Try: j.try(0)}, Step: k, Time: (4 + 10*k) * second, Checkpoint: "/c"}})
			}
		}, 50},
		{"left", 5000, func(c *Core) { c.jobs[submitOne(c, 3*second, wire.JobSpec{})].Left = 5 * second }, 40},
		{"for ever", 5000, func(c *Core) { c.jobs[submitOne(c, 3*second, wire.JobSpec{})].Left = 3600 * second }, 1230},
		{"short", 122, func(c *Core) { submitOne(c, 3*second, wire.JobSpec{}) }, 30},
	} {
		c := granted(t, wire.Pool{}, 1)
		c.Step(3*second, ends("h1", x.end))
		x.work(c)
		if at := first(c, 5, x.end, drained(c, "burst-0")); x.end-at != x.want {
			t.Errorf("%s: drained %d s before its end, wanted %d", x.name, x.end-at, x.want)
		}
	}
}

// An end that comes nearer counts at once, also for a node that is being drained; work is
// told of it.
func TestEndComesNearer(t *testing.T) {
	c := granted(t, wire.Pool{}, 1)
	c.Step(3*second, ends("h1", 5000))
	j := c.jobs[submitOne(c, 3*second, wire.JobSpec{})]
	c.Step(4*second, AgentMsg{Node: "burst-0", Epoch: 1, Msg: wire.Running{Items: []wire.TryState{{Try: j.try(0), Running: true, Started: 4 * second}}}})
	c.Step(1000*second, ends("h1", 1100))
	c.Step(1001*second, Tick{})
	if l := j.leaving[0]; l.why != wire.LeavePreempted || l.deadline != 1075*second {
		t.Fatalf("told %+v", l)
	}
	c.Step(1002*second, ends("h1", 1050))
	o := c.Step(1003*second, Tick{})
	if l := j.leaving[0]; l.deadline != 1038*second {
		t.Errorf("told %+v when it came nearer", l)
	}
	told := false
	for _, e := range o.Effects {
		s, ok := e.(SendAgent)
		if a, is := s.Msg.(wire.Advice); ok && is {
			told = a.Deadline == 1038*second
		}
	}
	if !told {
		t.Errorf("the agent is not told: %+v", o.Effects)
	}
	if lines := strings.Join(c.whyPool(c.pools["burst"]), "\n"); !strings.Contains(lines, "burst-0 leaves: its allocation ends") {
		t.Errorf("why: %s", lines)
	}
}

// What a node is told by whoever granted it is the same event, whether or not it is known when
// it ends; the backend is asked at once.
func TestNotice(t *testing.T) {
	for _, by := range []int64{0, 1010} {
		c := granted(t, wire.Pool{}, 1)
		c.Step(3*second, ends("h1", 5000))
		j := c.jobs[submitOne(c, 3*second, wire.JobSpec{})]
		first(c, 5, 1000, func(Output) bool { return false })
		o := c.Step(1000*second, AgentMsg{Node: "burst-0", Epoch: 1, Msg: wire.Leaving{Why: "a signal", By: by * second}})
		if c.d.st.Jobs[j.id].Told[0].Attempt != 1 {
			t.Errorf("by %d: that it was told is not known in time", by)
		}
		c.nodes["burst-0"].seen = 1001 * second
		more := c.Step(1001*second, Tick{})
		o.Effects = append(o.Effects, more.Effects...)
		if l := j.leaving[0]; l.why != wire.LeavePreempted || l.deadline != by*second-by/1010*2500*millisecond {
			t.Errorf("by %d: told %+v", by, l)
		}
		if ask := asks(o); len(ask) != 1 || len(ask[0].After) != 1 {
			t.Errorf("by %d: in its place %+v is asked for", by, ask)
		}
		queried := false
		for _, e := range o.Effects {
			if _, ok := e.(QueryAllocs); ok {
				queried = true
			}
		}
		if !queried && by == 0 {
			t.Error("the backend is not asked")
		}
		if lines := strings.Join(c.whyPool(c.pools["burst"]), "\n"); !strings.Contains(lines, "burst-0 leaves: a signal") {
			t.Errorf("why: %s", lines)
		}
		c.Step(1002*second, AgentMsg{Node: "burst-0", Epoch: 1, Msg: wire.Running{Items: []wire.TryState{{Try: j.try(0), Running: true, Started: 4 * second}}}})
		c.Step(1002*second, ends("h1", 1005))
		c.Step(1003*second, Tick{})
		if l := j.leaving[0]; by == 0 && l.deadline == 0 {
			t.Errorf("told %+v when its end is known", l)
		}
	}
}

// The one in a node's place is asked for before it is drained, once, and told after what.
func TestSuccessor(t *testing.T) {
	c := granted(t, wire.Pool{}, 2)
	const end = 5000
	if ask := asks(c.Step(3*second, ends("h1", end))); len(ask) > 0 {
		t.Fatalf("asked for %+v long before the end", ask)
	}
	var ask []SubmitNodes
	at := first(c, 4, end, func(o Output) bool { ask = asks(o); return len(ask) > 0 })
	if at != end-330 || len(ask) != 1 || len(ask[0].Nodes) != 2 || ask[0].Nodes[0] != "burst-2" || len(ask[0].After) != 1 || string(ask[0].After[0]) != "h1" {
		t.Fatalf("%d s before the end %+v is asked for, wanted two other nodes after h1", end-at, ask)
	}
	if d := c.d.st.Nodes["burst-0"]; d.Drain != nil || !c.usable(c.nodes["burst-0"]) {
		t.Errorf("the old node is not used any more: %+v", d)
	}
	if again := asks(c.Step((end-20)*second, Tick{})); len(again) > 0 {
		t.Errorf("asked for %+v once more", again)
	}
	// One that the user has drained is not replaced.
	c = granted(t, wire.Pool{}, 1)
	c.Step(3*second, ends("h1", end))
	c.Step(4*second, ClientReq{ID: 9, Req: wire.DrainRequest{Node: "burst-0"}})
	if at := first(c, 5, end, func(o Output) bool { return len(asks(o)) > 0 }); at != 0 {
		t.Error("in the place of a node that the user drained another one is asked for")
	}
	c = granted(t, wire.Pool{}, 2)
	c.Step(4*second, ClientReq{ID: 9, Req: wire.DrainRequest{Node: "burst-0"}})
	c.d.st.Nodes["burst-0"].State = nodeGone
	if lines := strings.Join(c.whyPool(c.pools["burst"]), "\n"); !strings.Contains(lines, "drained by hand: 1; at most 1 nodes are asked for then, not 2") {
		t.Errorf("why: %s", lines)
	}
}

// Where nodes come by demand, one that works is followed by another, one that idles is not.
func TestSuccessorByDemand(t *testing.T) {
	for _, work := range []bool{true, false} {
		c := queue(t, wire.Pool{Max: 1, Idle: 1000000 * second})
		submitOne(c, second, wire.JobSpec{})
		join(c, sortedKeys(c.d.st.Subs)[0], "h1", 2*second)
		c.Step(3*second, ends("h1", 5000))
		if !work {
			c.Step(3*second, ClientReq{ID: 2, Req: wire.Cancel{Job: 1}})
			c.Step(3*second, AgentMsg{Node: "burst-0", Epoch: 1, Msg: wire.Done{Seq: 1, Items: []wire.Ended{{Proc: wire.Proc{Try: wire.Try{Task: wire.Task{Job: 1}, Attempt: 1}}, Code: -1, Reason: wire.ReasonCancelled}}}})
		}
		if at := first(c, 5, 4990, func(o Output) bool { return len(asks(o)) > 0 }); (at != 0) != work {
			t.Errorf("with work %v: another node asked for at %d", work, at)
		}
	}
}

// A chain of allocations ends by max_jobs, total, until; why says so.
func TestChain(t *testing.T) {
	for _, x := range []struct {
		name string
		pool wire.Pool
		want string
		ends int64 // of the first node, if that is sooner
	}{
		{"max_jobs", wire.Pool{MaxJobs: 1}, "max_jobs = 1", 5000},
		{"total", wire.Pool{Total: 3000 * second}, "total = 50 min", 3002},
		{"until", wire.Pool{UntilAt: 2000 * second, Until: "06:00"}, "until = 06:00", 2000},
	} {
		c := granted(t, x.pool, 1)
		c.Step(3*second, ends("h1", 5000))
		asked := int64(0)
		at := first(c, 4, 5000, func(o Output) bool {
			if len(asks(o)) > 0 {
				asked = c.now / second
			}
			return c.d.st.Nodes["burst-0"].Drain != nil
		})
		if at != x.ends-30 || asked != 0 {
			t.Errorf("%s: drained at %d, wanted %d; another node asked for at %d", x.name, at, x.ends-30, asked)
		}
		if lines := strings.Join(c.whyPool(c.pools["burst"]), "\n"); !strings.Contains(lines, "no more nodes are asked for") || !strings.Contains(lines, x.want) {
			t.Errorf("%s: why says %s", x.name, lines)
		}
	}
	// What is asked for is told how long it is of use; a cluster that is brought up anew
	// begins another chain.
	c := granted(t, wire.Pool{Total: 10000 * second}, 1)
	c.Step(3*second, ends("h1", 5000))
	var ask []SubmitNodes
	at := first(c, 4, 5000, func(o Output) bool { ask = asks(o); return len(ask) > 0 })
	if len(ask) != 1 || ask[0].Within != (10002-at)*second {
		t.Errorf("at %d %+v is asked for", at, ask)
	}
	if err := c.d.Apply(RecHead{Epoch: 9, Again: true}); err != nil || len(c.d.st.Chains) != 0 {
		t.Errorf("brought up anew: %v %+v", err, c.d.st.Chains)
	}
}

// Work is not put where it would not come to its end, and why says so.
func TestTimeRequest(t *testing.T) {
	c := granted(t, wire.Pool{}, 1)
	c.Step(3*second, ends("h1", 5000))
	short := submitOne(c, 4*second, wire.JobSpec{TimeRequest: 600 * second})
	long := submitOne(c, 5*second, wire.JobSpec{TimeRequest: 6000 * second})
	c.Step(6*second, Tick{})
	n := c.nodes["burst-0"]
	if n.shares[short] == nil || n.shares[long] != nil {
		t.Errorf("on the node: %v", sortedKeys(n.shares))
	}
	if lines := strings.Join(c.whyJob(c.d.st.Jobs[long]), "\n"); !strings.Contains(lines, "it leaves in 83 min") || !strings.Contains(lines, "100 min that the job asks for") {
		t.Errorf("why: %s", lines)
	}
	// Nodes that would not last either are not asked for.
	for lasts, want := range map[int64]bool{0: true, 7200 * second: true, 3600 * second: false} {
		c := queue(t, wire.Pool{Max: 2, Idle: 5 * second, Lasts: lasts})
		j := submitOne(c, second, wire.JobSpec{TimeRequest: 6000 * second})
		c.Step(2*second, Tick{})
		lines := strings.Join(c.whyJob(c.d.st.Jobs[j]), "\n")
		if asked := len(c.d.st.Subs) > 0; asked != want || strings.Contains(lines, "pool burst is not asked for nodes: they last 60 min at most, and the job asks for 100 min") == want {
			t.Errorf("of nodes that last %d s one is asked for: %v; why: %s", lasts/second, asked, lines)
		}
	}
}

// What keeps the nodes of a job that runs from coming in is said until they are in.
func TestAwaited(t *testing.T) {
	c := queue(t, wire.Pool{Min: 2, Max: 2})
	s := c.d.st.Subs[sortedKeys(c.d.st.Subs)[0]]
	c.Step(second, Submitted{Token: sortedKeys(c.d.st.Subs)[0], Allocs: []Alloc{{Handle: []byte("h"), Nodes: s.Nodes}}})
	says := func(at int64) string {
		t.Helper()
		c.Step(at, AllocStatus{Pool: "burst", Items: []AllocItem{{Handle: []byte("h"), State: AllocRunning, Why: "a wall"}}})
		return c.poolInfos()[0].Why
	}
	up := func(i int) {
		c.Step(3*second, AgentUp{Node: s.Nodes[i], Epoch: s.Epochs[i], Hello: wire.Hello{Total: wire.Resources{CPU: wire.Unit}}})
	}
	if got := says(2 * second); got != "a wall" || !strings.Contains(strings.Join(c.whyPool(c.pools["burst"]), "\n"), "a wall") {
		t.Errorf("before they are in: %q", got)
	}
	up(0)
	if got := says(4 * second); got != "a wall" {
		t.Errorf("before all are in: %q", got)
	}
	up(1)
	if got := says(5 * second); got != "" {
		t.Errorf("when they are in: %q", got)
	}
}

// What work takes to save is known to the next head, by the journal and by a snapshot, and
// few records say so.
func TestLearnedStays(t *testing.T) {
	c := granted(t, wire.Pool{}, 1)
	j := c.jobs[submitOne(c, 3*second, wire.JobSpec{})]
	records := 0
	for k := range int64(1000) {
		took := 10 + k%3
		o := c.Step((4+10*k)*second, AgentMsg{Node: "burst-0", Epoch: 1, Msg: wire.Report{Proc: wire.Proc{Try: j.try(0)}, Step: k, Time: (4 + 10*k + took) * second, Checkpoint: "/c"}})
		for _, r := range o.Records {
			if l, ok := r.(RecLearned); ok {
				records++
				if b, err := DecodeRecord(EncodeRecord(l)); err != nil || b != r {
					t.Fatalf("%v: %+v became %+v", err, r, b)
				}
			}
		}
	}
	if records == 0 || records > 3 {
		t.Errorf("%d records of what was learned from 1000 reports", records)
	}
	for name, d := range map[string]*Durable{"the journal": c.d, "a snapshot": again(t, c.d)} {
		next := New(Config{Cluster: "lab", Nonce: "n", Machines: testMachines}, d)
		next.Step(20000*second, Start{})
		if got := next.jobs[j.id].saving(); got < 10*second || got > 13*second {
			t.Errorf("by %s saving takes %s", name, lasting(got))
		}
	}
}

func again(t *testing.T, d *Durable) *Durable {
	t.Helper()
	d, err := DecodeDurable(d.Encode(), testMachines)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A node is told when it ends, also before it has work, and again when that changes.
func TestNodeIsToldItsEnd(t *testing.T) {
	c := queue(t, wire.Pool{Max: 2})
	submitOne(c, second, wire.JobSpec{})
	token := sortedKeys(c.d.st.Subs)[0]
	s := c.d.st.Subs[token]
	c.Step(2*second, Submitted{Token: token, Allocs: []Alloc{{Handle: []byte("h"), Nodes: s.Nodes}}})
	c.Step(3*second, ends("h", 3603)) // before it joins
	told := func(o Output) (by []int64) {
		for _, e := range o.Effects {
			if x, ok := e.(SendAgent); ok {
				if m, ok := x.Msg.(wire.NodeEnds); ok {
					by = append(by, m.By/second)
				}
			}
		}
		return by
	}
	o := c.Step(4*second, AgentUp{Node: s.Nodes[0], Epoch: s.Epochs[0], Hello: wire.Hello{Total: wire.Resources{CPU: wire.Unit}}})
	if got := told(o); len(got) != 1 || got[0] < 3570 || got[0] > 3603 {
		t.Fatalf("when it joins: %v", got)
	}
	if got := told(c.Step(5*second, ends("h", 3603))); len(got) != 0 {
		t.Errorf("of the same end: %v", got)
	}
	for _, at := range []int64{1803, 7203} {
		if got := told(c.Step(6*second, ends("h", at))); len(got) != 1 || got[0] < at-33 || got[0] > at {
			t.Errorf("of %d: %v", at, got)
		}
	}
}

// A new head knows from its nodes when they end, until the backend says so.
func TestNextHeadKnowsEnds(t *testing.T) {
	c := granted(t, wire.Pool{}, 1)
	var over int64
	for _, e := range c.Step(3*second, ends("h1", 3603)).Effects {
		if x, ok := e.(SendAgent); ok {
			if m, ok := x.Msg.(wire.NodeEnds); ok {
				over = m.Over
			}
		}
	}
	if over != 3603*second {
		t.Fatalf("the node is told that it ends at %d", over)
	}
	n := c.order[0]
	for _, said := range []int64{0, 1803} {
		next := New(Config{Cluster: "lab", Nonce: "n", Machines: testMachines}, again(t, c.d))
		next.Step(4*second, Start{})
		if said != 0 {
			next.Step(5*second, ends("h1", said))
		}
		next.Step(6*second, AgentUp{Node: n.id, Epoch: n.epoch, Hello: wire.Hello{Total: wire.Resources{CPU: wire.Unit}, Deadline: over / second}})
		if got := next.nodes[n.id].ends / second; got != cmp.Or(said, 3603) {
			t.Errorf("the backend has said %d, the node 3603: %d", said, got)
		}
	}
}
