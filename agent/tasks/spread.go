package tasks

import "slices"

// spreadAhead is how many tasks per slot another node is sent with SPREAD: those that
// come before its workers are there wait there.
const spreadAhead = 4

const (
	// spreadWait is how long a task waits for a worker that is being started here, if it is
	// this node's turn; othersWait is how much later than the first lease those on other
	// nodes may come.
	spreadWait = 2 * second
	othersWait = 100 * millisecond
)

// spread gives the tasks of a shape that are to be spread to the nodes that have leases
// for it, this one included, always to the one that was given least of those that can
// take one. Others are not waited for long: what waits may be what others wait for.
func (c *Core) spread(s *shape) {
	full := c.startsOne(s) // this node: a worker that is being started has its next slot
	for t := s.queue.first(); t != nil && t.lease == 0; t = s.queue.first() {
		on, ok := c.nextOf(s, full, c.now-t.ready >= spreadWait || !c.startsOne(s))
		if !ok {
			return
		}
		if on.number != c.cfg.Number {
			x := c.leases.use(s.number, on.number, false, s.spreadAhead())
			c.giveAway(c.remoteOf(x.Number, s.key), x, t)
		} else if l := c.freeLevel(s); l != nil {
			c.give(l, t)
		} else if x := c.leases.useHere(s.number); x == nil || !c.under(x, s, t) || t.state == queued {
			full = true
			continue
		}
		s.spread[on.number]++
	}
}

// spreadAhead is how many tasks share a slot elsewhere, one behind the other. Actors stay.
func (s *shape) spreadAhead() int {
	if s.actor != nil {
		return 1
	}
	return spreadAhead
}

// target is a node that spread may choose.
type target struct {
	number uint32
	n      int // tasks that it was given
}

// nextOf chooses the node that was given least and can take one. full: this one cannot, but
// unless any will do it is waited for.
func (c *Core) nextOf(s *shape, full, any bool) (on target, ok bool) {
	first := c.now // when the first of its leases came
	nodes := map[uint32]*target{}
	open := map[uint32]bool{}
	for _, x := range c.leases.by {
		if x.Shape != s.number {
			continue
		}
		if nodes[x.Number] == nil {
			nodes[x.Number] = &target{number: x.Number}
		}
		open[x.Number] = open[x.Number] || x.used < x.slots*s.spreadAhead()
		first = min(first, x.at)
	}
	if len(nodes) == 1 && c.now-first < othersWait {
		return on, false
	}
	if s.spread == nil {
		s.spread = map[uint32]int{}
	}
	behind, none := 0, true
	for n := range nodes {
		if k, had := s.spread[n]; had && (none || k < behind) {
			behind, none = k, false
		}
	}
	for n, x := range nodes {
		if _, had := s.spread[n]; !had {
			s.spread[n] = behind // it begins with the others
		}
		x.n = s.spread[n]
	}
	for n := range s.spread {
		if nodes[n] == nil {
			delete(s.spread, n)
		}
	}
	if own := c.cfg.Number; nodes[own] != nil {
		open[own] = c.freeLevel(s) != nil || !full && c.leases.hasHere(s.number)
	}
	for n, x := range nodes {
		if (open[n] || n == c.cfg.Number && full && !any) && (!ok || x.n < on.n || x.n == on.n && n < on.number) {
			on, ok = *x, true
		}
	}
	return on, ok && open[on.number]
}

// startsOne reports whether a worker for a shape is being started here.
func (c *Core) startsOne(s *shape) bool {
	return slices.ContainsFunc(c.active[s], func(l *level) bool { return !l.client.up })
}

// freeLevel gives a worker here that has a shape's room and nothing to do.
func (c *Core) freeLevel(s *shape) *level {
	for _, l := range c.active[s] {
		if len(l.tasks) == 0 && l.free() {
			return l
		}
	}
	return nil
}
