package head

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/wire"
)

// TestRootFullDisk: with no room for the journal, new work and every other request get an
// error that says so, what runs is not harmed, and with room again all goes on.
func TestRootFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Skipf("SKIP: a small file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	c := newClusterIn(t, dir, 1)
	c.opts = func(o *Options) { o.journalRetry = 5 * time.Millisecond }
	gate := make(chan struct{})
	c.hold = true
	c.start()
	r := c.request()
	c.mu.Lock()
	a := newAgent(c, r.Nodes[0], r.Epochs[0], r)
	a.gate = gate
	c.startAgent(a)
	c.mu.Unlock()
	s := c.client()
	mustAsk[wire.Submitted](t, s, wire.MsgSubmit, wire.Submit{Token: "before", Spec: array(20)})
	within(t, "tasks run", func() bool { return c.ran() > 0 })

	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 2<<20), 0o600); err == nil {
		t.Fatal("the file system is larger than asked for")
	}
	// The first to meet the full disk: it was taken, and cannot be promised.
	long := array(1)
	long.Command = []string{"true", strings.Repeat("x", 64<<10)}
	_, err := ask[wire.Submitted](s, wire.MsgSubmit, wire.Submit{Token: "long", Spec: long})
	if !errs.Is(err, errs.Exhausted) {
		t.Errorf("the submit that found no room: %v", err)
	}
	close(gate) // the ends of what runs wait behind it
	_, err = ask[wire.Submitted](s, wire.MsgSubmit, wire.Submit{Token: "full", Spec: array(1)})
	if !errs.Is(err, errs.Exhausted) || len(errs.HintsOf(err)) == 0 {
		t.Errorf("a submit: %v", err)
	}
	within(t, "the head has heard of the ends", func() bool {
		info, err := ask[wire.ClusterInfo](s, wire.MsgInfo, wire.InfoRequest{})
		return err == nil && info.Jobs["running"] == 1
	})
	// The rest is answered, without what is not safe: the jobs that were refused and the
	// ends of the tasks.
	info, err := ask[wire.ClusterInfo](s, wire.MsgInfo, wire.InfoRequest{})
	if err != nil || info.Trouble == "" || info.Jobs["running"] != 1 || len(info.Jobs) != 1 || len(info.Nodes) != 1 || info.Nodes[0].State != "up" {
		t.Errorf("status: %+v, %v", info, err)
	}
	jobs, err := ask[[]wire.JobInfo](s, wire.MsgJobs, wire.JobsRequest{All: true})
	if err != nil || len(jobs) != 1 || jobs[0].ID != 1 || jobs[0].State != wire.StateRunning || jobs[0].Done != 0 || jobs[0].Running == 0 {
		t.Errorf("jobs: %+v, %v", jobs, err)
	}
	if nodes, err := ask[[]wire.NodeInfo](s, wire.MsgNodes, wire.NodesRequest{}); err != nil || len(nodes) != 1 {
		t.Errorf("nodes: %+v, %v", nodes, err)
	}
	if pools, err := ask[[]wire.PoolInfo](s, wire.MsgPools, wire.PoolsRequest{}); err != nil || len(pools) != 1 {
		t.Errorf("pools: %+v, %v", pools, err)
	}
	if _, err := read(s, wire.LogsRequest{Job: 1, Task: -1, Rank: -1}); err != nil {
		t.Errorf("logs: %v", err)
	}
	followed := make(chan wire.JobInfo, 1)
	c.wg.Go(func() {
		var last wire.JobInfo
		_ = stream(s, wire.MsgWatch, wire.Watch{Job: 1}, func(i wire.JobInfo) error {
			if last.ID == 0 {
				followed <- i
			}
			last = i
			return nil
		})
		followed <- last
	})
	if i := <-followed; i.Done != 0 || i.State != wire.StateRunning {
		t.Errorf("the first that a watcher is told: %+v", i)
	}
	if err := stream(s, wire.MsgWatch, wire.Watch{Job: 2}, func(wire.JobInfo) error { return nil }); err == nil {
		t.Error("a job that is not written down can be watched")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if i := <-followed; i.State != wire.StateDone {
		t.Errorf("the last that a watcher is told: %+v", i)
	}
	if info := watch(t, s, 1); info.State != wire.StateDone || info.Done != 20 {
		t.Errorf("the job that ran: %+v", info)
	}
	if sub := mustAsk[wire.Submitted](t, s, wire.MsgSubmit, wire.Submit{Token: "long", Spec: long}); sub.Job != 2 {
		t.Errorf("the work that was not promised is job %d", sub.Job)
	}
	if sub := mustAsk[wire.Submitted](t, s, wire.MsgSubmit, wire.Submit{Token: "full", Spec: array(1)}); sub.Job != 3 {
		t.Errorf("the work that was refused is job %d", sub.Job)
	}
	if got := output(t, s, wire.LogsRequest{Job: 1, Task: -1, Rank: -1, Follow: true}); len(got) != 20 {
		t.Errorf("output of %d tasks", len(got))
	}
}
