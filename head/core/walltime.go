package core

import (
	"cmp"
	"fmt"
	"slices"

	"launcher/wire"
)

// A node leaves at a time that is known beforehand. Its allocation ends then, as the backend
// says or its agent; or the chain of its pool; or somebody takes it away (a preemption, a
// signal, the user). All of that is one event: the node leaves by T, because.

const (
	// stopBefore is how long before a node's end what still runs there is stopped.
	stopBefore = 30 * second
	// Work that has not shown how long it takes to save is thought to take saveUnknown;
	// what it has shown counts up to saveMost.
	saveUnknown = 45 * second
	saveMost    = 10 * 60 * second
	// A successor is asked for so long before the node is drained.
	aheadBy = 5 * 60 * second
	// usefulFor is how long a node must have at least to be asked for.
	usefulFor = 60 * second
)

// lasts reports whether a node is there until a time.
func (n *node) lasts(until int64) bool { return n.ends == 0 || until <= n.ends }

// life is how long a node's allocation serves in all.
func (c *Core) life(n *node) int64 { return max(n.ends-c.durable(n).Since, second) }

// lead is how long before its end a node is drained: what it takes the work there to save,
// twice, and what stopping takes; never more than a quarter of the node's life.
func (c *Core) lead(n *node) int64 {
	var save int64
	for _, s := range n.shares {
		if s.tries.len() > 0 {
			save = max(save, s.job.saving())
		}
	}
	for _, p := range n.parts {
		save = max(save, p.job.saving())
	}
	if !n.tasks.Nothing() {
		save = max(save, saveUnknown)
	}
	return min(stopBefore+2*save, c.life(n)/4)
}

// saving is how long the job's work takes from the word that it is to leave until it has.
func (j *job) saving() int64 {
	switch {
	case j.Left > 0:
		return min(max(j.Left, j.Saved), saveMost)
	case j.Saved > 0:
		return min(max(j.Saved, j.Pace), saveMost)
	}
	return min(max(saveUnknown, j.Pace), saveMost)
}

// learned is how long work of a job takes, as was seen; 0 = not known.
type learned struct {
	Pace  int64 // between two reports
	Saved int64 // between two reports, the second with a checkpoint
	Left  int64 // from being told to leave until it had
}

// differs reports whether it is worth a record that it was other.
func (l learned) differs(was learned) bool {
	for _, x := range [][2]int64{{l.Pace, was.Pace}, {l.Saved, was.Saved}, {l.Left, was.Left}} {
		if lo, hi := min(x[0], x[1]), max(x[0], x[1]); lo == 0 && hi > 0 || hi >= second && hi > lo+lo/2 {
			return true
		}
	}
	return false
}

// remember has what was learned outlive the head.
func (j *job) remember() {
	if j.d.State == 0 && j.learned.differs(j.d.Learned) {
		j.c.record(RecLearned{Job: j.id, Learned: j.learned})
	}
}

// learn keeps the longest of what was seen, and forgets it slowly.
func learn(known *int64, d int64) {
	if d = max(d, 1); d >= *known {
		*known = d
	} else {
		*known -= (*known - d) / 8
	}
}

// reportedAt learns from the time between two reports of an attempt how long it takes to
// hear and, when it has saved meanwhile, to save.
func (j *job) reportedAt(r wire.Report) {
	t := r.Proc.Try
	if last := j.heard[t.Index]; last.attempt == t.Attempt && r.Time > last.at {
		learn(&j.Pace, r.Time-last.at)
		if r.Checkpoint != "" {
			learn(&j.Saved, r.Time-last.at)
		}
	}
	j.heard[t.Index] = heard{attempt: t.Attempt, at: r.Time}
	j.remember()
}

// heard is when an attempt last reported, by its node's clock.
type heard struct {
	attempt wire.Attempt
	at      int64
}

// leftOff forgets what concerned an attempt, and learns how long it took to leave.
func (j *job) leftOff(i uint32, a wire.Attempt, now int64) {
	if l, ok := j.leaving[i]; ok && l.attempt == a {
		if !l.stopped && l.why != wire.LeavePruned {
			learn(&j.Left, now-l.at)
			j.remember()
		}
		delete(j.leaving, i)
	}
	delete(j.heard, i)
}

// watchEnd finds out when a node leaves and has it drained in time. It may be earlier than
// it was: a limit that was lowered, a preemption.
func (c *Core) watchEnd(n *node) {
	c.setEnd(n)
	if n.ends != 0 && n.greeted && c.now >= n.ends-c.lead(n) {
		c.leaveBy(n, c.stopAt(n), n.endsWhy)
	}
	c.tellEnd(n)
}

// tellEnd tells a node when it ends, where that is another time than it knows.
func (c *Core) tellEnd(n *node) {
	m := wire.NodeEnds{Over: n.alloc}
	if n.ends != 0 {
		m.By = n.ends - min(stopBefore, c.life(n)/16) // stopAt may be that early
	}
	if d := c.durable(n).Drain; d != nil {
		m.By, m.Leave = cmp.Or(d.Deadline, m.By), wire.LeavePreempted
	}
	near := func(a, b int64) bool { return a-b <= second && b-a <= second }
	if t := n.endsTold; !n.conn || !n.greeted || near(m.By, t.By) && near(m.Over, t.Over) && m.Leave == t.Leave {
		return
	}
	n.endsTold = m
	for _, at := range []*int64{&m.By, &m.Over} {
		if *at != 0 {
			*at += n.offset
		}
	}
	c.send(n, wire.MsgNodeEnds, m)
}

func (c *Core) setEnd(n *node) {
	n.ends, n.endsWhy = n.alloc, "its allocation ends"
	if p := c.pools[n.pool]; p != nil {
		if end, why := c.chainEnd(p); end != 0 && (n.ends == 0 || end < n.ends) {
			n.ends, n.endsWhy = end, why
		}
	}
}

// stopAt is when what still runs on a node is stopped: before its end, but when that comes
// all of a sudden not at once.
func (c *Core) stopAt(n *node) int64 {
	return n.ends - max(0, min(stopBefore, c.lead(n)/4, (n.ends-c.now)/4))
}

// noticed: the node says that it is taken away. When, its backend knows where it does not.
func (c *Core) noticed(n *node, m wire.Leaving) {
	if m.By != 0 {
		by := m.By - n.offset
		n.alloc = min(cmp.Or(n.alloc, by), by)
		c.setEnd(n)
		c.leaveBy(n, c.stopAt(n), m.Why)
	} else {
		if p := c.pools[n.pool]; p != nil {
			p.query = c.now
		}
		c.leaveBy(n, 0, m.Why)
	}
	// Its processes are told by the node itself: what they say of that may come next.
	d := c.durable(n)
	c.watchDrain(n, d)
	c.tellAll(n, d.Drain.Deadline)
}

// leaveBy is the event: what runs on the node is told to leave, and stopped at a time; 0 =
// whenever it has.
func (c *Core) leaveBy(n *node, stop int64, why string) {
	d := RecDrain{Node: n.id, Epoch: n.epoch, Deadline: stop, Keep: true, Why: why}
	if old := c.durable(n).Drain; old != nil {
		if stop == 0 || old.Deadline != 0 && old.Deadline <= stop+second {
			return
		}
		d.Keep, d.Why = old.Keep, cmp.Or(old.Why, why)
	}
	c.record(d)
	n.moved = false
}

// replaced reports whether another node is to be asked for in the place of one that is up.
func (c *Core) replaced(n *node) bool {
	if n == nil || n.ends == 0 {
		return false
	}
	if p := c.pools[n.pool]; p != nil {
		if end, _ := c.chainEnd(p); end != 0 && n.ends+usefulFor > end {
			return false // nothing comes after it
		}
	}
	if d := c.durable(n).Drain; d != nil {
		return d.Keep
	}
	lead := c.lead(n)
	return c.now >= n.ends-min(lead+aheadBy, c.life(n)/2)
}

// leavers are the nodes of a pool that are up and that others are to replace, and how many
// of them have something to do.
func (c *Core) leavers(p *pool) (all []*node, busy int) {
	for _, n := range c.order {
		if n.pool == p.spec.Name && c.replaced(n) {
			if all = append(all, n); n.idle == 0 && c.durable(n).Drain == nil {
				busy++
			}
		}
	}
	return all, busy
}

// chain is what the pool has had.
func (s *state) chain(pool string) *chainD {
	ch := s.Chains[pool]
	if ch == nil {
		ch = &chainD{}
		s.Chains[pool] = ch
	}
	return ch
}

// chainEnd is when the chain of a pool's allocations ends; 0 = never.
func (c *Core) chainEnd(p *pool) (end int64, why string) {
	if ch := c.d.st.Chains[p.spec.Name]; p.spec.Total > 0 && ch != nil && ch.First != 0 {
		end, why = ch.First+p.spec.Total, "pool "+p.spec.Name+" has total = "+lasting(p.spec.Total)
	}
	if p.spec.UntilAt != 0 && (end == 0 || p.spec.UntilAt < end) {
		end, why = p.spec.UntilAt, "pool "+p.spec.Name+" has until = "+p.spec.Until
	}
	return end, why
}

// chainOver says why a pool asks for no more nodes; "" = it does.
func (c *Core) chainOver(p *pool) string {
	if c.mayAsk(p) == 0 {
		return fmt.Sprintf("max_jobs = %d: so many have been asked for since the cluster was brought up", p.spec.MaxJobs)
	}
	if end, why := c.chainEnd(p); end != 0 && c.now+usefulFor > end {
		return why + ", and that is over"
	}
	return ""
}

// mayAsk is how many more allocations a pool may ask for.
func (c *Core) mayAsk(p *pool) int {
	if p.spec.MaxJobs == 0 {
		return 1 << 30
	}
	had := 0
	if ch := c.d.st.Chains[p.spec.Name]; ch != nil {
		had = ch.Allocs
	}
	for _, s := range c.d.st.Subs {
		if s.Pool == p.spec.Name && !s.Known {
			had += p.allocsFor(len(s.Nodes))
		}
	}
	return max(0, p.spec.MaxJobs-had)
}

// allocsFor is how many allocations k nodes are.
func (p *pool) allocsFor(k int) int {
	if p.spec.PerAlloc == 0 {
		return min(k, 1)
	}
	return (k + p.spec.PerAlloc - 1) / p.spec.PerAlloc
}

// bounded is how many of k nodes a pool may ask for in one request.
func (c *Core) bounded(p *pool, k int) int {
	if may := c.mayAsk(p); p.allocsFor(k) > may {
		return may * p.spec.PerAlloc
	}
	return k
}

// extend asks for k nodes of a pool: those in the place of nodes that leave by themselves,
// so that they may wait for them.
func (c *Core) extend(p *pool, k int) {
	leaving, _ := c.leavers(p)
	next := min(k, len(leaving))
	if k > next {
		c.submit(p, k-next, nil)
	}
	if next == 0 {
		return
	}
	var after [][]byte
	for _, n := range leaving {
		a := c.allocOf(n)
		if a != nil && !slices.ContainsFunc(after, func(h []byte) bool { return string(h) == string(a.Handle) }) {
			after = append(after, a.Handle)
		}
	}
	c.submit(p, next, after)
}

// allocOf is the allocation that a node is of; nil = it is of none that is known.
func (c *Core) allocOf(n *node) *allocD {
	if s := c.d.st.Subs[c.durable(n).Token]; s != nil {
		for _, a := range s.Allocs {
			if slices.Contains(a.Nodes, n.id) {
				return a
			}
		}
	}
	return nil
}

// within is how long a pool's nodes are of use from now on; 0 = for ever.
func (c *Core) within(p *pool) int64 {
	end, _ := c.chainEnd(p)
	if end == 0 && p.spec.Total > 0 {
		return p.spec.Total
	}
	if end == 0 {
		return 0
	}
	return max(end-c.now, usefulFor)
}

// lasting is a time in words.
func lasting(d int64) string {
	switch s := (max(d, 0) + second/2) / second; {
	case s < 120:
		return fmt.Sprintf("%d s", s)
	case s < 120*60:
		return fmt.Sprintf("%d min", s/60)
	default:
		return fmt.Sprintf("%d h %d min", s/3600, s/60%60)
	}
}
