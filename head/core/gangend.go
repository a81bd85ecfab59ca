package core

import (
	"launcher/wire"
)

// partOver reports whether all ranks of a gang on a node have ended.
func (c *Core) partOver(j *job, n *node, i uint32) bool {
	g := j.d.Gangs[i]
	if g == nil || g.Over {
		return true
	}
	for k, p := range g.Nodes {
		if p.Node == n.id && g.Epochs[k] == n.epoch {
			for r := p.First; r < p.First+p.Count; r++ {
				if g.Ends[r] == nil {
					return false
				}
			}
		}
	}
	return true
}

// broken reports whether a running gang cannot end well any more.
func (c *Core) broken(g *gangD) bool {
	if g.Fault != nil {
		return true
	}
	for _, e := range g.Ends {
		if e.Lost || e.Code != 0 {
			return true
		}
	}
	return false
}

// gangChanged follows the ends of ranks: the first failure stops the rest, and when all
// have ended the task is over or waits for its next attempt.
func (c *Core) gangChanged(j *job, i uint32) {
	g := j.gangs[i]
	d := j.d.Gangs[i]
	if g == nil || g.phase != gangRunning || d == nil {
		c.maybeEnd(j)
		return
	}
	j.touch()
	if d.Over || j.d.State != 0 {
		for _, p := range g.nodes {
			if n := c.nodes[p.Node]; n != nil {
				delete(n.parts, wire.Task{Job: j.id, Index: i})
				c.touchNode(n)
			}
		}
		delete(j.gangs, i)
		j.leftOff(i, g.attempt, c.now)
		c.forgetSteps(j, i, c.broken(d) && j.d.Cancel == nil && j.d.State == 0)
		j.dry = false
		if j.d.Cancel == nil {
			j.requeue(one(i))
		}
		c.full = true
		c.maybeEnd(j)
		return
	}
	if g.stopping {
		return
	}
	for _, r := range sortedKeys(d.Ends) {
		e := d.Ends[r]
		switch {
		case e.Code == 75 && j.d.left(i, g.attempt, 75):
			// It saved and left; the others are doing so too.
			if g.stopAt == 0 {
				g.stopAt = c.now + leaveTime
			}
		case e.Lost || e.Code != 0:
			g.stopping = true
		}
	}
	if d.Fault != nil {
		g.stopping = true
	}
	if g.stopping {
		for _, p := range g.nodes {
			if n := c.nodes[p.Node]; n != nil {
				c.stopRest(j, g, n)
			}
		}
	}
}

// stopRest stops what is left of a gang on a node, and says why.
func (c *Core) stopRest(j *job, g *gang, n *node) {
	d := j.d.Gangs[g.index]
	if d == nil || c.partOver(j, n, g.index) {
		return
	}
	rank, cause := int32(-1), ""
	var worst *detail
	for _, r := range sortedKeys(d.Ends) {
		if e := d.Ends[r]; (e.Lost || e.Code != 0 && e.Reason != wire.ReasonPeer) && (worst == nil || e.Ended < worst.Ended) {
			worst = e
		}
	}
	switch {
	case d.Fault != nil:
		rank, cause = d.Fault.Rank, d.Fault.Cause
	case worst != nil:
		rank, cause = int32(worst.Rank), j.d.cause(worst)
	}
	c.send(n, wire.MsgStop, wire.Stop{Job: j.id, Tries: []wire.Try{g.try(j)}, Reason: wire.ReasonPeer, Grace: j.grace, Rank: rank, Cause: cause})
}

// gangGone: an agent says that a gang cannot go on.
func (c *Core) gangGone(n *node, m wire.GangGone) {
	j := c.jobs[m.Gang.Job]
	if j == nil {
		return
	}
	g, d := j.gangs[m.Gang.Index], j.d.Gangs[m.Gang.Index]
	if g == nil || d == nil || g.phase != gangRunning || g.attempt != m.Gang.Attempt || d.Over {
		return
	}
	if m.Never {
		c.record(RecLost{Job: j.id, Node: n.id, Ranges: []wire.Range{one(g.index)}, Free: true, Cause: m.Cause, At: c.now})
	} else if d.Fault == nil {
		c.record(RecGangFault{Job: j.id, Index: g.index, Attempt: g.attempt, Rank: m.Rank, Cause: m.Cause})
	}
	c.gangChanged(j, g.index)
}
