package core

import (
	"slices"

	"launcher/wire"
)

// maxRanks bounds the ranks of a gang on one node; a reservation is memory here.
const maxRanks = 16 << 10

// reserve keeps room for ranks of a gang, or says why not.
func (c *Core) reserve(m wire.Reserve) {
	answer := func(ok bool, counts uint32, why string) {
		c.tell(wire.MsgReserved, wire.Reserved{Gang: m.Gang, OK: ok, Counts: counts, Why: why})
	}
	if t := c.s.byTry[m.Gang]; t != nil {
		switch {
		case !t.reserved():
			answer(false, 0, "the gang runs here already")
		case len(t.Ranks) == int(m.Count):
			c.record(RecReserve{Gang: m.Gang, Until: m.Until})
			answer(true, m.Count, "")
		default:
			c.release(t)
			c.reserve(m)
		}
		return
	}
	j := c.s.byJob[m.Gang.Job]
	if why := c.refuse(j, m.Gang.Job); why != nil {
		answer(false, 0, why.Msg)
		return
	}
	if m.Until <= c.now || m.Count == 0 {
		answer(false, 0, "the reservation is over before it began: the clocks of head and node differ, or the message was late")
		return
	}
	if m.Count > maxRanks {
		answer(false, maxRanks, "more ranks than one node runs")
		return
	}
	need := j.spec.Spec.Resources
	slots, ok := c.takeForGang(j, int(m.Count))
	if !ok {
		// Small tasks would take what comes free before there is enough of it.
		c.kept, c.keptUntil = wire.Resources{}.Add(need, int64(m.Count)), c.now+keepFor
		n := uint32(c.pool.available().Times(need, int(m.Count)))
		answer(false, n, "free are "+c.pool.available().String())
		return
	}
	c.keptUntil = 0
	c.record(RecReserve{Gang: m.Gang, Until: m.Until, Slots: slots})
	answer(true, m.Count, "")
}

// release gives a reservation back.
func (c *Core) release(t *Try) {
	for i := range t.Ranks {
		c.give(t.need(), &t.Ranks[i])
	}
	c.record(RecRelease{Gang: t.ID})
	c.forgotten(t.job)
	c.admitting = true
}

// start starts this node's ranks of a gang.
func (c *Core) start(m wire.Start) {
	t := c.s.byTry[m.Gang]
	if t != nil && !t.reserved() {
		return // told twice
	}
	i := slices.IndexFunc(m.Nodes, func(n wire.GangNode) bool { return n.Node == c.cfg.Hello.Node })
	gone := func(why string) {
		c.tell(wire.MsgGangGone, wire.GangGone{Gang: m.Gang, Rank: -1, Cause: "node " + string(c.cfg.Hello.Node) + ": " + why, Never: true})
		if t != nil {
			c.release(t)
		}
	}
	switch {
	case t == nil:
		gone("its room was not reserved, or not any more")
		return
	case i < 0:
		gone("it is not among the nodes of the gang")
		return
	case m.Nodes[i].Count == 0 || int(m.Nodes[i].Count) > len(t.Ranks):
		gone("room for " + utoa(int64(len(t.Ranks))) + " ranks was reserved, " + utoa(int64(m.Nodes[i].Count)) + " are to start")
		return
	}
	n := m.Nodes[i]
	for i := range t.Ranks[n.Count:] {
		c.give(t.need(), &t.Ranks[int(n.Count)+i])
		c.admitting = true
	}
	c.record(RecStart{Start: m, First: n.First, Count: n.Count, At: c.now})
	if t.grouped() {
		c.openGroup(t, false)
	}
	for i := range t.Ranks {
		c.spawn(t, i)
	}
}

func (c *Core) openGroup(t *Try, restored bool) {
	g := OpenGroup{Gang: t.ID, World: 1, Count: 1, Restored: restored}
	if t.Gang != nil {
		g.World, g.Nodes, g.First, g.Count = t.Gang.World, t.Gang.Nodes, t.First, uint32(len(t.Ranks))
	}
	c.do(g)
}

// abort makes the collectives of a gang that cannot go on fail.
func (c *Core) abort(t *Try) {
	if t.grouped() {
		c.do(AbortGroup{Gang: t.ID, Rank: t.Fault.Rank, Cause: t.Fault.Cause})
	}
}

// fault: a gang cannot go on, and this node was the first to know. The head hears of it
// at once and stops the other nodes' ranks; ours learn it from their collectives, and
// are stopped when they do not end by themselves.
func (c *Core) fault(t *Try, rank int32, cause string) {
	if t.Fault != nil || t.Gang == nil || t.Gang.World < 2 {
		return
	}
	c.record(RecFault{Gang: t.ID, Rank: rank, Cause: cause})
	c.tell(wire.MsgGangGone, wire.GangGone{Gang: t.ID, Rank: rank, Cause: cause})
	c.abort(t)
	c.stop(t, wire.ReasonPeer, peerWait(t), t.job.spec.Spec.Grace)
}

// rankStopped: a rank that does not run holds up all others, who wait in a collective
// and cannot know. It is killed; they get the error.
func (c *Core) rankStopped(p wire.Proc) {
	t, i := c.s.rank(p)
	if t == nil || t.Gang == nil || t.Fault != nil || t.Stop != nil || t.Ranks[i].Ended || t.Ranks[i].exit != nil {
		return
	}
	c.fault(t, int32(p.Rank), c.who(p)+" was stopped (SIGSTOP or SIGTSTP, state T)")
	if r := &t.Ranks[i]; t.Fault != nil && r.sent < sentKill {
		r.sent = sentKill
		c.do(Signal{Proc: p, Sig: sigKILL, Group: true})
	}
}
