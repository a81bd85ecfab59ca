package collectives

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"time"
	"unsafe"

	"launcher/collectives/plan"
	"launcher/collectives/reduce"
	"launcher/collectives/transport"
	"launcher/internal/errs"
	"launcher/wire"
)

// accept takes a connection from another node, now or when run begins.
func (r *ring) accept(conn net.Conn, from wire.NodeID, lane uint32) error {
	a := arrival{conn, from, lane}
	if int64(lane) >= int64(len(r.hops)) || r.name(r.before(int(lane))) != from {
		conn.Close()
		return errs.New(errs.Invalid, "group %s: node %s has no lane %d to node %s", r.n.cfg.Group, from, lane, r.name(r.self))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.over:
		conn.Close()
		return errs.New(errs.Fenced, "group %s has ended", r.n.cfg.Group)
	case r.running:
		r.serve(a)
	default:
		r.early = append(r.early, a)
	}
	return nil
}

// before is the node whose frames come by a lane.
func (r *ring) before(lane int) int { return (r.self - r.hops[lane] + r.size) % r.size }

func (r *ring) serve(a arrival) {
	r.wg.Go(func() {
		defer a.conn.Close()
		// When the ring ends, a read that waits has to.
		quit, gone := make(chan struct{}), make(chan struct{})
		r.wg.Go(func() {
			defer close(gone)
			select {
			case <-r.stop:
				_ = a.conn.SetReadDeadline(time.Now())
			case <-quit:
			}
		})
		if err := r.read(a); err != nil {
			r.broken("the connection from node %s to node %s broke: %v", a.from, r.name(r.self), err)
		}
		close(quit)
		<-gone
		r.sayWhy(a.conn)
	})
}

// sayWhy tells a node that sends to us why we do not listen any more. What it has sent
// is read to its end, for closing a connection with data in it would destroy the answer
// on its way.
func (r *ring) sayWhy(conn net.Conn) {
	select {
	case <-r.stop:
	case <-time.After(2 * reasonFor):
		return
	}
	h, payload := r.reason()
	if h.Kind == 0 {
		return
	}
	_ = conn.SetDeadline(time.Now().Add(reasonFor))
	if _, err := conn.Write(append(h.Append(nil), payload...)); err == nil {
		_, _ = io.Copy(io.Discard, conn)
	}
}

// read handles the frames of one connection. nil means that the other node closed it
// between frames, which is no fault until it is needed again; or that it never was what
// it should be, and the other node knows.
func (r *ring) read(a arrival) error {
	lane := int(a.lane)
	in := bufio.NewReaderSize(a.conn, 32<<10)
	if err := r.greet(a, in); err != nil {
		r.n.cfg.Log.Warn("collective: connection refused", "group", r.n.cfg.Group.String(), "from", a.from, "lane", a.lane, "err", err)
		return nil
	}
	var w reduce.Worker
	scratch := make([]byte, frameSize)
	for {
		h, err := transport.ReadHeader(in)
		switch {
		case err == io.EOF:
			r.hangup(lane)
			return nil
		case err != nil:
			return err
		case h.Kind == transport.End:
			return r.farewell(in, h)
		}
		t, err := r.due(h.Round)
		if t == nil {
			return err // or the ring ends
		}
		if t.sig == 0 {
			// The round is done here: this node needed nothing of it from the one before.
			// Then nothing but the notice may still come.
			if h.Kind == transport.Ready && h.Length == 0 {
				continue
			}
			return errs.New(errs.Corrupt, "data of a round that is over: %+v", h)
		}
		if t.sig != h.Sig || t.seq != h.Seq {
			r.differ(lane, t, h)
			return nil
		}
		switch h.Kind {
		case transport.Ready:
			if h.Length != 0 {
				return errs.New(errs.Corrupt, "a frame of kind %d with %d bytes", h.Kind, h.Length)
			}
		case transport.Exchange:
			err = r.mailIn(lane, t, h, in)
		case transport.Partial, transport.Final:
			err = r.stretch(lane, t, h, in, scratch, &w)
		default:
			err = errs.New(errs.Corrupt, "a frame of kind %d out of place", h.Kind)
		}
		if err != nil {
			return err
		}
	}
}

// greet reads and checks the first frame.
func (r *ring) greet(a arrival, in io.Reader) error {
	_ = a.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	h, err := transport.ReadHeader(in)
	if err != nil {
		return err
	}
	b, err := transport.ReadPayload(in, h, 64)
	if err != nil {
		return err
	}
	g, err := transport.ParseGreeting(b)
	if err != nil || h.Kind != transport.Hello {
		return errs.New(errs.Corrupt, "it does not begin with a greeting")
	}
	want := transport.Greeting{Group: r.n.cfg.Group, From: uint32(r.before(int(a.lane))), Lane: a.lane, Nodes: uint32(r.size),
		World: r.m.h.world, Round: r.m.h.round}
	if g != want {
		return errs.New(errs.Invalid, "the two nodes see the group differently: %+v, %+v", g, want)
	}
	r.mu.Lock()
	twice := r.taken[a.lane]
	r.taken[a.lane] = true
	r.mu.Unlock()
	if twice {
		return errs.New(errs.Exists, "node %s has dialled lane %d before", a.from, a.lane)
	}
	if _, err := a.conn.Write(transport.Header{Kind: transport.Hello}.Append(nil)); err != nil {
		return err
	}
	if !r.stopped() { // otherwise the short deadline of the end may be set already
		_ = a.conn.SetReadDeadline(time.Time{})
	}
	return nil
}

// hangup notes that the node before us on a lane has left. That ends the group only if a
// round needs it: it may have had all it wanted.
func (r *ring) hangup(lane int) {
	r.mu.Lock()
	lost := false
	if lane == 0 {
		for _, t := range r.flying {
			lost = lost || t != nil && t.recv > 0
		}
	}
	r.closed[lane] = true
	r.mu.Unlock()
	close(r.hung[lane])
	if lost {
		r.gone(lane)
	}
}

// due waits until the local ranks have handed over a round, and gives it; nil when the
// ring ends. Until then the other node's data waits in the connection.
func (r *ring) due(number uint64) (*trip, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// To use a slot again the other node needs this one to have done with it.
	if number >= r.ready+slots {
		return nil, errs.New(errs.Corrupt, "data of round %d, of which %d have begun here", number, r.ready)
	}
	for r.ready <= number {
		if r.over {
			return nil, nil
		}
		if r.waiting.IsZero() {
			r.waiting = time.Now()
		}
		r.cond.Wait()
	}
	if t := r.flying[number%slots]; t != nil && t.number == number {
		return t, nil
	}
	return &trip{number: number}, nil // done
}

// differ ends the group because another node's ranks called something else.
func (r *ring) differ(lane int, t *trip, h transport.Header) {
	theirs := r.n.cfg.Nodes[r.before(lane)]
	r.m.end(r.m.n, kindMismatch, int(theirs.First), fmt.Sprintf("in operation %d the ranks of node %s called %s, those of node %s %s (operation %d)",
		t.seq, r.name(r.self), t.call, theirs.Node, plan.FromSignature(h.Sig), h.Seq))
	r.spread()
}

// farewell ends the group because another node says so.
func (r *ring) farewell(in io.Reader, h transport.Header) error {
	b, err := transport.ReadPayload(in, h, transport.MaxFarewell)
	if err != nil {
		return short(err)
	}
	f, err := transport.ParseFarewell(b)
	if err != nil {
		return err
	}
	if f.Kind < kindLost || f.Kind > kindTimeout || int(f.Rank) >= r.m.nodes.World() {
		return errs.New(errs.Corrupt, "a farewell of kind %d about rank %d", f.Kind, f.Rank)
	}
	if !r.stopped() {
		r.m.end(r.m.n, f.Kind, int(f.Rank), f.Cause)
		r.spread()
	}
	return nil
}

// stretch handles data of a large round.
func (r *ring) stretch(lane int, t *trip, h transport.Header, in io.Reader, scratch []byte, w *reduce.Worker) error {
	size, off, n, node := t.call.Type.Size(), int(h.Off), int(h.Length), int(h.Node)
	reduces, final := t.call.Code.Reduces(), h.Kind == transport.Final
	bad := lane != 0 || t.small || n == 0 || n > len(scratch) || off%size != 0 || n%size != 0 || off+n > t.bytes || node >= r.size
	if !bad {
		bad = true
		r.pieces(t, func(from, to, owner int) {
			if owner == node && from*size <= off && off+n <= to*size {
				bad = false
			}
		})
	}
	if final {
		bad = bad || r.self == node || reduces && t.call.Code != plan.AllReduce
	} else {
		bad = bad || !reduces || r.self == (node+1)%r.size
	}
	r.mu.Lock()
	bad = bad || n > t.recv
	r.mu.Unlock()
	if bad {
		return errs.New(errs.Corrupt, "a stretch that is none of its round: %+v", h)
	}
	own := unsafe.Slice((*byte)(unsafe.Add(t.slot, off)), n)
	next := (r.self + 1) % r.size
	if final {
		if _, err := io.ReadFull(in, own); err != nil {
			return short(err)
		}
		if next != node {
			r.ship(t, transport.Final, node, off, off+n)
		}
	} else {
		if _, err := io.ReadFull(in, scratch[:n]); err != nil {
			return short(err)
		}
		op := partial(t.call.Op)
		if r.self == node {
			op = t.call.Op
		}
		p := unsafe.Pointer(&own[0])
		w.Do(t.call.Type, op, r.m.nodes.World(), []unsafe.Pointer{p}, []unsafe.Pointer{unsafe.Pointer(&scratch[0]), p}, n/size)
		switch {
		case r.self != node:
			r.ship(t, transport.Partial, node, off, off+n)
		case t.call.Code == plan.AllReduce:
			r.ship(t, transport.Final, node, off, off+n)
		}
	}
	r.mu.Lock()
	t.recv -= n
	r.advance()
	r.mu.Unlock()
	return nil
}

func short(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
