package core

import (
	"slices"

	"launcher/wire"
)

const (
	sigKILL = 9
	sigTERM = 15
)

// What was sent to a process that is being ended.
const (
	sentNothing = iota
	sentTerm
	sentKill
)

// stopMsg ends tries because the head says so.
func (c *Core) stopMsg(m wire.Stop) {
	j := c.s.byJob[m.Job]
	if j == nil {
		return
	}
	grace := m.Grace
	if grace < 0 {
		grace = j.spec.Spec.Grace
	}
	if m.All {
		if j.queue.n > 0 {
			c.record(RecStopQueue{Job: m.Job, Reason: m.Reason, At: c.now})
		}
		for _, t := range slices.Clone(c.s.tries) {
			if t.job == j {
				c.stopTry(t, m, grace)
			}
		}
	}
	for _, id := range m.Tries {
		if t := c.s.byTry[id]; t != nil {
			c.stopTry(t, m, grace)
		} else if _, ok := j.queue.find(id.Index, id.Attempt); ok && id.Job == m.Job {
			c.record(RecEnded{Ended: wire.Ended{Proc: wire.Proc{Try: id}, Code: -1, Reason: m.Reason, Ended: c.now}})
		}
	}
	c.admitting = true
}

func (c *Core) stopTry(t *Try, m wire.Stop, grace int64) {
	switch {
	case t.reserved():
		c.release(t)
	case m.Reason == wire.ReasonPeer:
		if t.Fault == nil {
			cause := m.Cause
			if cause == "" {
				cause = "another part of the gang failed"
			}
			c.record(RecFault{Gang: t.ID, Rank: m.Rank, Cause: cause})
			c.abort(t)
		}
		c.stop(t, m.Reason, peerWait(t), grace)
	default:
		c.stop(t, m.Reason, 0, grace)
	}
}

// peerWait is how long a gang whose collectives failed is left to end by itself.
func peerWait(t *Try) int64 {
	if t.joined() {
		return peerDelay
	}
	return 0
}

// stop ends a try: SIGTERM after delay, SIGKILL after grace more. A second stop can only
// make it sooner.
func (c *Core) stop(t *Try, reason wire.Reason, delay, grace int64) {
	r := RecStop{Try: t.ID, Reason: reason, Term: c.now + delay, Kill: c.now + delay + max(grace, 0)}
	if s := t.Stop; s != nil {
		if r.Kill >= s.Kill {
			return
		}
		r.Reason, r.Term = s.Reason, min(r.Term, s.Term)
	}
	c.record(r)
	c.stopDue(t)
}

// stopDue sends the signals that are due to the processes of a try that is being ended.
// One that was ordered but has not started yet is signalled when it has.
func (c *Core) stopDue(t *Try) {
	if t.Stop == nil {
		return
	}
	for i := range t.Ranks {
		r := &t.Ranks[i]
		switch {
		case r.Ended || r.exit != nil || r.Started == 0:
		case c.now >= t.Stop.Kill && r.sent < sentKill:
			r.sent = sentKill
			c.do(Signal{Proc: t.proc(i), Sig: sigKILL, Group: true})
		case c.now >= t.Stop.Term && r.sent < sentTerm:
			r.sent = sentTerm
			c.do(Signal{Proc: t.proc(i), Sig: sigTERM, Group: true})
		}
	}
}

// stopAt is when the next signal is due; 0 = none.
func (t *Try) stopAt() (at int64) {
	for i := range t.Ranks {
		r := &t.Ranks[i]
		if r.Ended || r.exit != nil || r.Started == 0 {
			continue
		}
		var next int64
		switch r.sent {
		case sentNothing:
			next = t.Stop.Term
		case sentTerm:
			next = t.Stop.Kill
		}
		if next != 0 && (at == 0 || next < at) {
			at = next
		}
	}
	return at
}
