package core

import (
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
)

// shutdown: the head wants this node to end, at once or when its work is done.
func (c *Core) shutdown(m wire.Shutdown) {
	why := m.Why
	if why == "" {
		why = "the head said so"
	}
	if !m.Drain {
		c.endWith(why, m.Grace)
		return
	}
	if c.s.phase.Phase >= Draining {
		return
	}
	p := RecPhase{Phase: Draining, Why: why, At: c.now, Grace: drainGrace}
	if m.Grace > 0 {
		p.Stop = c.now + m.Grace
	}
	c.record(p)
	c.giveBackAll()
}

// drainGrace is between SIGTERM and SIGKILL for what still runs when a drain is over.
const drainGrace = 10 * second

// end stops everything with the default grace.
func (c *Core) end(why string) { c.endWith(why, drainGrace) }

func (c *Core) endWith(why string, grace int64) {
	if c.s.phase.Phase == Gone {
		return
	}
	if c.s.phase.Phase < Ending {
		c.record(RecPhase{Phase: Ending, Why: why, At: c.now, Grace: grace})
		c.giveBackAll()
	}
	c.stopAll(wire.ReasonShutdown, grace)
}

func (c *Core) giveBackAll() {
	why := wireErr(errs.New(errs.Unavailable, "node %s leaves: %s", c.cfg.Hello.Node, c.s.phase.Why))
	for _, j := range c.s.jobs {
		if j.queue.n > 0 {
			c.giveBack(j, j.queue.n, why)
		}
	}
}

func (c *Core) stopAll(reason wire.Reason, grace int64) {
	for _, t := range slices.Clone(c.s.tries) {
		if t.reserved() {
			c.release(t)
		} else {
			c.stop(t, reason, 0, grace)
		}
	}
}

// ending takes a node that is to leave through its last steps: completions taken by the
// head, output shipped, farewell. Each wait has a bound.
func (c *Core) ending() {
	p := c.s.phase
	switch {
	case p.Phase == Gone:
		if !c.left {
			c.left = true
			c.do(Leave{Why: p.Why})
		}
		return
	case p.Phase < Draining || len(c.s.tries) > 0:
		return
	}
	if c.idleAt == 0 {
		c.idleAt = c.now
		c.flush()
	}
	if len(c.s.unacked) > 0 {
		// A draining node has time; one that ends does not wait long.
		if p.Phase == Draining || c.now < c.idleAt+ackWait && c.s.lost == 0 {
			return
		}
	}
	if c.shipAt == 0 {
		c.shipAt = c.now
		c.do(ShipLogs{Bound: shipWait})
	}
	if !c.shipped && c.now < c.shipAt+shipWait {
		return
	}
	c.tell(wire.MsgLeaving, wire.Leaving{Why: p.Why, Dead: true})
	c.record(RecPhase{Phase: Gone, Why: p.Why, At: c.now})
	c.left = true
	c.do(Leave{Why: p.Why})
}
