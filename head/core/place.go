package core

import (
	"cmp"
	"fmt"
	"slices"

	"launcher/wire"
)

const (
	// maxWindow is the most tries of one job that a node is given ahead.
	maxWindow = 4096
	// ahead is how much work a node is given ahead: long enough that it never waits for
	// a round trip with a journal write in it, short enough that the end of an array
	// spreads over all nodes.
	ahead = 500 * millisecond
	// rebalance bounds how often tries are asked back for a node that has nothing.
	rebalance = 20 * millisecond
)

// schedule hands out work: to all nodes when something changed for all, else to those
// whose room changed.
func (c *Core) schedule() {
	if c.recovering || c.down != nil && !c.down.drain {
		return
	}
	// Starting or giving up a gang changes the room of nodes again.
	for k := 0; k < 4 && (c.full || len(c.dirty) > 0); k++ {
		c.handOut()
	}
	c.matchAll()
}

func (c *Core) handOut() {
	full := c.full
	var on []*node
	if full {
		on = c.order
	} else {
		for n := range c.dirty {
			on = append(on, n)
		}
		slices.SortFunc(on, byName)
	}
	c.full = false
	clear(c.dirty)
	on = slices.DeleteFunc(slices.Clone(on), func(n *node) bool { return !c.usable(n) })
	c.placeGangs(full, on)
	for _, j := range slices.Clone(c.queue) {
		if !j.gang && j.d.Cancel == nil && c.jobs[j.id] == j {
			if c.matching() {
				c.match(j.d.Spec.Priority)
			}
			c.spawn(j)
			c.placeTasks(j, on, full)
		}
	}
	for _, n := range on {
		if n.idle == 0 && n.vacant() {
			n.idle = c.now
		}
	}
}

// spawn asks the machine of a job whose tasks are not all known for as many as there is
// room for.
func (c *Core) spawn(j *job) {
	if _, ok := j.d.ranger(); ok || j.dry || j.d.Cancel != nil || j.d.State != 0 {
		return
	}
	want := 0
	if j.gang {
		want = 1
	} else {
		for _, n := range c.order {
			if c.usable(n) && c.eligible(n, j) == "" {
				want += c.room(n, j, true).Times(j.need, maxWindow)
			}
			if want >= maxWindow {
				break
			}
		}
	}
	want -= j.pending.len()
	if want <= 0 {
		return
	}
	sp := j.d.m.Next(want)
	if len(sp) == 0 {
		j.dry = true
		return
	}
	c.record(RecSpawn{Job: j.id, Max: want, Spawns: sp})
	for _, s := range sp {
		j.requeue(one(s.Index))
	}
	j.touch()
}

// room is what a node has for a job: all of it, less the gangs there and what jobs of
// higher priority use: among others the node sees to it that they take turns. With idle, less what any other or the same job uses: room in
// which a task starts at once.
func (c *Core) room(n *node, j *job, idle bool) wire.Resources {
	r := n.total
	if idle {
		r = r.Add(n.tasks, -1).Add(n.offered, -1)
	}
	for _, p := range n.parts {
		r = r.Add(p.job.need, -p.count)
	}
	for _, s := range n.shares {
		if s.job != j && (idle || s.job.d.Spec.Priority > j.d.Spec.Priority) || s.job == j && idle {
			r = r.Add(s.job.need, -int64(s.uses(n)))
		}
	}
	return r
}

// vacant reports whether a node has nothing to do, and nothing that others need.
func (n *node) vacant() bool {
	return len(n.shares) == 0 && len(n.parts) == 0 && len(n.gives) == 0 && n.tasks.Nothing() && !n.beat.Needed
}

// uses is how many tries of the share have room on the node; the rest is queued there.
func (s *share) uses(n *node) int { return n.total.Times(s.job.need, s.tries.len()) }

// eligible says why a node cannot take work of a job at any time; "" = it can.
func (c *Core) eligible(n *node, j *job) string {
	s := &j.d.Spec
	switch {
	case s.Pool != "" && s.Pool != n.pool:
		return "it is not in pool " + s.Pool
	case s.Node != "" && s.Node != n.id:
		return "the job asks for node " + string(s.Node)
	case j.avoid[n.id] != "":
		return j.avoid[n.id]
	case !n.total.Fits(j.need):
		if who := n.others(); who != "" {
			return fmt.Sprintf("it has %s; %s", n.total, who)
		}
		return "it has " + n.total.String()
	}
	if t := cmp.Or(s.TimeRequest, s.TimeLimit); t > 0 && !n.lasts(c.now+t) {
		return fmt.Sprintf("it leaves in %s (%s), before the %s that the job asks for are over", lasting(n.ends-c.now), n.endsWhy, lasting(t))
	}
	return ""
}

// tooShort reports whether no node of the pool ever lasts for the time that a job asks for.
func (c *Core) tooShort(p *pool, j *job) bool {
	t := cmp.Or(j.d.Spec.TimeRequest, j.d.Spec.TimeLimit)
	return p.spec.Lasts > 0 && t > p.spec.Lasts
}

// mayUse reports whether a hold leaves a node to the job: it does to the job that holds
// it, to those of higher priority, and to work that is over before the gang starts.
func (c *Core) mayUse(n *node, j *job) bool {
	h := n.held
	if h == nil || h.job == j || j.d.Spec.Priority > h.priority() {
		return true
	}
	t := cmp.Or(j.d.Spec.TimeRequest, j.d.Spec.TimeLimit)
	return t > 0 && n.until > 0 && c.now+t <= n.until
}

// window is how many tries of a job a node should have, queued ones included; slots how
// many can run there.
func (c *Core) window(n *node, j *job) (window, slots int) {
	slots = c.room(n, j, false).Times(j.need, maxWindow)
	if slots <= 0 {
		return 0, 0
	}
	if n.held != nil && n.held.job != j {
		return min(slots, c.room(n, j, true).Times(j.need, maxWindow)+c.has(n, j)), slots
	}
	w := 2 * slots
	if j.dur > 0 {
		w = max(w, int(min(int64(slots)*ahead/j.dur, maxWindow)))
	}
	// Near the end every node gets its share of what is left and no more.
	left := j.pending.len() + j.live
	fair := left
	if j.slots > 0 {
		fair = (left*slots + j.slots - 1) / j.slots
	}
	return min(w, max(fair, min(slots, left)), maxWindow), slots
}

func (c *Core) has(n *node, j *job) int {
	if s := n.shares[j.id]; s != nil {
		return s.tries.len()
	}
	return 0
}

type candidate struct {
	n                  *node
	idle, window, give int
}

// placeTasks hands waiting tasks of a job with single ranks to nodes: first to room
// that is idle, then as a reserve behind what runs.
func (c *Core) placeTasks(j *job, on []*node, full bool) {
	if full {
		j.slots = 0
	}
	if j.pending.len() == 0 {
		if j.live > 0 {
			c.balance(j, on)
		}
		return
	}
	var cs []candidate
	idle := 0
	for _, n := range on {
		if c.eligible(n, j) != "" {
			continue
		}
		if full {
			j.slots += c.room(n, j, false).Times(j.need, maxWindow)
		}
		if !c.mayUse(n, j) {
			continue
		}
		x := candidate{n: n, idle: c.room(n, j, true).Times(j.need, maxWindow)}
		idle += x.idle
		cs = append(cs, x)
	}
	if len(cs) == 0 {
		return
	}
	// First room that is idle; what cannot fill all of it is spread, most room first.
	slices.SortStableFunc(cs, func(a, b candidate) int { return cmp.Compare(b.idle, a.idle) })
	waiting := c.mayHave(fmt.Sprint(j.id), j.d.Spec.Limits, j.need, j.pending.len())
	left := waiting
	for i := range cs {
		g := cs[i].idle
		if waiting < idle {
			g = (waiting*g + idle - 1) / idle
		}
		cs[i].give = min(g, left)
		left -= cs[i].give
	}
	// Then a reserve behind what runs, the emptiest node first.
	for i := range cs {
		w, s := c.window(cs[i].n, j)
		have := c.has(cs[i].n, j) + cs[i].give
		cs[i].window = w - have
		// Top up in lumps: a message for each task that ends would be most of the work.
		if cs[i].window < w/4 && have >= s {
			cs[i].window = 0
		}
	}
	slices.SortStableFunc(cs, func(a, b candidate) int { return cmp.Compare(b.window, a.window) })
	for _, x := range cs {
		g := max(0, min(x.window, left))
		left -= g
		if g += x.give; g > 0 {
			c.assign(x.n, j, g)
		}
	}
}

// assign gives up to k waiting tasks to a node.
func (c *Core) assign(n *node, j *job, k int) {
	ranges := j.pending.take(k)
	if len(ranges) == 0 {
		return
	}
	c.tellJob(n, j)
	m := wire.Assign{Job: j.id}
	s := c.share(n, j)
	for _, r := range ranges {
		s.tries.add(r)
		j.live += r.Len()
		if j.plain() {
			from := r.From
			for in, st := range j.d.Stands.within(r) {
				if st.Attempt == 1 {
					continue
				}
				if from < in.From {
					m.Ranges = append(m.Ranges, wire.Range{From: from, To: in.From})
				}
				for i := in.From; i < in.To; i++ {
					m.Items = append(m.Items, j.item(i))
				}
				from = in.To
			}
			if from < r.To {
				m.Ranges = append(m.Ranges, wire.Range{From: from, To: r.To})
			}
			continue
		}
		for i := r.From; i < r.To; i++ {
			m.Items = append(m.Items, j.item(i))
		}
	}
	c.send(n, wire.MsgAssign, m)
	j.touch()
}

// plain reports whether first attempts need nothing of their own.
func (j *job) plain() bool {
	return len(j.d.Spawns) == 0 && (j.d.Spec.Array == nil || len(j.d.Spec.Array.Lines) == 0)
}

// item is a try with everything particular to it.
func (j *job) item(i uint32) wire.Item {
	it := wire.Item{Index: i, Attempt: j.d.standing(i).Attempt}
	if a := j.d.Spec.Array; a != nil && int(i) < len(a.Lines) {
		it.Line = a.Lines[i]
	}
	if s := j.d.Spawns[i]; s != nil {
		it.Params, it.Command = s.Params, s.Command
		if s.Line != "" {
			it.Line = s.Line
		}
	}
	it.Checkpoint, it.Step = j.d.newest(i)
	return it
}

// balance asks queued tries back from the fullest node when another one could start
// them at once.
func (c *Core) balance(j *job, on []*node) {
	if c.now-j.balanced < rebalance {
		return
	}
	j.balanced = c.now
	idle := 0
	for _, n := range on {
		if c.eligible(n, j) == "" && c.mayUse(n, j) {
			idle += c.room(n, j, true).Times(j.need, maxWindow)
		}
	}
	if idle == 0 {
		return
	}
	var from *node
	most := 0
	for _, n := range j.nodes {
		s := n.shares[j.id]
		q := s.tries.len() - c.room(n, j, false).Times(j.need, s.tries.len())
		if s.asked || !n.conn || q < 1 {
			continue
		}
		if q > most || q == most && from != nil && byName(n, from) < 0 {
			from, most = n, q
		}
	}
	// Work that is over sooner than it could be moved stays where it is.
	if from == nil || int64(most)*j.dur < 4*rebalance && j.dur != 0 {
		return
	}
	from.shares[j.id].asked = true
	c.send(from, wire.MsgWithdraw, wire.Withdraw{Job: j.id, Max: uint32(min(max(1, most/2), idle))})
}

// withdrawAll asks everything queued back from a node that is to get nothing more.
func (c *Core) withdrawAll(n *node) {
	for _, id := range sortedKeys(n.shares) {
		s := n.shares[id]
		if !s.asked && s.tries.len() > 0 && n.conn {
			s.asked = true
			c.send(n, wire.MsgWithdraw, wire.Withdraw{Job: id, Max: uint32(s.tries.len())})
		}
	}
}

// recall asks for what is queued on a node that has no room for it any more, because
// others use that.
func (c *Core) recall(n *node) {
	for _, id := range sortedKeys(n.shares) {
		s := n.shares[id]
		if q := s.tries.len() - len(s.running); q > 0 && !s.asked && n.conn && !n.total.Fits(s.job.need) {
			s.asked = true
			c.send(n, wire.MsgWithdraw, wire.Withdraw{Job: id, Max: uint32(q)})
		}
	}
}
