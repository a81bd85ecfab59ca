package launcher

import (
	"context"
	"encoding/binary"
	"net"
	"syscall"
	"time"

	"launcher/internal/errs"
	"launcher/wire/sdk"
)

// Bounds of what is written.
const (
	flushAt    = 32 << 10 // a write is worth its system call
	flushAfter = 200 * time.Microsecond
	proofEvery = 256 << 10 // ask for proof that the agent has read so far
	proofMax   = 8 << 20   // wait for proof with more than this unproven
)

// outbox holds the frames for the agent: those not written yet, and behind them those
// written whose effect is not certain, in case the agent is restarted. Positions count
// the bytes of the stream from the beginning. It is guarded by the client's mu.
type outbox struct {
	buf     []byte // from position base on
	base    uint64
	written uint64
	proven  uint64 // the agent has handled what is before
	asked   uint64 // up to here proof was asked for
	frame   int    // offset of the frame being built
	open    int    // offset of a frame of ids at the end of buf that may get more; -1 = none
	armed   bool   // a flush is due
}

// end is the position after the last frame.
func (b *outbox) end() uint64 { return b.base + uint64(len(b.buf)) }

// begin starts a frame.
func (b *outbox) begin(typ uint16) {
	b.open = -1
	b.frame = len(b.buf)
	b.buf = append(b.buf, 0, 0, 0, 0, byte(typ), byte(typ>>8), 0, 0)
}

// close ends the frame.
func (b *outbox) close() {
	binary.LittleEndian.PutUint32(b.buf[b.frame:], uint32(len(b.buf)-b.frame-4))
}

func (b *outbox) u32(v ...uint32) {
	for _, v := range v {
		b.buf = binary.LittleEndian.AppendUint32(b.buf, v)
	}
}

func (b *outbox) u64(v ...uint64) {
	for _, v := range v {
		b.buf = binary.LittleEndian.AppendUint64(b.buf, v)
	}
}

func (b *outbox) id(id objectID) { b.buf = append(b.buf, id[:]...) }

// ids appends to the frame of ids at the end, or begins one: releases and holds come one
// by one and leave together, in their order.
func (b *outbox) ids(typ uint16, id objectID) {
	if b.open >= 0 && binary.LittleEndian.Uint16(b.buf[b.open+4:]) == typ && len(b.buf)-b.open < 64<<10 {
		b.frame = b.open
	} else {
		b.begin(typ)
		b.open = b.frame
	}
	b.id(id)
	b.close()
}

func (b *outbox) empty(typ uint16) {
	b.begin(typ)
	b.close()
}

func (b *outbox) function(f *function) {
	b.begin(sdk.MsgFunc)
	b.id(objectID(f.id))
	b.u32(uint32(len(f.name)))
	b.buf = append(b.buf, f.name...)
	if !f.named {
		b.buf = append(b.buf, f.name...) // a Go function's code is its name
	}
	b.close()
}

func (b *outbox) shape(n uint32, options []byte) {
	b.begin(sdk.MsgShape)
	b.u32(n)
	b.buf = append(b.buf, options...)
	b.close()
}

func (b *outbox) submit(task taskID, s submission) {
	b.begin(sdk.MsgSubmit)
	b.id(task)
	if s.actor != nil {
		b.id(s.actor.o.id.Task())
	} else {
		b.id(objectID(s.f.id))
	}
	b.u32(s.shape, s.returns, s.flags, uint32(len(s.deps)), uint32(len(s.held)))
	for _, h := range s.deps {
		b.id(h.o.id)
	}
	for _, h := range s.held {
		b.id(h.o.id)
	}
	if s.flags&sdk.SubmitLarge == 0 {
		b.buf = append(appendArray(b.buf, s.n), s.args...)
	}
	b.close()
}

// value appends a value's head and references.
func (b *outbox) value(kind, form uint8, refs []objectID, size int) {
	b.buf = append(b.buf, kind, form, 0, 0)
	b.u32(uint32(len(refs)))
	b.u64(uint64(size))
	for _, id := range refs {
		b.id(id)
	}
}

// output appends a whole value.
func (b *outbox) output(v output) {
	b.value(v.kind, v.form, v.refs, v.size)
	if v.kind == sdk.Shared {
		b.u32(v.at.segment, 0)
		b.u64(v.at.offset)
		return
	}
	b.buf = append(b.buf, v.data...)
}

func (b *outbox) put(id objectID, v output) {
	b.begin(sdk.MsgPut)
	b.id(id)
	b.output(v)
	b.close()
}

// result appends the end of a task.
func (b *outbox) result(t *order, status uint32, start, end time.Time, values []output) {
	b.begin(sdk.MsgResult)
	b.id(t.task)
	b.u32(t.attempt, status)
	b.u64(uint64(start.UnixNano()), uint64(end.UnixNano()))
	b.u32(uint32(len(values)))
	for _, v := range values {
		b.output(v)
	}
	b.close()
}

// yield appends an item of a stream.
func (b *outbox) yield(t *order, index uint32, v output) {
	b.begin(sdk.MsgYield)
	b.id(t.task)
	b.u32(t.attempt, index)
	b.output(v)
	b.close()
}

// voidRequests takes out of what is repeated to a restarted agent what it must not have:
// what was handed back has other numbers now, and room that was asked for has mostly come;
// each request more would bring some. Those frames keep their places, and say that segment
// 0, which nobody has, was dropped.
func (b *outbox) voidRequests() {
	for at := int(b.proven - b.base); at < len(b.buf); at += 4 + int(binary.LittleEndian.Uint32(b.buf[at:])) {
		switch binary.LittleEndian.Uint16(b.buf[at+4:]) {
		case sdk.MsgHandBack, sdk.MsgSpace:
			binary.LittleEndian.PutUint16(b.buf[at+4:], sdk.MsgDropped)
			clear(b.buf[at+8 : at+12])
		}
	}
}

// nudge sees to it that what is in the outbox leaves soon; it reports whether there is
// so much that the caller should flush now. mu must be held.
func (c *client) nudge() bool {
	b := &c.out
	if b.end()-b.written >= flushAt {
		return true
	}
	if !b.armed {
		b.armed = true
		time.AfterFunc(flushAfter, func() { c.flush() })
	}
	return false
}

// flush writes what there is. It does not wait for an agent that is slow to read: the
// rest is then written in the background.
func (c *client) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.armed = false
	if c.busy || c.conn == nil {
		return // whoever writes goes on until nothing is left
	}
	c.busy = true
	if c.write(writeNow) {
		c.busy = false
		return
	}
	go func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for !c.write(func(conn *net.UnixConn, b []byte) (int, error) { return conn.Write(b) }) {
		}
		c.busy = false
	}()
}

// write writes all of the outbox by the given means; false says that they took a part
// only. mu and busy must be held; mu is not while it writes.
func (c *client) write(by func(*net.UnixConn, []byte) (int, error)) bool {
	b := &c.out
	for b.written < b.end() && c.conn != nil {
		if b.end()-b.asked > proofEvery {
			c.prove()
		}
		b.open = -1
		chunk, conn := b.buf[b.written-b.base:], c.conn
		c.mu.Unlock()
		n, err := by(conn, chunk)
		c.mu.Lock()
		if conn != c.conn {
			continue // another connection began, with what is unproven
		}
		b.written += uint64(n)
		if err != nil {
			conn.Close() // the reader sees it and connects again
			c.conn = nil
		} else if n < len(chunk) {
			return false
		}
	}
	b.trim()
	return true
}

// writeNow writes what the socket takes at once.
func writeNow(conn *net.UnixConn, b []byte) (n int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	werr := raw.Write(func(fd uintptr) bool {
		n, err = syscall.Write(int(fd), b)
		return true
	})
	if n < 0 {
		n = 0
	}
	if err == syscall.EAGAIN || err == syscall.EINTR {
		err = nil
	}
	if werr != nil {
		err = werr
	}
	return n, err
}

// trim lets go of what is proven, once that is worth the copying. Nothing may be writing.
func (b *outbox) trim() {
	done := int(min(b.proven, b.written) - b.base)
	if done < 64<<10 || done < len(b.buf)/2 {
		return
	}
	n := copy(b.buf, b.buf[done:])
	b.buf, b.base = b.buf[:n], b.base+uint64(done)
	b.open = -1
	if cap(b.buf) > 1<<20 && n < cap(b.buf)/8 {
		b.buf = append(make([]byte, 0, 2*n), b.buf...)
	}
}

// room waits while too much is on its way to the agent: whoever submits faster than the
// agent reads is held up here.
func (c *client) room(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for {
		c.mu.Lock()
		full := c.out.end()-c.out.proven > proofMax
		gone := c.gone
		if full && c.moved == nil {
			c.moved = make(chan struct{})
		}
		more := c.moved
		c.mu.Unlock()
		if gone != nil || !full {
			return gone
		}
		c.flush()
		select {
		case <-more:
		case <-c.lost:
		case <-ctx.Done():
			return errs.Wrap(errs.Timeout, ctx.Err(), "the agent takes no more work now")
		}
	}
}
