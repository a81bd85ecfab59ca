package tasks

import (
	"cmp"
	"slices"

	"launcher/agent/core"
	"launcher/wire"
)

// Several jobs that want more than there is take turns (agent/core/fair.go). While they do,
// workers keep no room between two tasks: each time it goes to the job that has least. A
// worker gets as many short tasks at a time as it ever does, but no more before they are
// done. With one job, none of this is looked at.

func (s *shape) who() core.Who { return core.Who{Job: s.job.key, Priority: s.prio} }

// contended reports whether others than one job want room.
func (c *Core) contended() bool {
	if len(c.ready) == 0 {
		return false
	}
	for _, s := range c.ready[1:] {
		if s.job != c.ready[0].job {
			return true
		}
	}
	return c.room.Contended()
}

// claim says what each job uses here and wants.
func (c *Core) claim() {
	all := map[string]*core.Claim{}
	of := func(job string) *core.Claim {
		if all[job] == nil {
			all[job] = &core.Claim{Job: job, Priority: c.TermsOf(job).Priority}
		}
		return all[job]
	}
	for _, cl := range c.clients {
		for _, l := range cl.levels {
			if !l.has || l.slot.Bundle != (wire.BundleID{}) {
				continue
			}
			need := l.need
			if l.blocked {
				need.CPU = 0
			}
			x := of(cl.pool.key.Job)
			x.Use = x.Use.Add(need, 1)
		}
	}
	for _, s := range c.ready {
		t := s.queue.first()
		if t == nil || t.lease != 0 || !c.local(s) || s.place.Kind == wire.StrategyGroup || s.lacks != "" && s.lacks != s.room {
			continue // it wants no room that is free here
		}
		if x := of(s.job.key); !x.Waits || s.prio > x.Want.Priority || s.prio == x.Want.Priority && t.ready < x.Want.Since {
			x.Waits, x.Want = true, core.Want{Priority: s.prio, Need: s.need, Since: t.ready}
		}
	}
	list := make([]core.Claim, 0, len(all))
	for _, x := range all {
		list = append(list, *x)
	}
	slices.SortFunc(list, func(a, b core.Claim) int { return cmp.Compare(a.Job, b.Job) })
	c.room.Claim(c.now, list)
}

// turns is dispatch while jobs compete: one worker after the other goes to the shape whose
// turn it is.
func (c *Core) turns() {
	c.claim()
	done := map[*shape]bool{}
	for {
		var best *shape
		for _, s := range c.ready {
			if !done[s] && s.queue.first() != nil && (best == nil || c.before(s, best)) {
				best = s
			}
		}
		if best == nil {
			return
		}
		if !c.oneMore(best) {
			done[best] = true
			c.rest(best)
		}
	}
}

// before orders shapes that want room.
func (c *Core) before(a, b *shape) bool {
	if a.job == b.job {
		return cmp.Or(cmp.Compare(b.prio, a.prio), cmp.Compare(a.queue.first().ready, b.queue.first().ready)) < 0
	}
	return cmp.Or(c.room.Before(a.who(), b.who()), cmp.Compare(a.queue.first().ready, b.queue.first().ready)) < 0
}

// oneMore gives a shape one more worker, with as much as it is ever given at a time.
func (c *Core) oneMore(s *shape) bool {
	if c.spreads(s) {
		c.spread(s)
		return false
	}
	n := len(c.active[s])
	if !c.more(s) {
		return false
	}
	if ls := c.active[s]; len(ls) > n {
		for l := ls[len(ls)-1]; len(l.tasks) < s.depth() && l.free(); {
			t := c.nextHere(s)
			if t == nil {
				break
			}
			c.give(l, t)
		}
	}
	return true
}
