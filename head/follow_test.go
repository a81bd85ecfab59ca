package head

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	_ = s.Each(ctx, func(_ uint16, st *session.Stream) {
		defer st.Close()
		if err := follow.New(a.c.copyDir(a.node), 0).Serve(gated{st, a}); err != nil {
			_ = st.WriteErr(err)
		}
	})
}

// gated says what a follower has when the gate of its node's copies is open.
type gated struct {
	*session.Stream
	a *agent
}

func (g gated) WriteMsg(typ uint16, v any) error {
	g.a.c.mu.Lock()
	gate, slow := g.a.c.copies, g.a.c.slow
	g.a.c.mu.Unlock()
	time.Sleep(slow) // sleep: a far follower
	if gate != nil {
		select {
		case <-gate:
		case <-g.Session().Done():
		}
	}
	return g.Stream.WriteMsg(typ, v)
}

// holdCopies has followers not say that they have anything until the gate is opened.
func (c *cluster) holdCopies() (open func()) {
	gate := make(chan struct{})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.copies = gate
	return func() { close(gate) }
}

// TestFollowersHaveIt: nobody is told of what the followers do not have; one that takes too
// long is left, and has a copy again when it can.
func TestFollowersHaveIt(t *testing.T) {
	c := newCluster(t, 3)
	c.opts = func(o *Options) { o.Followers, o.keepUp = 2, testBound }
	c.start()
	c.followed(t, 2)
	open := c.holdCopies()
	got := make(chan error, 1)
	s := c.client()
	go func() {
		_, err := ask[wire.Submitted](s, wire.MsgSubmit, wire.Submit{Token: "t", Spec: array(3)})
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("a job that no follower has is accepted: %v", err)
	case <-time.After(100 * time.Millisecond): // that nothing comes
	}
	if n := c.ran(); n > 0 {
		t.Errorf("%d tasks of it were started", n)
	}
	open()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	watch(t, s, 1)
	c.kill()

	c.opts = func(o *Options) { o.Followers, o.keepUp = 2, 50*time.Millisecond }
	c.start()
	c.followed(t, 2)
	open = c.holdCopies()
	s = c.client()
	mustAsk[wire.Submitted](t, s, wire.MsgSubmit, wire.Submit{Token: "u", Spec: array(3)})
	if f := mustAsk[wire.ClusterInfo](t, s, wire.MsgInfo, wire.InfoRequest{}).Followers; len(f) == 0 || !f[0].Late {
		t.Errorf("followers that say nothing: %+v", f)
	}
	open()
	c.followed(t, 1)
}

// TestFollowersCannot: what keeps a follower from having a copy is said, the journal's and
// that of working directories, and it is asked less and less often.
func TestFollowersCannot(t *testing.T) {
	c := newCluster(t, 3)
	c.opts = func(o *Options) { o.Followers = 2 }
	copies := filepath.Join(c.dir, "copies")
	if err := os.WriteFile(copies, nil, 0o600); err != nil { // no directory, for whomever
		t.Fatal(err)
	}
	c.start()
	info := func() []wire.FollowerInfo {
		return mustAsk[wire.ClusterInfo](t, c.client(), wire.MsgInfo, wire.InfoRequest{}).Followers
	}
	within(t, "it is said why nobody follows", func() bool {
		f := info()
		return len(f) > 0 && strings.Contains(f[0].Why, "not a directory")
	})
	nodes := mustAsk[[]wire.NodeInfo](t, c.client(), wire.MsgNodes, wire.NodesRequest{})
	c.kill()
	if err := os.Remove(copies); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes { // whoever is asked
		dir := c.copyDir(n.ID)
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "trees"), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	c.start()
	within(t, "a copy without working directories is told", func() bool {
		return slices.ContainsFunc(info(), func(f wire.FollowerInfo) bool { return f.Why == "" && strings.Contains(f.Trees, "not a directory") })
	})

	wait := time.Duration(0)
	for _, want := range []time.Duration{5, 10, 20, 40, 80, 160, 300, 300} {
		if wait = longer(wait, time.Now()); wait != want*time.Second {
			t.Fatalf("%v, not %v s", wait, want)
		}
	}
	if got := longer(time.Minute, time.Now().Add(-time.Hour)); got != followRest {
		t.Errorf("after an hour in which it had all: %v", got)
	}
}

// TestTreesFollow: working directories are with the followers, too.
func TestTreesFollow(t *testing.T) {
	c := newCluster(t, 3)
	c.opts = func(o *Options) { o.Followers = 2 }
	dirs := filepath.Join(c.dir, "dirs")
	sum, big := strings.Repeat("a", 64), make([]byte, 600<<10)
	if err := errors.Join(os.Mkdir(dirs, 0o700), os.WriteFile(filepath.Join(dirs, sum), big, 0o600)); err != nil {
		t.Fatal(err)
	}
	c.start()
	nodes := c.copying(t, 2)
	there := func(name string) (n int) {
		for _, id := range nodes {
			if b, err := os.ReadFile(filepath.Join(c.copyDir(id), "trees", name)); err == nil && bytes.Equal(b, big) {
				n++
			}
		}
		return n
	}
	within(t, "both have it", func() bool { return there(sum) == 2 })
	other := strings.Repeat("b", 64)
	if err := os.Rename(filepath.Join(dirs, sum), filepath.Join(dirs, other)); err != nil {
		t.Fatal(err)
	}
	within(t, "both have the other one and no more the first", func() bool { return there(other) == 2 && there(sum) == 0 })
}

// followed waits until n nodes have all of the journal, and names them.
func (c *cluster) followed(t *testing.T, n int) []wire.NodeID { return c.followedBut(t, n, 0) }

// copying waits until n nodes have copies that count, and names them.
func (c *cluster) copying(t *testing.T, n int) []wire.NodeID { return c.followedBut(t, n, 1<<62) }

func (c *cluster) followedBut(t *testing.T, n int, behind uint64) (nodes []wire.NodeID) {
	t.Helper()
	within(t, "the journal is followed", func() bool {
		nodes = nil
		for _, f := range mustAsk[wire.ClusterInfo](t, c.client(), wire.MsgInfo, wire.InfoRequest{}).Followers {
			if f.Behind <= behind && !f.Late && f.Why == "" {
				nodes = append(nodes, f.Node)
			}
		}
		return len(nodes) == n
	})
	return nodes
}

// machineLost puts the best copy that nodes have in the place of the journal, for a head of
// the next term, and gives where the old one is.
func (c *cluster) machineLost(t *testing.T, nodes []wire.NodeID, term uint64) (kept string) {
	t.Helper()
	journal, kept := filepath.Join(c.dir, "journal"), filepath.Join(c.dir, fmt.Sprint("kept", term))
	if err := os.Rename(journal, kept); err != nil {
		t.Fatal(err)
	}
	var found []follow.Found
	for _, n := range nodes {
		found = append(found, follow.Look(c.copyDir(n))...)
	}
	if len(found) == 0 {
		t.Fatal("nobody has a copy")
	}
	if err := follow.Install(slices.MaxFunc(found, follow.Compare), journal); err != nil {
		t.Fatal(err)
	}
	conf, err := ReadConfig(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	conf.Term, conf.SpecText = term, "version = 1 # as it was before an update\n"
	c.configure(conf)
	return kept
}

// TestMachineLostAnyTime: whenever the head is lost with its machine, no element of an array
// is run twice: the nodes that live have every end that no copy knows of.
func TestMachineLostAnyTime(t *testing.T) {
	c := newCluster(t, 3)
	c.opts = func(o *Options) { o.Followers, o.keepUp, o.Lost = 2, testBound, testBound }
	c.slow = 10 * time.Millisecond // as on a network
	c.task = func(it wire.Item) (string, int32) {
		time.Sleep(time.Millisecond) // sleep: so that heads are lost in the middle
		return "", 0
	}
	c.start()
	const tasks = 1500
	mustAsk[wire.Submitted](t, c.client(), wire.MsgSubmit, wire.Submit{Token: "t", Spec: array(tasks)})
	for term := uint64(1); term <= 6; term++ {
		nodes := c.copying(t, 2)
		at := c.ran() + rand.IntN(tasks/8)
		within(t, "more tasks have ended", func() bool { return c.ran() >= min(at, tasks) })
		c.kill()
		c.machineLost(t, nodes, term)
		c.start()
	}
	info := watch(t, c.client(), 1)
	if info.State != wire.StateDone || info.Done != tasks || c.ran() != tasks {
		t.Errorf("ended %s with %d done; %d tasks ran, of %d", info.State, info.Done, c.ran(), tasks)
	}
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
	kept := c.machineLost(t, nodes, 1)
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
	journal := filepath.Join(c.dir, "journal")
	if err := os.RemoveAll(journal); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(kept, journal); err != nil {
		t.Fatal(err)
	}
	conf, err := ReadConfig(c.dir)
	if err != nil {
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
