package head

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// request gives the one request that the broker got.
func (c *cluster) request() backends.Request {
	c.t.Helper()
	within(c.t, "nodes are asked for", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.reqs) > 0 })
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reqs[0]
}

func TestJoining(t *testing.T) {
	c := newCluster(t, 2)
	c.hold = true
	c.start()
	r := c.request()
	if len(r.Nodes) != 2 || len(r.Join.Key) == 0 || !slices.Equal(r.Join.Addrs, c.head.addresses()) {
		t.Fatalf("request %+v", r)
	}
	join := func(change func(*secure.JoinRequest)) error {
		q := secure.JoinRequest{Key: r.Join.Key, Node: string(r.Nodes[0]), Epoch: uint64(r.Epochs[0]), Token: r.Token}
		if change != nil {
			change(&q)
		}
		_, err := session.Join(bounded(t), r.Join.Addrs, r.Join.CA, session.Config{Cluster: "test"}, q)
		return err
	}
	for what, x := range map[string]struct {
		change func(*secure.JoinRequest)
		kind   errs.Kind
	}{
		"no key":          {func(q *secure.JoinRequest) { q.Key = nil }, errs.Permission},
		"a wrong key":     {func(q *secure.JoinRequest) { q.Key = secure.NewKey() }, errs.Permission},
		"another token":   {func(q *secure.JoinRequest) { q.Token = "x" }, errs.Permission},
		"its own key":     {func(q *secure.JoinRequest) { q.Token = "x"; q.Key = c.head.joins.key("x") }, errs.Permission},
		"an unknown node": {func(q *secure.JoinRequest) { q.Node = "p-77" }, errs.NotFound},
		"an old epoch":    {func(q *secure.JoinRequest) { q.Epoch = 77 }, errs.Fenced},
	} {
		if err := join(x.change); !errs.Is(err, x.kind) {
			t.Errorf("%s: %v, want %s", what, err, x.kind)
		}
	}
	p, err := secure.NewPending()
	if err != nil {
		t.Fatal(err)
	}
	with := func() error {
		_, err := session.JoinWith(bounded(t), r.Join.Addrs, r.Join.CA, session.Config{Cluster: "test"},
			secure.JoinRequest{Key: r.Join.Key, Node: string(r.Nodes[0]), Epoch: uint64(r.Epochs[0]), Token: r.Token}, p)
		return err
	}
	if err := with(); err != nil {
		t.Fatalf("the right key, after all that: %v", err)
	}
	if err := with(); err != nil {
		t.Errorf("the one that joined, whose answer was lost: %v", err)
	}
	if err := join(nil); !errs.Is(err, errs.Fenced) {
		t.Errorf("the same key again: %v", err)
	}
	// The next head knows both.
	c.kill()
	c.start()
	if err := join(nil); !errs.Is(err, errs.Fenced) {
		t.Errorf("the same key at the next head: %v", err)
	}
	if err := with(); err != nil {
		t.Errorf("the one that joined, at the next head: %v", err)
	}
	if err := join(func(q *secure.JoinRequest) { q.Node = string(r.Nodes[1]) }); err != nil {
		t.Errorf("the other node at the next head: %v", err)
	}
	if st, err := os.Stat(filepath.Join(c.dir, secure.SecretFile)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the secret: %v, %v", st, err)
	}
}

func TestSessionIsForItsNode(t *testing.T) {
	c := newCluster(t, 1)
	c.hold = true
	c.start()
	r := c.request()
	a := newAgent(c, r.Nodes[0], r.Epochs[0], r)
	if err := a.join(bounded(t)); err != nil {
		t.Fatal(err)
	}
	for what, send := range map[string]func(*session.Stream) error{
		"another node's name":  func(st *session.Stream) error { return st.WriteMsg(wire.MsgHello, wire.Hello{Node: "p-9", Epoch: 1}) },
		"no Hello":             func(st *session.Stream) error { return st.WriteMsg(wire.MsgBeat, wire.Beat{}) },
		"a malformed Hello":    func(st *session.Stream) error { return st.WriteRaw(wire.MsgHello, []byte{0xc1}) },
		"another node's epoch": func(st *session.Stream) error { return st.WriteMsg(wire.MsgHello, wire.Hello{Node: a.node, Epoch: 99}) },
	} {
		s, err := session.Dial(bounded(t), r.Join.Addrs, session.Config{Identity: a.id}, secure.RoleHead)
		if err != nil {
			t.Fatal(err)
		}
		st, err := s.Open(bounded(t), wire.StreamControl)
		if err == nil {
			err = send(st)
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = st.SetReadDeadline(time.Now().Add(testBound))
		typ, _, err := st.ReadMsg()
		if err != nil || typ != wire.MsgError {
			t.Errorf("%s: message %#x, %v", what, typ, err)
		}
		select {
		case <-s.Done():
		case <-time.After(testBound):
			t.Errorf("%s: the session goes on", what)
		}
	}
	// A node with a certificate that is not part of the cluster, since it was replaced, has
	// no right to anything; nor has one that is to the output of another.
	hello := func(epoch wire.Epoch, kind uint16, typ uint16, msg any) (uint16, error) {
		s, err := session.Dial(bounded(t), r.Join.Addrs, session.Config{Identity: a.id}, secure.RoleHead)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		st, err := s.Open(bounded(t), kind)
		if err == nil {
			err = st.WriteMsg(typ, msg)
		}
		if err != nil {
			t.Fatal(err)
		}
		control, err := s.Open(bounded(t), wire.StreamControl)
		if err == nil {
			err = control.WriteMsg(wire.MsgHello, wire.Hello{Node: a.node, Epoch: epoch})
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = st.SetReadDeadline(time.Now().Add(testBound))
		typ, _, err = st.ReadMsg()
		return typ, err
	}
	if typ, err := hello(99, wire.StreamRequest, wire.MsgJobs, wire.JobsRequest{}); err == nil && typ != wire.MsgError {
		t.Errorf("a replaced node asks: message %#x", typ)
	}
	if typ, err := hello(99, wire.StreamLogs, wire.MsgLogBatch, wire.LogBatch{Job: 1, Node: a.node, Epoch: 99}); err == nil && typ != wire.MsgError {
		t.Errorf("a replaced node sends output: message %#x", typ)
	}
	if typ, err := hello(a.epoch, wire.StreamRequest, wire.MsgJobs, wire.JobsRequest{}); err != nil || typ != wire.MsgOK {
		t.Errorf("a node asks: message %#x, %v", typ, err)
	}
	if typ, err := hello(a.epoch, wire.StreamLogs, wire.MsgLogBatch, wire.LogBatch{Job: 1, Node: "p-9", Epoch: 1}); err != nil || typ != wire.MsgError {
		t.Errorf("output of another node: message %#x, %v", typ, err)
	}
}

// TestGarbage: what is no launcher gets nowhere and harms nobody.
func TestGarbage(t *testing.T) {
	c := newCluster(t, 1)
	c.start()
	places := map[string]string{c.head.addresses()[0]: "tcp", filepath.Join(c.dir, socketFile): "unix"}
	junk := make([]byte, 4096)
	rand.Read(junk)
	for addr, network := range places {
		for _, what := range [][]byte{junk, []byte("GET / HTTP/1.1\r\n\r\n"), []byte("LNCH"), append([]byte("LNCH"), junk...), nil} {
			conn, err := net.Dial(network, addr)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write(what)
			_ = conn.Close()
		}
	}
	if n := mustAsk[wire.ClusterInfo](t, c.client(), wire.MsgInfo, wire.InfoRequest{}); n.Name != "test" {
		t.Errorf("after the garbage: %+v", n)
	}
}

func TestSnapshots(t *testing.T) {
	c := newCluster(t, 2)
	c.opts = func(o *Options) { o.snapshotRecs = 10 }
	c.start()
	s := c.client()
	for i := range 3 {
		job := mustAsk[wire.Submitted](t, s, wire.MsgSubmit, wire.Submit{Token: fmt.Sprint(i), Spec: array(50)}).Job
		watch(t, s, job)
	}
	within(t, "a snapshot", func() bool {
		n, _ := filepath.Glob(filepath.Join(c.dir, "journal", "snap-*"))
		return len(n) == 1 && !strings.HasSuffix(n[0], ".tmp")
	})
	before := mustAsk[[]wire.JobInfo](t, s, wire.MsgJobs, wire.JobsRequest{All: true})
	c.kill()
	c.start()
	after := mustAsk[[]wire.JobInfo](t, c.client(), wire.MsgJobs, wire.JobsRequest{All: true})
	if len(before) != 3 || len(after) != 3 {
		t.Fatalf("%d jobs, then %d", len(before), len(after))
	}
	for i := range before {
		if before[i].State != after[i].State || before[i].Done != after[i].Done || before[i].ID != after[i].ID {
			t.Errorf("job %+v came back as %+v", before[i], after[i])
		}
	}
}

func TestBackendRefuses(t *testing.T) {
	c := newCluster(t, 1)
	c.refuse = errs.New(errs.Permission, "the queue is closed to you")
	c.start()
	s := c.client()
	within(t, "the pool says why", func() bool {
		p := mustAsk[[]wire.PoolInfo](t, s, wire.MsgPools, wire.PoolsRequest{})
		return len(p) == 1 && strings.Contains(p[0].Why, "the queue is closed to you")
	})
	c.mu.Lock()
	c.refuse = nil
	c.mu.Unlock()
	within(t, "the node after all", func() bool {
		return mustAsk[[]wire.PoolInfo](t, s, wire.MsgPools, wire.PoolsRequest{})[0].Up == 1
	})
}

// TestBackendTells: what the backend's watcher points at is asked about at once.
func TestBackendTells(t *testing.T) {
	c := newCluster(t, 1)
	c.start()
	s := c.client()
	up := func() int { return mustAsk[[]wire.PoolInfo](t, s, wire.MsgPools, wire.PoolsRequest{})[0].Up }
	within(t, "the node", func() bool { return up() == 1 })
	c.mu.Lock()
	var first *agent
	for _, a := range c.agents {
		first = a
	}
	c.allocs[fmt.Sprintf("%s@%d", first.node, first.epoch)] = backends.Failed
	first.mu.Lock()
	first.down = true
	first.mu.Unlock()
	c.mu.Unlock()
	select {
	case c.poke <- 0:
	case <-time.After(testBound):
		t.Fatal("nobody watches")
	}
	within(t, "another node", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.reqs) >= 2 })
	// The certificate of the one that is gone lives on, but not for longer than it has to,
	// also when another node has its name.
	renew := func(a *agent) error {
		cfg := session.Config{Identity: a.id, Epoch: uint64(a.epoch), Token: a.req.Token}
		return a.id.Renew(bounded(t), session.Renewer(c.head.addresses, cfg))
	}
	if err := renew(first); !errs.Is(err, errs.Fenced) {
		t.Errorf("renewing the certificate of a node that is gone: %v", err)
	}
	within(t, "the other node", func() bool { return up() == 1 })
	c.mu.Lock()
	second := c.agents[c.reqs[1].Nodes[0]]
	c.mu.Unlock()
	if err := renew(second); err != nil {
		t.Errorf("renewing the certificate of a node: %v", err)
	}
}

func TestUpdate(t *testing.T) {
	c := newCluster(t, 1)
	c.start()
	s := c.client()
	pools := []wire.Pool{{Name: "q", Backend: "slurm", Min: 0, Max: 2}}
	ask := wire.Update{SpecText: "version = 1 # new\n", SpecPath: "/spec.toml", Pools: pools}
	a := mustAsk[wire.UpdateAnswer](t, s, wire.MsgUpdate, ask)
	if len(a.Changes) == 0 {
		t.Errorf("no changes: %+v", a)
	}
	if hc, err := ReadConfig(c.dir); err != nil || hc.Pools[0].Name != "p" {
		t.Fatalf("looking changed it: %+v, %v", hc, err)
	}
	ask.Apply = true
	mustAsk[wire.UpdateAnswer](t, s, wire.MsgUpdate, ask)
	within(t, "it is kept", func() bool {
		hc, err := ReadConfig(c.dir)
		b, err2 := os.ReadFile(filepath.Join(c.dir, specFile))
		return err == nil && hc.Pools[0].Name == "q" && len(hc.Gone) == 1 && hc.Gone[0].Name == "p" && err2 == nil && string(b) == ask.SpecText
	})
	// Nodes of the new pool are elsewhere: the head listens for them, and says where.
	within(t, "it listens on all addresses", func() bool {
		f, err := readClusterFile(c.dir)
		return err == nil && len(f.Addrs) > 1 && slices.Contains(f.Addrs, c.head.addresses()[0])
	})
	if _, err := c.head.pool("p"); err != nil {
		t.Errorf("the pool that went: %v", err)
	}
}

func TestHosts(t *testing.T) {
	for what, x := range map[string]struct {
		c    wire.HeadConfig
		want string
		err  errs.Kind
	}{
		"only near nodes": {wire.HeadConfig{Pools: []wire.Pool{{Backend: "local"}}, Interface: "lo"}, "127.0.0.1", 0},
		"far nodes":       {wire.HeadConfig{Pools: []wire.Pool{{Backend: "local"}, {Backend: "ssh"}}}, "", 0},
		"an interface":    {wire.HeadConfig{Pools: []wire.Pool{{Backend: "ssh"}}, Interface: "lo"}, "127.0.0.1", 0},
		"no interface":    {wire.HeadConfig{Pools: []wire.Pool{{Backend: "ssh"}}, Interface: "nope0"}, "", 0},
	} {
		h := &head{config: x.c, log: slog.New(slog.DiscardHandler)}
		hosts, err := h.hosts()
		if x.err != 0 && !errs.Is(err, x.err) || x.err == 0 && (err != nil || !slices.Equal(hosts, []string{x.want})) {
			t.Errorf("%s: %q, %v", what, hosts, err)
		}
	}
}

func TestPortsOfTheSpec(t *testing.T) {
	free := func() int {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().(*net.TCPAddr).Port
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	c := newCluster(t, 0)
	hc, _ := ReadConfig(c.dir)
	hc.Ports = fmt.Sprint(taken.Addr().(*net.TCPAddr).Port)
	c.configure(hc)
	if err := c.tryStart(); !errs.Is(err, errs.Unavailable) || len(errs.HintsOf(err)) == 0 {
		t.Errorf("all ports are in use: %v", err)
	}
	var port int
	within(t, "a port that nobody takes meanwhile", func() bool {
		port = free()
		hc.Ports = fmt.Sprint(port)
		c.configure(hc)
		err := c.tryStart()
		if err != nil && !errs.Is(err, errs.Unavailable) {
			t.Fatal(err)
		}
		return err == nil
	})
	if got := c.head.addresses(); !slices.Equal(got, []string{fmt.Sprintf("127.0.0.1:%d", port)}) {
		t.Errorf("listens at %v, the spec says %d", got, port)
	}
}

func TestUpAgainAfterDown(t *testing.T) {
	c := newCluster(t, 1)
	for life := range 2 {
		c.start()
		s := c.client()
		sub := mustAsk[wire.Submitted](t, s, wire.MsgSubmit, wire.Submit{Token: fmt.Sprint(life), Spec: array(3)})
		if sub.Job != wire.JobID(life+1) {
			t.Errorf("job %d in life %d", sub.Job, life)
		}
		watch(t, s, sub.Job)
		if err := stream(s, wire.MsgDown, wire.Down{}, func(wire.DownProgress) error { return nil }); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-c.end:
			c.head = nil
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(testBound):
			t.Fatal("the head does not end")
		}
	}
	// The restart of a head that had written down the end ends at once.
	err := Main(bounded(t), Options{Dir: c.dir, Broker: c, Machines: machines, Keeper: restarted{}})
	if err != nil {
		t.Errorf("the restart of a head that was done: %v", err)
	}
}

// restarted is a supervisor under which a head died.
type restarted struct{}

func (restarted) StoreFD(context.Context, string, *os.File) error { return nil }
func (restarted) FDs() map[string]*os.File                        { return nil }
func (restarted) Restarts() uint32                                { return 1 }
func (restarted) Done() <-chan struct{}                           { return nil }

func TestCheckpointsAreRemovedByName(t *testing.T) {
	dir := t.TempDir()
	var paths []string
	for _, name := range []string{"step-10.a1", "step-x", "data", "step-1.a2/rank-0"} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(p, 0o700); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, p)
	}
	h := &head{log: newCluster(t, 0).log}
	h.deleteCheckpoints(deleteOf(append(paths, "step-3.a1", dir+"/x/../step-1.a2")))
	left, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(left) != 3 {
		t.Errorf("left: %v", left)
	}
}
