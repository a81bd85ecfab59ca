package session

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

// The multiplexer. A frame is
//
//	length u32 · type u8 · flags u8 · zero u16 · stream u32 · body
//
// little-endian. Streams that the dialler opens are odd, the others even; numbers only
// grow and are never used again, so a frame for a stream that is no longer known is late,
// not wrong, and is dropped.
//
// Why not one of the libraries: they know one way to close a stream, so a reader that
// gives up either leaves its writer blocked or has to read on; their liveness waits for a
// ping behind megabytes of data; and none carries the cause of an end.
const (
	muxHeader = 12

	muxOpen   = 1 // body: kind u16
	muxData   = 2
	muxCredit = 3 // body: u32, so many bytes more may be sent
	muxEnd    = 4 // flags below; body: errs.Wire, or nothing
	muxPing   = 5 // body: u64
	muxPong   = 6 // the same back
	muxBye    = 7 // the session ends; body: errs.Wire, or nothing

	endSending   = 1 // I send no more
	endReceiving = 2 // I want no more

	maxChunk   = 64 << 10 // of data in one frame: bounds how long others wait
	maxControl = 8 << 10  // body of any other frame
	window     = 4 << 20  // bytes in flight on one stream
	maxStreams = 4096     // opened by the other side and not ended
	writeBound = 30 * time.Second
	byeBound   = time.Second
)

// Session is one connection with many streams. All methods are safe for concurrent use.
type Session struct {
	conn   net.Conn
	peer   Peer
	log    *slog.Logger
	client bool
	every  time.Duration // keepalive
	mute   atomic.Int32  // after so many of them a session is dead

	ctx    context.Context // ends with the session; its cause is err
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // receive, answer and tend

	wmu    sync.Mutex // serialises frames on conn
	wbuf   []byte     // guarded by wmu
	direct bool       // conn can writev

	meter   *atomic.Int64 // bytes sent and received; may be nil
	closing atomic.Bool
	heard   atomic.Uint64 // frames received

	mu       sync.Mutex
	streams  map[uint32]*Stream // guarded by mu, as is all below
	next     uint32             // number of the next stream we open
	newest   uint32             // of the streams the other side opened
	theirs   int                // how many of streams the other side opened
	backlog  []*Stream          // opened by the other side, not accepted
	accepted chan struct{}      // cap 1: backlog is not empty
	control  []byte             // frames that receive wants sent; it must never block on sending
	kick     chan struct{}      // cap 1: control is not empty
	pings    map[uint64]chan struct{}
	pingSeq  uint64
	parting  error // set by CloseWith before it says bye
	err      error
}

func newSession(ctx context.Context, conn net.Conn, peer Peer, cfg Config, client bool) *Session {
	s := &Session{conn: conn, peer: peer, log: cfg.Log, meter: cfg.Meter, client: client, every: cfg.KeepAlive, streams: map[uint32]*Stream{},
		accepted: make(chan struct{}, 1), kick: make(chan struct{}, 1), pings: map[uint64]chan struct{}{}}
	s.mute.Store(3)
	s.next = 2
	if client {
		s.next = 1
	}
	switch conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		s.direct = true
	}
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	conn.SetDeadline(time.Time{})
	s.wg.Go(s.receive)
	s.wg.Go(s.answer)
	s.wg.Go(s.tend)
	return s
}

// Peer is who the other side is.
func (s *Session) Peer() Peer { return s.peer }

// Done is closed when the session has ended; Err then says why.
func (s *Session) Done() <-chan struct{} { return s.ctx.Done() }

// Context ends with the session.
func (s *Session) Context() context.Context { return s.ctx }

// Err is why the session ended, nil while it lives.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Open starts a stream of a kind. It does not wait for the other side: a refusal comes
// with the first read.
func (s *Session) Open(ctx context.Context, kind uint16) (*Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// The frame is written under wmu with its number, so that numbers go out in order.
	s.wmu.Lock()
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		s.wmu.Unlock()
		return nil, s.Err()
	}
	st := newStream(s, s.next, kind)
	s.next += 2
	s.streams[st.id] = st
	s.mu.Unlock()
	err := s.writeLocked(muxOpen, 0, st.id, binary.LittleEndian.AppendUint16(nil, kind))
	s.wmu.Unlock()
	if err != nil {
		return nil, err
	}
	return st, nil
}

// Accept gives the next stream that the other side opened.
func (s *Session) Accept(ctx context.Context) (kind uint16, st *Stream, err error) {
	for {
		s.mu.Lock()
		if len(s.backlog) > 0 {
			st, s.backlog = s.backlog[0], s.backlog[1:]
			if len(s.backlog) > 0 {
				wake(s.accepted)
			}
			s.mu.Unlock()
			return st.kind, st, nil
		}
		err := s.err
		s.mu.Unlock()
		if err != nil {
			return 0, nil, err
		}
		select {
		case <-s.accepted:
		case <-s.ctx.Done():
		case <-ctx.Done():
			return 0, nil, context.Cause(ctx)
		}
	}
}

// Each has serve take every stream that the peer opens, in a goroutine of its own, until
// the session or ctx ends, and returns why when all of them are done. The end of the
// session ends the streams, and with that whoever only reads or writes one.
func (s *Session) Each(ctx context.Context, serve func(kind uint16, st *Stream)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		kind, st, err := s.Accept(ctx)
		if err != nil {
			return err
		}
		wg.Go(func() { serve(kind, st) })
	}
}

// Ping measures a round trip.
func (s *Session) Ping(ctx context.Context) (time.Duration, error) {
	ch := make(chan struct{})
	s.mu.Lock()
	s.pingSeq++
	n := s.pingSeq
	s.pings[n] = ch
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.pings, n)
		s.mu.Unlock()
	}()
	start := time.Now()
	if err := s.write(muxPing, 0, 0, binary.LittleEndian.AppendUint64(nil, n)); err != nil {
		return 0, err
	}
	select {
	case <-ch:
		return time.Since(start), nil
	case <-s.ctx.Done():
		return 0, s.Err()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// Close ends the session and all its streams. What was written before reaches the other side.
func (s *Session) Close() error { return s.CloseWith(nil) }

// CloseWith ends the session with a cause, which the other side gets as its Err.
func (s *Session) CloseWith(cause error) error {
	if s.closing.Swap(true) {
		s.wg.Wait()
		return nil
	}
	if cause == nil {
		s.setParting(errs.New(errs.Cancelled, "the session with %s was closed here", s.peer))
	} else {
		s.setParting(cause)
	}
	// A writer may hold the connection against a peer that does not read; from here on no
	// write lasts longer than byeBound.
	s.conn.SetWriteDeadline(time.Now().Add(byeBound))
	if s.Err() == nil && s.write(muxBye, 0, 0, encodeCause(cause)) == nil {
		if cw, ok := s.conn.(interface{ CloseWrite() error }); ok && cw.CloseWrite() == nil {
			// The other side answers a bye by ending the connection, which ends receive.
			s.conn.SetReadDeadline(time.Now().Add(byeBound))
			select {
			case <-s.ctx.Done():
			case <-time.After(byeBound):
			}
		}
	}
	s.fail(cause)
	s.wg.Wait()
	return nil
}

func (s *Session) setParting(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parting = err
}

// fail ends the session with its first cause, which is ours if we are closing. It never waits.
func (s *Session) fail(err error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	if s.parting != nil {
		err = s.parting
	}
	s.err = err
	streams := s.streams
	s.streams = map[uint32]*Stream{}
	s.mu.Unlock()
	s.cancel(err)
	for _, st := range streams {
		st.lost(err)
	}
	// TLS would first send an alert, and wait to; whoever closes in order has said bye.
	if t, ok := s.conn.(*tls.Conn); ok {
		t.NetConn().Close()
		return
	}
	s.conn.Close()
}

func (s *Session) broken(err error, doing string) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errs.New(errs.Unavailable, "the connection to %s ended without a word", s.peer)
	case errs.KindOf(err) != errs.Unknown && !errors.Is(err, context.DeadlineExceeded):
		return errs.Wrap(errs.Unknown, err, "%s %s", doing, s.peer)
	}
	return errs.Wrap(errs.Unavailable, err, "%s %s", doing, s.peer)
}

// write sends one frame.
func (s *Session) write(typ, flags uint8, id uint32, body []byte) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	return s.writeLocked(typ, flags, id, body)
}

func (s *Session) writeLocked(typ, flags uint8, id uint32, body []byte) error {
	if err := s.Err(); err != nil {
		return err
	}
	s.wbuf = appendHead(s.wbuf[:0], typ, flags, id, len(body))
	return s.send(body)
}

// send writes wbuf and body to the connection; wmu must be held. A write that does not
// get through is the end of the session: half a frame may be out.
func (s *Session) send(body []byte) error {
	s.conn.SetWriteDeadline(time.Now().Add(writeBound))
	if s.closing.Load() {
		s.conn.SetWriteDeadline(time.Now().Add(byeBound))
	}
	var err error
	if s.direct && len(body) > 4096 {
		bufs := net.Buffers{s.wbuf, body}
		_, err = bufs.WriteTo(s.conn)
	} else {
		s.wbuf = append(s.wbuf, body...)
		_, err = s.conn.Write(s.wbuf)
	}
	s.count(muxHeader + len(body))
	if err != nil {
		err = s.broken(err, "sending to")
		s.fail(err)
		return s.Err()
	}
	return nil
}

func appendHead(b []byte, typ, flags uint8, id uint32, n int) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	b = append(b, typ, flags, 0, 0)
	return binary.LittleEndian.AppendUint32(b, id)
}

// later queues a frame for answer to send.
func (s *Session) later(typ, flags uint8, id uint32, body []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.control) > 1<<20 {
		return errs.New(errs.Exhausted, "the other side asks for answers faster than it reads them")
	}
	s.control = append(appendHead(s.control, typ, flags, id, len(body)), body...)
	wake(s.kick)
	return nil
}

// answer sends what receive and tend queued: neither may ever wait for the connection.
func (s *Session) answer() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.kick:
			s.mu.Lock()
			b := s.control
			s.control = nil
			s.mu.Unlock()
			s.wmu.Lock()
			if s.Err() == nil {
				s.wbuf = append(s.wbuf[:0], b...)
				s.send(nil)
			}
			s.wmu.Unlock()
		}
	}
}

// Bear has the session live for as long as d without a sign of the other side; that side
// does so if it was told, too.
func (s *Session) Bear(d time.Duration) { s.mute.Store(int32((d + s.every - 1) / s.every)) }

// tend watches for life: a tick in which nothing was heard
// sends a ping, the third such tick in a row (or what Bear says) ends the session. Ticks are counted, not
// time, so that a process that was stopped itself does not blame its peers.
func (s *Session) tend() {
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	var heard uint64
	silent := 0
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
			now := s.heard.Load()
			if now != heard {
				heard, silent = now, 0
				continue
			}
			if silent++; silent >= int(s.mute.Load()) {
				s.fail(errs.New(errs.Unavailable, "no sign of life from %s for %s", s.peer, time.Duration(silent)*s.every))
				return
			}
			s.later(muxPing, 0, 0, make([]byte, 8))
		}
	}
}

func (s *Session) count(n int) {
	if s.meter != nil {
		s.meter.Add(int64(n))
	}
}

func (s *Session) receive() {
	// 32 KiB: a chunk's body is mostly read past the buffer, straight to its place.
	r := bufio.NewReaderSize(s.conn, 32<<10)
	var h [muxHeader]byte
	for {
		if _, err := io.ReadFull(r, h[:]); err != nil {
			s.fail(s.broken(err, "receiving from"))
			return
		}
		n := int(binary.LittleEndian.Uint32(h[:]))
		limit := maxControl
		if h[4] == muxData {
			limit = maxChunk
		}
		if n > limit {
			s.fail(errs.New(errs.Corrupt, "%s sent a frame of type %d with %d bytes, allowed are %d", s.peer, h[4], n, limit))
			return
		}
		body := getChunk(n)
		if _, err := io.ReadFull(r, body); err != nil {
			s.fail(s.broken(noEOF(err), "receiving from"))
			return
		}
		s.heard.Add(1)
		s.count(muxHeader + n)
		if err := s.handle(h[4], h[5], binary.LittleEndian.Uint32(h[8:]), body); err != nil {
			s.fail(err)
			return
		}
	}
}

func (s *Session) handle(typ, flags uint8, id uint32, body []byte) error {
	switch typ {
	case muxPing:
		if len(body) != 8 {
			return s.bad("a ping of %d bytes", len(body))
		}
		return s.later(muxPong, 0, 0, body)
	case muxPong:
		if len(body) != 8 {
			return s.bad("a pong of %d bytes", len(body))
		}
		s.mu.Lock()
		if ch := s.pings[binary.LittleEndian.Uint64(body)]; ch != nil {
			close(ch)
			delete(s.pings, binary.LittleEndian.Uint64(body))
		}
		s.mu.Unlock()
		return nil
	case muxBye:
		cause, err := decodeCause(body)
		if err != nil {
			return err
		}
		if cause == nil {
			return errs.New(errs.Unavailable, "%s closed the session", s.peer)
		}
		return errs.Wrap(errs.Unknown, cause, "%s ended the session", s.peer)
	case muxOpen:
		return s.opened(id, body)
	}
	s.mu.Lock()
	st := s.streams[id]
	unknown := st == nil && s.mine(id) && id >= s.next || !s.mine(id) && id > s.newest
	s.mu.Unlock()
	if unknown {
		return s.bad("a frame of type %d for stream %d, which nobody opened", typ, id)
	}
	switch typ {
	case muxData:
		if st == nil {
			putChunk(body)
			return nil
		}
		return st.data(body)
	case muxCredit:
		if len(body) != 4 {
			return s.bad("a credit of %d bytes", len(body))
		}
		if st != nil {
			return st.credit(binary.LittleEndian.Uint32(body))
		}
		return nil
	case muxEnd:
		cause, err := decodeCause(body)
		if err != nil {
			return err
		}
		if st != nil {
			st.ended(flags, cause)
		}
		return nil
	}
	return nil // a type that a higher minor version added
}

// mine reports whether we number streams like id.
func (s *Session) mine(id uint32) bool { return (id&1 == 1) == s.client }

func (s *Session) opened(id uint32, body []byte) error {
	if len(body) != 2 || s.mine(id) || id == 0 {
		return s.bad("a malformed opening of stream %d", id)
	}
	st := newStream(s, id, binary.LittleEndian.Uint16(body))
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return nil // fail has been; the stream would never end
	}
	if id <= s.newest {
		s.mu.Unlock()
		return s.bad("stream %d opened after stream %d", id, s.newest)
	}
	s.newest = id
	full := s.theirs >= maxStreams
	if !full {
		s.theirs++
		s.streams[id] = st
		s.backlog = append(s.backlog, st)
		wake(s.accepted)
	}
	s.mu.Unlock()
	if full {
		return s.later(muxEnd, endSending|endReceiving, id, encodeCause(
			errs.New(errs.Exhausted, "more than %d streams in one session", maxStreams)))
	}
	return nil
}

// forget drops a stream on which nothing more can come that anyone wants.
func (s *Session) forget(st *Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[st.id] == st {
		delete(s.streams, st.id)
		if !s.mine(st.id) {
			s.theirs--
		}
	}
}

func (s *Session) bad(format string, args ...any) error {
	e := errs.New(errs.Corrupt, format, args...)
	return errs.Wrap(errs.Corrupt, e, "%s broke the protocol", s.peer)
}

func encodeCause(err error) []byte {
	if err == nil {
		return nil
	}
	w := errs.ToWire(err)
	b := wire.Marshal(w)
	if len(b) > maxControl {
		b = wire.Marshal(&errs.Wire{Kind: w.Kind, Msg: w.Msg[:min(len(w.Msg), maxControl/2)]})
	}
	return b
}

func decodeCause(b []byte) (error, error) {
	if len(b) == 0 {
		return nil, nil
	}
	var w errs.Wire
	if err := wire.Unmarshal(b, &w); err != nil {
		return nil, err
	}
	return w.FromWire(), nil
}

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

var chunks = sync.Pool{New: func() any { return new([maxChunk]byte) }}

// getChunk gives a buffer; large ones come from a pool.
func getChunk(n int) []byte {
	if n <= maxChunk/4 {
		return make([]byte, n)
	}
	return chunks.Get().(*[maxChunk]byte)[:n]
}

func putChunk(b []byte) {
	if cap(b) == maxChunk {
		chunks.Put((*[maxChunk]byte)(b[:maxChunk]))
	}
}
