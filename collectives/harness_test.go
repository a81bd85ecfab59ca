//go:build linux

package collectives

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"launcher/wire"
)

// The test binary is also the rank and the agent of the tests: started with childEnv
// set, it reads orders from standard input, one JSON line each, and answers each with
// one line. So ranks and agents are processes of their own, as in real life, and are
// used for many groups.
const childEnv = "COLLECTIVES_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		os.Exit(m.Run())
	case "rank":
		serve(rankOrders())
	case "agent":
		serve(agentOrders())
	default:
		os.Exit(2)
	}
}

// order is one line to a child. Do says what; the rest are its arguments.
type order struct {
	Do      string
	Path    string // join: the group's memory
	Rank    int
	Suite   string
	Seed    uint64
	Args    []int
	Group   uint32 // new
	Nodes   []wire.GangNode
	Self    wire.NodeID
	Timeout time.Duration
	Round   int
	CPUs    int
	Addrs   map[wire.NodeID]string // connect
	Cause   string
	Rate    int // bytes per second of each connection; 0 = as fast as it goes
}

// answer is the line back.
type answer struct {
	Err   string `json:",omitempty"`
	Kind  string `json:",omitempty"` // of the error: lost, mismatch, timeout
	Rank  int    // that the error names
	Path  string
	Addr  string
	Text  string
	Sent  []int64
	Acked []int64
}

func failed(err error) (a answer) {
	a.Rank = -2
	if err == nil {
		return a
	}
	a.Err = err.Error()
	if e, ok := errors.AsType[*PeerLost](err); ok {
		a.Kind, a.Rank = "lost", e.Rank
	}
	if e, ok := errors.AsType[*Mismatch](err); ok {
		a.Kind, a.Rank = "mismatch", e.Rank
	}
	if e, ok := errors.AsType[*Timeout](err); ok {
		a.Kind, a.Rank = "timeout", e.Rank
	}
	return a
}

func serve(handle func(order) answer) {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	out := json.NewEncoder(os.Stdout)
	for in.Scan() {
		var o order
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			os.Exit(3)
		}
		_ = out.Encode(handle(o))
	}
	os.Exit(0)
}

// rankOrders is a rank.
func rankOrders() func(order) answer {
	var c *Comm
	return func(o order) answer {
		switch o.Do {
		case "join":
			if c != nil {
				c.Close()
				c = nil
			}
			f, err := os.OpenFile(o.Path, os.O_RDWR, 0)
			if err != nil {
				return failed(err)
			}
			c, err = Attach(f, o.Rank)
			return failed(err)
		case "suite":
			text, err := suites[o.Suite](c, o.Seed, o.Args)
			a := failed(err)
			a.Text = text
			return a
		case "leave":
			return failed(c.Close())
		}
		return answer{Err: "unknown order " + o.Do}
	}
}

// agentOrders is an agent, without all but its Nodes.
func agentOrders() func(order) answer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		os.Exit(4)
	}
	var mu sync.Mutex
	var n *Node
	var group uint32
	var addrs map[wire.NodeID]string
	var conns map[uint32]*net.TCPConn // that we dialled, by lane
	var run chan error
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // a line says who dials, as RingOpen does in real life
				var hello struct {
					Group uint32
					From  wire.NodeID
					Lane  uint32
				}
				line := make([]byte, 0, 256)
				one := make([]byte, 1)
				for {
					if _, err := conn.Read(one); err != nil {
						conn.Close()
						return
					}
					if one[0] == '\n' {
						break
					}
					line = append(line, one[0])
				}
				err := json.Unmarshal(line, &hello)
				mu.Lock()
				node, g := n, group
				mu.Unlock()
				if err != nil || node == nil || g != hello.Group {
					conn.Close()
					return
				}
				_ = node.Accept(conn, hello.From, hello.Lane)
			}()
		}
	}()
	stop := func() {
		if n != nil {
			n.Close()
			if run != nil {
				<-run
			}
		}
		mu.Lock()
		n, run = nil, nil
		mu.Unlock()
	}
	return func(o order) answer {
		switch o.Do {
		case "new":
			stop()
			mu.Lock()
			defer mu.Unlock()
			group, conns = o.Group, map[uint32]*net.TCPConn{}
			n, err = NewNode(NodeConfig{
				Group: wire.Try{Task: wire.Task{Job: 1, Index: o.Group}, Attempt: 1}, Nodes: o.Nodes, Self: o.Self,
				CPUs: o.CPUs, Timeout: o.Timeout, Round: o.Round, Arena: 64 << 20,
				Dial: func(ctx context.Context, to wire.GangNode, lane uint32) (net.Conn, error) {
					mu.Lock()
					addr := addrs[to.Node]
					mu.Unlock()
					var d net.Dialer
					conn, err := d.DialContext(ctx, "tcp", addr)
					if err != nil {
						return nil, err
					}
					fmt.Fprintf(conn, "{\"Group\":%d,\"From\":%q,\"Lane\":%d}\n", o.Group, o.Self, lane)
					mu.Lock()
					conns[lane] = conn.(*net.TCPConn)
					mu.Unlock()
					if o.Rate > 0 {
						return slow(conn, o.Rate, 15*time.Millisecond), nil
					}
					return conn, nil
				},
			})
			if err != nil {
				return failed(err)
			}
			return answer{Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.File().Fd()), Addr: l.Addr().String()}
		case "run":
			mu.Lock()
			addrs = o.Addrs
			mu.Unlock()
			run = make(chan error, 1)
			go func(n *Node, run chan error) { run <- n.Run(context.Background()) }(n, run)
			return answer{}
		case "abort":
			n.Abort(o.Rank, o.Cause)
			return answer{}
		case "left":
			n.Leave(o.Rank)
			return answer{}
		case "traffic":
			a := answer{Sent: n.Sent()}
			mu.Lock()
			defer mu.Unlock()
			for lane := range uint32(len(conns)) {
				acked := bytesAcked(conns[lane])
				for end := time.Now().Add(5 * time.Second); acked < a.Sent[lane] && time.Now().Before(end); acked = bytesAcked(conns[lane]) {
					// sleep: bytes on their way have no event
					time.Sleep(time.Millisecond)
				}
				a.Acked = append(a.Acked, acked)
			}
			return a
		case "close":
			stop()
			return answer{}
		}
		return answer{Err: "unknown order " + o.Do}
	}
}

// slowConn is a link of a given rate and delay: a write takes as long as its bytes are
// on the wire, and they arrive after the delay.
type slowConn struct {
	net.Conn // not *net.TCPConn, which writes several buffers past us
	rate     int
	free     time.Time // when the wire is
	queue    chan parcel
	done     chan struct{}
}

type parcel struct {
	b   []byte
	due time.Time
}

func slow(c net.Conn, rate int, delay time.Duration) net.Conn {
	s := &slowConn{Conn: c, rate: rate, queue: make(chan parcel, 1000), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		for p := range s.queue {
			// sleep: the delay of a link
			time.Sleep(time.Until(p.due.Add(delay)))
			if _, err := c.Write(p.b); err != nil {
				return
			}
		}
	}()
	return s
}

func (c *slowConn) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		k := min(len(b), 32<<10)
		// A sleep takes longer than asked for; up to so much is made good.
		if least := time.Now().Add(-5 * time.Millisecond); c.free.Before(least) {
			c.free = least
		}
		c.free = c.free.Add(time.Duration(k) * time.Second / time.Duration(c.rate))
		// sleep: the rate of a link
		time.Sleep(time.Until(c.free))
		select {
		case c.queue <- parcel{append([]byte(nil), b[:k]...), c.free}:
		case <-c.done:
			return 0, net.ErrClosed
		}
		b = b[k:]
	}
	return n, nil
}

func (c *slowConn) Close() error {
	close(c.queue)
	<-c.done
	return c.Conn.Close()
}

// child is a process under test.
type child struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Scanner
	stdin *json.Encoder
}

func start(t testing.TB, kind string, argv ...string) *child {
	t.Helper()
	if len(argv) == 0 {
		argv = []string{os.Args[0]}
	}
	c := &child{cmd: exec.Command(argv[0], argv[1:]...)}
	c.cmd.Env = append(os.Environ(), childEnv+"="+kind, "GOMAXPROCS=2", "GORACE=halt_on_error=1 atexit_sleep_ms=0")
	c.cmd.Stderr = os.Stderr
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewScanner(out)
	c.out.Buffer(nil, 1<<20)
	c.stdin = json.NewEncoder(c.in)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.in.Close()
		done := make(chan struct{})
		go func() { _ = c.cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			_ = c.cmd.Process.Kill()
			<-done
		}
	})
	return c
}

func (c *child) tell(t testing.TB, o order) {
	t.Helper()
	if err := c.stdin.Encode(o); err != nil {
		t.Fatalf("order %s: %v", o.Do, err)
	}
}

// hear reads one answer; a child that dies or is silent for a minute fails the test.
func (c *child) hear(t testing.TB) answer {
	t.Helper()
	got := make(chan answer, 1)
	go func() {
		var a answer
		if !c.out.Scan() {
			a.Err = "the child has ended"
		} else if err := json.Unmarshal(c.out.Bytes(), &a); err != nil {
			a.Err = fmt.Sprintf("unreadable answer %q", c.out.Bytes())
		}
		got <- a
	}()
	select {
	case a := <-got:
		return a
	case <-time.After(time.Minute):
		t.Fatal("no answer within a minute")
		return answer{}
	}
}

func (c *child) do(t testing.TB, o order) answer {
	t.Helper()
	c.tell(t, o)
	return c.hear(t)
}

// crew is a set of children that groups are made of.
type crew struct {
	t      testing.TB
	agents []*child
	ranks  []*child
	groups uint32
	absent int // a rank that form does not let join; -1 = none
}

// group is one group of a crew.
type group struct {
	*crew
	world  int
	paths  []string // of the nodes' memories
	nodes  []wire.GangNode
	agents []*child
	ranks  []*child
}

func newCrew(t testing.TB, agents, ranks int) *crew {
	c := &crew{t: t, absent: -1}
	for range agents {
		c.agents = append(c.agents, start(t, "agent"))
	}
	for range ranks {
		c.ranks = append(c.ranks, start(t, "rank"))
	}
	return c
}

// form makes a group with the given numbers of ranks on its nodes.
func (c *crew) form(o order, counts ...int) *group {
	t := c.t
	t.Helper()
	c.groups++
	g := &group{crew: c}
	o.Do, o.Group, o.Nodes = "new", c.groups, nil
	for i, n := range counts {
		o.Nodes = append(o.Nodes, wire.GangNode{Node: wire.NodeID(fmt.Sprintf("local-%d", i)), First: uint32(g.world), Count: uint32(n)})
		g.world += n
	}
	g.nodes, g.agents, g.ranks = o.Nodes, c.agents[:len(counts)], c.ranks[:g.world]
	addrs := map[wire.NodeID]string{}
	g.paths = make([]string, len(counts))
	for i, a := range g.agents {
		o.Self = o.Nodes[i].Node
		got := a.do(t, o)
		if got.Err != "" {
			t.Fatalf("agent %d: %s", i, got.Err)
		}
		addrs[o.Self], g.paths[i] = got.Addr, got.Path
	}
	for _, a := range g.agents {
		a.tell(t, order{Do: "run", Addrs: addrs})
	}
	for _, a := range g.agents {
		a.hear(t)
	}
	g.join()
	return g
}

// join has all ranks join.
func (g *group) join() {
	g.t.Helper()
	for i, n := range g.nodes {
		for r := n.First; r < n.First+n.Count; r++ {
			if int(r) != g.absent {
				g.ranks[r].tell(g.t, order{Do: "join", Path: g.paths[i], Rank: int(r)})
			}
		}
	}
	for r, c := range g.ranks {
		if r != g.absent {
			if a := c.hear(g.t); a.Err != "" {
				g.t.Fatalf("rank %d: %s", r, a.Err)
			}
		}
	}
}

// outcomes has all ranks run a suite and gives their answers, by rank. A rank that dies
// in it has the answer "the child has ended".
func (g *group) outcomes(suite string, args ...int) []answer {
	g.t.Helper()
	for _, r := range g.ranks {
		r.tell(g.t, order{Do: "suite", Suite: suite, Args: args})
	}
	out := make([]answer, len(g.ranks))
	for i, r := range g.ranks {
		out[i] = r.hear(g.t)
	}
	return out
}

// nodeOf is the agent of a rank.
func (g *group) nodeOf(rank int) *child {
	for i, n := range g.nodes {
		if rank < int(n.First+n.Count) {
			return g.agents[i]
		}
	}
	return nil
}

// run has all ranks run a suite, and fails unless all agree on its text.
func (g *group) run(suite string, seed uint64, args ...int) {
	g.t.Helper()
	for _, r := range g.ranks {
		r.tell(g.t, order{Do: "suite", Suite: suite, Seed: seed, Args: args})
	}
	var texts []string
	for i, r := range g.ranks {
		a := r.hear(g.t)
		if a.Err != "" {
			g.t.Errorf("world %d on %d nodes, rank %d: %s", g.world, len(g.nodes), i, a.Err)
		}
		texts = append(texts, a.Text)
	}
	for i, s := range texts {
		if s != texts[0] {
			g.t.Errorf("world %d on %d nodes: rank %d has other bits than rank 0:\n%s\n%s", g.world, len(g.nodes), i, firstDiff(s, texts[0]), firstDiff(texts[0], s))
		}
	}
}

func firstDiff(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range x {
		if i >= len(y) || x[i] != y[i] {
			return x[i]
		}
	}
	return ""
}
