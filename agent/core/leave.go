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
	stop := int64(0)
	if m.Grace > 0 {
		stop = c.now + m.Grace
	}
	c.drain(why, stop, drainGrace)
}

// drain takes no new work, and ends when what runs has, or is stopped.
func (c *Core) drain(why string, stop, grace int64) {
	c.record(RecPhase{Phase: Draining, Why: why, At: c.now, Stop: stop, Grace: grace})
	c.giveBackAll()
}

// leaveSoon: whoever asks is told to leave from now on, with the head or without it.
func (c *Core) leaveSoon(ev LeaveSoon) {
	if c.s.phase.Phase >= Draining || c.noticed && ev.By == 0 {
		return
	}
	c.noticed, c.notice = true, wire.Leaving{Why: ev.Why, By: ev.By}
	c.tellNotice()
	if ev.By != 0 {
		c.drain(ev.Why, ev.By, ev.Grace)
	}
	for _, d := range c.takeDoubts(func(doubt) bool { return true }) {
		c.procExited(d.exit)
	}
}

// doubt is the end of a process by a signal that Slurm and the like end nodes by: some send
// it to all processes at once. Whether the node was meant is known a moment later.
type doubt struct {
	exit  ProcExited
	until int64
}

const doubtWait = second

// doubtful holds such an end back, unless the node has been told: then the process was
// stopped with it, and did not fail.
func (c *Core) doubtful(ev ProcExited) bool {
	if !c.cfg.Signalled || ev.Signal != sigTERM && ev.Signal != 10 && ev.Signal != 12 {
		return false
	}
	if c.noticed {
		t, _ := c.s.rank(ev.Proc)
		c.stop(t, wire.ReasonPreempted, 0, drainGrace)
		return false
	}
	i := slices.IndexFunc(c.doubts, func(d doubt) bool { return d.exit.Proc == ev.Proc })
	if i >= 0 {
		return c.now < c.doubts[i].until
	}
	c.doubts = append(c.doubts, doubt{ev, c.now + doubtWait})
	return true
}

func (c *Core) doubtsDue() {
	due := func(d doubt) bool { return c.now >= d.until }
	for _, d := range c.doubts {
		if due(d) {
			c.procExited(d.exit)
		}
	}
	c.takeDoubts(due)
}

func (c *Core) takeDoubts(is func(doubt) bool) (out []doubt) {
	c.doubts = slices.DeleteFunc(c.doubts, func(d doubt) bool {
		if is(d) {
			out = append(out, d)
			return true
		}
		return false
	})
	return out
}

// tellNotice says so to the head; a new session is told again.
func (c *Core) tellNotice() {
	if c.noticed && c.welcome {
		c.tell(wire.MsgLeaving, c.notice)
	}
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
