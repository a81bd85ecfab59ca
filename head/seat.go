package head

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"launcher/head/core"
	"launcher/head/record"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

// ErrMoved ends a head that goes on elsewhere: head.seat says where.
var ErrMoved = errors.New("the head has moved")

const (
	// takeBound is how long a place may take to get ready for the head, and to have it start.
	takeBound = 10 * time.Second
)

// move has the head go on elsewhere.
func (h *head) move(e core.MoveHead) {
	gone, err := h.moveTo(e)
	switch {
	case gone: // whatever it said last: nothing here may write any more
		close(h.moved)
	case h.ctx.Err() != nil:
	case h.halted.Load(): // the next one here goes on
		h.replaced(errs.Wrap(errs.Unavailable, err, "moving the head"))
	default:
		h.log.Warn("the head does not move", "to", seatName(e.Node), "err", err)
		h.event(core.MoveFailed{Node: e.Node, Err: err})
	}
}

func seatName(n wire.NodeID) string {
	if n == "" {
		return "home"
	}
	return "node " + string(n)
}

// moveTo hands everything over. With gone the next one may run already, else it never will.
func (h *head) moveTo(e core.MoveHead) (gone bool, err error) {
	ctx, cancel := context.WithTimeout(h.ctx, takeBound)
	defer cancel()
	began := time.Now()
	st, err := h.openPlace(ctx, e.Node)
	if err != nil {
		return false, errs.Wrap(errs.Unknown, err, "%s", seatName(e.Node))
	}
	defer st.Close()
	c := h.nowConfig()
	c.State, c.Dir, c.Seat, c.Away, c.Why, c.Silent, c.Front = h.state, "", e.Node, e.Node != "", e.Why, nil, h.front()
	var ready wire.HeadReady
	if err := askPlace(st, takeBound, wire.MsgHeadTake, wire.HeadTake{Config: c}, wire.MsgHeadReady, &ready); err != nil {
		return false, errs.Wrap(errs.Unknown, err, "%s", seatName(e.Node))
	}
	seat := wire.HeadSeat{Node: e.Node, Addrs: ready.Addrs, Front: c.Front}
	if err := h.tryPlace(ctx, seat); err != nil {
		return false, err
	}
	if err := h.halt(ctx); err != nil {
		return false, err
	}
	h.tellMoves(ctx, wire.HeadMoves{Seat: seat})
	h.joins.close()
	if err := h.record.Close(); err != nil {
		return false, err
	}
	if err := h.journal.Close(ctx); err != nil {
		return false, err
	}
	if err := writeSeat(h.state, seat); err != nil {
		return false, err
	}
	h.log.Info("the head moves", "to", seatName(e.Node), "why", e.Why, "addrs", ready.Addrs, "took", time.Since(began).Round(time.Millisecond))
	h.gone.Store(true)
	var none struct{}
	return true, askPlace(st, takeBound, wire.MsgHeadGo, struct{}{}, wire.MsgOK, &none)
}

// tryPlace has the machine at home connect to where the head is to be: it would be taken home
// again from where commands do not reach it. Where nobody is at home, nobody misses it yet.
func (h *head) tryPlace(ctx context.Context, seat wire.HeadSeat) error {
	if seat.Node == "" {
		return nil
	}
	var tried wire.HeadTried
	if r := h.remote(); r == nil {
		tried.Why = session.Reach(ctx, seat.Addrs)
	} else if st, err := r.Open(ctx); err == nil {
		defer st.Close()
		if err := askPlace(st, 2*session.ReachBound, wire.MsgHeadTry, wire.HeadReady{Addrs: seat.Addrs}, wire.MsgHeadTried, &tried); err != nil {
			h.log.Info("nobody at home tries the place", "to", seatName(seat.Node), "err", err)
		}
	}
	if tried.Why != "" {
		return errs.New(errs.Unavailable, "the login node does not reach %s by TCP: %s", seatName(seat.Node), tried.Why)
	}
	return nil
}

// openPlace opens the stream on which the next place is asked.
func (h *head) openPlace(ctx context.Context, n wire.NodeID) (*session.Stream, error) {
	if n == "" {
		if r := h.remote(); r != nil {
			return r.Open(ctx)
		}
		return nil, errs.New(errs.Internal, "the head is at home")
	}
	conns, err := h.whom(n)
	if err != nil {
		return nil, err
	}
	if conns[n] == nil {
		return nil, unconnected(n)
	}
	return conns[n].s.Open(ctx, wire.StreamHead)
}

// askPlace puts one question on a stream that goes on.
func askPlace(st *session.Stream, bound time.Duration, typ uint16, msg any, want uint16, resp any) error {
	_ = st.SetDeadline(time.Now().Add(bound))
	if err := st.WriteMsg(typ, msg); err != nil {
		return err
	}
	got, body, err := st.ReadMsg()
	switch {
	case err != nil:
		return err
	case got == wire.MsgError:
		var w errs.Wire
		if err := wire.Unmarshal(body, &w); err != nil {
			return err
		}
		return w.FromWire()
	case got != want:
		return errs.New(errs.Corrupt, "the answer is message %#x, where %#x is due", got, want)
	}
	return wire.Unmarshal(body, resp)
}

// halt stops the loop for good: what it has decided is written, and nothing more is.
func (h *head) halt(ctx context.Context) error {
	h.halted.Store(true)
	if !h.post(item{fn: func(*core.Core) {}, done: make(chan struct{})}) {
		return errEnding()
	}
	select {
	case <-h.still:
		return nil
	case <-ctx.Done():
		return errs.Wrap(errs.Timeout, ctx.Err(), "the head does not come to rest")
	case <-h.over:
		return errEnding()
	}
}

// tellMoves tells everybody where the head will be.
func (h *head) tellMoves(ctx context.Context, m wire.HeadMoves) {
	for _, a := range h.current { // the loop is still
		a.send(wire.MsgHeadMoves, m)
	}
	if r := h.remote(); r != nil && m.Seat.Node != "" {
		if st, err := r.Open(ctx); err == nil {
			_ = st.WriteMsg(wire.MsgHeadMoves, m)
			_ = st.CloseWrite()
		}
	}
}

// front are the addresses at home.
func (h *head) front() []string {
	c := h.nowConfig()
	if !c.Away {
		return h.addresses()
	}
	if r := h.remote(); r != nil {
		if a := r.Addrs(); len(a) > 0 {
			return a
		}
	}
	return c.Front
}

// reached are all addresses by which nodes reach the head, best first.
func (h *head) reached() []string {
	out := h.addresses()
	if c := h.nowConfig(); c.Roam == "" || !c.Away {
		return out
	}
	for _, a := range h.front() {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// writeSeat writes down where the head is. The file is always there and is replaced whole: of
// one that is, every machine asks the server when it opens it, but that there was none NFS
// remembers for up to a minute.
func writeSeat(state string, seat wire.HeadSeat) error {
	return record.WriteFile(filepath.Join(state, wire.HeadSeatFile), wire.Marshal(seat))
}

// seatHere has the file say that the head is at home before a node looks for it.
func (h *head) seatHere() error {
	if h.config.Roam == "" || h.config.Away {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(h.state, wire.HeadSeatFile))
	var s wire.HeadSeat
	if err == nil && wire.Unmarshal(b, &s) == nil && s.Node == "" {
		return nil
	}
	return writeSeat(h.state, wire.HeadSeat{})
}
