package head

import (
	"context"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

// process passes a request for a process to the node's agent, and all that the two say.
func (h *head) process(ctx context.Context, st *session.Stream, p wire.Process) error {
	if p.Node == "" {
		return errs.New(errs.Invalid, "no node is named").Hint("`launcher nodes` lists them")
	}
	conns, err := h.whom(p.Node)
	if err != nil {
		return err
	}
	c := conns[p.Node]
	if c == nil {
		return unconnected(p.Node)
	}
	opening, stop := context.WithTimeout(ctx, writeBound)
	to, err := c.s.Open(opening, wire.StreamProcess)
	stop()
	if err == nil {
		if err = to.WriteMsg(wire.MsgProcess, p); err != nil {
			_ = to.Close()
		}
	}
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "node %s", p.Node)
	}
	_ = session.Relay(ctx, st, to) // both have been told
	return nil
}
