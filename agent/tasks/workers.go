package tasks

import (
	"fmt"
	"maps"
	"slices"

	"launcher/agent/core"
	"launcher/wire"
	"launcher/wire/sdk"
)

// WorkerFailed: a worker could not be started.
func (c *Core) WorkerFailed(now int64, worker uint32, why string) {
	c.now = now
	w := c.clients[worker]
	if w == nil || w.pool == nil || w.up {
		return
	}
	w.pool.failed++
	w.pool.lastErr = why
	c.gone(w, why)
}

// Gone: the process of a client is dead.
func (c *Core) Gone(now int64, client uint32, cause string) {
	c.now = now
	if cl := c.clients[client]; cl != nil {
		if cl.Kind == sdk.KindPeer && cl.Job == "" && c.going.nodes[c.cfg.Number] {
			c.Away(now, client) // it has been told that this node is gone, and may want what was moved
			return
		}
		// It died before it said anything. What an agent that died took with it is no failure
		// of an environment.
		if cl.pool != nil && !cl.up && !cl.taken {
			cl.pool.failed++
			cl.pool.lastErr = cause
		}
		c.gone(cl, cause)
	}
}

// Starved: a worker that is Gone next was killed for want of memory.
func (c *Core) Starved(client uint32) {
	if cl := c.clients[client]; cl != nil {
		cl.starved = true
	}
}

func (c *Core) gone(cl *client, cause string) {
	c.recordGone(cl)
	delete(c.clients, cl.ID)
	c.unsubscribe(cl)
	var orphans []*task
	if cl.pool != nil {
		orphans = c.workerGone(cl, cause)
	} else {
		if cl.level0.blocked && cl.Proc != "" && !c.mute {
			c.room.Lend(cl.Proc, false)
		}
		c.driverGone(cl)
	}
	for o := range c.thingsOf(cl) {
		if c.objects[o.id] == o && o.heldBy(cl.ID) {
			o.drop(cl.ID)
			c.unneeded(o)
		}
	}
	streams := slices.Collect(maps.Keys(cl.streams))
	sortTasks(streams)
	for _, t := range streams {
		c.leaveStream(t)
	}
	for _, t := range orphans {
		if t.actor == nil && !c.mute && !c.referred(t) {
			c.record(recOrphan, 0, 0, t.id[:])
			c.cancel(t.id, sdk.CancelRecursive)
		}
	}
}

// referred reports whether anything has a reference to what a task will give.
func (c *Core) referred(t *task) bool {
	if t.stream != nil {
		return !t.stream.left
	}
	for i := range t.outputs() {
		if o := c.objects[t.id.With(i+1)]; o != nil && (o.holder != 0 || o.uses > 0) {
			return true
		}
	}
	return false
}

// workerGone runs what it ran again, or says that it died. orphans are what those tasks
// had submitted.
func (c *Core) workerGone(w *client, cause string) (orphans []*task) {
	if w.actor == nil {
		if c.workers--; w.ending {
			c.leaving--
		}
	}
	p := w.pool
	if !w.up {
		p.starting--
	}
	p.idle = slices.DeleteFunc(p.idle, func(x *client) bool { return x == w })
	for i := len(w.levels) - 1; i >= 0; i-- {
		l := w.levels[i]
		ts := slices.Clone(l.tasks)
		for k := len(ts) - 1; k >= 0; k-- {
			t := ts[k]
			if k > 0 && !t.isCall() { // sent ahead: most likely not begun
				c.newAttempt(t)
				c.requeue(t)
				continue
			}
			orphans = append(orphans, c.childrenOf(t)...)
			if w.outOf != (wire.BundleID{}) && w.actor != nil {
				cause = fmt.Sprintf("placement group %s, which it was in, was removed", w.outOf.Group)
			} else if w.outOf != (wire.BundleID{}) {
				c.stats.failed++
				c.judges(t, c.errorOf("group_removed", fmt.Sprintf("placement group %s was removed while %s ran in it", w.outOf.Group, t.shape.name), t))
				continue
			}
			code := "worker_crashed"
			if w.starved {
				code = "memory"
			}
			c.interrupted(t, code, fmt.Sprintf("the worker that ran %s (pid %d on node %s) died: %s", t.shape.name, w.PID, c.cfg.Node, cause))
		}
		if l.has {
			c.leaveRoom(l)
		}
	}
	return orphans
}

// BundleOver: a bundle that this node kept is no more, and what runs in it ends.
func (c *Core) BundleOver(now int64, b wire.BundleID) {
	c.now = now
	for _, w := range c.sortedClients() {
		if w.pool != nil && w.outOf == (wire.BundleID{}) && slices.ContainsFunc(w.levels, func(l *level) bool { return l.slot.Bundle == b && (l.has || w.actor != nil) }) {
			w.outOf = b
			c.ends(w)
			c.do(StopWorker{ID: w.ID, Force: true})
		}
	}
}

// driverGone ends what only it could want.
func (c *Core) driverGone(cl *client) {
	j := cl.job
	for _, t := range c.sortedTasks() {
		switch {
		case t.client != cl.ID:
		case t.state == done:
			if cl.Kind == sdk.KindPeer && t.away() != nil { // nobody will say any more that it knows
				c.accounted(t)
			}
		case cl.Kind == sdk.KindPeer && t.isCall() && t.state == running: // its agent may ask for it yet
		case t.actor == nil:
			c.cancel(t.id, sdk.CancelRecursive)
		case cl.Kind == sdk.KindPeer && c.isMoved(t.id): // its next owner will say so
		case cl.Kind == sdk.KindPeer:
			c.endActor(t, "the node of its owner is gone", true)
		}
	}
	if cl.Kind == sdk.KindPeer {
		j.peers--
	} else {
		j.drivers--
	}
	c.jobLess(j)
}

// called counts a call of a function that a worker runs only so often.
func (cl *client) called(t *task) {
	if n := t.shape.calls; n > 0 {
		cl.count(t.fn(), 1)
		cl.spent = cl.spent || cl.calls[t.fn()] >= n
	}
}

func (cl *client) count(f funcID, n uint32) {
	if cl.calls == nil {
		cl.calls = map[funcID]uint32{}
	}
	cl.calls[f] += n
}

func (c *Core) sortedTasks() []*task {
	out := make([]*task, 0, len(c.tasks))
	for _, t := range c.tasks {
		out = append(out, t)
	}
	sortTasks(out)
	return out
}

func sortTasks(ts []*task) {
	slices.SortFunc(ts, func(a, b *task) int { return slices.Compare(a.id[:], b.id[:]) })
}

func byID(a, b *object) int { return slices.Compare(a.id[:], b.id[:]) }

// Withdrawn answers Withdraw: the last Exec frame that the worker runs is begun; later ones,
// below to, it skips.
func (c *Core) Withdrawn(now int64, worker, begun, to uint32) {
	c.now = now
	w := c.clients[worker]
	if w == nil || w.pool == nil {
		return
	}
	w.asked = false
	if len(w.levels) == 0 {
		return
	}
	l := w.levels[0]
	for i := len(l.tasks) - 1; i >= 0; i-- {
		if t := l.tasks[i]; t.seq > begun && t.seq < to {
			c.recordBack(t)
			c.requeue(t)
		}
	}
}

// Tick looks at what only time tells.
func (c *Core) Tick(now int64) {
	c.now = now
	c.tickRemotes()
	c.tickLeaves()
	c.tickCopies()
	c.tickBound()
	c.tickJobs()
	c.claim()
	if len(c.heldBack) > 0 {
		c.letLive(0)
	}
	for _, cl := range c.sortedClients() {
		if cl.away != 0 && now-cl.away >= returnBound {
			c.gone(cl, "it did not come back after its connection broke")
			continue
		}
		c.endAlone(cl)
		if cl.back != 0 && now-cl.back >= repeatsFor {
			c.hasRepeated(cl)
		}
		if cl.pool != nil && cl.up && cl.actor == nil && cl.away == 0 && !cl.asked && len(cl.levels) == 1 {
			// What was sent behind a long task goes to whoever has time.
			if l := cl.levels[0]; len(l.tasks) > 1 && !l.blocked && now-l.since >= longTask {
				l.shape.mean = max(l.shape.mean, float64(shortTask))
				if i := slices.IndexFunc(l.tasks[1:], func(t *task) bool { return !t.twice }); i >= 0 {
					cl.asked = true
					c.do(Withdraw{Client: cl.ID, From: l.tasks[1+i].seq, To: cl.seq + 1})
				}
			}
		}
	}
	idle := 0
	for _, p := range c.pools {
		idle += len(p.idle)
	}
	for idle > c.cfg.Cores {
		w := c.longestIdle()
		if w == nil || now-w.idleAt < idleBound {
			break
		}
		c.endWorker(w)
		idle--
	}
	for k, p := range c.pools {
		if len(p.idle) == 0 && p.starting == 0 && !c.used(p) {
			delete(c.pools, k)
		}
	}
}

func (c *Core) used(p *pool) bool {
	for _, cl := range c.clients {
		if cl.pool == p {
			return true
		}
	}
	return false
}

// Due is how soon Tick is wanted: soon while tasks are sent ahead, else rarely; 0 = not at
// all.
func (c *Core) Due(now int64) int64 {
	if len(c.clients) == 0 {
		return 0
	}
	for _, ls := range c.active {
		for _, l := range ls {
			if len(l.tasks) > 1 {
				return now + longTask
			}
		}
	}
	return now + second
}

// Retake books the room of all workers again, after a restart of the agent.
func (c *Core) Retake() {
	for _, cl := range c.sortedClients() {
		for _, l := range cl.levels {
			if !l.has {
				continue
			}
			need, slot := l.need, l.slot
			if l.blocked {
				need.CPU, slot = 0, core.Slot{GPUs: slot.GPUs, Bundle: slot.Bundle}
			}
			c.room.Keep(need, slot)
		}
	}
}
