package core

import (
	"slices"

	"launcher/wire"
)

// What tasks (agent/tasks) use of the node comes out of the same pool as what the core
// hands out itself. They are not the core's: whoever takes room gives it back, and after
// a restart says again what it still has. These methods are called between two Steps.

// starveAfter is how long one side may overtake the other: queued tries that wait for
// room that tasks have, or tasks that wait for room that tries have.
const starveAfter = 2 * second

// keepFor is how long tasks leave the room of a gang that did not fit; the head asks again
// before.
const keepFor = 5 * second

// TakeRoom takes room for one worker; false = there is none now, and the caller is to be
// told when some is given back (RoomGiven).
func (c *Core) TakeRoom(now int64, need wire.Resources) (Slot, bool) {
	return c.TakeRoomFor(now, need, 0)
}

// TakeRoomFor is TakeRoom for one whose tasks take no longer than the given time (0 =
// nobody knows): it may use room that is kept for a gang which starts later.
func (c *Core) TakeRoomFor(now int64, need wire.Resources, time int64) (Slot, bool) {
	if c.s.phase.Phase >= Ending || c.queueStarves(now) {
		return Slot{}, false
	}
	if now < c.keptUntil && !c.pool.available().Add(c.kept, -1).Fits(need) {
		return Slot{}, false
	}
	if c.pool.available().Fits(need) && !c.roomBeside(now, time).Fits(need) {
		return Slot{}, false
	}
	slots, ok := c.pool.take(need, 1)
	if ok {
		c.tasksWait = 0
		c.leases.tasks = c.leases.tasks.Add(need, 1)
		return slots[0], true
	}
	if c.tasksWait == 0 || now-c.tasksAsked > starveAfter {
		c.tasksWait = now
	}
	c.tasksAsked = now
	return Slot{}, false
}

// KeepRoom books room that tasks had before the agent was restarted.
func (c *Core) KeepRoom(need wire.Resources, s Slot) {
	if c.pool.of(s) == c.pool {
		c.leases.tasks = c.leases.tasks.Add(need, 1)
	}
	c.pool.had(need, s)
}

// GiveRoom gives room back. The result says that the core waits for some: it is to have
// an event soon.
func (c *Core) GiveRoom(need wire.Resources, s Slot) (wanted bool) {
	if c.pool.of(s) == c.pool {
		c.leases.tasks = c.leases.tasks.Add(need, -1)
	} else {
		c.roomGiven = true
	}
	c.pool.give(need, s)
	c.admitting = true
	return c.s.queued() > 0
}

// LendRoom lends out the cores of a process that waits for tasks, or takes them back,
// which may leave less than nothing free for a while.
func (c *Core) LendRoom(p wire.Proc, lend bool) (wanted bool) {
	t, i := c.s.rank(p)
	if t == nil || t.reserved() || t.Ranks[i].Ended || t.Ranks[i].freed || t.Ranks[i].lent == lend {
		return false
	}
	k := int64(1)
	if lend {
		k = -1
	}
	c.leases.tasks.CPU += k * t.need().CPU
	c.pool.use(wire.Resources{CPU: t.need().CPU}, Slot{CPUs: t.Ranks[i].Slot.CPUs}, k)
	t.Ranks[i].lent = lend
	c.admitting = c.admitting || lend
	return lend && c.s.queued() > 0
}

// CouldRoom reports whether the node, were it empty, has room for need.
func (c *Core) CouldRoom(need wire.Resources) bool { return c.pool.could(need) }

// Total is what the node has.
func (c *Core) Total() wire.Resources { return c.pool.total }

// RoomGiven reports whether room has come free since it was last asked.
func (c *Core) RoomGiven() bool {
	given := c.roomGiven
	c.roomGiven = false
	return given
}

// Runs reports whether a process has room on this node.
func (c *Core) Runs(p wire.Proc) bool {
	t, i := c.s.rank(p)
	return t != nil && !t.reserved() && !t.Ranks[i].Ended
}

// JobOf is the job of a process of this node; nil = there is no such process.
func (c *Core) JobOf(p wire.Proc) *wire.Job {
	if t, _ := c.s.rank(p); t != nil && t.job != nil {
		return t.job.spec
	}
	return nil
}

// Welcomed reports whether the head has greeted.
func (c *Core) Welcomed() bool { return c.welcome }

// give gives a rank's room back, less what it has lent out.
func (c *Core) give(need wire.Resources, r *Rank) {
	slot := r.Slot
	if r.lent {
		r.lent = false
		c.leases.tasks.CPU += need.CPU
		need.CPU, slot.CPUs = 0, nil
	}
	c.pool.give(need, slot)
	c.roomGiven = true
}

// queueStarves reports whether a queued try has waited too long for what tasks have.
func (c *Core) queueStarves(now int64) bool {
	return slices.ContainsFunc(c.s.jobs, func(j *job) bool {
		return j.queue.n > 0 && j.blocked != 0 && now-j.blocked >= starveAfter
	})
}

// tasksStarve is the other way round; tasks that do not ask any more do not wait.
func (c *Core) tasksStarve() bool {
	return c.tasksWait != 0 && c.now-c.tasksWait >= starveAfter && c.now-c.tasksAsked < starveAfter
}

// Job is what the node knows of a job; nil = nothing.
func (c *Core) Job(id wire.JobID) *wire.Job {
	if j := c.s.byJob[id]; j != nil {
		return j.spec
	}
	return nil
}
