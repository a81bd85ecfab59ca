package agent

import (
	"context"
	"encoding/binary"
	"time"

	"launcher/agent/store"
	"launcher/internal/errs"
	"launcher/shm/objects"
	"launcher/wire"
	"launcher/wire/sdk"
)

// maxExtents is how many stretches of free room are told of in one frame.
const maxExtents = 100_000

// spaceWait is a Space that cannot be answered yet.
type spaceWait struct {
	need int64
	by   time.Time // then the answer is that there is none; zero = whenever there is some
}

// frames gives the reactor what a client sent, all under one lock, and waits while so much
// is queued that its driver should not go on.
func (s *sdkServer) frames(ctx context.Context, cl *sdkClient, b []byte) (err error) {
	var parked chan struct{}
	s.turn(func(now int64) {
		for len(b) > 0 && err == nil {
			n := int(binary.LittleEndian.Uint32(b)) + 4
			err = s.frame(now, cl, binary.LittleEndian.Uint16(b[4:]), b[wire.FrameHeader:n])
			b = b[n:]
		}
		if s.core.Full() && !s.core.Waits(cl.ID) {
			parked = s.parked
		}
	})
	for parked != nil && err == nil {
		select {
		case <-parked:
		case <-ctx.Done():
			return nil
		}
		s.a.mu.Lock()
		if parked = nil; s.core.Full() && !s.core.Waits(cl.ID) && cl.conn != nil {
			parked = s.parked
		}
		s.a.mu.Unlock()
	}
	return err
}

// frame takes one frame. a.mu is held.
func (s *sdkServer) frame(now int64, cl *sdkClient, typ uint16, body []byte) error {
	short := func(n int) error {
		if len(body) < n {
			return errs.New(errs.Corrupt, "a frame of type %#x with %d bytes", typ, len(body))
		}
		return nil
	}
	switch typ {
	case sdk.MsgSpace:
		if err := short(16); err != nil {
			return err
		}
		w := spaceWait{need: int64(binary.LittleEndian.Uint64(body))}
		if ms := binary.LittleEndian.Uint64(body[8:]); ms > 0 && ms < 1<<40 {
			w.by = time.Now().Add(time.Duration(ms) * time.Millisecond)
		}
		cl.spaces = append(cl.spaces, w)
		s.asking = append(s.asking, cl) // what the frames before have freed counts
	case sdk.MsgOpenSegment:
		if err := short(4); err != nil {
			return err
		}
		n := binary.LittleEndian.Uint32(body)
		f, size, err := s.store.OpenSegment(cl.ID, n)
		if err != nil {
			return nil // it is gone; the reader finds its object elsewhere, or not at all
		}
		b := binary.LittleEndian.AppendUint32(nil, n)
		cl.conn.putFrame(sdk.MsgSegment, binary.LittleEndian.AppendUint64(b, uint64(size)), f)
		f.Close()
		s.mark(cl)
	case sdk.MsgDropped:
		if err := short(4); err != nil {
			return err
		}
		return s.store.Dropped(cl.ID, binary.LittleEndian.Uint32(body))
	case sdk.MsgCall:
		if err := short(4); err != nil {
			return err
		}
		return s.call(cl, binary.LittleEndian.Uint32(body), body[4:])
	default:
		return s.core.Frame(now, cl.ID, typ, body)
	}
	return nil
}

// giveSpace answers a client's Spaces, as far as there is room. a.mu is held.
func (s *sdkServer) giveSpace(cl *sdkClient) {
	for len(cl.spaces) > 0 && cl.conn != nil {
		w := cl.spaces[0]
		g, wait, err := s.store.Space(cl.ID, cl.Job, w.need)
		if wait && err == nil {
			if w.by.IsZero() || time.Now().Before(w.by) {
				return
			}
			err = s.store.Full(cl.ID, w.need)
		}
		cl.spaces = cl.spaces[1:]
		s.granted(cl, g, err)
	}
}

// granted writes a Granted frame. a.mu is held.
func (s *sdkServer) granted(cl *sdkClient, g store.Grant, err error) {
	le := binary.LittleEndian
	switch {
	case err != nil:
		b := le.AppendUint32(nil, sdk.GrantedFull)
		cl.conn.putFrame(sdk.MsgGranted, append(b, sdk.Error{Code: "full", Message: err.Error(), Node: string(s.a.cfg.Node), Hints: errs.HintsOf(err)}.Encode()...))
	case g.Segment != 0:
		b := le.AppendUint32(nil, sdk.GrantedSegment)
		b = le.AppendUint32(b, g.Segment)
		cl.conn.putFrame(sdk.MsgGranted, le.AppendUint64(b, uint64(g.Size)), g.File)
	default:
		cl.conn.put(extents(g.Extents))
	}
	s.mark(cl)
}

// extents are Granted frames of room that has become free.
func extents(es []objects.Extent) (out []byte) {
	le := binary.LittleEndian
	for done := false; !done; done = len(es) == 0 {
		part := es[:min(len(es), maxExtents)]
		es = es[len(part):]
		b, at := sdk.Begin(out, sdk.MsgGranted, 0)
		b = le.AppendUint32(le.AppendUint32(b, sdk.GrantedExtents), uint32(len(part)))
		for _, e := range part {
			b = le.AppendUint32(le.AppendUint32(b, e.Segment), 0)
			b = le.AppendUint64(le.AppendUint64(b, uint64(e.Offset)), uint64(e.Length))
		}
		out = sdk.Finish(b, at)
	}
	return out
}

// storeEvent takes news of the store, in its goroutine.
func (s *sdkServer) storeEvent(e store.Event) {
	s.isBack(e)
	s.turn(func(now int64) {
		switch e := e.(type) {
		case store.SpaceFreed:
			if cl := s.clients[e.Client]; cl != nil {
				s.giveSpace(cl)
			}
		case store.Restored:
			s.core.Restored(now, e.ID, e.Err)
		case store.Lost:
			s.core.Lost(now, e.ID, e.Err.Error())
		case store.Evicted:
			s.evicted(now, e.ID)
		case store.Overdue:
			s.interrupt(e.Client) // it may be busy with a task
		case store.DropSegment:
			if cl := s.clients[e.Client]; cl != nil && cl.conn != nil {
				if len(e.Free) > 0 {
					cl.conn.put(extents(e.Free))
				}
				cl.conn.putFrame(sdk.MsgDropSegment, binary.LittleEndian.AppendUint32(nil, e.Segment))
				s.mark(cl)
			}
		}
	})
}

// answer answers a Call; request 0 wants no answer. a.mu is held.
func (s *sdkServer) answer(cl *sdkClient, request uint32, value any, err error) {
	if cl.conn == nil || request == 0 {
		return
	}
	failed, body := uint32(0), []byte(nil)
	if err != nil {
		failed, body = 1, sdk.Error{Code: errs.KindOf(err).String(), Message: err.Error(), Node: string(s.a.cfg.Node), Hints: errs.HintsOf(err)}.Encode()
	} else {
		if body = wire.Marshal(value); len(body) > sdk.BodyMax-8 {
			s.answer(cl, request, nil, errs.New(errs.Exhausted, "the answer is %s long, a message has %s at most", wire.Bytes(int64(len(body))), wire.Bytes(sdk.BodyMax)))
			return
		}
	}
	b := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, request), failed)
	s.answers = append(s.answers, given{cl, append(b, body...)})
}

// leave is the end of a client's connection, for whatever reason.
func (s *sdkServer) leave(cl *sdkClient, c *sdkConn, why error) {
	s.noLogsTo(cl, c)
	cause := "its connection broke"
	if why != nil {
		cause = "it broke the protocol: " + why.Error()
	}
	if cl.Kind == sdk.KindWorker {
		if why != nil {
			s.a.workers.Signal(cl.ID, 9)
		}
		if end, ok := s.awaitEnd(cl); ok && why == nil {
			cause = end.String()
		}
	}
	s.turn(func(now int64) {
		if cl.conn != c {
			return
		}
		cl.conn = nil
		s.forget(now, cl, cause)
	})
}

// forget: a client is dead. a.mu is held.
func (s *sdkServer) forget(now int64, cl *sdkClient, cause string) {
	if s.clients[cl.ID] != cl {
		return
	}
	delete(s.clients, cl.ID)
	s.a.metrics.user.ended(cl.ID)
	s.forgotten(cl)
	if cl.starved != "" {
		cause = cl.starved
		s.core.Starved(cl.ID)
	}
	s.core.Gone(now, cl.ID, cause)
	s.unmade(cl.ID)
	s.store.Detach(cl.ID)
	s.dropControl(cl)
	if cl.Kind == sdk.KindWorker {
		s.a.workers.Signal(cl.ID, 9) // it has closed its socket, so it is of no use
	}
}
