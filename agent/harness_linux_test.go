package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"launcher/agent/supervisor/supervisortest"
	"launcher/internal/errs"
	"launcher/internal/logx"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// bound is how long anything may take in these tests; most of it is for a loaded machine.
const bound = time.Minute

func TestMain(m *testing.M) {
	if os.Getenv("LAUNCHER_WORKER") != "" {
		os.Exit(playWorker())
	}
	supervisortest.Main(supervisortest.Roles{"agent": playAgent, "knock": playKnock, "rank": playRank})
	os.Exit(m.Run())
}

// playAgent is what `launcher agent` does.
func playAgent() int {
	err := Main(context.Background(), Options{Log: logx.New(os.Stderr, logx.Level(os.Getenv("AGENT_LOG"))), Binary: "/bin/launcher"})
	if err != nil {
		fmt.Fprint(os.Stderr, errs.Lines(err))
		if Fatal(err) {
			return 78
		}
		return 1
	}
	return 0
}

// fakeHead is a head that does what the test says: it lets nodes join, answers Hello
// with Welcome, acknowledges ends and takes output.
type fakeHead struct {
	t     testing.TB
	ca    *secure.Authority
	addr  string
	ln    net.Listener
	cfg   session.Config
	mu    sync.Mutex
	nodes map[wire.NodeID]*fakeNode
	logs  map[logKey][]byte
	more  chan struct{} // closed and replaced at each change
	quiet bool          // do not welcome
	joins int
	life  time.Duration
	admit func(secure.JoinRequest) error // more to say about who joins
	walls map[[2]wire.NodeID]bool        // who is given a wrong address of whom
	via   map[wire.NodeID][]uint32       // who is told to relay to whom
}

type logKey struct {
	node wire.NodeID
	job  wire.JobID
}

type fakeNode struct {
	s      *session.Session
	st     *session.Stream
	hellos []wire.Hello
	ended  []wire.Ended
	seq    uint64
	msgs   []any // all others but beats
	beats  []wire.Beat
}

func (h *fakeHead) Admit(r secure.JoinRequest) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if string(r.Key) != "key" {
		return errs.New(errs.Permission, "the join key is not right")
	}
	h.joins++
	if h.admit != nil {
		return h.admit(r)
	}
	return nil
}

func startHead(t testing.TB, life time.Duration) *fakeHead {
	t.Helper()
	ca, err := secure.NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &fakeHead{t: t, ca: ca, ln: ln, addr: ln.Addr().String(), nodes: map[wire.NodeID]*fakeNode{}, logs: map[logKey][]byte{}, more: make(chan struct{}), life: life}
	id, err := ca.IssueSelf(secure.RoleHead, "head", 0)
	if err != nil {
		t.Fatal(err)
	}
	h.cfg = session.Config{Identity: id, Authority: ca, Joiner: h, CertLife: life, Log: logx.Discard()}
	h.serve(ln)
	return h
}

func (h *fakeHead) serve(ln net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := session.Serve(ctx, ln, h.cfg, h.session); err != nil && !errors.Is(err, net.ErrClosed) {
			h.t.Errorf("serving: %v", err)
		}
	}()
	h.t.Cleanup(func() { cancel(); <-done })
}

func (h *fakeHead) changed() {
	close(h.more)
	h.more = make(chan struct{})
}

func (h *fakeHead) session(ctx context.Context, s *session.Session) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		kind, st, err := s.Accept(ctx)
		if err != nil {
			return
		}
		wg.Go(func() {
			defer st.Close()
			switch kind {
			case wire.StreamControl:
				h.control(s, st)
				s.Close()
			case wire.StreamLogs:
				h.takeLogs(s, st)
			case wire.StreamRelay:
				m, err := relayFor(st)
				h.mu.Lock()
				var to *session.Session
				for id, n := range h.nodes {
					if err == nil && numberOf(id) == m.Number {
						to = n.s
					}
				}
				h.mu.Unlock()
				if to == nil {
					_ = st.WriteErr(errs.New(errs.Unavailable, "there is no node of number %d", m.Number))
					return
				}
				if on, err := to.Open(ctx, wire.StreamRelayed); err == nil && st.WriteMsg(wire.MsgOK, struct{}{}) == nil {
					_ = session.Relay(ctx, st, on)
				}
			case wire.StreamRequest:
				if typ, body, err := st.ReadMsg(); err == nil {
					_ = st.WriteRaw(wire.MsgOK, append([]byte{byte(typ)}, body...))
				}
			}
		})
	}
}

func (h *fakeHead) control(s *session.Session, st *session.Stream) {
	name := wire.NodeID(s.Peer().Name)
	for {
		typ, body, err := st.ReadMsg()
		if err != nil {
			return
		}
		h.mu.Lock()
		n := h.nodes[name]
		if n == nil {
			n = &fakeNode{}
			h.nodes[name] = n
		}
		var msg any
		switch typ {
		case wire.MsgHello:
			var m wire.Hello
			err = wire.Unmarshal(body, &m)
			n.s, n.st = s, st
			n.hellos = append(n.hellos, m)
			n.take(m.Unacked)
			if !h.quiet {
				_ = st.WriteMsg(wire.MsgWelcome, wire.Welcome{Cluster: "test", HeadEpoch: 1, Grace: int64(time.Minute), Acked: n.seq, Number: numberOf(name)})
			}
		case wire.MsgDone:
			var m wire.Done
			err = wire.Unmarshal(body, &m)
			n.take(m)
			_ = st.WriteMsg(wire.MsgAck, wire.Ack{Seq: n.seq})
		case wire.MsgBeat:
			var m wire.Beat
			err = wire.Unmarshal(body, &m)
			n.beats = append(n.beats, m)
		case wire.MsgReport:
			var m wire.Report
			err = wire.Unmarshal(body, &m)
			msg = m
			leave := wire.LeaveNo
			if m.Metrics["loss"] > 100 {
				leave = wire.LeavePruned
			}
			_ = st.WriteMsg(wire.MsgAdvice, wire.Advice{Seq: m.Seq, Try: m.Proc.Try, Leave: leave})
		case wire.MsgRunning:
			msg, err = decode[wire.Running](body)
		case wire.MsgReserved:
			msg, err = decode[wire.Reserved](body)
		case wire.MsgReturned:
			msg, err = decode[wire.Returned](body)
		case wire.MsgPeerAsk:
			var m wire.PeerAsk
			err = wire.Unmarshal(body, &m)
			for _, k := range m.Numbers {
				p := wire.Peer{Number: k, Gone: true, Cause: "the test says so"}
				for id, x := range h.nodes {
					if numberOf(id) == k {
						p = wire.Peer{Number: k, Node: id, Addr: x.hellos[len(x.hellos)-1].Addr}
						if h.walls[[2]wire.NodeID{name, id}] {
							p.Addr = "127.0.0.1:1"
						}
					}
				}
				_ = st.WriteMsg(wire.MsgPeer, p)
			}
		case wire.MsgReach:
			var m wire.Reach
			err = wire.Unmarshal(body, &m)
			msg = m
			for id := range h.nodes {
				if numberOf(id) == m.Number && !m.OK {
					_ = st.WriteMsg(wire.MsgPeer, wire.Peer{Number: m.Number, Node: id, Addr: "127.0.0.1:1", Far: true, Via: h.via[id]})
				}
			}
		case wire.MsgTold:
			msg, err = decode[wire.Told](body)
		case wire.MsgGangGone:
			msg, err = decode[wire.GangGone](body)
		case wire.MsgLeaving:
			msg, err = decode[wire.Leaving](body)
		}
		if err != nil {
			h.t.Errorf("message %#x of %s: %v", typ, name, err)
		}
		if msg != nil {
			n.msgs = append(n.msgs, msg)
		}
		h.changed()
		h.mu.Unlock()
	}
}

// numberOf is the number of a node's life: p-0 is 1, p-1 is 2.
func numberOf(id wire.NodeID) uint32 {
	n, _ := strconv.Atoi(string(id[strings.LastIndexByte(string(id), '-')+1:]))
	return uint32(n) + 1
}

// take keeps what is new of a batch of ends.
func (n *fakeNode) take(d wire.Done) {
	for i, e := range d.Items {
		if seq := d.Seq - uint64(len(d.Items)-1-i); seq > n.seq {
			n.seq = seq
			n.ended = append(n.ended, e)
		}
	}
}

var unzstd, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))

func (h *fakeHead) takeLogs(s *session.Session, st *session.Stream) {
	for {
		typ, body, err := st.ReadMsg()
		if err != nil || typ != wire.MsgLogBatch {
			return
		}
		var b wire.LogBatch
		if err := wire.Unmarshal(body, &b); err != nil {
			h.t.Errorf("log batch: %v", err)
			return
		}
		data, err := unzstd.DecodeAll(b.Zstd, nil)
		if err != nil || int64(len(data)) != b.To-b.From {
			h.t.Errorf("log batch: %d bytes for %d to %d: %v", len(data), b.From, b.To, err)
		}
		h.mu.Lock()
		k := logKey{b.Node, b.Job}
		if have := int64(len(h.logs[k])); b.From <= have && b.To > have {
			h.logs[k] = append(h.logs[k], data[have-b.From:]...)
		}
		to := int64(len(h.logs[k]))
		h.changed()
		h.mu.Unlock()
		_ = st.WriteMsg(wire.MsgLogAck, wire.LogAck{Job: b.Job, To: to})
	}
}

// wait waits until ok, asked with the lock held after each change.
func (h *fakeHead) wait(what string, ok func() bool) {
	h.t.Helper()
	late := time.After(bound)
	for {
		h.mu.Lock()
		done, more := ok(), h.more
		h.mu.Unlock()
		if done {
			return
		}
		select {
		case <-more:
		case <-late:
			h.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// up waits until a node has said Hello so often, and gives it.
func (h *fakeHead) up(id wire.NodeID, times int) *fakeNode {
	h.t.Helper()
	h.wait(fmt.Sprintf("greeting %d of %s", times, id), func() bool {
		return h.nodes[id] != nil && len(h.nodes[id].hellos) >= times && len(h.nodes[id].beats) > 0
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.nodes[id]
}

func (h *fakeHead) send(id wire.NodeID, typ uint16, msg any) {
	h.t.Helper()
	h.mu.Lock()
	st := h.nodes[id].st
	h.mu.Unlock()
	if err := st.WriteMsg(typ, msg); err != nil {
		h.t.Fatalf("sending to %s: %v", id, err)
	}
}

// endOf waits for the end of a process.
func (h *fakeHead) endOf(id wire.NodeID, p wire.Proc) wire.Ended {
	h.t.Helper()
	var out wire.Ended
	h.wait("the end of "+p.String(), func() bool {
		for _, e := range h.nodes[id].ended {
			if e.Proc == p {
				out = e
				return true
			}
		}
		return false
	})
	return out
}

// output gives what a process of a job printed on a stream, once there are n ends and
// all output up to them has come.
func (h *fakeHead) output(id wire.NodeID, p wire.Proc, stream uint8) string {
	h.t.Helper()
	e := h.endOf(id, p)
	h.wait("the output of "+p.String(), func() bool { return int64(len(h.logs[logKey{id, p.Job}])) >= e.LogEnd })
	h.mu.Lock()
	defer h.mu.Unlock()
	out := ""
	for b := h.logs[logKey{id, p.Job}]; len(b) > 0; {
		f, data, n, err := wire.ParseLogFrame(b)
		if err != nil || n == 0 {
			h.t.Fatalf("the shipped output of job %d cannot be read: %v", p.Job, err)
		}
		if f.Index == p.Index && f.Attempt == p.Attempt && f.Rank == p.Rank && f.Stream == stream {
			out += string(data)
		}
		b = b[n:]
	}
	return out
}

func msgOf[T any](h *fakeHead, id wire.NodeID, what string, ok func(T) bool) T {
	h.t.Helper()
	var out T
	h.wait(what, func() bool {
		for _, m := range h.nodes[id].msgs {
			if x, is := m.(T); is && ok(x) {
				out = x
				return true
			}
		}
		return false
	})
	return out
}

// config is what a backend would give a node.
func (h *fakeHead) config(t testing.TB, id wire.NodeID) wire.NodeConfig {
	dir := filepath.Join(t.TempDir(), "nodes", string(id))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return wire.NodeConfig{Cluster: "test", Node: id, Epoch: 1, Pool: "p", Addrs: []string{h.addr}, CA: h.ca.CA(), JoinKey: []byte("key"), Dir: dir, CacheDir: t.TempDir(),
		Grace: int64(time.Minute), CertLife: int64(h.life), Resources: &wire.Resources{CPU: 4 * wire.Unit, Memory: 1 << 30}}
}

// inProcess runs an agent in this process with a supervisor of its own; the function it
// gives stops the agent alone and waits.
func inProcess(t testing.TB, h *fakeHead, cfg wire.NodeConfig, sv *supervisortest.Server) (stop func()) {
	t.Helper()
	return inProcessWith(t, cfg, sv, nil)
}

func inProcessWith(t testing.TB, cfg wire.NodeConfig, sv *supervisortest.Server, opened func(*agent)) (stop func()) {
	t.Helper()
	c := sv.Connect(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Main(ctx, Options{Log: logx.New(testWriter{t}, logx.Level(os.Getenv("AGENT_LOG"))), Supervisor: c, Config: &cfg, Binary: "/bin/launcher", opened: opened})
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("the agent ended with %v", err)
				}
			case <-time.After(bound):
				t.Error("the agent does not end")
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	if testing.Verbose() {
		os.Stderr.Write(b)
	}
	return len(b), nil
}

func jobOf(id wire.JobID, kind wire.Kind, cmd ...string) wire.Job {
	return wire.Job{Job: id, Spec: wire.JobSpec{Kind: kind, Command: cmd, Dir: "/", Resources: wire.Resources{CPU: wire.Unit}, Ranks: 1, Grace: int64(5 * time.Second)}}
}

func procOf(job wire.JobID, index uint32) wire.Proc {
	return wire.Proc{Try: wire.Try{Task: wire.Task{Job: job, Index: index}, Attempt: 1}}
}

// give has a node run the first tasks of a job.
func (h *fakeHead) give(id wire.NodeID, j wire.Job, n uint32) {
	h.t.Helper()
	h.send(id, wire.MsgJob, j)
	h.send(id, wire.MsgAssign, wire.Assign{Job: j.Job, Ranges: []wire.Range{{From: 0, To: n}}})
}
