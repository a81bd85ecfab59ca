package transfer

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

// pull is an object on its way here.
type pull struct {
	t       *Transfer
	id      ID
	ctx     context.Context
	cancel  context.CancelFunc
	done    chan struct{} // closed after err is set
	err     error
	waiters int // guarded by t.mu

	mu      sync.Mutex
	sources []*source // guarded by mu
	w       Writer    // set once the first range says what the object is
	meta    Meta
	todo    []span // ranges that are missing; guarded by mu
	left    int    // ranges that are not here; guarded by mu
}

// span is a stretch of an object.
type span struct{ from, to int64 }

// source is a node that may have the object.
type source struct {
	node uint32
	err  error // why it is not asked in this round
	last bool  // it has pointed elsewhere: it is asked after all others
	load int   // workers that use it
}

func newPull(t *Transfer, id ID) *pull {
	p := &pull{t: t, id: id, done: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(t.ctx)
	return p
}

// add names more nodes that have it.
func (p *pull) add(nodes []uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range nodes {
		if !slices.ContainsFunc(p.sources, func(s *source) bool { return s.node == n }) {
			p.sources = append(p.sources, &source{node: n})
		}
	}
}

func (p *pull) run() {
	err := p.fetch()
	t := p.t
	t.mu.Lock()
	delete(t.pulls, p.id)
	if err != nil {
		t.stats.Failed++
	} else {
		t.stats.Pulled += p.meta.Size
	}
	t.mu.Unlock()
	p.err = err
	close(p.done)
	p.cancel()
}

// fetch brings the object here: its first range, which says what it is, then the others
// in parallel. Sources that failed are asked again, so often and no more.
func (p *pull) fetch() error {
	pause := p.t.cfg.Pause
	var err error
	for round := range p.t.cfg.Rounds {
		if round > 0 {
			select {
			case <-p.ctx.Done():
			case <-time.After(pause):
			}
			pause *= 2
			p.again()
		}
		if err = p.round(); err == nil || p.ctx.Err() != nil || !again(err) {
			break
		}
	}
	if p.w == nil {
		return p.why(err)
	}
	if err != nil {
		p.w.Abort()
		return p.why(err)
	}
	return p.w.Seal()
}

// again reports whether asking once more may help.
func again(err error) bool {
	switch errs.KindOf(err) {
	case errs.NotFound, errs.Exhausted, errs.Exists:
		return false
	}
	return true
}

func (p *pull) why(err error) error {
	switch {
	case errs.Is(err, errs.Exists):
		return nil // it is here
	case err == nil:
		return nil
	case p.ctx.Err() != nil:
		return errs.New(errs.Cancelled, "nobody waits for object %s any more", p.id)
	}
	return errs.Wrap(errs.KindOf(err), err, "object %s cannot be had", p.id)
}

// again has all sources asked once more.
func (p *pull) again() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sources {
		s.err = nil
	}
}

// round asks all sources for what is missing; an error when some still is.
func (p *pull) round() error {
	if p.w == nil {
		w := &worker{p: p}
		defer w.close()
		if err := w.first(); err != nil {
			return err
		}
	}
	p.mu.Lock()
	n := min(p.t.cfg.Streams, len(p.todo))
	p.mu.Unlock()
	var wg sync.WaitGroup
	fails := make([]error, n)
	for i := range n {
		wg.Go(func() {
			w := &worker{p: p, lane: i}
			defer w.close()
			fails[i] = w.work()
		})
	}
	wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left == 0 {
		return nil
	}
	for _, err := range fails {
		if err != nil {
			return err
		}
	}
	return errs.New(errs.Internal, "%d ranges are missing and nobody failed", p.left)
}

// begin takes what the first range says and makes room.
func (p *pull) begin(m Meta) error {
	w, err := p.t.cfg.Store.Create(p.ctx, p.id, m)
	if err != nil {
		return err
	}
	if int64(len(w.Bytes())) != m.Size {
		w.Abort()
		return errs.New(errs.Internal, "room of %d bytes for an object of %d", len(w.Bytes()), m.Size)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.w, p.meta = w, m
	step := p.t.rangeOf(m.Size)
	for from := int64(0); from < m.Size; from += step {
		p.todo = append(p.todo, span{from, min(from+step, m.Size)})
	}
	p.left = len(p.todo)
	return nil
}

func (t *Transfer) rangeOf(size int64) int64 {
	if t.cfg.Range > 0 {
		return t.cfg.Range
	}
	return min(maxRange, max(minRange, size/int64(2*t.cfg.Streams)))
}

// next gives a range to fetch.
func (p *pull) next() (span, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.todo) == 0 {
		return span{}, false
	}
	r := p.todo[0]
	p.todo = p.todo[1:]
	return r, true
}

func (p *pull) missed(r span) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.todo = append(p.todo, r)
}

// choose gives the source to ask: one that has not failed, least used first; those that
// point elsewhere last.
func (p *pull) choose() (*source, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var best *source
	var err error
	for _, s := range p.sources {
		switch {
		case s.err != nil:
			err = s.err
		case best == nil || best.last && !s.last || best.last == s.last && s.load < best.load:
			best = s
		}
	}
	if best == nil {
		if err == nil {
			err = errs.New(errs.Lost, "no node has it")
		}
		return nil, err
	}
	best.load++
	return best, nil
}

// failed gives a source up for this round.
func (p *pull) failed(s *source, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.err = err
	p.t.cfg.Log.Debug("a source of an object fails", "object", p.id, "node", s.node, "err", err)
}

func (p *pull) avoid() (out []uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sources {
		if s.err != nil {
			out = append(out, s.node)
		}
	}
	return out
}

// maxWait bounds how long a source may wait for the object itself: two that wait for each
// other must not do so for ever.
const maxWait = time.Minute

// worker fetches ranges over one stream at a time.
type worker struct {
	p    *pull
	lane int
	s    *source
	conn net.Conn
	stop func() bool
}

func (w *worker) close() {
	if w.conn != nil {
		w.stop()
		_ = w.conn.Close()
		w.conn = nil
	}
	if w.s != nil {
		w.p.mu.Lock()
		w.s.load--
		w.p.mu.Unlock()
		w.s = nil
	}
}

// open has a stream to some source.
func (w *worker) open() error {
	for w.conn == nil {
		if err := w.p.ctx.Err(); err != nil {
			return err
		}
		s, err := w.p.choose()
		if err != nil {
			return err
		}
		w.s = s
		ctx, cancel := context.WithTimeout(w.p.ctx, w.p.t.cfg.Stall)
		conn, err := w.p.t.cfg.Dial(ctx, s.node, w.lane)
		cancel()
		if err != nil {
			w.fail(err)
			continue
		}
		w.conn = conn
		w.stop = context.AfterFunc(w.p.ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	}
	return nil
}

// fail gives the worker's source up.
func (w *worker) fail(err error) {
	w.p.failed(w.s, err)
	w.close()
}

// first fetches the first range, from whoever gives it.
func (w *worker) first() error {
	for {
		if err := w.open(); err != nil {
			return err
		}
		asked := wire.Pull{ID: w.p.id[:], Length: minRange, First: !w.s.last, Avoid: w.p.avoid()}
		if w.p.t.cfg.Range > 0 {
			asked.Length = w.p.t.cfg.Range
		}
		r, nodes, err := w.ask(asked)
		switch {
		case err != nil:
			w.fail(err)
			continue
		case nodes != nil:
			w.p.mu.Lock()
			w.s.last = true
			w.p.mu.Unlock()
			w.p.add(nodes)
			w.close()
			continue
		}
		if err := w.p.begin(Meta{Size: r.Size, Form: r.Form}); err != nil {
			return err
		}
		// What comes is the beginning; the ranges are cut after it.
		w.p.mu.Lock()
		w.p.todo = cut(w.p.todo, r.Length)
		w.p.left = len(w.p.todo)
		w.p.mu.Unlock()
		if err := w.read(span{0, r.Length}); err != nil {
			w.p.mu.Lock()
			w.p.todo = append(w.p.todo, span{0, r.Length})
			w.p.left++
			w.p.mu.Unlock()
			w.fail(err)
		}
		return nil
	}
}

// cut takes what is below a point out of ranges.
func cut(rs []span, at int64) []span {
	var out []span
	for _, r := range rs {
		if r.from = max(r.from, at); r.from < r.to {
			out = append(out, r)
		}
	}
	return out
}

// work fetches ranges until none is left or no source is.
func (w *worker) work() error {
	for {
		r, ok := w.p.next()
		if !ok {
			return nil
		}
		if err := w.open(); err != nil {
			w.p.missed(r)
			return err
		}
		got, _, err := w.ask(wire.Pull{ID: w.p.id[:], From: r.from, Length: r.to - r.from})
		if err == nil && (got.Size != w.p.meta.Size || got.From != r.from || got.Length != r.to-r.from) {
			err = errs.New(errs.Corrupt, "bytes %d to %d of %d where %d to %d of %d are due", got.From, got.From+got.Length, got.Size, r.from, r.to, w.p.meta.Size)
		}
		if err == nil {
			err = w.read(r)
		}
		if err != nil {
			w.p.missed(r)
			w.fail(err)
			continue
		}
		w.p.mu.Lock()
		w.p.left--
		w.p.mu.Unlock()
	}
}

// ask sends a Pull and takes the beginning of the answer.
func (w *worker) ask(m wire.Pull) (r wire.Piece, nodes []uint32, err error) {
	_ = w.conn.SetWriteDeadline(time.Now().Add(w.p.t.cfg.Stall))
	if err := wire.WriteFrame(w.conn, wire.MsgPull, wire.Marshal(m)); err != nil {
		return r, nil, w.broken(err)
	}
	patience := time.Now().Add(maxWait)
	for {
		if err := w.deadline(); err != nil {
			return r, nil, err
		}
		typ, body, err := wire.ReadFrame(w.conn)
		if err != nil {
			return r, nil, w.broken(err)
		}
		switch typ {
		case wire.MsgPiece:
			if err = wire.Unmarshal(body, &r); err == nil && (r.Size < 0 || r.From < 0 || r.Length < 0 || r.Length > wire.MaxRange || r.From+r.Length > r.Size) {
				err = errs.New(errs.Corrupt, "a range of %d bytes at %d of %d", r.Length, r.From, r.Size)
			}
			return r, nil, err
		case wire.MsgWait:
			if time.Now().After(patience) {
				return r, nil, errs.New(errs.Timeout, "node %d has waited %s for it itself", w.s.node, maxWait)
			}
		case wire.MsgElsewhere:
			var e wire.Elsewhere
			if err := wire.Unmarshal(body, &e); err != nil {
				return r, nil, err
			}
			if len(e.Nodes) == 0 {
				return r, nil, errs.New(errs.Corrupt, "the object is elsewhere, nowhere")
			}
			return r, e.Nodes, nil
		case wire.MsgError:
			var e errs.Wire
			if err := wire.Unmarshal(body, &e); err != nil {
				return r, nil, err
			}
			return r, nil, e.FromWire()
		default:
			return r, nil, errs.New(errs.Corrupt, "a message of type %#x where %#x is due", typ, wire.MsgPiece)
		}
	}
}

// deadline bounds the next read, unless the pull is over.
func (w *worker) deadline() error {
	_ = w.conn.SetReadDeadline(time.Now().Add(w.p.t.cfg.Stall))
	return w.p.ctx.Err() // its AfterFunc may have set a deadline before ours
}

// step is how many bytes are read under one deadline.
const step = 1 << 20

// read takes the bytes of a range into their place and compares their checksum.
func (w *worker) read(r span) error {
	dst := w.p.w.Bytes()[r.from:r.to]
	sum := uint32(0)
	for b := dst; len(b) > 0; {
		n := min(len(b), step)
		if err := w.deadline(); err != nil {
			return err
		}
		if _, err := io.ReadFull(w.conn, b[:n]); err != nil {
			return w.broken(err)
		}
		sum = crc32.Update(sum, castagnoli, b[:n])
		b = b[n:]
	}
	var tail [4]byte
	if err := w.deadline(); err != nil {
		return err
	}
	if _, err := io.ReadFull(w.conn, tail[:]); err != nil {
		return w.broken(err)
	}
	if want := binary.LittleEndian.Uint32(tail[:]); want != sum {
		return errs.New(errs.Corrupt, "bytes %d to %d came with another checksum than node %d sent them with", r.from, r.to, w.s.node)
	}
	return nil
}

// broken says of a stream's error whose it is.
func (w *worker) broken(err error) error {
	switch {
	case w.p.ctx.Err() != nil:
		return w.p.ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errs.New(errs.Timeout, "node %d sent nothing for %s", w.s.node, w.p.t.cfg.Stall)
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		return errs.New(errs.Unavailable, "node %d ended the stream", w.s.node)
	}
	return errs.Wrap(errs.Unknown, err, "node %d", w.s.node)
}
