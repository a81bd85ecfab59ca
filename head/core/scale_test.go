package core

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"launcher/wire"
)

// farm is a head with nodes that run what they are given at once.
type farm struct {
	t     testing.TB
	c     *Core
	now   int64
	nodes map[wire.NodeID]*farmNode
	bytes int // of records
	given int
	sends int
}

type farmNode struct {
	seq   uint64
	queue []wire.Try
}

func newFarm(t testing.TB, nodes int, cpu int64) *farm {
	f := &farm{t: t, now: 1_000_000 * second, nodes: map[wire.NodeID]*farmNode{}}
	f.c = New(Config{Cluster: "farm", Nonce: "n", Machines: testMachines, Pools: []wire.Pool{{Name: "p", Min: nodes, Max: nodes}}}, NewDurable(testMachines))
	f.step(Start{})
	for i := range nodes {
		id := wire.NodeID(fmt.Sprintf("p-%d", i))
		f.nodes[id] = &farmNode{}
		f.step(AgentUp{Node: id, Epoch: 1, Hello: wire.Hello{Node: id, Epoch: 1, Total: wire.Resources{CPU: cpu * wire.Unit}}})
	}
	return f
}

func (f *farm) step(ev Event) {
	out := f.c.Step(f.now, ev)
	for _, r := range out.Records {
		f.bytes += len(EncodeRecord(r))
	}
	for _, e := range out.Effects {
		s, ok := e.(SendAgent)
		if !ok {
			continue
		}
		f.sends++
		n := f.nodes[s.Node]
		switch m := s.Msg.(type) {
		case wire.Assign:
			for _, r := range m.Ranges {
				for i := r.From; i < r.To; i++ {
					n.queue = append(n.queue, wire.Try{Task: wire.Task{Job: m.Job, Index: i}, Attempt: 1})
				}
			}
			for _, it := range m.Items {
				n.queue = append(n.queue, wire.Try{Task: wire.Task{Job: m.Job, Index: it.Index}, Attempt: it.Attempt})
			}
		case wire.Withdraw:
			r := wire.Returned{Job: m.Job}
			for k := int(m.Max); k > 0 && len(n.queue) > 0; k-- {
				r.Tries = append(r.Tries, n.queue[len(n.queue)-1])
				n.queue = n.queue[:len(n.queue)-1]
			}
			f.step(AgentMsg{Node: s.Node, Epoch: 1, Msg: r})
		}
	}
}

// run ends up to k tries of every node, for rounds until nothing is queued.
func (f *farm) run(k int, took int64) {
	for {
		busy := false
		f.now += 10 * millisecond
		for _, id := range sortedKeys(f.nodes) {
			n := f.nodes[id]
			if len(n.queue) == 0 {
				continue
			}
			busy = true
			m := wire.Done{}
			for _, t := range n.queue[:min(k, len(n.queue))] {
				m.Items = append(m.Items, wire.Ended{Proc: wire.Proc{Try: t}, Started: f.now - took, Ended: f.now})
			}
			f.given += len(m.Items)
			n.queue = n.queue[len(m.Items):]
			n.seq += uint64(len(m.Items))
			m.Seq = n.seq
			f.step(AgentMsg{Node: id, Epoch: 1, Msg: m})
		}
		if !busy {
			return
		}
	}
}

func array(n uint32) wire.Submit {
	return wire.Submit{Spec: wire.JobSpec{Kind: wire.KindArray, Command: []string{"true"}, Ranks: 1, Resources: wire.Resources{CPU: wire.Unit},
		Array: &wire.ArraySpec{Ranges: []wire.Range{{From: 0, To: n}}}}}
}

// TestMillionTasks runs a million tasks on a hundred nodes: what is kept and what is
// journalled stays a matter of ranges.
func TestMillionTasks(t *testing.T) {
	n := uint32(1_000_000)
	if testing.Short() || raceOn {
		n = 100_000
	}
	f := newFarm(t, 100, 8)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	f.step(ClientReq{ID: 1, Req: array(n)})
	if s := f.c.jobs[1]; len(s.pending.Spans) != 1 {
		t.Fatalf("%d spans for one range", len(s.pending.Spans))
	}
	f.run(400, millisecond)
	runtime.GC()
	runtime.ReadMemStats(&after)
	info, _ := f.c.Job(1)
	if info.State != wire.StateDone || info.Done != n || f.given != int(n) {
		t.Fatalf("%d tasks were run, the job says %+v", f.given, info)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	if f.bytes > int(n)*8 {
		t.Errorf("%d bytes of journal for %d tasks", f.bytes, n)
	}
	if s := len(f.c.d.Encode()); s > 64<<10 {
		t.Errorf("a snapshot of %d bytes", s)
	}
	t.Logf("%d bytes of journal, %d messages", f.bytes, f.sends)
}

// TestShortTasksAreGivenAhead: once it is known how short tasks are, a node has half a
// second of work queued; near the end nobody has more than its share.
func TestShortTasksAreGivenAhead(t *testing.T) {
	f := newFarm(t, 2, 2)
	f.step(ClientReq{ID: 1, Req: array(10_000)})
	for _, n := range f.nodes {
		if len(n.queue) != 4 {
			t.Fatalf("%d tries ahead at the start, want twice the slots", len(n.queue))
		}
	}
	n := f.nodes["p-0"]
	end := func(k int) {
		m := wire.Done{}
		for _, x := range n.queue[:k] {
			m.Items = append(m.Items, wire.Ended{Proc: wire.Proc{Try: x}, Started: f.now - millisecond, Ended: f.now})
		}
		n.queue, n.seq = n.queue[k:], n.seq+uint64(k)
		m.Seq = n.seq
		f.step(AgentMsg{Node: "p-0", Epoch: 1, Msg: m})
	}
	end(4)
	if k := len(n.queue); k != 1000 { // 2 slots, 1 ms each, 500 ms
		t.Errorf("%d tries ahead of tasks of 1 ms, want 1000", k)
	}
	for f.c.jobs[1].pending.len() > 0 {
		end(len(n.queue))
	}
	if k := len(n.queue); k > 20 {
		t.Errorf("the last node has %d tries queued while the other has %d", k, len(f.nodes["p-1"].queue))
	}
}

// BenchmarkPlacements is what the head costs per task, from accepted to ended, with
// completions in batches of 16. The figure to reach is 50,000 a second with
// 10,000 nodes.
func BenchmarkPlacements(b *testing.B) {
	for _, nodes := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) {
			f := newFarm(b, nodes, 8)
			b.ReportAllocs()
			b.ResetTimer()
			f.step(ClientReq{ID: 1, Req: array(uint32(b.N))})
			f.run(16, millisecond)
			b.StopTimer()
			if f.given != b.N {
				b.Fatalf("%d of %d", f.given, b.N)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
		})
	}
}

// TestLeasesAtScale: a million tasks that wait on a hundred of five thousand nodes are
// leased all the room there is, and a beat or two of demand does not keep the head long.
func TestLeasesAtScale(t *testing.T) {
	const nodes, askers, cpu = 5000, 100, 4
	f := newFarm(t, nodes, cpu)
	beat := func(id wire.NodeID, free int64) {
		f.step(AgentMsg{Node: id, Epoch: 1, Msg: wire.Beat{Free: wire.Resources{CPU: free * wire.Unit}}})
	}
	for i := range nodes {
		beat(wire.NodeID(fmt.Sprintf("p-%d", i)), cpu)
	}
	began := time.Now()
	for i := range askers {
		id := wire.NodeID(fmt.Sprintf("p-%d", i))
		beat(id, 0)
		f.step(AgentMsg{Node: id, Epoch: 1, Msg: wire.Demand{Shapes: []wire.Demanded{{ID: 1, Waiting: 10_000, Shape: wire.Shape{Resources: wire.Resources{CPU: wire.Unit}, Job: wire.JobID(i)}}}}})
	}
	for range 10 {
		f.now += matchEvery
		f.step(Tick{})
	}
	took := time.Since(began)
	slots := 0
	for _, n := range f.c.order {
		for _, l := range n.gives {
			slots += l.slots
		}
	}
	if want := (nodes - askers) * cpu; slots != want {
		t.Errorf("%d slots are leased of %d", slots, want)
	}
	t.Logf("%d slots in %s", slots, took)
	if took > 20*time.Second {
		t.Errorf("that took %s", took)
	}
	if err := f.c.Check(); err != nil {
		t.Error(err)
	}
}
