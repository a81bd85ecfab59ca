package core

import (
	"cmp"
	"maps"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
)

// releaseIdle lets nodes go that are above what is wanted and have had nothing to do.
// Those of one allocation go together: the backend has nothing back before the last of
// them, and takes their places for occupied until then.
func (c *Core) releaseIdle(p *pool, up int) {
	if p.spec.Idle <= 0 {
		return
	}
	for _, n := range slices.Backward(c.order) {
		if up <= p.wanted {
			return
		}
		if n.pool != p.spec.Name {
			continue
		}
		all := c.together(n)
		idle := up-len(all) >= p.wanted
		for _, m := range all {
			idle = idle && c.usable(m) && m.idle != 0 && m.held == nil && c.now-m.idle >= p.spec.Idle
		}
		if !idle {
			continue
		}
		for _, m := range all {
			c.record(RecDrain{Node: m.id, Epoch: m.epoch, Keep: true})
			up--
		}
	}
}

// takeBackAfter is how long an allocation that has not begun is left alone though nothing
// needs it: work comes and goes, and its place in the queue is worth something.
const takeBackAfter = 20 * second

// unask gives allocations back that have not begun, the newest first, when k more nodes
// are asked for than anything needs.
func (c *Core) unask(p *pool, k int) {
	if p.named() || len(p.waits) == 0 {
		return
	}
	var all []*allocD
	subs := slices.Collect(maps.Values(c.d.st.Subs))
	slices.SortFunc(subs, func(a, b *subD) int { return cmp.Or(cmp.Compare(b.At, a.At), cmp.Compare(b.Token, a.Token)) })
	for _, s := range subs {
		for _, a := range slices.Backward(s.Allocs) {
			if _, waits := p.waits[string(a.Handle)]; waits && s.Pool == p.spec.Name && !a.Ended && !c.begun(s, a) {
				if all = append(all, a); p.cancel[string(a.Handle)] {
					k -= len(a.Nodes) // on its way back
				}
			}
		}
	}
	var back [][]byte
	for _, a := range all {
		switch h := string(a.Handle); {
		case p.cancel[h]:
			continue
		case len(a.Nodes) > k:
			p.waits[h] = 0
			continue
		case p.waits[h] == 0:
			p.waits[h] = c.now
		case c.now-p.waits[h] >= takeBackAfter:
			p.cancel[h] = true
			back = append(back, a.Handle)
		}
		k -= len(a.Nodes)
	}
	if len(back) > 0 {
		c.effect(CancelAllocs{Pool: p.spec.Name, Handles: back, Waiting: true})
		p.query = c.now
	}
}

// together lists the nodes that are up of the allocation that n is of.
func (c *Core) together(n *node) []*node {
	a, token := c.allocOf(n), c.durable(n).Token
	if a == nil {
		return []*node{n}
	}
	var all []*node
	for _, id := range a.Nodes {
		if m := c.nodes[id]; m != nil && c.durable(m).Token == token {
			all = append(all, m)
		}
	}
	return all
}

// watchDrain sees a draining node off: what is queued comes back, what runs is told to
// leave, and when nothing is left so does the node.
func (c *Core) watchDrain(n *node, d *nodeD) {
	if d.Drain == nil || !n.conn || !n.greeted {
		return
	}
	if !n.moved {
		n.moved = true
		c.newsOf(c.durable(n).Number)
		c.withdrawAll(n)
		for _, id := range sortedKeys(n.shares) {
			for _, i := range sortedKeys(n.shares[id].running) {
				c.tellLeave(n.shares[id].job, i, wire.LeavePreempted, d.Drain.Deadline, nil)
			}
		}
		for _, t := range sortedTasks(n.parts) {
			if j := c.jobs[t.Job]; j != nil {
				c.tellLeave(j, t.Index, wire.LeavePreempted, d.Drain.Deadline, nil)
			}
		}
	}
	if d.Drain.Deadline != 0 && c.now >= d.Drain.Deadline {
		c.tellAll(n, d.Drain.Deadline) // those not known to run were not told
	}
	switch {
	case !c.overdue(n, d.Drain) && (!n.vacant() || c.unsettled(n)), c.awaitSeat(n):
	case !n.leaving:
		n.leaving, n.asked = true, c.now
		c.send(n, wire.MsgShutdown, wire.Shutdown{Grace: defaultGrace, Why: "the node is drained"})
	case c.now-n.asked >= leaveWithin:
		c.nodeGone(n, false, "it did not leave when it was drained")
	}
}

// lastValues is how long after its last task a node may not have said yet that others need
// what that has left: those who refer to it tell the node, it looks, and its next beat tells.
const lastValues = 3 * second

// unsettled reports whether a node may have values of which it has not told that others need
// them.
func (c *Core) unsettled(n *node) bool { return n.tasked != 0 && c.now-n.tasked < lastValues }

// overdue reports whether a node leaves although programs' tasks and actors are still there, or
// values that others need: its time is over.
func (c *Core) overdue(n *node, d *RecDrain) bool {
	return d.Deadline != 0 && c.now >= d.Deadline && len(n.shares) == 0 && len(n.parts) == 0
}

// tellAll tells every try that a node has to leave, whether or not it is known to run.
func (c *Core) tellAll(n *node, deadline int64) {
	for _, id := range sortedKeys(n.shares) {
		for r := range n.shares[id].tries.all() {
			for i := r.From; i < r.To; i++ {
				c.tellLeave(n.shares[id].job, i, wire.LeavePreempted, deadline, nil)
			}
		}
	}
}

func (c *Core) drain(id uint64, r wire.DrainRequest) {
	n := c.nodes[r.Node]
	if n == nil {
		c.fail(id, errs.New(errs.NotFound, "no node %s is up", r.Node).Hint("`launcher nodes` lists them"))
		return
	}
	if r.Simulate {
		c.leaveBy(n, c.now+cmp.Or(r.Grace, defaultGrace), "a preemption is simulated")
	} else if c.durable(n).Drain == nil {
		d := RecDrain{Node: n.id, Epoch: n.epoch, Why: "its user drains it"}
		if r.Grace > 0 {
			d.Deadline = c.now + r.Grace
		}
		c.record(d)
	}
	c.watchDrain(n, c.durable(n))
	c.full = true
	c.answer(id, struct{}{})
}
