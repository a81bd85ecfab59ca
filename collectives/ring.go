package collectives

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"launcher/collectives/plan"
	"launcher/collectives/reduce"
	"launcher/collectives/transport"
	"launcher/internal/errs"
	"launcher/shm"
	"launcher/wire"
)

// ring is the agent's side of operations between nodes. Its main goroutine (rounds)
// takes rounds from the local ranks, one after the other; frames go out by one link per
// lane, and one reader per incoming connection (reader.go) combines what comes in into
// the round's slot of the shared memory and passes it on.
//
// Lane k leads to the node plan.Hops[k] further on. Lane 0 is the ring itself; the
// others serve small rounds only.
//
// Within a large round the vector is cut into pieces, one per node. A piece starts at
// the node after the one it belongs to, is combined by each node on its way round, is
// complete where it belongs, and from there goes round again as it is. So each link
// carries 2(n-1)/n of a round. Reduce and reduce-scatter do the first half only, for a
// round that belongs to one node; broadcast and all-gather the second.
type ring struct {
	n    *Node
	m    *memory
	size int // nodes
	self int
	hops []int
	out  []*transport.Link
	mail []chan []byte   // per lane: payloads of Exchange frames for the main goroutine
	hung []chan struct{} // per lane: closed when the node before us has closed its connection
	stop chan struct{}   // closed when the ring ends
	tell chan struct{}   // something may have ended the group: look
	wg   sync.WaitGroup

	mu      sync.Mutex
	cond    *sync.Cond
	ready   uint64       // rounds that all local ranks have handed over
	done    uint64       // rounds finished and given back to the ranks
	flying  [slots]*trip // by number
	waiting time.Time    // since when another node waits for ours; zero = it does not
	closed  []bool       // per lane, as hung
	taken   []bool       // per lane: the node before us has dialled
	early   []arrival    // connections that came before run
	running bool
	over    bool
	dialled []net.Conn
}

// trip is a round on its way.
type trip struct {
	number uint64
	seq    uint64
	sig    uint64
	call   plan.Call
	round  plan.Round
	slot   unsafe.Pointer
	bytes  int
	small  bool
	begun  bool // guarded by ring.mu, as those below
	recv   int  // bytes still to come
	sends  int  // frames not yet written
}

type arrival struct {
	conn net.Conn
	from wire.NodeID
	lane uint32
}

// frameSize is how much goes in one frame: a node can pass it on while the next comes
// in.
const frameSize = 256 << 10

// farewellFor is how long telling other nodes that the group has ended may take.
const farewellFor = time.Second

// reasonFor is how long after a connection broke the reason may come.
const reasonFor = 300 * time.Millisecond

// dialFor is how long other nodes may take to be there.
const dialFor = time.Minute

func newRing(n *Node) *ring {
	r := &ring{n: n, m: n.m, size: n.m.nodes.Len(), self: n.self, hops: plan.Hops(n.m.nodes.Len()),
		stop: make(chan struct{}), tell: make(chan struct{}, 1)}
	r.cond = sync.NewCond(&r.mu)
	r.closed, r.taken = make([]bool, len(r.hops)), make([]bool, len(r.hops))
	for range r.hops {
		r.out = append(r.out, transport.NewLink())
		r.mail = append(r.mail, make(chan []byte, 1))
		r.hung = append(r.hung, make(chan struct{}))
	}
	return r
}

// spread makes the ring look at the state of the group and tell other nodes.
func (r *ring) spread() {
	select {
	case r.tell <- struct{}{}:
	default:
	}
}

// run is the life of the ring.
func (r *ring) run(ctx context.Context) {
	r.mu.Lock()
	if r.running || r.over {
		r.mu.Unlock()
		return
	}
	r.running = true
	early := r.early
	r.early = nil
	r.mu.Unlock()

	dial, cancel := context.WithCancel(ctx)
	for _, a := range early {
		r.serve(a)
	}
	for lane := range r.hops {
		r.wg.Go(func() { r.send(dial, lane) })
	}
	r.wg.Go(r.rounds)
	r.wg.Go(r.watchState)

	for r.m.ended() == nil {
		select {
		case <-ctx.Done():
		case <-r.n.done:
		case <-r.tell:
			continue
		}
		break
	}
	if err := r.m.ended(); err != nil {
		// Nodes that are being dialled just now should hear why, too.
		defer time.AfterFunc(farewellFor, cancel).Stop()
		r.n.report(err)
	} else {
		cancel()
	}
	r.shut()
	r.wg.Wait()
	cancel()
}

// watchState notices that a rank ended the group.
func (r *ring) watchState() {
	for !r.stopped() {
		if atomic.LoadUint32(&r.m.h.state) != 0 {
			r.spread()
			return
		}
		shm.FutexWait(&r.m.h.state, 0, 100*time.Millisecond)
	}
}

func (r *ring) stopped() bool {
	select {
	case <-r.stop:
		return true
	default:
		return false
	}
}

// shut ends all goroutines. If the group has ended, the other nodes are told why.
func (r *ring) shut() {
	last, payload := r.reason()
	r.mu.Lock()
	r.over = true
	conns, early := r.dialled, r.early
	r.mu.Unlock()
	for _, a := range early {
		a.conn.Close()
	}
	close(r.stop)
	r.cond.Broadcast()
	r.m.rouse()
	for _, l := range r.out {
		l.Finish(last, payload)
	}
	for _, c := range conns {
		// A write that is stuck now would keep the others waiting.
		_ = c.SetDeadline(time.Now().Add(farewellFor))
	}
}

// reason is the farewell, once the group has ended; before, a zero header.
func (r *ring) reason() (h transport.Header, payload []byte) {
	if s := atomic.LoadUint32(&r.m.h.state); s != 0 {
		kind, rank, cause := r.m.why(s)
		payload = transport.Farewell{Kind: kind, Rank: int32(rank), Cause: cause}.Append(nil)
		h = transport.Header{Kind: transport.End, Length: uint32(len(payload))}
	}
	return h, payload
}

// broken ends the group because a connection broke, unless the reason for that comes
// soon: a node that ends the group closes its connections too.
func (r *ring) broken(format string, args ...any) {
	r.wg.Go(func() {
		select {
		case <-r.stop:
		case <-time.After(reasonFor):
			r.fail(format, args...)
		}
	})
}

// fail ends the group because of something between nodes.
func (r *ring) fail(format string, args ...any) {
	if r.stopped() {
		return
	}
	r.m.end(r.m.n, kindLost, -1, fmt.Sprintf(format, args...))
	r.spread()
}

func (r *ring) name(node int) wire.NodeID { return r.n.cfg.Nodes[node].Node }

// send dials a lane and writes to it.
func (r *ring) send(ctx context.Context, lane int) {
	to := (r.self + r.hops[lane]) % r.size
	conn, err := r.dial(ctx, to, lane)
	if err != nil {
		if ctx.Err() == nil { // else nobody wants it any more
			r.fail("node %s cannot reach node %s: %v", r.name(r.self), r.name(to), err)
		}
		return
	}
	defer conn.Close()
	r.mu.Lock()
	r.dialled = append(r.dialled, conn)
	over := r.over
	r.mu.Unlock()
	if over {
		_ = conn.SetDeadline(time.Now().Add(farewellFor))
	}
	r.wg.Go(func() { r.backchannel(conn) })
	if err := r.out[lane].Run(conn); err != nil {
		r.mu.Lock()
		due := r.oldest() != nil
		r.mu.Unlock()
		if due {
			r.broken("the connection from node %s to node %s broke: %v", r.name(r.self), r.name(to), err)
		}
		// Otherwise the other node has left after all was done; the next round fails.
		<-r.stop
		return
	}
	// Let the other side read all before the connection goes: it closes on End.
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
}

// backchannel reads what comes back on a connection that we dialled, which is only a
// farewell from a node that refuses us.
func (r *ring) backchannel(conn net.Conn) {
	if h, err := transport.ReadHeader(conn); err == nil && h.Kind == transport.End {
		_ = r.farewell(conn, h)
	}
}

func (r *ring) dial(ctx context.Context, to, lane int) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialFor)
	defer cancel()
	hello := transport.Greeting{Group: r.n.cfg.Group, From: uint32(r.self), Lane: uint32(lane), Nodes: uint32(r.size),
		World: r.m.h.world, Round: r.m.h.round}.Append(nil)
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		conn, err := r.n.cfg.Dial(ctx, r.n.cfg.Nodes[to], uint32(lane))
		if err == nil {
			if err = greetOut(ctx, conn, hello); err == nil {
				return conn, nil
			}
			conn.Close()
		}
		if k := errs.KindOf(err); k == errs.Invalid || k == errs.Permission || k == errs.Fenced {
			return nil, err
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = context.Cause(ctx)
			}
			return nil, err
		case <-time.After(pause):
		}
	}
}

// greetOut sends the greeting and waits until the other node has taken the connection.
func greetOut(ctx context.Context, conn net.Conn, hello []byte) error {
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	h := transport.Header{Kind: transport.Hello, Length: uint32(len(hello))}
	if _, err := conn.Write(append(h.Append(nil), hello...)); err != nil {
		return err
	}
	h, err := transport.ReadHeader(conn)
	if err == nil && (h.Kind != transport.Hello || h.Length != 0) {
		err = errs.New(errs.Corrupt, "the answer to a greeting is a frame of kind %d", h.Kind)
	}
	return err
}

// oldest is the first round that is not done; nil when there is none. mu must be held.
func (r *ring) oldest() *trip {
	if t := r.flying[r.done%slots]; t != nil && t.number == r.done {
		return t
	}
	return nil
}

// advance gives finished rounds back to the ranks, in order. mu must be held.
func (r *ring) advance() {
	for {
		t := r.oldest()
		if t == nil || !t.begun || t.recv > 0 || t.sends > 0 {
			return
		}
		r.done++
		r.flying[t.number%slots] = nil
		r.m.post(&r.m.controls[r.m.n].step, r.done)
	}
}

// rounds is the main goroutine.
func (r *ring) rounds() {
	var w reduce.Worker
	number := uint64(0)
	for seq := uint64(1); r.await(number + 1); seq++ {
		sig := r.m.controls[0].sig[seq&1]
		call := plan.FromSignature(sig)
		if !call.Valid(r.m.nodes.World()) {
			r.fail("node %s: the group's shared memory is damaged: operation %d is %s", r.name(r.self), seq, call)
			return
		}
		if call.Bytes() <= int(r.m.h.small) {
			t := &trip{number: number, seq: seq, sig: sig, call: call, slot: r.m.result(number), bytes: call.Bytes(), small: true}
			r.take(t)
			if !r.exchange(t, &w) {
				return
			}
			number++
			continue
		}
		size := call.Type.Size()
		for i, round := range plan.Rounds(call, r.m.nodes, int(r.m.h.round)/size) {
			if !r.await(number + 1) {
				return
			}
			t := &trip{number: number, seq: seq, sig: sig, call: call, round: round, slot: r.m.result(number), bytes: (round.To - round.From) * size}
			t.recv = r.expected(t)
			r.take(t)
			if i == 0 {
				r.out[0].Send(transport.Header{Kind: transport.Ready, Round: number, Seq: seq, Sig: sig}, nil, nil)
			}
			r.begin(t)
			number++
		}
	}
}

// take makes a round known to the readers: its slot is ours now.
func (r *ring) take(t *trip) {
	r.mu.Lock()
	r.flying[t.number%slots] = t
	r.ready = t.number + 1
	r.waiting = time.Time{}
	lost := r.closed[0] && t.recv > 0
	r.mu.Unlock()
	r.cond.Broadcast()
	if lost {
		r.gone(0)
	}
}

// gone ends the group because the node before us on a lane has left.
func (r *ring) gone(lane int) {
	r.broken("node %s has closed its connection to node %s", r.name((r.self-r.hops[lane]+r.size)%r.size), r.name(r.self))
}

// await waits until all local ranks have handed over so many rounds; false when the ring
// ends.
func (r *ring) await(rounds uint64) bool {
	asleep := &r.m.sleepers[r.m.n]
	for i, ctl := range r.m.controls[:r.m.n] {
		for atomic.LoadUint64(&ctl.bin) < rounds {
			if r.stopped() {
				return false
			}
			atomic.StoreUint32(asleep, 1)
			if v := atomic.LoadUint64(&ctl.bin); v < rounds {
				shm.FutexWait(low(&ctl.bin), uint32(v), 100*time.Millisecond)
			}
			atomic.StoreUint32(asleep, 0)
			r.overdue(i, ctl, rounds)
		}
	}
	return !r.stopped()
}

// overdue ends the group when other nodes have waited too long for local rank i.
func (r *ring) overdue(i int, ctl *control, rounds uint64) {
	r.mu.Lock()
	since := r.waiting
	r.mu.Unlock()
	if since.IsZero() || atomic.LoadUint64(&ctl.bin) >= rounds {
		return
	}
	// Rank i may itself wait for another one here, which is the one to name: the one that
	// has got least far.
	for j, other := range r.m.controls[:r.m.n] {
		if atomic.LoadUint64(&other.step) < atomic.LoadUint64(&ctl.step) {
			i, ctl = j, other
		}
	}
	rank, waited, limit := int(r.m.h.first)+i, time.Since(since), r.m.timeout()
	switch {
	case atomic.LoadUint32(&ctl.left) != 0 && waited > leftGrace:
		r.m.end(r.m.n, kindLost, rank, "it left the group; other nodes still waited for it")
	case waited > limit:
		what := "has not called the operation"
		if atomic.LoadUint32(&ctl.pid) == 0 {
			what = "has not joined the group"
		}
		r.m.end(r.m.n, kindTimeout, rank, fmt.Sprintf("rank %d on node %s %s that other nodes have waited in for %v", rank, r.name(r.self), what, limit))
	default:
		return
	}
	r.spread()
}

// pieces are the parts of a round, in elements from its start, each with the node that
// it belongs to.
func (r *ring) pieces(t *trip, do func(from, to, node int)) {
	n := t.round.To - t.round.From
	if t.call.Code != plan.AllReduce {
		do(0, n, t.round.Node)
		return
	}
	for p := range r.size {
		if a, b := plan.Share(n, r.size, p, t.call.Type.Size()); a < b {
			do(a, b, p)
		}
	}
}

// expected is how many bytes come to this node in a round.
func (r *ring) expected(t *trip) (bytes int) {
	size := t.call.Type.Size()
	r.pieces(t, func(from, to, node int) {
		if t.call.Code.Reduces() && r.self != (node+1)%r.size {
			bytes += (to - from) * size
		}
		if (!t.call.Code.Reduces() || t.call.Code == plan.AllReduce) && r.self != node {
			bytes += (to - from) * size
		}
	})
	return bytes
}

// begin sends what starts here.
func (r *ring) begin(t *trip) {
	size := t.call.Type.Size()
	r.pieces(t, func(from, to, node int) {
		switch {
		case t.call.Code.Reduces() && r.self == (node+1)%r.size:
			r.ship(t, transport.Partial, node, from*size, to*size)
		case !t.call.Code.Reduces() && r.self == node:
			r.ship(t, transport.Final, node, from*size, to*size)
		}
	})
	r.mu.Lock()
	t.begun = true
	r.advance()
	r.mu.Unlock()
}

// ship sends bytes [from, to) of a round to the next node.
func (r *ring) ship(t *trip, kind transport.Kind, node, from, to int) {
	for ; from < to; from += frameSize {
		n := min(frameSize, to-from)
		r.mu.Lock()
		t.sends++
		r.mu.Unlock()
		h := transport.Header{Kind: kind, Round: t.number, Seq: t.seq, Sig: t.sig, Off: uint32(from), Node: uint32(node)}
		r.out[0].Send(h, unsafe.Slice((*byte)(unsafe.Add(t.slot, from)), n), func() {
			r.mu.Lock()
			t.sends--
			r.advance()
			r.mu.Unlock()
		})
	}
}
