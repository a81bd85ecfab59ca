package core

import (
	"cmp"
	"fmt"
	"slices"

	"launcher/wire"
)

const (
	// reserveFor is how long an agent keeps room for a gang that is not started.
	reserveFor = 10 * second
	// answerIn is how long the head waits for the answers to Reserve.
	answerIn = 3 * second
	// leaveTime is how long the other ranks of a gang may go on saving after one has
	// left on request.
	leaveTime = 30 * second
	maxRefuse = 5 // doublings of the back-off after refused reservations: 0.1 s to 3.2 s; agents keep room for longer
)

type gangPhase uint8

const (
	gangReserving gangPhase = iota
	gangRunning
)

// gang is a task with ranks that is being placed or runs.
type gang struct {
	index    uint32
	attempt  wire.Attempt
	phase    gangPhase
	nodes    []wire.GangNode
	waiting  int   // answers to Reserve that are still to come
	since    int64 // of the reservation
	started  int64
	stopping bool
	stopAt   int64 // stop the rest then; 0 = not planned
}

func (g *gang) try(j *job) wire.Try {
	return wire.Try{Task: wire.Task{Job: j.id, Index: g.index}, Attempt: g.attempt}
}

// placeGangs starts the gangs that fit now, in order, and keeps room for the first that
// does not: its nodes are given nothing more that is not over in time, so that it
// starts as soon as what runs there ends, however much else waits.
func (c *Core) placeGangs(full bool, on []*node) {
	// Only room that changed on nodes that matter can help a gang that waited.
	if !full && !slices.ContainsFunc(on, func(n *node) bool { return n.held != nil || c.hold == nil }) {
		return
	}
	var first *job
	for _, j := range slices.Clone(c.queue) {
		if !j.gang || j.d.Cancel != nil || c.jobs[j.id] != j {
			continue
		}
		for {
			c.spawn(j)
			if j.pending.len() == 0 || j.backoff > c.now || c.gangAtLimit(j) != "" {
				break
			}
			plan := c.choose(j, func(n *node) wire.Resources {
				if n.held != nil && n.held.before(j) {
					return wire.Resources{CPU: -1}
				}
				return c.room(n, j, true)
			})
			if plan == nil {
				break
			}
			c.reserve(j, plan)
		}
		if j.pending.len() > 0 && first == nil && c.gangAtLimit(j) == "" {
			first = j
		}
	}
	if c.hold != nil && c.hold.job != first {
		c.dropHold(c.hold)
	}
	if first != nil {
		c.keepRoom(first)
	}
}

// choose finds nodes for a gang: those with most room first, so that it spreads over as
// few as possible. The answer is in rank order, nil when it does not fit.
func (c *Core) choose(j *job, room func(*node) wire.Resources) []wire.GangNode {
	s := &j.d.Spec
	want := max(1, s.Ranks)
	var opts []option
	sum := uint32(0)
	for _, n := range c.order {
		if !c.usable(n) || c.eligible(n, j) != "" {
			continue
		}
		r := room(n)
		if r.CPU < 0 {
			continue
		}
		k := uint32(r.Times(j.need, int(want)))
		if s.RanksPerNode > 0 {
			if k = min(k, s.RanksPerNode); s.Nodes > 0 && k < s.RanksPerNode {
				continue
			}
		}
		if k > 0 {
			opts = append(opts, option{n, k})
			sum += k
		}
	}
	if sum < want || int(s.Nodes) > len(opts) {
		return nil
	}
	slices.SortStableFunc(opts, func(a, b option) int { return cmp.Compare(b.k, a.k) })
	if opts = c.meeting(j, opts, want); len(opts) == 0 {
		return nil
	}
	if s.Nodes > 0 {
		opts = opts[:s.Nodes]
		per := s.RanksPerNode
		for i := range opts {
			left := uint32(len(opts) - i)
			share := (want + left - 1) / left
			if per > 0 {
				share = per
			}
			if opts[i].k < share {
				return nil
			}
			opts[i].k = min(share, want)
			want -= opts[i].k
		}
	} else {
		for i := range opts {
			opts[i].k = min(opts[i].k, want)
			if want -= opts[i].k; want == 0 {
				opts = opts[:i+1]
				break
			}
		}
	}
	if want > 0 {
		return nil
	}
	slices.SortFunc(opts, func(a, b option) int { return byName(a.n, b.n) })
	var out []wire.GangNode
	first := uint32(0)
	for _, o := range opts {
		out = append(out, wire.GangNode{Node: o.n.id, First: first, Count: o.k})
		first += o.k
	}
	return out
}

// reserve asks the chosen nodes for their room. Agents answer at once and never queue a
// reservation, so two gangs cannot wait for each other.
func (c *Core) reserve(j *job, plan []wire.GangNode) {
	i := j.pending.take(1)[0].From
	g := &gang{index: i, attempt: j.d.standing(i).Attempt, nodes: plan, waiting: len(plan), since: c.now}
	j.gangs[i] = g
	t := g.try(j)
	for _, p := range plan {
		n := c.nodes[p.Node]
		n.parts[t.Task] = &part{job: j, count: int64(p.Count)}
		n.idle = 0
		c.tellJob(n, j)
		n.rounds[t]++
		c.send(n, wire.MsgReserve, wire.Reserve{Gang: t, Count: p.Count, Until: c.now + reserveFor + n.offset})
	}
	j.touch()
}

func (c *Core) reserved(n *node, m wire.Reserved) {
	n.rounds[m.Gang]--
	if n.rounds[m.Gang] > 0 {
		return // to an earlier Reserve, which has been released since
	}
	delete(n.rounds, m.Gang)
	j := c.jobs[m.Gang.Job]
	if j == nil {
		return
	}
	g := j.gangs[m.Gang.Index]
	p := n.parts[m.Gang.Task]
	if g == nil || g.phase != gangReserving || g.attempt != m.Gang.Attempt || p == nil || p.ok {
		return
	}
	if !m.OK {
		j.refused = fmt.Sprintf("%s: %s", n.id, cmp.Or(m.Why, "no room"))
		c.releaseGang(j, g)
		c.refuse(j)
		return
	}
	p.ok, p.addr, p.port = true, m.Addr, m.Port
	if g.waiting--; g.waiting == 0 {
		c.startGang(j, g)
	}
}

// refuse lets a job wait before its next reservation.
func (c *Core) refuse(j *job) {
	j.backoff = c.now + 100*millisecond<<min(j.tries, maxRefuse)
	j.tries++
	c.full = true
}

// releaseGang gives a gang's reservations back; its task waits again.
func (c *Core) releaseGang(j *job, g *gang) {
	t := g.try(j)
	for _, p := range g.nodes {
		if n := c.nodes[p.Node]; n != nil && n.parts[t.Task] != nil {
			delete(n.parts, t.Task)
			c.send(n, wire.MsgRelease, wire.Release{Gang: t})
			c.touchNode(n)
		}
	}
	delete(j.gangs, g.index)
	if j.d.Cancel == nil {
		j.requeue(one(g.index))
	}
	j.touch()
}

// dropReservations gives up gangs that were being placed on a node that is away.
func (c *Core) dropReservations(n *node) {
	for _, t := range sortedTasks(n.parts) {
		if j := c.jobs[t.Job]; j != nil {
			if g := j.gangs[t.Index]; g != nil && g.phase == gangReserving {
				c.releaseGang(j, g)
			}
		}
	}
}

// startGang starts a gang whose room is reserved everywhere. Its attempt and its places
// are durable before any rank runs.
func (c *Core) startGang(j *job, g *gang) {
	g.phase = gangRunning
	j.tries, j.refused = 0, ""
	rec := RecGang{Job: j.id, Index: g.index, Attempt: g.attempt, At: c.now}
	for k := range g.nodes {
		p := &g.nodes[k]
		n := c.nodes[p.Node]
		x := n.parts[wire.Task{Job: j.id, Index: g.index}]
		p.Addr, p.Number = cmp.Or(n.hello.Addr, x.addr), c.durable(n).Number
		rec.World += p.Count
		rec.Epochs = append(rec.Epochs, n.epoch)
		if k == 0 {
			rec.Master, rec.Port = x.addr, x.port
		} else if r := n.reaches[g.nodes[0].Number]; k == 1 && r.ok && needsSockets(&j.d.Spec) {
			rec.Master = hostOf(r.addr) // which answered
		}
	}
	rec.Nodes = g.nodes
	c.record(rec)
	for _, p := range g.nodes {
		c.sendStart(c.nodes[p.Node], j, j.d.Gangs[g.index])
	}
	j.touch()
	c.full = true
}

func (c *Core) sendStart(n *node, j *job, g *gangD) {
	i := uint32(0)
	for k, x := range j.d.Gangs {
		if x == g {
			i = k
		}
	}
	it := j.item(i)
	it.Attempt = g.Attempt
	c.send(n, wire.MsgStart, wire.Start{Gang: wire.Try{Task: wire.Task{Job: j.id, Index: i}, Attempt: g.Attempt}, World: g.World, Nodes: g.Nodes,
		MasterAddr: g.Master, MasterPort: g.Port, Restarts: g.Starts - 1, Item: it})
}

// claimGangs compares what a node says it has of gangs with what it should have.
func (c *Core) claimGangs(n *node, states []wire.GangState) (drop []wire.Try) {
	claimed := map[wire.Task]wire.GangState{}
	for _, s := range states {
		j := c.jobs[s.Gang.Job]
		p := n.parts[s.Gang.Task]
		if j == nil || p == nil || j.gangs[s.Gang.Index] == nil || j.gangs[s.Gang.Index].attempt != s.Gang.Attempt {
			drop = append(drop, s.Gang)
			continue
		}
		claimed[s.Gang.Task] = s
	}
	for _, t := range sortedTasks(n.parts) {
		j := c.jobs[t.Job]
		if j == nil {
			delete(n.parts, t)
			continue
		}
		g := j.gangs[t.Index]
		s, ok := claimed[t]
		switch {
		case g == nil:
			delete(n.parts, t)
		case g.phase == gangReserving:
			// The connection broke in the middle of it. Begin again, with all nodes.
			if ok {
				drop = append(drop, g.try(j))
			}
			delete(n.parts, t)
			c.releaseGang(j, g)
		case !ok:
			// Its Start never arrived and the reservation ran out, or it ended and all
			// of that has been told.
			if !c.partOver(j, n, t.Index) {
				c.record(RecLost{Job: j.id, Node: n.id, Ranges: []wire.Range{one(t.Index)}, Free: true, Cause: "its start did not reach node " + string(n.id), At: c.now})
			}
			c.gangChanged(j, t.Index)
		case !s.Started && (g.stopping || j.d.Cancel != nil || j.d.startLost(t.Index)):
			c.tellJob(n, j)
			c.record(RecLost{Job: j.id, Node: n.id, Ranges: []wire.Range{one(t.Index)}, Free: true, Cause: "stopped before it started", At: c.now})
			drop = append(drop, s.Gang)
			c.gangChanged(j, t.Index)
		case !s.Started:
			c.tellJob(n, j)
			c.sendStart(n, j, j.d.Gangs[t.Index])
		case j.d.Cancel != nil:
			c.send(n, wire.MsgStop, wire.Stop{Job: j.id, All: true, Reason: wire.ReasonCancelled, Grace: j.grace})
		case g.stopping:
			c.stopRest(j, g, n)
		default:
			if l, ok := j.leaving[t.Index]; ok && l.attempt == g.attempt {
				c.send(n, wire.MsgAdvice, wire.Advice{Try: g.try(j), Leave: l.why, Deadline: l.deadline})
			}
		}
	}
	return drop
}

// watchGangs ends reservations that are not answered, and the waiting for ranks that
// were to leave.
func (c *Core) watchGangs() {
	for _, j := range slices.Clone(c.queue) {
		if j.gang && j.pending.len() > 0 && needsSockets(&j.d.Spec) {
			c.askAgain(j)
		}
		for _, i := range sortedKeys(j.gangs) {
			g := j.gangs[i]
			switch {
			case g.phase == gangReserving && c.now-g.since > answerIn:
				j.refused = "the nodes did not answer in time"
				c.releaseGang(j, g)
				c.refuse(j)
			case g.stopAt != 0 && c.now >= g.stopAt && !g.stopping:
				g.stopping = true
				for _, n := range c.where(j, i) {
					c.stopRest(j, g, n)
				}
			}
		}
	}
}

// anyBackoffOver reports whether a gang may try again since the last look.
func (c *Core) anyBackoffOver() bool {
	over := false
	for _, j := range c.queue {
		if j.backoff != 0 && c.now >= j.backoff {
			j.backoff, over = 0, true
		}
	}
	return over
}
