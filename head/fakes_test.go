package head

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"launcher/backends"
	"launcher/head/core"
	"launcher/internal/errs"
	"launcher/jobs/run"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

const testBound = time.Minute

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testBound)
	t.Cleanup(cancel)
	return ctx
}

// within waits until ok, bounded.
func within(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(testBound); !ok(); time.Sleep(2 * time.Millisecond) { // sleep: a poll with a bound
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", testBound, what)
		}
	}
}

var machines = map[wire.Kind]core.Maker{wire.KindRun: run.New, wire.KindArray: run.New}

// cluster is a cluster whose backend and agents are in this process: real sessions, real
// certificates, no real tasks.
type cluster struct {
	t    testing.TB
	dir  string
	log  *slog.Logger
	ca   *secure.Authority
	head *head
	end  chan error
	stop context.CancelFunc
	opts func(*Options)
	// spoken is the epoch of the newest head that any agent has spoken to.
	spoken atomic.Int64

	mu     sync.Mutex
	reqs   []backends.Request
	allocs map[string]backends.AllocState
	agents map[wire.NodeID]*agent
	hold   bool          // Submit starts no agents
	copies chan struct{} // until it is closed followers do not say what they have; nil = they do
	slow   time.Duration // how long a follower takes to say it
	refuse error         // of Submit
	poke   chan int      // what Watch sends
	asked  int           // calls of Status
	task   func(wire.Item) (output string, code int32)
	wg     sync.WaitGroup
	ctx    context.Context
}

// newCluster makes a state directory with one pool of so many nodes.
func newCluster(t testing.TB, nodes int) *cluster {
	t.Helper()
	return newClusterIn(t, t.TempDir(), nodes)
}

func newClusterIn(t testing.TB, dir string, nodes int) *cluster {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &cluster{t: t, dir: dir, poke: make(chan int), allocs: map[string]backends.AllocState{}, agents: map[wire.NodeID]*agent{}, ctx: ctx,
		log: slog.New(slog.NewTextHandler(writer{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	t.Cleanup(func() {
		c.kill()
		cancel()
		c.wg.Wait()
	})
	var err error
	if c.ca, err = secure.NewAuthority("test"); err == nil {
		err = c.ca.Save(c.dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.configure(wire.HeadConfig{Name: "test", Dir: c.dir, SpecPath: "/spec.toml", SpecText: "version = 1\n",
		Pools: []wire.Pool{{Name: "p", Backend: "fake", Min: nodes, Max: nodes}}})
	return c
}

// writer gives log lines to the test, until it ends.
type writer struct{ t testing.TB }

func (w writer) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (c *cluster) configure(hc wire.HeadConfig) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, configFile), wire.Marshal(hc), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// start starts a head and waits until it answers.
func (c *cluster) start() {
	c.t.Helper()
	if err := c.tryStart(); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) tryStart() error {
	ctx, cancel := context.WithCancel(c.ctx)
	up := make(chan *head, 1)
	end := make(chan error, 1)
	go func() {
		o := Options{Dir: c.dir, Broker: c, Machines: machines, Log: c.log, Version: "v-test",
			Suspect: 300 * time.Millisecond, Lost: 2 * time.Second, started: func(h *head) { up <- h }}
		if c.opts != nil {
			c.opts(&o)
		}
		end <- Main(ctx, o)
	}()
	select {
	case h := <-up:
		c.head, c.end, c.stop = h, end, cancel
		return nil
	case err := <-end:
		cancel()
		return err
	case <-time.After(testBound):
		cancel()
		return errors.New("the head does not come up")
	}
}

// kill ends the head with no farewell to anybody.
func (c *cluster) kill() {
	if c.head == nil {
		return
	}
	c.stop()
	select {
	case <-c.end:
	case <-time.After(testBound):
		c.t.Error("the head does not end")
	}
	c.head = nil
}

// The broker.

func (c *cluster) Submit(ctx context.Context, p wire.Pool, r backends.Request) ([]backends.Alloc, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return nil, c.refuse
	}
	c.reqs = append(c.reqs, r)
	var out []backends.Alloc
	for i, n := range r.Nodes {
		handle := fmt.Sprintf("%s@%d", n, r.Epochs[i])
		if _, there := c.allocs[handle]; !there {
			c.allocs[handle] = backends.Running
			if !c.hold {
				c.startAgent(newAgent(c, n, r.Epochs[i], r))
			}
		}
		out = append(out, backends.Alloc{Token: r.Token, Handle: []byte(handle), Nodes: []wire.NodeID{n}})
	}
	return out, nil
}

// startAgent runs an agent. mu must be held.
func (c *cluster) startAgent(a *agent) {
	c.agents[a.node] = a
	c.wg.Go(func() { a.run(c.ctx) })
}

func (c *cluster) Find(ctx context.Context, p wire.Pool, name string, tokens []string) (map[string][]backends.Alloc, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string][]backends.Alloc{}
	for _, r := range c.reqs {
		if slices.Contains(tokens, r.Token) {
			for i, n := range r.Nodes {
				out[r.Token] = append(out[r.Token], backends.Alloc{Token: r.Token, Handle: fmt.Appendf(nil, "%s@%d", n, r.Epochs[i]), Nodes: []wire.NodeID{n}})
			}
		}
	}
	return out, nil
}

func (c *cluster) Status(ctx context.Context, p wire.Pool, handles [][]byte) (out []backends.Status, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	for _, h := range handles {
		s, ok := c.allocs[string(h)]
		if !ok {
			s = backends.Lost
		}
		out = append(out, backends.Status{State: s})
	}
	return out, nil
}

func (c *cluster) Cancel(ctx context.Context, p wire.Pool, handles [][]byte, _ bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range handles {
		c.allocs[string(h)] = backends.Done
	}
	return nil
}

func (c *cluster) Watch(ctx context.Context, p wire.Pool, handles [][]byte, changed chan<- int) error {
	for {
		select {
		case i := <-c.poke:
			select {
			case changed <- i:
			case <-ctx.Done():
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// agent is as much of an agent as the head can see.
type agent struct {
	c     *cluster
	hello wire.Hello
	req   backends.Request
	node  wire.NodeID
	epoch wire.Epoch
	id    *secure.Identity

	mu      sync.Mutex
	seq     uint64
	ended   []wire.Ended // not acknowledged
	held    map[wire.Try]bool
	spool   map[wire.JobID][]byte
	acked   map[wire.JobID]int64
	refused error // what the stream of its output ended with
	down    bool
	gate    chan struct{} // tasks end when it is closed; nil = at once
	runs    map[wire.Try]int
	kick    chan struct{}
	conns   int
	session *session.Session // the newest
}

func newAgent(c *cluster, n wire.NodeID, epoch wire.Epoch, r backends.Request) *agent {
	return &agent{c: c, req: r, node: n, epoch: epoch, held: map[wire.Try]bool{}, spool: map[wire.JobID][]byte{}, acked: map[wire.JobID]int64{},
		runs: map[wire.Try]int{}, kick: make(chan struct{}, 1)}
}

// run joins, then connects again and again until it is told to go.
func (a *agent) run(ctx context.Context) {
	for ctx.Err() == nil {
		a.mu.Lock()
		down := a.down
		a.mu.Unlock()
		if down {
			a.c.mu.Lock()
			a.c.allocs[fmt.Sprintf("%s@%d", a.node, a.epoch)] = backends.Done
			a.c.mu.Unlock()
			return
		}
		if err := a.once(ctx); err != nil {
			time.Sleep(5 * time.Millisecond) // sleep: between tries to connect
		}
	}
}

func (a *agent) join(ctx context.Context) error {
	j, err := session.Join(ctx, a.req.Join.Addrs, a.req.Join.CA, session.Config{Cluster: "test"},
		secure.JoinRequest{Key: a.req.Join.Key, Node: string(a.node), Epoch: uint64(a.epoch), Token: a.req.Token})
	if err == nil {
		a.id = j.Identity
	}
	return err
}

func (a *agent) once(ctx context.Context) error {
	if a.id == nil {
		if err := a.join(ctx); err != nil {
			return err
		}
	}
	s, err := session.Dial(ctx, a.req.Join.Addrs, session.Config{Identity: a.id}, secure.RoleHead)
	if err != nil {
		return err
	}
	defer s.Close()
	st, err := s.Open(ctx, wire.StreamControl)
	if err != nil {
		return err
	}
	a.mu.Lock()
	h := wire.Hello{Node: a.node, Epoch: a.epoch, Pool: a.req.Pool, Token: a.req.Token, Version: "v-test", Host: a.host(), HeadEpoch: wire.Epoch(a.c.spoken.Load()), Addr: "127.0.0.1:1",
		Total: wire.Resources{CPU: 4 * wire.Unit, Memory: 8 << 30}, Unacked: wire.Done{Seq: a.seq, Items: slices.Clone(a.ended)}, Clock: time.Now().UnixNano()}
	for t := range a.held {
		h.Tries = append(h.Tries, wire.TryState{Try: t, Running: true})
	}
	a.conns++
	a.session = s
	a.mu.Unlock()
	if err := st.WriteMsg(wire.MsgHello, h); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.Close()
	wg.Go(func() { a.sendLogs(s) })
	wg.Go(func() { a.beat(s, st) })
	wg.Go(func() { a.follow(ctx, s) })
	for {
		typ, body, err := st.ReadMsg()
		if err != nil {
			return err
		}
		if err := a.message(st, typ, body); err != nil {
			return err
		}
	}
}

func (a *agent) beat(s *session.Session, st *session.Stream) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			a.mu.Lock()
			n := len(a.held)
			a.mu.Unlock()
			if st.WriteMsg(wire.MsgBeat, wire.Beat{Free: wire.Resources{CPU: 4 * wire.Unit}, Running: uint32(n)}) != nil {
				return
			}
		case <-s.Done():
			return
		}
	}
}

func (a *agent) message(st *session.Stream, typ uint16, body []byte) error {
	switch typ {
	case wire.MsgWelcome:
		var m wire.Welcome
		if err := wire.Unmarshal(body, &m); err != nil {
			return err
		}
		a.c.spoken.Store(max(a.c.spoken.Load(), int64(m.HeadEpoch)))
	case wire.MsgAssign:
		var m wire.Assign
		if err := wire.Unmarshal(body, &m); err != nil {
			return err
		}
		items := m.Items
		for _, r := range m.Ranges {
			for i := r.From; i < r.To; i++ {
				items = append(items, wire.Item{Index: i, Attempt: 1})
			}
		}
		for _, it := range items {
			a.begin(st, m.Job, it)
		}
	case wire.MsgAck:
		var m wire.Ack
		if err := wire.Unmarshal(body, &m); err != nil {
			return err
		}
		a.mu.Lock()
		if n := int64(len(a.ended)) - int64(a.seq-m.Seq); n > 0 {
			a.ended = a.ended[n:]
		}
		a.mu.Unlock()
	case wire.MsgStop:
		var m wire.Stop
		if err := wire.Unmarshal(body, &m); err != nil {
			return err
		}
		a.mu.Lock()
		var tries []wire.Try
		for t := range a.held {
			if t.Job == m.Job && (m.All || slices.Contains(m.Tries, t)) {
				tries = append(tries, t)
			}
		}
		a.mu.Unlock()
		for _, t := range tries {
			a.finish(st, t, 143, m.Reason)
		}
	case wire.MsgAsk:
		var m wire.Ask
		if err := wire.Unmarshal(body, &m); err != nil {
			return err
		}
		switch m.What {
		case "silence":
		case "refuse":
			_ = st.WriteMsg(wire.MsgTold, wire.Told{ID: m.ID, Err: errs.ToWire(errs.New(errs.NotFound, "no"))})
		case "much":
			_ = st.WriteMsg(wire.MsgTold, wire.Told{ID: m.ID, JSON: make([]byte, much)})
		default:
			_ = st.WriteMsg(wire.MsgTold, wire.Told{ID: m.ID + 7}) // nobody asked that
			_ = st.WriteMsg(wire.MsgTold, wire.Told{ID: m.ID, JSON: append([]byte(m.What+" "+string(a.node)+" "), m.Args...)})
		}
	case wire.MsgShutdown:
		a.mu.Lock()
		a.down = true
		a.mu.Unlock()
		_ = st.WriteMsg(wire.MsgLeaving, wire.Leaving{Why: "told to", Dead: true})
		return io.EOF
	case wire.MsgError:
		var w errs.Wire
		_ = wire.Unmarshal(body, &w)
		return w.FromWire()
	}
	return nil
}

// begin runs a task: its output goes to the spool, its end to the head.
func (a *agent) begin(st *session.Stream, job wire.JobID, it wire.Item) {
	t := wire.Try{Task: wire.Task{Job: job, Index: it.Index}, Attempt: it.Attempt}
	out, code := fmt.Sprintf("task %s\n", t), int32(0)
	if a.c.task != nil {
		out, code = a.c.task(it)
	}
	a.mu.Lock()
	a.runs[t]++
	a.held[t] = true
	b := wire.LogFrame{Stream: 1, Length: uint32(len(out)), Index: it.Index, Attempt: it.Attempt, Time: 1}.Append(a.spool[job])
	a.spool[job] = append(b, out...)
	gate := a.gate
	a.mu.Unlock()
	a.poke()
	if gate == nil {
		a.finish(st, t, code, wire.ReasonNone)
		return
	}
	a.c.wg.Go(func() {
		select {
		case <-gate:
			a.finish(st, t, code, wire.ReasonNone)
		case <-a.c.ctx.Done():
		}
	})
}

func (a *agent) poke() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

func (a *agent) finish(st *session.Stream, t wire.Try, code int32, why wire.Reason) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.held[t] {
		return
	}
	delete(a.held, t)
	a.seq++
	e := wire.Ended{Proc: wire.Proc{Try: t}, Code: code, Reason: why, Started: 1, Ended: 2, LogEnd: int64(len(a.spool[t.Job]))}
	a.ended = append(a.ended, e)
	_ = st.WriteMsg(wire.MsgDone, wire.Done{Seq: a.seq, Items: []wire.Ended{e}}) // else the next Hello has it
}

// sendLogs sends what the record does not have, as the head's acknowledgements say.
func (a *agent) sendLogs(s *session.Session) {
	st, err := s.Open(s.Context(), wire.StreamLogs)
	if err != nil {
		return
	}
	enc, _ := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	sent := map[wire.JobID]int64{}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer st.Close()
	wg.Go(func() {
		for {
			_, body, err := st.ReadMsg()
			var m wire.LogAck
			if err != nil || wire.Unmarshal(body, &m) != nil {
				a.mu.Lock()
				a.refused = err
				a.mu.Unlock()
				return
			}
			a.mu.Lock()
			a.acked[m.Job] = m.To
			a.mu.Unlock()
		}
	})
	for {
		a.mu.Lock()
		var batches []wire.LogBatch
		for job, b := range a.spool {
			from := max(sent[job], a.acked[job])
			if to := int64(len(b)); to > from {
				batches = append(batches, wire.LogBatch{Job: job, Node: a.node, Epoch: a.epoch, From: from, To: to, Zstd: enc.EncodeAll(b[from:], nil)})
				sent[job] = to
			}
		}
		a.mu.Unlock()
		for _, b := range batches {
			if st.WriteMsg(wire.MsgLogBatch, b) != nil {
				return
			}
		}
		select {
		case <-a.kick:
		case <-s.Done():
			return
		}
	}
}

// Clients.

func (c *cluster) client() *session.Session {
	c.t.Helper()
	s, err := session.DialUnix(bounded(c.t), filepath.Join(c.dir, socketFile), session.Config{Role: secure.RoleClient, Name: "test"})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = s.Close() })
	return s
}

// stream asks on a stream of its own; each answer goes to got.
func stream[T any](s *session.Session, typ uint16, req any, got func(T) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), testBound)
	defer cancel()
	st, err := s.Open(ctx, wire.StreamRequest)
	if err != nil {
		return err
	}
	defer st.Close()
	_ = st.SetReadDeadline(time.Now().Add(testBound))
	if err := st.WriteMsg(typ, req); err != nil {
		return err
	}
	for {
		typ, body, err := st.ReadMsg()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if typ == wire.MsgError {
			var w errs.Wire
			if err := wire.Unmarshal(body, &w); err != nil {
				return err
			}
			return w.FromWire()
		}
		var v T
		if err := wire.Unmarshal(body, &v); err != nil {
			return err
		}
		if err := got(v); err != nil {
			return err
		}
	}
}

// ask asks and gives the one answer.
func ask[T any](s *session.Session, typ uint16, req any) (v T, err error) {
	n := 0
	err = stream(s, typ, req, func(x T) error { v = x; n++; return nil })
	if err == nil && n != 1 {
		err = fmt.Errorf("%d answers", n)
	}
	return v, err
}

func mustAsk[T any](t testing.TB, s *session.Session, typ uint16, req any) T {
	t.Helper()
	v, err := ask[T](s, typ, req)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// watch follows a job to its end.
func watch(t testing.TB, s *session.Session, job wire.JobID) (last wire.JobInfo) {
	t.Helper()
	if err := stream(s, wire.MsgWatch, wire.Watch{Job: job}, func(i wire.JobInfo) error { last = i; return nil }); err != nil {
		t.Fatal(err)
	}
	if !last.State.Terminal() {
		t.Fatalf("the watch of job %d ended while it is %s", job, last.State)
	}
	return last
}

func array(n uint32) wire.JobSpec {
	return wire.JobSpec{Name: "a", Kind: wire.KindArray, Command: []string{"true"}, Dir: "/", Resources: wire.Resources{CPU: wire.Unit}, Ranks: 1,
		Grace: int64(time.Second), Array: &wire.ArraySpec{Ranges: []wire.Range{{From: 0, To: n}}}}
}
