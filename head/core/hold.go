package core

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"launcher/wire"
)

// hold is room that is kept on nodes for a gang, or for a placement group, that waits for
// it: all of what it needs, on nodes where that will come free.
type hold struct {
	job   *job // of the gang
	group *group
	nodes int
}

func (h *hold) priority() int {
	if h.job != nil {
		return h.job.d.Spec.Priority
	}
	return 0
}

func (h *hold) String() string {
	if h.job != nil {
		return fmt.Sprintf("job %d", h.job.id)
	}
	return "placement group " + h.group.name()
}

// before reports whether what is held is not a gang's to take.
func (h *hold) before(j *job) bool {
	if h.job != nil {
		return h.job != j && precedence(h.job, j) < 0
	}
	return j.d.Spec.Priority <= 0
}

// keepRoom holds the nodes that a waiting gang will start on: those where, with the
// tasks of its own or a lower priority ended, it fits.
func (c *Core) keepRoom(j *job) {
	if c.hold != nil && c.stands(c.hold) {
		c.timeHold(c.hold)
		c.keepFree(c.hold)
		return
	}
	c.dropHold(c.hold)
	mine := func(n *node, r wire.Resources) wire.Resources {
		if n.held != nil && n.held.before(j) {
			return wire.Resources{CPU: -1}
		}
		return r
	}
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
		return mine(n, r)
	})
	if plan == nil { // other gangs are in the way too
		plan = c.choose(j, func(n *node) wire.Resources { return mine(n, n.total) })
	}
	if plan == nil {
		return // there are not enough nodes yet
	}
	c.hold = &hold{job: j}
	need := map[*node]wire.Resources{}
	for _, p := range plan {
		need[c.nodes[p.Node]] = wire.Resources{}.Add(j.need, int64(p.Count))
	}
	c.beginHold(c.hold, need)
}

// stands reports whether all nodes of a hold are there still.
func (c *Core) stands(h *hold) bool {
	k := 0
	for _, n := range c.order {
		if n.held == h && c.usable(n) {
			k++
		}
	}
	return k == h.nodes
}

// beginHold has nodes keep room. What is queued there comes back.
func (c *Core) beginHold(h *hold, need map[*node]wire.Resources) {
	for _, n := range slices.SortedFunc(maps.Keys(need), byName) {
		n.held, n.heldNeed, n.heldTold = h, need[n], 0
		for _, id := range sortedKeys(n.shares) {
			s := n.shares[id]
			if q := s.tries.len(); !s.asked && n.conn && s.job.d.Spec.Priority <= h.priority() {
				s.asked = true
				c.send(n, wire.MsgWithdraw, wire.Withdraw{Job: id, Max: uint32(q)})
			}
		}
	}
	h.nodes = len(need)
	c.timeHold(h)
	c.keepFree(h)
}

// passing is what of a node is free or comes free by itself.
func (n *node) passing() wire.Resources {
	r := n.total.Add(n.beat.Lasting, -1)
	for _, p := range n.parts {
		r = r.Add(p.job.need, -p.count)
	}
	return r
}

// keepGroupRoom holds the nodes that the oldest group which waits for room will lie on, as
// keepRoom does for a gang: else short tasks, of which there is always one, would have what
// comes free. What never comes free, because other bundles or actors have it, is not held,
// nor is anything for a group that its job's limits keep from it.
func (c *Core) keepGroupRoom() {
	h := c.groups.hold
	if h != nil && (!slices.Contains(c.groups.wait, h.group) || !c.stands(h) || c.groupAtLimit(h.group) != "" || slices.ContainsFunc(c.order, func(n *node) bool { return n.held == h && !n.passing().Fits(n.heldNeed) })) {
		c.dropHold(h)
		h = nil
	}
	for _, g := range c.groups.wait {
		if h != nil {
			break
		}
		if c.now-g.since < groupStarves || c.groupAtLimit(g) != "" {
			continue
		}
		var sites []*groupSite
		for _, n := range c.order {
			if c.usable(n) && n.held == nil {
				sites = append(sites, &groupSite{n: n, room: n.passing()})
			}
		}
		if plan, _ := placeBundles(g, sites); plan != nil {
			need := map[*node]wire.Resources{}
			for i, n := range plan {
				need[n] = need[n].Add(g.spec.Bundles[i], 1)
			}
			h = &hold{group: g}
			c.groups.hold = h
			c.beginHold(h, need)
		}
	}
	if h != nil {
		c.timeHold(h)
		c.keepFree(h)
	}
}

// holdAgain is after how long a node is told of a hold once more.
const holdAgain = wire.HoldFor / 4

func (h *hold) message() (m wire.Hold) {
	if h.job != nil {
		m.Job = h.job.id
	} else {
		m.Group = h.group.spec.ID
	}
	return m
}

// keepFree has the nodes that are held leave their room to the gang: tasks that are not
// over in time get none of it.
func (c *Core) keepFree(h *hold) {
	for _, n := range c.order {
		if n.held != h {
			continue
		}
		c.takeBack(n, "its room is held for "+h.String(), func(l *lease) bool { return !c.mayLease(n, &l.spec) })
		if n.heldTold == 0 || n.heldStart != n.until || c.now-n.heldTold >= holdAgain {
			n.heldTold, n.heldStart = c.now, n.until
			m := h.message()
			m.Need = n.heldNeed
			if n.until != 0 {
				m.Start = n.until + n.offset
			}
			c.send(n, wire.MsgHold, m)
		}
	}
}

// timeHold names the time at which the held gang is expected to start: when everything
// that runs in its way has used up its time. Once named it only comes nearer, so that
// what uses the room meanwhile cannot put it off.
func (c *Core) timeHold(h *hold) {
	until := c.now
	for _, n := range c.order {
		if n.held == h && until != 0 {
			until = n.freeAt(until, c.now)
		}
	}
	for _, n := range c.order {
		if n.held == h && (n.until == 0 || until < n.until) {
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

// dropHold ends a hold, if there is one.
func (c *Core) dropHold(h *hold) {
	if h == nil {
		return
	}
	for _, n := range c.order {
		if n.held == h {
			c.send(n, wire.MsgHold, h.message())
			n.held, n.until = nil, 0
			c.touchNode(n)
			c.wanting()
		}
	}
	switch h {
	case c.hold:
		c.hold = nil
	case c.groups.hold:
		c.groups.hold = nil
	}
}
