package collectives

import (
	"io"
	"unsafe"

	"launcher/collectives/plan"
	"launcher/collectives/reduce"
	"launcher/collectives/transport"
	"launcher/internal/errs"
)

// A small round is an all-gather of the nodes' blocks in log2(n) steps, after which
// every node has all blocks and combines them in rank order by itself. That is few
// messages, each below a packet or two, and the same bits everywhere.

// block is how many bytes a node brings to a small round, and where they lie in the
// vector.
func (r *ring) block(t *trip, node int) (from, size int) {
	switch t.call.Code {
	case plan.AllGather:
		a, b := r.m.nodes.Shard(t.call.Count, node)
		return a * t.call.Type.Size(), (b - a) * t.call.Type.Size()
	case plan.Broadcast:
		if r.m.nodes.Of(t.call.Root) != node {
			return 0, 0
		}
	}
	return 0, t.bytes
}

// blocks is how many bytes come from the node at a lane's hop before at.
func (r *ring) blocks(t *trip, at, hop int) (bytes int) {
	for i := range plan.Blocks(r.size, hop) {
		_, n := r.block(t, (at-i+r.size)%r.size)
		bytes += n
	}
	return bytes
}

// exchange does a small round on the main goroutine; false when the ring ends.
func (r *ring) exchange(t *trip, w *reduce.Worker) bool {
	have := make([][]byte, r.size)
	from, n := r.block(t, r.self)
	have[r.self] = append(make([]byte, 0, n), unsafe.Slice((*byte)(unsafe.Add(t.slot, from)), n)...)
	for lane, hop := range r.hops {
		var payload []byte
		for i := range plan.Blocks(r.size, hop) {
			payload = append(payload, have[(r.self-i+r.size)%r.size]...)
		}
		r.out[lane].Send(transport.Header{Kind: transport.Exchange, Round: t.number, Seq: t.seq, Sig: t.sig, Node: uint32(hop)}, payload, nil)
		got, ok := r.mailOut(lane)
		if !ok {
			return false
		}
		for i := range plan.Blocks(r.size, hop) {
			node := (r.self - hop - i + 2*r.size) % r.size
			_, n := r.block(t, node)
			have[node], got = got[:n:n], got[n:]
		}
	}
	switch t.call.Code {
	case plan.AllGather, plan.Broadcast:
		for node, b := range have {
			from, _ := r.block(t, node)
			copy(unsafe.Slice((*byte)(unsafe.Add(t.slot, from)), len(b)), b)
		}
	case plan.Barrier:
	default:
		if t.bytes > 0 {
			ins := make([]unsafe.Pointer, r.size)
			for i, b := range have {
				ins[i] = unsafe.Pointer(unsafe.SliceData(b))
			}
			w.Do(t.call.Type, t.call.Op, r.m.nodes.World(), []unsafe.Pointer{t.slot}, ins, t.call.Count)
		}
	}
	r.mu.Lock()
	t.begun = true
	r.advance()
	r.mu.Unlock()
	return true
}

// mailIn passes the payload of an Exchange frame to the main goroutine.
func (r *ring) mailIn(lane int, t *trip, h transport.Header, in io.Reader) error {
	if want := r.blocks(t, r.before(lane), r.hops[lane]); !t.small || int(h.Length) != want || int(h.Node) != r.hops[lane] {
		return errs.New(errs.Corrupt, "blocks that are none of their round: %+v, expected are %d bytes", h, want)
	}
	b, err := transport.ReadPayload(in, h, r.size*int(r.m.h.small))
	if err != nil {
		return short(err)
	}
	select {
	case r.mail[lane] <- b:
	case <-r.stop:
	}
	return nil
}

// mailOut waits for the blocks of a lane.
func (r *ring) mailOut(lane int) ([]byte, bool) {
	select {
	case b := <-r.mail[lane]:
		return b, true
	default:
	}
	select {
	case b := <-r.mail[lane]:
		return b, true
	case <-r.hung[lane]:
	case <-r.stop:
		return nil, false
	}
	// It left, but its last frame may have come just before.
	select {
	case b := <-r.mail[lane]:
		return b, true
	default:
		r.gone(lane)
		return nil, false
	}
}
