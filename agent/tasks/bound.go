package tasks

import (
	"cmp"
	"fmt"
	"slices"

	"launcher/wire/sdk"
)

// The bound of workers. A worker that waits keeps its process, so a node whose workers all
// wait, and which may have no more, must run what they wait for on top of them. Three rules
// see to it that this is always possible:
//
//   - A worker runs, on top of a task that waits, only what that task waits for, itself or
//     by others. So nothing on a stack waits for what is below it.
//   - A task that came from another node and finds no worker goes back: who submitted it
//     is there, and waits for it.
//   - The last few workers are only for tasks that workers wait for, as those of another
//     kind than they are cannot run on top of them.
//
// When all workers wait nevertheless for tasks of kinds that none of them can run, one of
// those tasks fails, for the others to go on.

// standsFor is how long all workers wait before that.
const standsFor = 10 * second

// reserve is how many workers are only for tasks that others wait for.
func (c *Core) reserve() int { return min(8, c.cfg.MaxWorkers/8) }

// Crowded reports whether the node should run no more of other nodes' tasks.
func (c *Core) Crowded() bool {
	return c.workers >= c.cfg.MaxWorkers-c.reserve() && c.longestIdle() == nil
}

// atBound finds for a shape a level that waits for one of its tasks and may run it on top
// of itself, or else the task that another worker may be started for. Neither: it waits.
func (c *Core) atBound(s *shape) (*level, *task) {
	if c.makeRoom(s) {
		return nil, nil
	}
	if l, t := c.awaited(s, true); l != nil {
		return l, t
	}
	if c.workers >= c.cfg.MaxWorkers {
		return nil, nil
	}
	_, t := c.awaited(s, false)
	return nil, t
}

// makeRoom ends idle workers, of whatever key, those first that have been idle longest.
// Their room is there when their processes are gone.
func (c *Core) makeRoom(s *shape) bool {
	w := c.longestIdle()
	if w == nil {
		return false
	}
	for w != nil && c.leaving < min(s.queue.n, max(1, c.cfg.Cores)) {
		c.endWorker(w)
		w = c.longestIdle()
	}
	return true
}

func (c *Core) longestIdle() (w *client) {
	for _, p := range c.pools {
		for _, x := range p.idle {
			if w == nil || cmp.Or(cmp.Compare(x.idleAt, w.idleAt), cmp.Compare(x.ID, w.ID)) < 0 {
				w = x
			}
		}
	}
	return w
}

// endWorker asks a worker with nothing to do to end.
func (c *Core) endWorker(w *client) {
	c.record(recEnding, w.ID, 0, nil)
	c.ends(w)
	c.sendExit(w)
}

// ends takes a worker out of those that get tasks.
func (c *Core) ends(w *client) {
	if w.ending {
		return
	}
	w.ending = true
	w.pool.idle = slices.DeleteFunc(w.pool.idle, func(x *client) bool { return x == w })
	if w.actor == nil {
		c.leaving++
	}
}

func (c *Core) sendExit(w *client) {
	w.finish(c.frame(w, sdk.MsgExit, 0))
	c.do(StopWorker{ID: w.ID})
}

// awaited finds a queued task of a shape that a worker waits for, itself or by what it
// waits for; of several workers, one with the least on its stack. onTop: only for workers
// that may run it on top of that.
func (c *Core) awaited(s *shape, onTop bool) (*level, *task) {
	var ls []*level
	for _, w := range c.clients {
		if w.pool == nil || !w.up || w.ending {
			continue
		}
		if l := w.top(); l.blocked && (!onTop || w.away == 0 && !w.deaf && !w.spent && w.actor == nil && len(l.tasks) == 1 && sameKey(w.pool.key, s.key)) {
			ls = append(ls, l)
		}
	}
	slices.SortFunc(ls, func(a, b *level) int {
		return cmp.Or(cmp.Compare(len(a.client.levels), len(b.client.levels)), cmp.Compare(a.client.ID, b.client.ID))
	})
	seen := map[*task]bool{} // what one worker leads to in vain another does too
	for _, l := range ls {
		if t, _ := c.leadsTo(l.on, seen, func(t *task) bool { return t.shape == s }); t != nil {
			return l, t
		}
	}
	return nil, nil
}

// leadsTo follows what objects wait for to a queued task that is looked for. on reports
// whether it came upon something that goes on by itself, here or on another node.
func (c *Core) leadsTo(objs []id, seen map[*task]bool, found func(*task) bool) (_ *task, on bool) {
	todo := slices.Clone(objs)
	for len(todo) > 0 {
		x := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		o := c.objects[x]
		if o == nil || o.state == here {
			continue
		}
		t := c.tasks[x.Task()]
		if t == nil {
			on = true
			continue
		}
		if seen[t] {
			continue
		}
		seen[t] = true
		switch t.state {
		case queued:
			if found(t) {
				return t, on
			}
		case waiting:
			todo = slices.AppendSeq(todo, t.deps().all())
		case running:
			w := t.worker()
			i := -1
			if w != nil {
				i = slices.Index(w.levels, t.level)
			}
			if i < 0 || !w.top().blocked {
				on = true
				continue
			}
			for _, l := range w.levels[i:] { // what is on top of it has to end first
				todo = append(todo, l.on...)
			}
		}
	}
	return nil, on
}

func sameKey(a, b Key) bool {
	a.GPUs, b.GPUs = "", ""
	return a == b
}

// tickBound fails a task that all workers wait for and none can run, when that has been so
// for a while.
func (c *Core) tickBound() {
	t := c.hopeless()
	switch {
	case t == nil:
		c.stuckAt = 0
	case c.stuckAt == 0:
		c.stuckAt = c.now
	case c.now-c.stuckAt >= standsFor:
		c.stuckAt = 0
		c.stats.failed++
		c.judges(t, c.errorOf("unschedulable", fmt.Sprintf("all of the %d workers that node %s may have wait, and none of them can run %s, which needs one of its own kind", c.cfg.MaxWorkers, c.cfg.Node, t.shape.name), t,
			"tasks that wait for tasks with another runtime_env or language hold a worker each: submit fewer of them at a time"))
	}
}

// hopeless gives a queued task that a worker waits for while nothing here can go on.
func (c *Core) hopeless() (first *task) {
	if c.workers < c.cfg.MaxWorkers || c.leaving > 0 {
		return nil
	}
	seen := map[*task]bool{}
	for _, w := range c.sortedClients() {
		if w.pool == nil || w.actor != nil {
			continue
		}
		l := w.top()
		if !w.up || w.away != 0 || w.deaf || w.handed || len(l.tasks) == 0 || !l.blocked {
			return nil
		}
		t, on := c.leadsTo(l.on, seen, func(*task) bool { return true })
		if on {
			return nil
		}
		if first == nil {
			first = t
		}
	}
	return first
}
