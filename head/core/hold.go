package core

import (
	"cmp"
	"fmt"

	"launcher/wire"
)

// keepRoom holds the nodes that a waiting gang will start on: those where, with the
// tasks of its own or a lower priority ended, it fits.
func (c *Core) keepRoom(j *job) {
	if c.hold == j {
		ok := false
		for _, n := range c.order {
			ok = ok || n.held == j
			if n.held == j && !c.usable(n) {
				ok = false
				break
			}
		}
		if ok {
			c.timeHold(j)
			c.keepFree(j)
			return
		}
	}
	c.dropHold()
	plan := c.choose(j, func(n *node) wire.Resources {
		r := n.total
		for _, p := range n.parts {
			r = r.Add(p.job.need, -p.count)
		}
		for _, s := range n.shares {
			if s.job.d.Spec.Priority > j.d.Spec.Priority {
				r = r.Add(s.job.need, -int64(s.uses(n)))
			}
		}
		return r
	})
	if plan == nil { // other gangs are in the way too
		plan = c.choose(j, func(n *node) wire.Resources { return n.total })
	}
	if plan == nil {
		return // there are not enough nodes yet
	}
	c.hold = j
	for _, p := range plan {
		n := c.nodes[p.Node]
		n.held, n.heldNeed, n.heldTold = j, wire.Resources{}.Add(j.need, int64(p.Count)), 0
		for _, id := range sortedKeys(n.shares) {
			s := n.shares[id]
			if q := s.tries.len(); !s.asked && n.conn && s.job.d.Spec.Priority <= j.d.Spec.Priority {
				s.asked = true
				c.send(n, wire.MsgWithdraw, wire.Withdraw{Job: id, Max: uint32(q)})
			}
		}
	}
	c.timeHold(j)
	c.keepFree(j)
}

// holdAgain is after how long a node is told of a hold once more.
const holdAgain = wire.HoldFor / 4

// keepFree has the nodes that are held leave their room to the gang: tasks that are not
// over in time get none of it.
func (c *Core) keepFree(j *job) {
	for _, n := range c.order {
		if n.held != j {
			continue
		}
		c.takeBack(n, fmt.Sprintf("its room is held for job %d", j.id), func(l *lease) bool { return !c.mayLease(n, &l.spec) })
		if n.heldTold == 0 || n.heldStart != n.until || c.now-n.heldTold >= holdAgain {
			n.heldTold, n.heldStart = c.now, n.until
			h := wire.Hold{Job: j.id, Need: n.heldNeed}
			if n.until != 0 {
				h.Start = n.until + n.offset
			}
			c.send(n, wire.MsgHold, h)
		}
	}
}

// timeHold names the time at which the held gang is expected to start: when everything
// that runs in its way has used up its time. Once named it only comes nearer, so that
// what uses the room meanwhile cannot put it off.
func (c *Core) timeHold(j *job) {
	until := c.now
	for _, n := range c.order {
		if n.held == j && until != 0 {
			until = n.freeAt(until, c.now)
		}
	}
	for _, n := range c.order {
		if n.held == j && (n.until == 0 || until < n.until) {
			n.until = until
		}
	}
}

// freeAt is when everything on the node is over, at least until; 0 = that is not known.
func (n *node) freeAt(until, now int64) int64 {
	if n.until == 0 && !n.tasks.Nothing() {
		return 0 // what began after a time was named is over by then
	}
	for _, s := range n.shares {
		t := cmp.Or(s.job.d.Spec.TimeRequest, s.job.d.Spec.TimeLimit)
		if t == 0 {
			return 0
		}
		if len(s.running) == 0 {
			until = max(until, now+t)
		}
		for _, at := range s.running {
			until = max(until, at+t)
		}
	}
	for task, p := range n.parts {
		t := cmp.Or(p.job.d.Spec.TimeRequest, p.job.d.Spec.TimeLimit)
		g := p.job.gangs[task.Index]
		if t == 0 || g == nil {
			return 0
		}
		until = max(until, cmp.Or(g.started, now)+t)
	}
	return until
}

func (c *Core) dropHold() {
	for _, n := range c.order {
		if n.held != nil {
			c.send(n, wire.MsgHold, wire.Hold{Job: n.held.id})
			n.held, n.until = nil, 0
			c.touchNode(n)
			c.wanting()
		}
	}
	c.hold = nil
}
