//go:build linux

package collectives

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"launcher/collectives/plan"
	"launcher/collectives/transport"
	"launcher/internal/errs"
	"launcher/wire"
)

var try = wire.Try{Task: wire.Task{Job: 4, Index: 2}, Attempt: 1}

func oneNode(t testing.TB, ranks int) NodeConfig {
	return NodeConfig{Group: try, Self: "n", Nodes: []wire.GangNode{{Node: "n", Count: uint32(ranks)}}, Arena: 8 << 20, Timeout: 10 * time.Second}
}

func newTestNode(t testing.TB, cfg NodeConfig) *Node {
	t.Helper()
	n, err := NewNode(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// attach joins in this process, through a descriptor of its own.
func attach(t testing.TB, n *Node, rank int) *Comm {
	t.Helper()
	c, err := Attach(dup(t, n.File()), rank)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func dup(t testing.TB, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

// together runs f for all ranks.
func together(comms []*Comm, f func(c *Comm) error) error {
	out := make([]error, len(comms))
	var wg sync.WaitGroup
	for i, c := range comms {
		wg.Go(func() { out[i] = f(c) })
	}
	wg.Wait()
	return errors.Join(out...)
}

func TestNodeConfig(t *testing.T) {
	for name, change := range map[string]func(*NodeConfig){
		"none of its nodes":  func(c *NodeConfig) { c.Self = "other" },
		"the ranks before":   func(c *NodeConfig) { c.Nodes = append(c.Nodes, wire.GangNode{Node: "m", First: 5, Count: 1}) },
		"no way to dial":     func(c *NodeConfig) { c.Nodes = append(c.Nodes, wire.GangNode{Node: "m", First: 3, Count: 1}) },
		"at most 32768":      func(c *NodeConfig) { c.Nodes[0].Count = 1 << 16 },
		"ranks 0 to -1":      func(c *NodeConfig) { c.Nodes[0].Count = 0 },
		"memory of a group ": func(c *NodeConfig) { c.Nodes[0].Count = 30000; c.Round = 1 << 30 },
	} {
		cfg := oneNode(t, 3)
		change(&cfg)
		if n, err := NewNode(cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: %v", name, err)
			if n != nil {
				n.Close()
			}
		}
	}
}

func TestAttach(t *testing.T) {
	n := newTestNode(t, oneNode(t, 2))
	if a := n.Answer(1); a == nil || a.Rank != 1 || a.World != 2 || a.LocalRank != 1 || a.LocalWorld != 2 || a.Group != "4.2#1" || a.TimeoutNS != int64(10*time.Second) {
		t.Errorf("%+v", a)
	}
	if a := n.Answer(2); a != nil {
		t.Errorf("%+v", a)
	}
	if _, err := Attach(dup(t, n.File()), 2); err == nil || !strings.Contains(err.Error(), "ranks 0 to 1") {
		t.Errorf("rank 2 of 2: %v", err)
	}
	// Process 1 always lives, and is not this one.
	n.m.controls[0].pid = 1
	if _, err := Attach(dup(t, n.File()), 0); !errs.Is(err, errs.Exists) {
		t.Errorf("a second process of a rank: %v", err)
	}
	n.m.controls[0].pid = 0x3fffffff // of a process that is gone
	attach(t, n, 0)
	f, err := os.CreateTemp(t.TempDir(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Attach(f, 0); !errs.Is(err, errs.Corrupt) {
		t.Errorf("a plain file: %v", err)
	}
}

// TestRestore: another agent takes up the memory of a group of one node, and it goes on.
func TestRestore(t *testing.T) {
	cfg := oneNode(t, 2)
	n, err := NewNode(cfg)
	if err != nil {
		t.Fatal(err)
	}
	comms := []*Comm{attach(t, n, 0), attach(t, n, 1)}
	kept := dup(t, n.File())
	n.Close()
	sum := func(c *Comm) error { return AllReduce(c, make([]float64, 3000), Sum) }
	if err := together(comms, sum); err != nil {
		t.Fatal(err) // no agent at all: the ranks of a node need none
	}
	n, err = Restore(cfg, kept)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := together(comms, sum); err != nil {
		t.Fatal(err)
	}
	n.Abort(1, "test")
	err = together(comms, sum)
	if lost, ok := errors.AsType[*PeerLost](err); !ok || lost.Rank != 1 || lost.Cause != "test" || !errs.Is(err, errs.Lost) {
		t.Errorf("%v", err)
	}
	other := cfg
	other.Group.Attempt++
	if _, err := Restore(other, dup(t, n.File())); !errs.Is(err, errs.Corrupt) {
		t.Errorf("the memory of another group: %v", err)
	}
}

// TestRestoreOfSeveral: with several nodes what was in flight is lost, and the ranks are
// told.
func TestRestoreOfSeveral(t *testing.T) {
	cfg := oneNode(t, 1)
	cfg.Nodes = append(cfg.Nodes, wire.GangNode{Node: "m", First: 1, Count: 1})
	cfg.Dial = func(context.Context, wire.GangNode, uint32) (net.Conn, error) {
		return nil, errs.New(errs.Unavailable, "nobody")
	}
	n := newTestNode(t, cfg)
	c := attach(t, n, 0)
	again, err := Restore(cfg, dup(t, n.File()))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := c.Barrier(); err == nil || !strings.Contains(err.Error(), "restarted") {
		t.Errorf("%v", err)
	}
	if err := again.Run(t.Context()); err == nil {
		t.Error("it runs")
	}
}

// TestEnded: the agent hears of what its ranks found, and only of that.
func TestEnded(t *testing.T) {
	for _, abort := range []bool{false, true} {
		cfg := oneNode(t, 2)
		heard := make(chan error, 2)
		cfg.Ended = func(err error) { heard <- err }
		n := newTestNode(t, cfg)
		ran := make(chan error, 1)
		go func() { ran <- n.Run(context.Background()) }()
		comms := []*Comm{attach(t, n, 0), attach(t, n, 1)}
		if abort {
			n.Abort(0, "test")
		} else {
			_ = together(comms, func(c *Comm) error { return AllReduce(c, make([]int32, 1+c.Rank()), Sum) })
		}
		if err := <-ran; err == nil {
			t.Error("Run returned nothing")
		}
		select {
		case err := <-heard:
			if _, ok := errors.AsType[*Mismatch](err); !ok || abort {
				t.Errorf("abort %v: heard %v", abort, err)
			}
		default:
			if !abort {
				t.Error("heard nothing of a mismatch")
			}
		}
	}
}

func TestSingle(t *testing.T) {
	c, err := Single()
	if err != nil {
		t.Fatal(err)
	}
	b, err := Empty[float32](c, 3)
	if err != nil || len(b) != 3 {
		t.Fatal(b, err)
	}
	copy(b, []float32{1, 2, 3})
	out := make([]float32, 3)
	err = errors.Join(AllReduce(c, b, Mean), Reduce(c, b, Product, 0), Broadcast(c, b, 0), c.Barrier(), ReduceScatter(c, out, b, Sum), AllGather(c, b, out))
	if err != nil || b[2] != 3 || out[1] != 2 {
		t.Errorf("%v, %v, %v", err, b, out)
	}
	Free(c, b)
	if err := AllReduce(c, []int32{1}, Mean); !errs.Is(err, errs.Invalid) {
		t.Errorf("mean of integers: %v", err)
	}
	if err := Broadcast(c, b, 1); !errs.Is(err, errs.Invalid) {
		t.Errorf("root 1 of 1: %v", err)
	}
	if err := AllGather(c, b, out[:2]); !errs.Is(err, errs.Invalid) {
		t.Errorf("a part of the wrong length: %v", err)
	}
	if err := ReduceScatter(c, out[:2], b, Sum); !errs.Is(err, errs.Invalid) {
		t.Errorf("a part of the wrong length: %v", err)
	}
	if err := errors.Join(c.Close(), c.Close(), c.Err()); err != nil {
		t.Error(err)
	}
	if err := c.Barrier(); !errs.Is(err, errs.Invalid) {
		t.Errorf("after Close: %v", err)
	}
}

// TestArena: buffers do not overlap, freed memory comes again and reads as zeros when it
// was large, and what does not fit is refused.
func TestArena(t *testing.T) {
	n := newTestNode(t, oneNode(t, 2))
	c, other := attach(t, n, 0), attach(t, n, 1)
	var bufs [][]float64
	for i := range 50 {
		b, err := Empty[float64](c, i*i*7)
		if err != nil {
			t.Fatal(err)
		}
		for j := range b {
			if b[j] != 0 {
				t.Fatalf("buffer %d has %g", i, b[j])
			}
			b[j] = float64(i)
		}
		bufs = append(bufs, b)
	}
	for i, b := range bufs {
		for _, v := range b {
			if v != float64(i) {
				t.Fatalf("buffer %d has %g", i, v)
			}
		}
		if i%2 == 0 {
			Free(c, b)
		}
	}
	if _, err := Empty[float64](c, 1<<20); !errs.Is(err, errs.Exhausted) {
		t.Errorf("8 MiB of 8, with some taken: %v", err)
	}
	for i, b := range bufs {
		if i%2 == 1 {
			Free(c, b)
		}
	}
	whole, err := Empty[float64](c, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	whole[77] = 1
	if o, err := Empty[float64](other, 1<<20); err != nil || o[77] != 0 {
		t.Errorf("the other rank's arena: %v", err)
	}
	Free(c, whole)
	if whole, err = Empty[float64](c, 1<<20); err != nil || whole[77] != 0 {
		t.Errorf("again: %v, %g", err, whole[77])
	}
	if _, err := Empty[float64](c, -1); !errs.Is(err, errs.Invalid) {
		t.Errorf("-1 elements: %v", err)
	}
}

// TestTwoGoroutines: using a group from two goroutines at once is found.
func TestTwoGoroutines(t *testing.T) {
	n := newTestNode(t, oneNode(t, 2))
	c := attach(t, n, 0)
	first := make(chan error, 1)
	go func() { first <- c.Barrier() }()
	for !c.busy.Load() {
		// sleep: between two looks at a flag
		time.Sleep(time.Millisecond)
	}
	if err := c.Barrier(); !errs.Is(err, errs.Invalid) {
		t.Errorf("%v", err)
	}
	c.Abort("the test is over")
	if err := <-first; err == nil || !strings.Contains(err.Error(), "the test is over") {
		t.Errorf("%v", err)
	}
}

func TestNoAllocationsInSmall(t *testing.T) {
	n := newTestNode(t, oneNode(t, 1))
	c := attach(t, n, 0)
	c.world = 2 // as if there were another: the small path needs only local ranks
	b := make([]float32, 100)
	if got := testing.AllocsPerRun(100, func() {
		if err := AllReduce(c, b, Sum); err != nil {
			t.Fatal(err)
		}
	}); got != 0 {
		t.Errorf("%v allocations a call", got)
	}
}

// TestAccept: connections that have no business in the group are refused, and harm
// nothing.
func TestAccept(t *testing.T) {
	cfg := oneNode(t, 1)
	cfg.Nodes = append(cfg.Nodes, wire.GangNode{Node: "m", First: 1, Count: 1})
	cfg.Dial = func(ctx context.Context, _ wire.GangNode, _ uint32) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	n := newTestNode(t, cfg)
	ran := make(chan error, 1)
	go func() { ran <- n.Run(context.Background()) }()
	dial := func(from wire.NodeID, lane uint32, first []byte) error {
		a, b := net.Pipe()
		defer a.Close()
		if err := n.Accept(b, from, lane); err != nil {
			return err
		}
		_ = a.SetDeadline(time.Now().Add(time.Minute))
		_, err := a.Write(first)
		if err == nil {
			_, err = transport.ReadHeader(a)
		}
		return err
	}
	g := transport.Greeting{Group: try, From: 1, Nodes: 2, World: 2, Round: n.m.h.round}
	hello := func(g transport.Greeting) []byte {
		b := g.Append(nil)
		return append(transport.Header{Kind: transport.Hello, Length: uint32(len(b))}.Append(nil), b...)
	}
	stale := g
	stale.Group.Attempt = 9
	for name, err := range map[string]error{
		"another node":  dial("x", 0, hello(g)),
		"another lane":  dial("m", 1, hello(g)),
		"a huge lane":   dial("m", 1<<31, hello(g)),
		"no greeting":   dial("m", 0, bytes.Repeat([]byte("GET / "), 20)),
		"other attempt": dial("m", 0, hello(stale)),
	} {
		if err == nil {
			t.Errorf("%s is let in", name)
		}
	}
	if err := n.Err(); err != nil {
		t.Errorf("the group has ended: %v", err)
	}
	if err := dial("m", 0, hello(g)); err != nil {
		t.Errorf("the right one: %v", err)
	}
	n.Close()
	if err := <-ran; err != nil {
		t.Errorf("%v", err)
	}
	if err := dial("m", 0, hello(g)); !errs.Is(err, errs.Fenced) {
		t.Errorf("after the end: %v", err)
	}
	n.Abort(0, "too late")
	n.Leave(0)
	if n.Answer(0) != nil || n.Err() != nil {
		t.Error("a closed node answers")
	}
}

// FuzzHeader: whatever stands in the first page, nothing outside the memory is touched.
func FuzzHeader(f *testing.F) {
	good := shape{group: try, nodes: plan.Nodes{0, 2, 3}, round: 64, timeout: time.Second}.layout()
	f.Add(unsafe.Slice((*byte)(unsafe.Pointer(&good)), unsafe.Sizeof(good)))
	size := good.size
	f.Fuzz(func(t *testing.T, b []byte) {
		words := make([]uint64, size/8)
		mem := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), size)
		copy(mem, b)
		binary.LittleEndian.PutUint32(mem[260:], 2)
		binary.LittleEndian.PutUint32(mem[264:], 3)
		m, err := view(mem, nil)
		if err != nil {
			return
		}
		end := uintptr(m.base) + uintptr(size)
		for i := range m.n {
			for _, p := range []unsafe.Pointer{m.small(i, 1), m.staged(3, i), m.result(3), unsafe.Pointer(m.controls[i+1]), unsafe.Pointer(m.records[i+1])} {
				if uintptr(p) < uintptr(m.base) || uintptr(p) >= end {
					t.Fatal("a slot outside the memory")
				}
			}
		}
		_ = m.ended()
	})
}

// FuzzRing: whatever another node sends, the agent neither crashes nor hangs.
func FuzzRing(f *testing.F) {
	sig := plan.Call{Code: plan.AllReduce, Type: TypeFloat32, Op: Sum, Count: 5000}.Signature()
	small := plan.Call{Code: plan.AllReduce, Type: TypeFloat32, Op: Sum, Count: 10}.Signature()
	frame := func(h transport.Header, n int) []byte {
		h.Length = uint32(n)
		return append(h.Append(nil), make([]byte, n)...)
	}
	f.Add(true, frame(transport.Header{Kind: transport.Partial, Seq: 1, Sig: sig, Node: 0}, 10240))
	f.Add(true, frame(transport.Header{Kind: transport.Final, Seq: 1, Sig: sig, Node: 1}, 9760))
	f.Add(false, frame(transport.Header{Kind: transport.Exchange, Seq: 1, Sig: small, Node: 1}, 40))
	f.Add(true, frame(transport.Header{Kind: transport.End}, 20))
	f.Add(true, frame(transport.Header{Kind: transport.Ready, Seq: 1, Sig: sig}, 0))
	f.Fuzz(func(t *testing.T, large bool, b []byte) {
		cfg := oneNode(t, 1)
		cfg.Nodes = append(cfg.Nodes, wire.GangNode{Node: "m", First: 1, Count: 1})
		out, sink := net.Pipe()
		defer sink.Close()
		cfg.Dial = func(context.Context, wire.GangNode, uint32) (net.Conn, error) { return out, nil }
		go func() { // the other node: lets everything in
			h, err := transport.ReadHeader(sink)
			if err != nil {
				return
			}
			_, _ = transport.ReadPayload(sink, h, 100)
			_, _ = sink.Write(transport.Header{Kind: transport.Hello}.Append(nil))
			buf := make([]byte, 1<<16)
			for {
				if _, err := sink.Read(buf); err != nil {
					return
				}
			}
		}()
		n := newTestNode(t, cfg)
		ran := make(chan error, 1)
		go func() { ran <- n.Run(context.Background()) }()
		c := attach(t, n, 0)
		done := make(chan error, 1)
		count := 10
		if large {
			count = 5000
		}
		go func() { done <- AllReduce(c, make([]float32, count), Sum) }()
		in, far := net.Pipe()
		if err := n.Accept(far, "m", 0); err != nil {
			t.Fatal(err)
		}
		g := transport.Greeting{Group: try, From: 1, Nodes: 2, World: 2, Round: n.m.h.round}.Append(nil)
		_ = in.SetDeadline(time.Now().Add(time.Minute))
		_, _ = in.Write(append(transport.Header{Kind: transport.Hello, Length: uint32(len(g))}.Append(nil), g...))
		_, _ = transport.ReadHeader(in)
		_, _ = in.Write(b)
		in.Close()
		select {
		case <-done:
		case <-time.After(20 * time.Millisecond): // it may wait for more, but not for ever
			n.Abort(1, "enough")
			select {
			case <-done:
			case <-time.After(time.Minute):
				t.Fatal("the rank hangs")
			}
		}
		n.Close()
		<-ran
	})
}
