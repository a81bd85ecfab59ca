package transfer

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"slices"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

const (
	// waitEvery is how often a reader is told that the answer takes a while longer.
	waitEvery = 2 * time.Second
	// fanIdle is after how long without a reader the plan of an object is forgotten.
	fanIdle = time.Minute
	maxFans = 4096
)

// fan is the plan of an object's readers: who was given it by this node, and whom those
// give it to.
type fan struct {
	readers []*reader
	used    time.Time
}

type reader struct {
	node     uint32
	children int
	direct   bool // this node gives it
}

// Serve answers the Pulls of one stream from the given node, until the stream or ctx ends.
func (t *Transfer) Serve(ctx context.Context, conn net.Conn, node uint32) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	for {
		typ, body, err := wire.ReadFrame(conn)
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case typ != wire.MsgPull:
			return errs.New(errs.Corrupt, "a message of type %#x where %#x is due", typ, wire.MsgPull)
		}
		var m wire.Pull
		if err = wire.Unmarshal(body, &m); err == nil && (len(m.ID) != 16 || m.From < 0 || m.Length <= 0 || m.Length > wire.MaxRange) {
			err = errs.New(errs.Corrupt, "a pull of %d bytes at %d of %x", m.Length, m.From, m.ID)
		}
		if err != nil {
			return err
		}
		if err := t.answer(ctx, conn, node, m); err != nil {
			return err
		}
	}
}

// say writes a frame within the bound.
func (t *Transfer) say(conn net.Conn, typ uint16, v any) error {
	_ = conn.SetWriteDeadline(time.Now().Add(t.cfg.Stall))
	return wire.WriteFrame(conn, typ, wire.Marshal(v))
}

// answer answers one Pull; an error ends the stream.
func (t *Transfer) answer(ctx context.Context, conn net.Conn, node uint32, m wire.Pull) error {
	id := ID(m.ID)
	o, err := t.open(ctx, conn, id)
	if err != nil {
		return t.say(conn, wire.MsgError, errs.ToWire(err))
	}
	if o == nil {
		return errs.New(errs.Unavailable, "the reader is gone")
	}
	defer o.Close()
	meta := o.Meta()
	if m.From >= max(meta.Size, 1) {
		return t.say(conn, wire.MsgError, errs.ToWire(errs.New(errs.Corrupt, "bytes from %d on of an object of %d", m.From, meta.Size)))
	}
	if m.First && meta.Size >= planSize {
		if nodes := t.plan(id, node, m.Avoid); nodes != nil {
			return t.say(conn, wire.MsgElsewhere, wire.Elsewhere{Nodes: nodes})
		}
	}
	select {
	case t.send <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-t.send }()
	b := o.Bytes()[m.From:min(m.From+m.Length, meta.Size)]
	if err := t.say(conn, wire.MsgPiece, wire.Piece{Size: meta.Size, Form: meta.Form, From: m.From, Length: int64(len(b))}); err != nil {
		return err
	}
	sum := uint32(0)
	for p := b; len(p) > 0; {
		n := min(len(p), step)
		sum = crc32.Update(sum, castagnoli, p[:n])
		_ = conn.SetWriteDeadline(time.Now().Add(t.cfg.Stall))
		if _, err := conn.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	_ = conn.SetWriteDeadline(time.Now().Add(t.cfg.Stall))
	if _, err := conn.Write(binary.LittleEndian.AppendUint32(nil, sum)); err != nil {
		return err
	}
	t.mu.Lock()
	t.stats.Sent += int64(len(b))
	t.mu.Unlock()
	return nil
}

// open gives an object that is here, or that is on its way here once it has come; the
// reader is kept waiting meanwhile. nil = the reader is gone.
func (t *Transfer) open(ctx context.Context, conn net.Conn, id ID) (Object, error) {
	for {
		o, err := t.cfg.Store.Open(id)
		if err == nil || !errs.Is(err, errs.NotFound) {
			return o, err
		}
		p := t.underWay(id)
		if p == nil {
			// It may have come between the two looks.
			return t.cfg.Store.Open(id)
		}
		tick := time.NewTicker(min(waitEvery, t.cfg.Stall/3))
		for done := false; !done; {
			select {
			case <-p.done:
				done = true
			case <-tick.C:
				if t.say(conn, wire.MsgWait, wire.Wait{}) != nil {
					tick.Stop()
					return nil, nil
				}
			case <-ctx.Done():
				tick.Stop()
				return nil, ctx.Err()
			}
		}
		tick.Stop()
		if p.err != nil {
			return nil, errs.Wrap(errs.Unavailable, p.err, "it did not come here either")
		}
	}
}

func (t *Transfer) underWay(id ID) *pull {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pulls[id]
}

// plan says where a new reader of an object is to read: nil = here, else from nodes that
// read it before. The reader takes its place in the plan.
func (t *Transfer) plan(id ID, node uint32, avoid []uint32) []uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	f := t.fans[id]
	if f == nil || now.Sub(f.used) > fanIdle {
		t.forgetFans(now)
		f = &fan{}
		t.fans[id] = f
	}
	f.used = now
	// One that comes again has lost what it read before, or whom it was to read from.
	f.readers = slices.DeleteFunc(f.readers, func(r *reader) bool { return r.node == node || slices.Contains(avoid, r.node) })
	direct := 0
	for _, r := range f.readers {
		if r.direct {
			direct++
		}
	}
	me := &reader{node: node}
	if direct < t.cfg.Fanout {
		me.direct = true
		f.readers = append(f.readers, me)
		return nil
	}
	for _, r := range f.readers { // in the order in which they came: the tree fills by levels
		if r.children < t.cfg.Fanout {
			r.children++
			f.readers = append(f.readers, me)
			t.stats.Redirects++
			return []uint32{r.node}
		}
	}
	me.direct = true
	f.readers = append(f.readers, me)
	return nil
}

// forgetFans drops plans that nobody has used for a while. mu must be held.
func (t *Transfer) forgetFans(now time.Time) {
	for id, f := range t.fans {
		if now.Sub(f.used) > fanIdle || len(t.fans) >= maxFans {
			delete(t.fans, id)
		}
	}
}
