package transfer

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"launcher/internal/errs"
	"launcher/internal/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// cluster is nodes that reach each other by pipes.
type cluster struct {
	t     testing.TB
	nodes map[uint32]*node
	wrap  func(from, to uint32, c net.Conn) net.Conn // what a reader gets
}

type node struct {
	id    uint32
	t     *Transfer
	mu    sync.Mutex
	have  map[ID]*object
	dials atomic.Int32
	down  atomic.Bool
	full  atomic.Bool
}

type object struct {
	m     Meta
	b     []byte
	ready bool
	pins  atomic.Int32
}

func (o *object) Meta() Meta    { return o.m }
func (o *object) Bytes() []byte { return o.b }
func (o *object) Close()        { o.pins.Add(-1) }

func (n *node) Open(id ID) (Object, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	o := n.have[id]
	if o == nil || !o.ready {
		return nil, errs.New(errs.NotFound, "not on node %d", n.id)
	}
	o.pins.Add(1)
	return o, nil
}

type writer struct {
	n  *node
	id ID
	o  *object
}

func (n *node) Create(_ context.Context, id ID, m Meta) (Writer, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.have[id] != nil {
		return nil, errs.New(errs.Exists, "it is on node %d", n.id)
	}
	if n.full.Load() {
		return nil, errs.New(errs.Exhausted, "the object store of node %d is full", n.id)
	}
	o := &object{m: m, b: make([]byte, m.Size)}
	n.have[id] = o
	return &writer{n, id, o}, nil
}

func (w *writer) Bytes() []byte { return w.o.b }
func (w *writer) Seal() error {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	w.o.ready = true
	return nil
}
func (w *writer) Abort() {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	delete(w.n.have, w.id)
}

func newCluster(t testing.TB, n int, cfg Config) *cluster {
	c := &cluster{t: t, nodes: map[uint32]*node{}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := uint32(1); i <= uint32(n); i++ {
		x := &node{id: i, have: map[ID]*object{}}
		cfg := cfg
		cfg.Store = x
		cfg.Dial = func(_ context.Context, to uint32, _ int) (net.Conn, error) {
			y := c.nodes[to]
			if y == nil || y.down.Load() {
				return nil, errs.New(errs.Unavailable, "node %d does not answer", to)
			}
			y.dials.Add(1)
			mine, theirs := net.Pipe()
			wg.Go(func() { _ = y.t.Serve(ctx, theirs, i) })
			if c.wrap != nil {
				return c.wrap(i, to, mine), nil
			}
			return mine, nil
		}
		x.t = New(cfg)
		c.nodes[i] = x
	}
	t.Cleanup(func() {
		for _, x := range c.nodes {
			x.t.Close()
		}
		cancel()
		wg.Wait()
		for _, x := range c.nodes {
			for id, o := range x.have {
				if o.pins.Load() != 0 || !o.ready {
					t.Errorf("node %d: object %s has %d pins, is ready: %v", x.id, id, o.pins.Load(), o.ready)
				}
			}
		}
	})
	return c
}

func (c *cluster) put(on uint32, size int) (ID, []byte) {
	var id ID
	id[0], id[15] = byte(on), byte(size)
	r := rand.New(rand.NewPCG(uint64(size), 1))
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	c.nodes[on].have[id] = &object{m: Meta{Size: int64(size), Form: 2}, b: b, ready: true}
	return id, b
}

func (c *cluster) pull(on uint32, id ID, from ...uint32) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return c.nodes[on].t.Pull(ctx, id, from)
}

func (c *cluster) same(on uint32, id ID, want []byte) {
	c.t.Helper()
	o, err := c.nodes[on].Open(id)
	if err != nil {
		c.t.Fatalf("node %d: %v", on, err)
	}
	defer o.Close()
	if !bytes.Equal(o.Bytes(), want) {
		c.t.Errorf("node %d has other bytes", on)
	}
	if m := o.Meta(); m.Form != 2 {
		c.t.Errorf("node %d has %+v", on, m)
	}
}

// TestSizes: objects of sizes around the borders of ranges arrive whole.
func TestSizes(t *testing.T) {
	c := newCluster(t, 2, Config{Range: 1000})
	for _, size := range []int{0, 1, 999, 1000, 1001, 2000, 54321} {
		id, b := c.put(1, size)
		if err := c.pull(2, id, 1); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		c.same(2, id, b)
		if err := c.pull(2, id, 1); err != nil {
			t.Errorf("once more: %v", err)
		}
	}
}

// TestOnceForAll: many who want an object cause one transfer.
func TestOnceForAll(t *testing.T) {
	c := newCluster(t, 2, Config{Range: 64 << 10})
	id, b := c.put(1, 3<<20)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := c.pull(2, id, 1); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	c.same(2, id, b)
	if n := c.nodes[1].t.Stats().Sent; n != int64(len(b)) {
		t.Errorf("%d bytes were sent for an object of %d", n, len(b))
	}
}

// broken ends after so many bytes, or changes one of them.
type broken struct {
	net.Conn
	left *atomic.Int64
	flip bool
}

func (b *broken) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if left := b.left.Add(-int64(n)); left < 0 && n > 0 {
		if b.flip {
			if left+int64(n) >= 0 {
				p[n-1] ^= 1
			}
		} else {
			_ = b.Conn.Close()
			return 0, net.ErrClosed
		}
	}
	return n, err
}

// TestSourcesFail: a source that dies in the middle, another that is not there and one
// that sends wrong bytes cost time, not the object.
func TestSourcesFail(t *testing.T) {
	for _, flip := range []bool{false, true} {
		c := newCluster(t, 4, Config{Range: 10_000, Pause: time.Millisecond})
		id, b := c.put(1, 500_000)
		c.nodes[2].have[id] = c.nodes[1].have[id]
		var left atomic.Int64
		left.Store(123_456)
		c.wrap = func(_, to uint32, x net.Conn) net.Conn {
			if to == 1 {
				return &broken{Conn: x, left: &left, flip: flip}
			}
			return x
		}
		if err := c.pull(3, id, 9, 1, 2); err != nil {
			t.Fatal(err)
		}
		c.same(3, id, b)
		if n := c.nodes[2].t.Stats().Sent; n < 100_000 {
			t.Errorf("the other source sent %d bytes", n)
		}
	}
}

// TestSourcesAreKnown: a pull begins with the sources that it was asked with.
func TestSourcesAreKnown(t *testing.T) {
	c := newCluster(t, 2, Config{Rounds: 1})
	id, _ := c.put(1, 10)
	for range 3000 {
		if err := c.pull(2, id, 1); err != nil {
			t.Fatal(err)
		}
		delete(c.nodes[2].have, id)
	}
}

// TestErrors: what cannot be had is said so, in bounded time.
func TestErrors(t *testing.T) {
	c := newCluster(t, 3, Config{Pause: time.Millisecond, Stall: 3 * time.Second})
	if err := c.pull(2, ID{1}, 1, 3); !errs.Is(err, errs.NotFound) {
		t.Errorf("no such object: %v", err)
	}
	if err := c.pull(2, ID{1}); !errs.Is(err, errs.Lost) {
		t.Errorf("no node: %v", err)
	}
	id, _ := c.put(1, 5_000_000)
	c.nodes[1].down.Store(true)
	if err := c.pull(2, id, 1); !errs.Is(err, errs.Unavailable) {
		t.Errorf("a node that is down: %v", err)
	}
	c.nodes[1].down.Store(false)
	c.nodes[2].full.Store(true)
	if err := c.pull(2, id, 1); !errs.Is(err, errs.Exhausted) {
		t.Errorf("a full store: %v", err)
	}
	c.nodes[2].full.Store(false)
	c.wrap = func(_, _ uint32, x net.Conn) net.Conn { return &stuck{Conn: x} }
	cfg := &c.nodes[2].t.cfg
	patient := cfg.Stall
	cfg.Stall = 100 * time.Millisecond                                                                          // only here: a busy machine makes all of them wait longer
	if err := c.pull(2, id, 1); !errs.Is(err, errs.Timeout) || !strings.Contains(err.Error(), "sent nothing") { // the pull's own bound says other words
		t.Errorf("a source that sends nothing: %v", err)
	}
	cfg.Stall = patient
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.nodes[2].t.Pull(ctx, id, []uint32{1}); err == nil {
		t.Error("a pull that is not waited for")
	}
	c.wrap = nil
	if err := c.pull(2, id, 1); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

// stuck reads nothing: what is sent is never taken.
type stuck struct {
	net.Conn
	n atomic.Int64
}

func (s *stuck) Read(p []byte) (int, error) {
	if s.n.Add(1) > 20 {
		<-s.closed()
		return 0, os.ErrDeadlineExceeded
	}
	return s.Conn.Read(p[:min(len(p), 100)])
}

func (s *stuck) closed() <-chan time.Time { return time.After(100 * time.Millisecond) }

// TestTree: however many nodes want an object at once, none sends it to more than a few.
func TestTree(t *testing.T) {
	const n = 16
	c := newCluster(t, n, Config{Range: 256 << 10})
	id, b := c.put(1, 2<<20)
	var wg sync.WaitGroup
	for i := uint32(2); i <= n; i++ {
		wg.Go(func() {
			if err := c.pull(i, id, 1); err != nil {
				t.Errorf("node %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	want := int64(n-1) * int64(len(b))
	total := func() (sent int64) {
		for i := uint32(1); i <= n; i++ {
			sent += c.nodes[i].t.Stats().Sent
		}
		return sent
	}
	// sleep: what was sent is counted after the write, which the reader may be ahead of; bounded
	for end := time.Now().Add(time.Minute); total() < want && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	for i := uint32(1); i <= n; i++ {
		c.same(i, id, b)
		if s := c.nodes[i].t.Stats().Sent; s > 3*int64(len(b)) {
			t.Errorf("node %d sent %d bytes of an object of %d", i, s, len(b))
		}
	}
	if sent := total(); sent != want {
		t.Errorf("%d bytes were sent, %d are due", sent, want)
	}
}

// TestParentDies: a node that was to pass the object on is gone; its readers go back.
func TestParentDies(t *testing.T) {
	c := newCluster(t, 4, Config{Range: 100_000, Fanout: 1, Pause: time.Millisecond})
	id, b := c.put(1, 2<<20)
	if err := c.pull(2, id, 1); err != nil {
		t.Fatal(err)
	}
	c.nodes[2].down.Store(true)
	if err := c.pull(3, id, 1); err != nil {
		t.Fatal(err)
	}
	c.same(3, id, b)
	delete(c.nodes[3].have, id) // evicted
	if err := c.pull(4, id, 1); err != nil {
		t.Fatal(err)
	}
	c.same(4, id, b)
}
