package tasks

import (
	"cmp"
	"slices"
	"strings"

	"launcher/agent/core"
	"launcher/wire"
	"launcher/wire/sdk"
)

// settle decides who runs what, until nothing changes any more.
func (c *Core) settle() {
	if c.mute {
		c.touched = c.touched[:0]
		return
	}
	for range 4 {
		c.pump()
		if c.contended() {
			c.vacate()
			c.turns()
		} else {
			c.dispatch()
		}
		if !c.vacate() && len(c.hosts) == 0 {
			return
		}
	}
}

// vacate gives back the room of workers that have run out of tasks.
func (c *Core) vacate() (freed bool) {
	ls := c.touched
	c.touched = nil
	for _, l := range ls {
		w := l.client
		if len(l.tasks) > 0 || w == nil || w.pool == nil || !w.up || c.clients[w.ID] != w {
			continue
		}
		i := slices.Index(w.levels, l)
		if i < 0 {
			continue
		}
		freed = freed || l.has
		if i > 0 {
			c.shed(w, i)
			continue
		}
		if l.has {
			c.leaveRoom(l)
		}
		switch {
		case w.ending:
		case w.spent:
			if !w.busy() {
				c.endWorker(w)
			}
		case !slices.Contains(w.pool.idle, w):
			w.pool.idle = append(w.pool.idle, w)
			w.idleAt = c.now
		}
	}
	c.touched = append(ls[:0], c.touched...)
	return freed && len(c.ready) > 0
}

// shed takes a level off a worker's stack, whose task is done.
func (c *Core) shed(w *client, i int) {
	l := w.levels[i]
	if l.has {
		c.leaveRoom(l)
	}
	w.levels = slices.Delete(w.levels, i, i+1)
	c.inherit(w.levels[i-1], l)
}

// onTop gives a worker one more level.
func (c *Core) onTop(w *client) *level {
	for i := len(w.levels) - 1; i > 0; i-- {
		if len(w.levels[i].tasks) == 0 {
			c.shed(w, i)
		}
	}
	l := &level{client: w}
	w.levels = append(w.levels, l)
	return l
}

// inherit has a level wait for what was put down to the one above it, which is done.
func (c *Core) inherit(l, above *level) {
	for _, x := range above.on {
		if o := c.objects[x]; o != nil {
			for i := range o.subs {
				if o.subs[i].level == above {
					o.subs[i].waits(l, x)
				}
			}
		}
	}
	above.waits, above.on = 0, nil
	if l.waits == 0 {
		c.goesOn(l)
	}
}

// leaveRoom gives a level's room back.
func (c *Core) leaveRoom(l *level) {
	need, slot := l.need, l.slot
	if l.blocked {
		need.CPU, slot.CPUs = 0, nil
		l.blocked = false
		c.lendSlot(l, false)
	}
	if !c.mute {
		c.giveRoom(l.under, need, slot)
		c.nudge = true
	}
	if l.lease != nil {
		c.leases.done(c.now, l.lease)
	}
	l.has, l.logged, l.under, l.lease = false, false, 0, nil
	c.rests(l)
}

// rests takes a level out of those that have their shape's room.
func (c *Core) rests(l *level) {
	ls := slices.DeleteFunc(c.active[l.shape], func(x *level) bool { return x == l })
	if len(ls) == 0 {
		delete(c.active, l.shape)
	} else {
		c.active[l.shape] = ls
	}
}

// dispatch gives waiting tasks to workers: shapes by priority, then by the age of their
// oldest task.
func (c *Core) dispatch() {
	if len(c.ready) == 0 {
		return
	}
	c.ready = slices.DeleteFunc(c.ready, func(s *shape) bool {
		if s.queue.first() == nil {
			s.waiting = false
			s.queue.n = 0
			return true
		}
		return false
	})
	if len(c.ready) > 1 {
		slices.SortStableFunc(c.ready, func(a, b *shape) int {
			return cmp.Or(cmp.Compare(b.prio, a.prio), cmp.Compare(a.queue.first().ready, b.queue.first().ready))
		})
	}
	// What waits for room in vain is not overtaken for long by shapes whose workers are there.
	var starved *shape
	for _, s := range c.ready {
		refill := starved == nil || s.prio == starved.prio && c.now-starved.queue.first().ready < overtake
		if c.serve(s, refill); starved == nil && s.queue.first() != nil && len(c.active[s]) == 0 {
			starved = s
		}
	}
}

// serve places tasks of a shape: one for each worker that has its room and nothing to do,
// then new workers, then ahead of those that are busy with short ones.
func (c *Core) serve(s *shape, refill bool) {
	if c.spreads(s) {
		c.spread(s)
		return
	}
	if refill = refill && (s.place.Kind == wire.StrategyGroup || !c.room.Yields(c.now, s.time)); refill {
		for _, l := range c.active[s] {
			if t := c.nextHere(s); t != nil && len(l.tasks) == 0 && l.free() {
				c.give(l, t)
			}
		}
	}
	for c.more(s) {
	}
	c.rest(s)
	if depth := s.depth(); refill && depth > 1 {
		c.ahead(s, depth)
	}
}

// spreads reports whether the head is to say where tasks of a shape run, evenly.
func (c *Core) spreads(s *shape) bool {
	t := s.queue.first()
	return s.place.Kind == wire.StrategySpread && !c.alone && t != nil && t.lease == 0
}

// more gives a shape one more worker here, or has one started for it.
func (c *Core) more(s *shape) bool {
	t := c.nextHere(s)
	if t == nil {
		return false
	}
	starting := 0
	for _, l := range c.active[s] {
		if !l.client.up {
			starting++
		}
	}
	return starting < s.queue.n && (t.lease != 0 || c.local(s)) && c.another(s, t)
}

// rest gives what a shape has no room for here to other nodes.
func (c *Core) rest(s *shape) {
	if s.number != 0 {
		c.lend(s)
	}
	if s.place.Kind == wire.StrategyGroup && s.queue.first() != nil {
		s.lacks = s.room // here or where its bundle is
	}
}

// mayLend reports whether tasks of a shape may run elsewhere.
func (c *Core) mayLend(s *shape) bool {
	switch s.place.Kind {
	case wire.StrategyNode:
		return s.place.Node != c.cfg.Node || c.limited(s)
	case wire.StrategyGroup:
		return s.place.Bundle < 0 || !c.room.HasGroup(&s.place)
	}
	return true
}

// limited reports whether the head is to see to it that a job has no more than it may:
// all that it runs, here too, runs under leases, or in bundles, which it has counted.
func (c *Core) limited(s *shape) bool {
	return len(s.job.terms.Limits) > 0 && s.place.Kind != wire.StrategyGroup
}

// local reports whether tasks of a shape run here without the head's choice.
func (c *Core) local(s *shape) bool {
	if c.limited(s) {
		return false
	}
	switch s.place.Kind {
	case wire.StrategyDefault:
		return true
	case wire.StrategySpread:
		return c.alone
	case wire.StrategyNode:
		return s.place.Node == c.cfg.Node
	case wire.StrategyGroup:
		return c.room.HasGroup(&s.place)
	}
	return false
}

// free reports whether a worker's pipeline may be given something.
func (l *level) free() bool {
	w := l.client
	return w.up && !w.ending && !w.spent && w.actor == nil && !w.asked && !w.handed && !w.deaf && !l.blocked && w.away == 0 && len(w.levels) == 1
}

// depth is how many tasks of a shape a worker is given at a time. Of several it is not known
// which have begun when the worker dies: those that may not begin again come one by one.
func (s *shape) depth() int {
	if s.mean == 0 || s.mean >= float64(shortTask) || s.calls > 0 || s.actor != nil || s.retries == 0 {
		return 1
	}
	return int(min(float64(maxAhead), max(2, float64(sendAhead)/s.mean)))
}

// ahead sends short tasks ahead, evenly over the shape's workers.
func (c *Core) ahead(s *shape, depth int) {
	ls := c.active[s]
	if len(ls) == 0 {
		return
	}
	all := len(ls) + c.leases.slots(s.number) // those on other nodes want some too
	each := min(depth, (s.queue.n+all-1)/all+1)
	for _, l := range ls {
		if len(l.tasks) > depth/2 || !l.free() {
			continue
		}
		for n := each; n > 0 && len(l.tasks) < depth; n-- {
			t := c.nextHere(s)
			if t == nil {
				return
			}
			c.give(l, t)
		}
	}
}

// another finds one more worker for a shape; false = there is none to be had now.
func (c *Core) another(s *shape, t *task) bool {
	slot, ok := c.takeRoom(s, t)
	if !ok && t.lease != 0 && t.client != 0 && !c.stands(t) {
		c.bounce(t)
		return s.queue.first() != nil
	}
	if !ok {
		s.lacks = s.room
		return false
	}
	key := s.key
	key.GPUs = gpus(slot)
	p := c.poolOf(key)
	for len(p.idle) > 0 {
		w := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if w.ending || w.away != 0 || c.clients[w.ID] != w {
			continue
		}
		c.settleIn(w.levels[0], s, slot, t.lease)
		c.give(w.levels[0], t)
		return true
	}
	if p.failed >= maxFailures {
		c.giveRoom(t.lease, s.need, slot)
		msg := p.lastErr
		p.failed = 0
		c.judges(t, c.errorOf("runtime_env", "no worker can be started: "+msg, t))
		return s.queue.first() != nil
	}
	if s.actor == nil && c.workers >= c.cfg.MaxWorkers-c.reserve() {
		switch l, x := c.atBound(s); {
		case l != nil:
			n := c.onTop(l.client)
			c.settleIn(n, s, slot, t.lease)
			c.give(n, x)
			return true
		case x != nil:
			s.queue.advance(x)
		default:
			c.giveRoom(t.lease, s.need, slot)
			if cl := c.clients[t.client]; cl != nil && cl.Kind == sdk.KindPeer && c.leaving == 0 {
				c.bounce(t) // it may run where it is waited for
				return s.queue.first() != nil
			}
			s.lacks = "one of the workers of this node, of which there may be no more"
			return false
		}
	}
	c.prefetchAll(t)
	w := c.newWorker(c.NextClient(), p, s.job)
	c.settleIn(w.levels[0], s, slot, t.lease)
	c.recordWorker(w)
	c.do(StartWorker{ID: w.ID, Key: key, Need: s.need, Slot: slot})
	return true
}

func (c *Core) poolOf(key Key) *pool {
	p := c.pools[key]
	if p == nil {
		p = &pool{key: key}
		c.pools[key] = p
	}
	return p
}

// newWorker enters a worker that is being started.
func (c *Core) newWorker(n uint32, p *pool, j *job) *client {
	w := &client{Client: Client{ID: n, Kind: sdk.KindWorker, Job: p.key.Job}, job: j, shapes: map[uint32]*shape{}, pool: p, known: map[funcID]bool{}}
	w.levels = []*level{{client: w}}
	c.clients[n] = w
	c.workers++
	p.starting++
	return w
}

// settleIn gives a level its room.
func (c *Core) settleIn(l *level, s *shape, slot core.Slot, lease wire.LeaseID) {
	l.under, l.lease = lease, nil
	if x := c.leases.by[lease]; x != nil {
		l.lease = x
	}
	l.shape, l.need, l.slot, l.has, l.blocked = s, s.need, slot, true, false
	if l == l.client.levels[0] {
		c.active[s] = append(c.active[s], l)
	}
}

func gpus(s core.Slot) string {
	var out []string
	for _, g := range s.GPUs {
		out = append(out, g.Device())
	}
	return strings.Join(out, ",")
}

// give sends a task that is queued to a worker.
func (c *Core) give(l *level, t *task) {
	w := l.client
	if t.shape.queue.first() == t {
		t.shape.queue.pop()
	} else {
		t.shape.queue.n-- // it is passed over
	}
	c.queued -= int64(len(t.body))
	t.state, t.level, t.shape.lacks = running, l, ""
	t.started = c.now
	if !w.up {
		panic("a task for a worker that is not there")
	}
	if len(l.tasks) == 0 {
		l.since = c.now
	}
	l.tasks = append(l.tasks, t)
	c.settleActor(w, t)
	c.runs(t, 1)
	w.seq++
	t.seq = w.seq
	c.recordGive(t, w, l)
	c.exec(w, t)
}

// exec writes an Exec frame.
func (c *Core) exec(w *client, t *task) {
	c.tellFunc(w, sdk.MsgGiveFunc, t)
	at := c.frame(w, sdk.MsgExec, 0)
	b := append(w.out, t.id[:]...)
	b = append(b, t.body[atFunc:atReturns-4]...)
	for _, v := range [...]uint32{t.attempt, t.seq, t.returns(), t.flags(), uint32(t.deps().len()), uint32(len(t.shape.text))} {
		b = append32(b, v)
	}
	b = append(b, t.shape.text...)
	room := sdk.InlineSum
	for d := range t.deps().all() {
		b = append(b, d[:]...)
		o := c.objects[d]
		if o != nil {
			c.prefetch(o)
		}
		if o != nil && o.state == here && 16*len(o.refs())+len(o.data) <= room {
			room -= 16*len(o.refs()) + len(o.data)
			b = sdk.AppendValue(b, o.kind, o.form, o.refs(), o.size, o.data)
		} else { // too much, or lost on the way: the worker asks for it
			b = sdk.AppendValue(b, sdk.Apart, 0, nil, 0, nil)
		}
	}
	w.out = append(b, t.payload()...)
	w.finish(at)
}

// blocks lends out the cores of what waits.
func (c *Core) blocks(l *level) {
	cl := l.client
	cl.handed = false
	if l.blocked || cl.actor != nil && cl.actor.actor.up && cl.actor.shape.actor.Concurrency > 1 {
		return
	}
	if cl.pool == nil {
		l.blocked = true
		if cl.Proc != "" && !c.mute {
			c.room.Lend(cl.Proc, true)
			c.nudge = true
		}
		return
	}
	c.lends(l)
}

// lends lets others have the cores of a worker's task.
func (c *Core) lends(l *level) {
	if !l.has || l.blocked {
		return
	}
	l.blocked = true
	c.lendSlot(l, true)
	if l.need.CPU > 0 {
		c.room.Give(wire.Resources{CPU: l.need.CPU}, core.Slot{CPUs: l.slot.CPUs, Bundle: l.slot.Bundle})
		c.nudge = true
	}
}

// goesOn takes them back.
func (c *Core) goesOn(l *level) {
	l.on = l.on[:0]
	if !l.blocked {
		return
	}
	l.blocked = false
	cl := l.client
	if cl.pool == nil {
		if cl.Proc != "" && !c.mute {
			c.room.Lend(cl.Proc, false)
		}
		return
	}
	c.lendSlot(l, false)
	if l.has && l.need.CPU > 0 {
		c.room.Keep(wire.Resources{CPU: l.need.CPU}, core.Slot{CPUs: l.slot.CPUs, Bundle: l.slot.Bundle})
	}
	c.touched = append(c.touched, l)
}

// awake: the program waits no longer, for whatever reason.
func (c *Core) awake(l *level) {
	l.client.handed = false
	if l.waits == 0 {
		return
	}
	l.waits = 0
	for _, x := range l.on {
		if o := c.objects[x]; o != nil {
			for i := range o.subs {
				if o.subs[i].level == l {
					o.subs[i].level = nil
				}
			}
		}
	}
	l.on = l.on[:0]
	c.goesOn(l)
}
