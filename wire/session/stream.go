package session

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

// Stream is one conversation in a session: a net.Conn, and frames of package wire on it.
// Reads and writes may go on at the same time; each WriteMsg is whole among others.
type Stream struct {
	s    *Session
	id   uint32
	kind uint16

	sendMu sync.Mutex // one Write at a time

	mu        sync.Mutex
	readable  sync.Cond
	writable  sync.Cond
	recv      [][]byte // chunks not read yet; guarded by mu, as is all below
	off       int      // into recv[0]
	buffered  int
	consumed  int           // read since credit was last given
	rerr      error         // after the chunks: io.EOF or a cause
	send      int           // bytes we may send
	werr      error         // why nothing more can be sent
	endSent   bool          // we said that we send no more
	endRead   bool          // we said that we want no more
	unwanted  chan struct{} // closed when the other side wants no more
	stopped   bool          // unwanted is closed
	why       error         // what the other side said with it
	rdeadline deadline
	wdeadline deadline
}

var _ net.Conn = (*Stream)(nil)

func newStream(s *Session, id uint32, kind uint16) *Stream {
	st := &Stream{s: s, id: id, kind: kind, send: window, unwanted: make(chan struct{})}
	st.readable.L, st.writable.L = &st.mu, &st.mu
	return st
}

// Session is what the stream is part of.
func (st *Stream) Session() *Session { return st.s }

// Kind is what the opener said the stream is for.
func (st *Stream) Kind() uint16 { return st.kind }

// Unwanted is closed when the other side reads no more: it closed the stream, or the session
// ended. Whoever produces an endless answer watches it.
func (st *Stream) Unwanted() <-chan struct{} { return st.unwanted }

// WriteMsg sends v as one frame.
func (st *Stream) WriteMsg(typ uint16, v any) error { return st.WriteRaw(typ, wire.Marshal(v)) }

// WriteRaw sends one frame with an encoded body.
func (st *Stream) WriteRaw(typ uint16, body []byte) error { return wire.WriteFrame(st, typ, body) }

// WriteErr answers a request with an error.
func (st *Stream) WriteErr(err error) error { return st.WriteMsg(wire.MsgError, errs.ToWire(err)) }

// ReadMsg reads one frame; io.EOF means that the other side ended between frames.
func (st *Stream) ReadMsg() (typ uint16, body []byte, err error) { return wire.ReadFrame(st) }

// Read gives what has arrived, or waits.
func (st *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	st.mu.Lock()
	for st.buffered == 0 {
		if st.rerr != nil {
			err := st.rerr
			st.mu.Unlock()
			return 0, err
		}
		if st.rdeadline.passed() {
			st.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		}
		st.readable.Wait()
	}
	n := 0
	for n < len(p) && len(st.recv) > 0 {
		c := st.recv[0]
		k := copy(p[n:], c[st.off:])
		n += k
		if st.off += k; st.off == len(c) {
			putChunk(c)
			st.recv[0] = nil
			st.recv, st.off = st.recv[1:], 0
		}
	}
	st.buffered -= n
	st.consumed += n
	give := 0
	if st.consumed >= window/4 && st.rerr == nil {
		give, st.consumed = st.consumed, 0
	}
	st.mu.Unlock()
	if give > 0 {
		// A failure here ends the session; the next Read says so.
		st.s.write(muxCredit, 0, st.id, binary.LittleEndian.AppendUint32(nil, uint32(give)))
	}
	return n, nil
}

// Write sends p, waiting for the other side to make room.
func (st *Stream) Write(p []byte) (int, error) {
	st.sendMu.Lock()
	defer st.sendMu.Unlock()
	done := 0
	for done < len(p) {
		n, err := st.reserve(min(len(p)-done, maxChunk))
		if err != nil {
			return done, err
		}
		if err := st.s.write(muxData, 0, st.id, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// reserve takes up to n bytes of credit.
func (st *Stream) reserve(n int) (int, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for {
		if st.werr != nil {
			return 0, st.werr
		}
		if st.wdeadline.passed() {
			return 0, os.ErrDeadlineExceeded
		}
		if st.send > 0 {
			n = min(n, st.send)
			st.send -= n
			return n, nil
		}
		st.writable.Wait()
	}
}

// CloseWrite says that nothing more comes from here; reading goes on.
func (st *Stream) CloseWrite() error { return st.end(endSending, nil) }

// CloseRead says that nothing more is wanted, and why; writing goes on.
func (st *Stream) CloseRead(cause error) error { return st.end(endReceiving, cause) }

// Close says that nothing more comes and nothing more is wanted. What was written before
// still arrives.
func (st *Stream) Close() error { return st.end(endSending|endReceiving, nil) }

// CloseWith is Close with a cause, which the other side gets in place of io.EOF and of its
// next write.
func (st *Stream) CloseWith(cause error) error { return st.end(endSending|endReceiving, cause) }

func (st *Stream) end(flags uint8, cause error) error {
	st.mu.Lock()
	if st.endSent {
		flags &^= endSending
	}
	if st.endRead {
		flags &^= endReceiving
	}
	if flags == 0 {
		st.mu.Unlock()
		return nil
	}
	here := errs.New(errs.Cancelled, "the stream is closed here")
	if flags&endSending != 0 {
		st.endSent = true
		if st.werr == nil {
			st.werr = here
		}
	}
	if flags&endReceiving != 0 {
		st.endRead = true
		for _, c := range st.recv {
			putChunk(c)
		}
		st.recv, st.buffered, st.off = nil, 0, 0
		st.rerr = here
		st.rdeadline.set(time.Time{}, &st.readable)
	}
	over := st.over()
	st.readable.Broadcast()
	st.writable.Broadcast()
	st.mu.Unlock()
	if flags&endSending != 0 {
		// Behind what a Write is sending right now; one that waits for room has been woken.
		st.sendMu.Lock()
		defer st.sendMu.Unlock()
	}
	if over {
		st.s.forget(st)
	}
	err := st.s.write(muxEnd, flags, st.id, encodeCause(cause))
	if err != nil && flags&endReceiving != 0 {
		return nil // the session has ended, and with it what was to be ended
	}
	return err
}

// over reports whether no frame can come that matters; mu must be held.
func (st *Stream) over() bool {
	return st.rerr != nil && (st.endSent || st.stopped)
}

const small = 2 << 10

// data takes a chunk from the other side.
func (st *Stream) data(b []byte) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.rerr != nil {
		putChunk(b)
		return nil
	}
	if st.buffered+st.consumed+len(b) > window {
		return st.s.bad("more data on stream %d than there is room for", st.id)
	}
	if len(b) == 0 {
		return nil
	}
	st.buffered += len(b)
	last := len(st.recv) - 1
	switch {
	case last < 0 || len(b) > small:
		st.recv = append(st.recv, b)
	case cap(st.recv[last])-len(st.recv[last]) >= len(b):
		st.recv[last] = append(st.recv[last], b...)
		putChunk(b)
	default: // many small pieces that nobody reads: collect them
		st.recv = append(st.recv, append(make([]byte, 0, 4*small), b...))
	}
	st.readable.Signal()
	return nil
}

func (st *Stream) credit(n uint32) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.send+int(n) > window {
		return st.s.bad("more credit on stream %d than the window", st.id)
	}
	st.send += int(n)
	st.writable.Broadcast()
	return nil
}

// ended takes the other side's muxEnd.
func (st *Stream) ended(flags uint8, cause error) {
	st.mu.Lock()
	if flags&endSending != 0 && st.rerr == nil {
		st.rerr = io.EOF
		if cause != nil {
			st.rerr = cause
		}
	}
	if flags&endReceiving != 0 && !st.stopped {
		if st.werr == nil && cause != nil {
			st.werr = cause
		} else if st.werr == nil {
			st.werr = errs.New(errs.Cancelled, "%s reads no more on this stream", st.s.peer)
		}
		st.stopped, st.why = true, st.werr
		close(st.unwanted)
	}
	over := st.over()
	st.readable.Broadcast()
	st.writable.Broadcast()
	st.mu.Unlock()
	if over {
		st.s.forget(st)
	}
}

// lost ends the stream with its session. What has arrived can still be read.
func (st *Stream) lost(err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.rerr == nil {
		st.rerr = err
	}
	if st.werr == nil {
		st.werr = err
	}
	if !st.stopped {
		st.stopped, st.why = true, err
		close(st.unwanted)
	}
	st.readable.Broadcast()
	st.writable.Broadcast()
}

// deadline wakes a condition when its time has come.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) set(t time.Time, c *sync.Cond) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() {
			c.L.Lock()
			defer c.L.Unlock()
			c.Broadcast()
		})
	}
	c.Broadcast()
}

// SetReadDeadline bounds Read, as in net.Conn.
func (st *Stream) SetReadDeadline(t time.Time) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.rdeadline.set(t, &st.readable)
	return nil
}

// SetWriteDeadline bounds the wait for room in Write, as in net.Conn.
func (st *Stream) SetWriteDeadline(t time.Time) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.wdeadline.set(t, &st.writable)
	return nil
}

// SetDeadline sets both.
func (st *Stream) SetDeadline(t time.Time) error {
	st.SetReadDeadline(t)
	return st.SetWriteDeadline(t)
}

// LocalAddr is the session's.
func (st *Stream) LocalAddr() net.Addr { return st.s.conn.LocalAddr() }

// RemoteAddr is the session's.
func (st *Stream) RemoteAddr() net.Addr { return st.s.conn.RemoteAddr() }
