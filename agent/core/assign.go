package core

import (
	"strconv"

	"launcher/internal/errs"
	"launcher/wire"
)

func utoa(n int64) string { return strconv.FormatInt(n, 10) }

// assign queues tries. What this node already holds or has done is not taken twice; what
// it can never run goes back.
func (c *Core) assign(m wire.Assign) {
	j := c.s.byJob[m.Job]
	if why := c.refuse(j, m.Job); why != nil {
		r := wire.Returned{Job: m.Job, Why: why}
		for _, x := range m.Ranges {
			for i := x.From; i < x.To; i++ {
				r.Tries = append(r.Tries, wire.Try{Task: wire.Task{Job: m.Job, Index: i}, Attempt: 1})
			}
		}
		for _, it := range m.Items {
			r.Tries = append(r.Tries, tryOf(m.Job, it))
		}
		c.tell(wire.MsgReturned, r)
		return
	}
	rec := RecAssign{Job: m.Job}
	for _, x := range m.Ranges {
		if x.From < x.To {
			rec.Ranges = append(rec.Ranges, c.unknown(j, x)...)
		}
	}
	for _, it := range m.Items {
		if !c.knows(j, it.Index, it.Attempt) {
			rec.Items = append(rec.Items, it)
		}
	}
	if len(rec.Ranges)+len(rec.Items) > 0 {
		c.record(rec)
		c.admitting = true
	}
}

// refuse says why a job's tries cannot be taken.
func (c *Core) refuse(j *job, id wire.JobID) *errs.Wire {
	switch {
	case j == nil:
		return wireErr(errs.New(errs.Invalid, "node %s was not told what job %d is", c.cfg.Hello.Node, id))
	case c.s.phase.Phase != Working:
		return wireErr(errs.New(errs.Unavailable, "node %s takes no new work: %s", c.cfg.Hello.Node, c.s.phase.Why))
	case !c.pool.could(j.spec.Spec.Resources):
		return wireErr(errs.New(errs.Exhausted, "node %s has %s, a rank asks for %s", c.cfg.Hello.Node, c.pool.total, j.spec.Spec.Resources))
	}
	return nil
}

// knows reports whether an attempt is queued, has room, or ended and is not acknowledged.
func (c *Core) knows(j *job, index uint32, a wire.Attempt) bool {
	id := wire.Try{Task: wire.Task{Job: j.spec.Job, Index: index}, Attempt: a}
	if c.s.byTry[id] != nil {
		return true
	}
	if _, ok := j.queue.find(index, a); ok {
		return true
	}
	for i := range c.s.unacked {
		if c.s.unacked[i].Proc.Try == id {
			return true
		}
	}
	return false
}

// unknown gives the parts of a range of first attempts that this node has not seen.
func (c *Core) unknown(j *job, x wire.Range) []wire.Range {
	out := []wire.Range{x}
	cut := func(from, to uint32) {
		if to <= x.From || from >= x.To {
			return
		}
		var next []wire.Range
		for _, r := range out {
			if to <= r.From || from >= r.To {
				next = append(next, r)
				continue
			}
			if r.From < from {
				next = append(next, wire.Range{From: r.From, To: from})
			}
			if to < r.To {
				next = append(next, wire.Range{From: to, To: r.To})
			}
		}
		out = next
	}
	for i := j.queue.head; i < len(j.queue.segs); i++ {
		if s := j.queue.segs[i]; s.item == nil {
			cut(s.r.From, s.r.To)
		} else if s.item.Attempt == 1 {
			cut(s.item.Index, s.item.Index+1)
		}
	}
	for _, t := range c.s.tries {
		if t.job == j && t.ID.Attempt == 1 {
			cut(t.ID.Index, t.ID.Index+1)
		}
	}
	for i := range c.s.unacked {
		if t := c.s.unacked[i].Proc.Try; t.Job == j.spec.Job && t.Attempt == 1 {
			cut(t.Index, t.Index+1)
		}
	}
	return out
}

func (c *Core) withdraw(m wire.Withdraw) {
	j := c.s.byJob[m.Job]
	if j == nil || j.queue.n == 0 || m.Max == 0 {
		c.tell(wire.MsgReturned, wire.Returned{Job: m.Job})
		return
	}
	c.giveBack(j, min(m.Max, j.queue.n), nil)
}

// giveBack returns the newest n queued tries of a job to the head.
func (c *Core) giveBack(j *job, n uint32, why *errs.Wire) {
	r := wire.Returned{Job: j.spec.Job, Why: why}
	i, total := uint32(0), j.queue.n
	j.queue.each(func(it wire.Item) {
		if i++; i > total-n {
			r.Tries = append(r.Tries, tryOf(j.spec.Job, it))
		}
	})
	c.record(RecWithdraw{Job: j.spec.Job, N: n})
	c.tell(wire.MsgReturned, r)
}

// admit gives room to queued tries and to offers that wait, while there is some and it is
// their turn (fair.go). Within a job tries go in order.
func (c *Core) admit() {
	c.owed = false
	if c.s.phase.Phase != Working || !c.Contended() {
		return
	}
	c.countTries()
	skip := map[any]bool{}
	for {
		var best *claimant
		for x := range c.claimants {
			if x.waits() != nil && !skip[x.waits()] && (best == nil || c.Before(x.Who, best.Who) < 0) {
				best = &x
			}
		}
		if best == nil {
			return
		}
		ok := c.mayTake(best.Who, best.need)
		if best.job != nil {
			ok = c.admitTry(best.job, ok)
		} else if ok {
			ok = c.takeOffer(*best.offer)
		}
		if !ok {
			skip[best.waits()] = true
		}
	}
}

// admitTry starts the first queued try of a job, if it is its turn and there is room.
func (c *Core) admitTry(j *job, turn bool) bool {
	need := j.spec.Spec.Resources
	if turn {
		if slot, ok := c.take(j.who(), need); ok {
			it, _ := j.queue.front()
			id := tryOf(j.spec.Job, it)
			c.record(RecAdmit{Try: id, Slot: slot, At: c.now})
			j.blocked = 0
			p := c.portion(j.key())
			p.tries = p.tries.Add(need, 1)
			c.count(p)
			c.spawn(c.s.byTry[id], 0)
			return true
		}
	}
	switch {
	case !c.pool.could(need):
		c.giveBack(j, j.queue.n, c.refuse(j, j.spec.Job)) // the node has shrunk
	case j.blocked == 0 && j.live == 0:
		j.blocked = c.now
	}
	return false
}

// spawn orders the process of a rank.
func (c *Core) spawn(t *Try, i int) {
	t.Ranks[i].spawned = true
	c.do(c.order(t, i))
}
