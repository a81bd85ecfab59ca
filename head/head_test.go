package head

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"launcher/head/record"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

// output gives what a job printed, per task in order.
func output(t testing.TB, s *session.Session, q wire.LogsRequest) map[uint32]string {
	t.Helper()
	out, err := read(s, q)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func read(s *session.Session, q wire.LogsRequest) (map[uint32]string, error) {
	out := map[uint32]string{}
	next := int64(-1)
	return out, stream(s, wire.MsgLogs, q, func(c wire.LogChunk) error {
		if c.Note != "" {
			return fmt.Errorf("note: %s", c.Note)
		}
		if c.Offset <= next {
			return fmt.Errorf("offset %d after %d", c.Offset, next)
		}
		next = c.Offset
		out[c.Proc.Index] += string(c.Data)
		return nil
	})
}

func TestArrayThenDown(t *testing.T) {
	c := newCluster(t, 2)
	c.task = func(it wire.Item) (string, int32) {
		return fmt.Sprintf("out %d\n", it.Index), map[bool]int32{true: 3}[it.Index == 7]
	}
	c.start()
	s := c.client()

	var f wire.ClusterFile
	b, err := os.ReadFile(filepath.Join(c.dir, clusterFile))
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil || f.Name != "test" || f.PID != os.Getpid() || f.Epoch != 1 || len(f.Addrs) != 1 || f.Fingerprint != c.ca.Fingerprint() || f.SpecPath != "/spec.toml" {
		t.Fatalf("cluster.json: %+v, %v", f, err)
	}

	// Follow the output while it comes, from a second connection.
	type result struct {
		out map[uint32]string
		err error
	}
	follow := make(chan result, 1)
	sub := mustAsk[wire.Submitted](t, s, wire.MsgSubmit, wire.Submit{Token: "t1", Spec: array(200)})
	if sub.Job != 1 {
		t.Fatalf("job %d", sub.Job)
	}
	s2 := c.client()
	go func() {
		out, err := read(s2, wire.LogsRequest{Job: 1, Task: -1, Rank: -1, Follow: true})
		follow <- result{out, err}
	}()
	if again := mustAsk[wire.Submitted](t, s, wire.MsgSubmit, wire.Submit{Token: "t1", Spec: array(200)}); again.Job != 1 {
		t.Errorf("the same token made job %d", again.Job)
	}
	info := watch(t, s, 1)
	if info.State != wire.StateFailed || info.Done != 199 || info.Failed != 1 || info.ExitCode != 3 {
		t.Errorf("ended %s with %+v", info.State, info)
	}
	got := <-follow
	if got.err != nil {
		t.Fatal(got.err)
	}
	for i := range uint32(200) {
		if want := fmt.Sprintf("out %d\n", i); got.out[i] != want {
			t.Fatalf("task %d printed %q", i, got.out[i])
		}
	}
	if one := output(t, s, wire.LogsRequest{Job: 1, Task: 42, Rank: -1}); len(one) != 1 || one[42] != "out 42\n" {
		t.Errorf("task 42 alone: %v", one)
	}
	// Whoever has joined twice or ran twice would show here.
	c.mu.Lock()
	for n, a := range c.agents {
		a.mu.Lock()
		for try, k := range a.runs {
			if k != 1 {
				t.Errorf("%s ran %s %d times", n, try, k)
			}
		}
		if a.conns != 1 {
			t.Errorf("%s connected %d times", n, a.conns)
		}
		a.mu.Unlock()
	}
	c.mu.Unlock()
	if all := mustAsk[[]wire.JobInfo](t, s, wire.MsgJobs, wire.JobsRequest{All: true}); len(all) != 1 || !all[0].LogsDone {
		t.Errorf("jobs: %+v", all)
	}
	if nodes := mustAsk[[]wire.NodeInfo](t, s, wire.MsgNodes, wire.NodesRequest{}); len(nodes) != 2 || nodes[0].State != "up" {
		t.Errorf("nodes: %+v", nodes)
	}
	ci := mustAsk[wire.ClusterInfo](t, s, wire.MsgInfo, wire.InfoRequest{})
	if ci.Name != "test" || ci.HeadEpoch != 1 || ci.Version != "v-test" {
		t.Errorf("info: %+v", ci)
	}

	var steps []wire.DownProgress
	if err := stream(s, wire.MsgDown, wire.Down{}, func(p wire.DownProgress) error { steps = append(steps, p); return nil }); err != nil {
		t.Fatalf("down: %v after %+v", err, steps)
	}
	if len(steps) == 0 || !steps[len(steps)-1].Final {
		t.Fatalf("down: %+v", steps)
	}
	select {
	case err := <-c.end:
		c.head = nil
		if err != nil {
			t.Fatalf("the head ended with %v", err)
		}
	case <-time.After(testBound):
		t.Fatal("the head does not end")
	}
	for _, name := range []string{socketFile, clusterFile} {
		if _, err := os.Lstat(filepath.Join(c.dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s is left", name)
		}
	}
	// The record is readable with nothing up.
	r, err := record.Open(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	tab, err := r.Table(1)
	if err != nil || tab.Job.State != wire.StateFailed || len(tab.Tasks) != 200 || tab.Tasks[7].ExitCode != 3 {
		t.Errorf("table: %+v, %v", tab, err)
	}
	n := 0
	if err := r.Logs(bounded(t), wire.LogsRequest{Job: 1, Task: -1, Rank: -1}, func(wire.LogChunk) error { n++; return nil }); err != nil || n != 200 {
		t.Errorf("%d chunks, %v", n, err)
	}
	if nodes, err := r.Nodes(); err != nil || len(nodes) != 2 {
		t.Errorf("nodes: %v, %v", nodes, err)
	}
	for _, a := range c.agents {
		if !a.down {
			t.Errorf("agent %s was not told to go", a.node)
		}
	}
}

// TestHeadKilled kills the head again and again while an array runs: agents and clients
// find the next one, every task runs once, and no output is lost or doubled.
func TestHeadKilled(t *testing.T) {
	c := newCluster(t, 2)
	c.start()
	s := c.client()
	mustAsk[wire.Submitted](t, s, wire.MsgSubmit, wire.Submit{Token: "t", Spec: array(400)})
	for kills := range 5 {
		within(t, "some tasks have ended", func() bool {
			return c.ran() >= 60*(kills+1)
		})
		c.kill()
		c.start()
		if e := mustAsk[wire.ClusterInfo](t, c.client(), wire.MsgInfo, wire.InfoRequest{}).HeadEpoch; e != wire.Epoch(kills+2) {
			t.Errorf("head epoch %d after %d kills", e, kills+1)
		}
	}
	s = c.client()
	info := watch(t, s, 1)
	if info.State != wire.StateDone || info.Done != 400 {
		t.Fatalf("ended %s with %+v", info.State, info)
	}
	got := output(t, s, wire.LogsRequest{Job: 1, Task: -1, Rank: -1, Follow: true})
	for i := range uint32(400) {
		if want := fmt.Sprintf("task 1.%d#1\n", i); got[i] != want {
			t.Errorf("task %d printed %q", i, got[i])
		}
	}
	if n := c.ran(); n != 400 {
		t.Errorf("%d tasks ran", n)
	}
}

// ran counts what the agents were made to run.
func (c *cluster) ran() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.agents {
		a.mu.Lock()
		for _, k := range a.runs {
			n += k
		}
		a.mu.Unlock()
	}
	return n
}

func TestCancel(t *testing.T) {
	c := newCluster(t, 1)
	gate := make(chan struct{})
	c.hold = true
	c.start()
	within(t, "nodes are asked for", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.reqs) == 1 })
	c.mu.Lock()
	a := newAgent(c, c.reqs[0].Nodes[0], c.reqs[0].Epochs[0], c.reqs[0])
	a.gate = gate
	c.startAgent(a)
	c.mu.Unlock()
	s := c.client()
	mustAsk[wire.Submitted](t, s, wire.MsgSubmit, wire.Submit{Token: "t", Spec: array(100)})
	within(t, "tasks run", func() bool { return c.ran() > 0 })
	if _, err := ask[wire.Cancelled](s, wire.MsgCancel, wire.Cancel{Job: 9, Grace: -1}); !errs.Is(err, errs.NotFound) {
		t.Errorf("cancel of no job: %v", err)
	}
	mustAsk[wire.Cancelled](t, s, wire.MsgCancel, wire.Cancel{Job: 1, Grace: -1})
	info := watch(t, s, 1)
	if info.State != wire.StateCancelled || info.ExitCode != 130 {
		t.Errorf("ended %s, code %d", info.State, info.ExitCode)
	}
	close(gate)
}

// TestReplaysExactly is the promise about the journal: at whatever offset the head dies,
// replaying what is there gives exactly the Durable that the head had then.
func TestReplaysExactly(t *testing.T) {
	c := newCluster(t, 2)
	c.task = func(it wire.Item) (string, int32) {
		return "x", map[bool]int32{true: 1}[it.Index%9 == 0 && it.Attempt == 1]
	}
	c.start()
	s := c.client()
	live := map[uint64]string{} // what the core had when so many records were written
	look := func() {
		c.head.do(func(core_ *coreT) {
			if len(c.head.records) == 0 { // none is between the core and the journal
				live[c.head.last] = string(core_.Durable().Encode())
			}
		})
	}
	for i := range 5 {
		spec := array(30)
		spec.RetryFailed = i % 2
		spec.Name = fmt.Sprint("job-", i)
		job := mustAsk[wire.Submitted](t, s, wire.MsgSubmit, wire.Submit{Token: fmt.Sprint(i), Spec: spec}).Job
		look()
		if i == 3 {
			mustAsk[wire.Cancelled](t, s, wire.MsgCancel, wire.Cancel{Job: job, Grace: -1})
		}
		for range 5 {
			look()
		}
		watch(t, s, job)
	}
	look()
	var final uint64
	c.head.do(func(*coreT) { final = c.head.last })
	c.kill()
	checkReplay(t, filepath.Join(c.dir, "journal"), live, final)
}

func TestRefused(t *testing.T) {
	c := newCluster(t, 1)
	c.start()
	s := c.client()
	check := func(what string, err error, kind errs.Kind) {
		t.Helper()
		if !errs.Is(err, kind) {
			t.Errorf("%s: %v, want an error of kind %s", what, err, kind)
		}
	}
	_, err := ask[struct{}](s, 0x03f0, struct{}{})
	check("a request of a newer version", err, errs.Version)
	_, err = ask[struct{}](s, wire.MsgSubmit, "not a Submit")
	check("a malformed request", err, errs.Corrupt)
	_, err = ask[wire.LogChunk](s, wire.MsgLogs, wire.LogsRequest{Job: 5, Task: -1, Rank: -1})
	check("logs of no job", err, errs.NotFound)
	_, err = ask[wire.JobInfo](s, wire.MsgWatch, wire.Watch{Job: 5})
	check("watch of no job", err, errs.NotFound)
	// A client may not pretend to be an agent.
	for _, kind := range []uint16{wire.StreamControl, wire.StreamLogs, wire.StreamRing, 77} {
		st, err := s.Open(bounded(t), kind)
		if err == nil {
			_ = st.SetReadDeadline(time.Now().Add(testBound))
			_, _, err = st.ReadMsg()
		}
		check(fmt.Sprintf("stream kind %d", kind), err, errs.Permission)
	}
	// A second head of the same directory.
	err = Main(bounded(t), Options{Dir: c.dir, Broker: c, Machines: machines})
	if err == nil || !strings.Contains(err.Error(), "another head") {
		t.Errorf("a second head: %v", err)
	}
	_, err = ReadConfig(t.TempDir())
	check("no configuration", err, errs.NotFound)
}

func TestPortIsKept(t *testing.T) {
	c := newCluster(t, 1)
	c.start()
	before := c.head.addresses()
	c.kill()
	c.start()
	if after := c.head.addresses(); !slices.Equal(before, after) {
		t.Errorf("the head was at %v and is at %v", before, after)
	}
}

func TestParsePorts(t *testing.T) {
	if a, b, err := ParsePorts("20000-20100"); a != 20000 || b != 20100 || err != nil {
		t.Error(a, b, err)
	}
	if a, b, err := ParsePorts("7"); a != 7 || b != 7 || err != nil {
		t.Error(a, b, err)
	}
	for _, s := range []string{"", "x", "5-4", "0-9", "1-70000", "1-2-3"} {
		if _, _, err := ParsePorts(s); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
}
