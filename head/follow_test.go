package head

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/follow"
	"launcher/wire/session"
)

// host is where the agent says that it is: on a machine of its own once followers are asked for.
func (a *agent) host() string {
	if a.c.opts == nil {
		return "here"
	}
	return "host-" + string(a.node)
}

func (c *cluster) copyDir(n wire.NodeID) string { return filepath.Join(c.dir, "copies", string(n)) }

func (a *agent) follow(ctx context.Context, s *session.Session) {
	for {
		_, st, err := s.Accept(ctx)
		if err != nil {
			return
		}
		if err := follow.New(a.c.copyDir(a.node), 0).Serve(st); err != nil {
			_ = st.WriteErr(err)
		}
		_ = st.Close()
	}
}

// followed waits until n nodes have all of the journal, and names them.
func (c *cluster) followed(t *testing.T, n int) (nodes []wire.NodeID) {
	t.Helper()
	within(t, "the journal is followed", func() bool {
		nodes = nil
		for _, f := range mustAsk[wire.ClusterInfo](t, c.client(), wire.MsgInfo, wire.InfoRequest{}).Followers {
			if f.Behind == 0 {
				nodes = append(nodes, f.Node)
			}
		}
		return len(nodes) == n
	})
	return nodes
}

// TestMachineLost: a head is lost with everything on its machine in the middle of an array;
// another one goes on with the best copy of its journal. What had been acknowledged is not
// run again, and the head that was replaced finds out as soon as a node speaks to it.
func TestMachineLost(t *testing.T) {
	c := newCluster(t, 3)
	c.opts = func(o *Options) { o.Followers, o.snapshotRecs = 2, 50 }
	c.start()
	s := c.client()
	mustAsk[wire.Submitted](t, s, wire.MsgSubmit, wire.Submit{Token: "t", Spec: array(300)})
	within(t, "some tasks have ended", func() bool { return c.ran() >= 100 })
	c.kill()
	c.start() // a restart: the same followers, a newer epoch
	within(t, "more tasks have ended", func() bool { return c.ran() >= 150 })
	if info := watch(t, c.client(), 1); info.State != wire.StateDone || info.Done != 300 {
		t.Fatalf("ended %s with %+v", info.State, info)
	}
	nodes := c.followed(t, 2)
	ran := c.ran()
	c.kill()
	journal := filepath.Join(c.dir, "journal")
	kept := filepath.Join(c.dir, "kept")
	if err := os.Rename(journal, kept); err != nil {
		t.Fatal(err)
	}
	var found []follow.Found
	for _, n := range nodes {
		found = append(found, follow.Look(c.copyDir(n))...)
	}
	best := slices.MaxFunc(found, follow.Compare)
	if err := follow.Install(best, journal); err != nil {
		t.Fatal(err)
	}
	conf, err := ReadConfig(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	conf.Term, conf.SpecText = 1, "version = 1 # as it was before an update\n"
	c.configure(conf)
	c.start()
	s = c.client()
	if i := mustAsk[wire.ClusterInfo](t, s, wire.MsgInfo, wire.InfoRequest{}); i.HeadEpoch != 1<<16+1 || len(i.Nodes) != 3 || i.SpecText != "version = 1\n" {
		t.Errorf("the new head: epoch %d, %d nodes, spec %q", i.HeadEpoch, len(i.Nodes), i.SpecText)
	}
	if info := watch(t, s, 1); info.State != wire.StateDone || info.Done != 300 || c.ran() != ran {
		t.Errorf("the array afterwards: %+v; %d tasks ran, %d before", info, c.ran(), ran)
	}
	// A number that the lost end of the journal may have given out is not given out again.
	if got := mustAsk[wire.Submitted](t, s, wire.MsgSubmit, wire.Submit{Token: "u", Spec: array(20)}); got.Job != 1002 {
		t.Errorf("the next job is number %d", got.Job)
	}
	if info := watch(t, s, 1002); info.State != wire.StateDone {
		t.Errorf("a job afterwards: %+v", info)
	}
	c.followed(t, 2)
	// The head that was replaced comes back, with its own journal.
	c.kill()
	if err := os.RemoveAll(journal); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(kept, journal); err != nil {
		t.Fatal(err)
	}
	conf.Term = 0
	c.configure(conf)
	c.start()
	select {
	case err := <-c.end:
		if !errs.Is(err, errs.Fenced) {
			t.Errorf("the head that was replaced: %v", err)
		}
		c.head = nil
	case <-time.After(testBound):
		t.Error("the head that was replaced goes on")
	}
}
