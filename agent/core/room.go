package core

import (
	"slices"

	"launcher/wire"
)

// What tasks (agent/tasks) use of the node comes out of the same pool as what the core
// hands out itself. They are not the core's: whoever takes room gives it back, and after
// a restart says again what it still has. These methods are called between two Steps.

// starveAfter is how long a try that wants much may be overtaken by bundles, and for how
// long tasks that asked for room and do not ask any more are thought to wait.
const starveAfter = 2 * second

// keepFor is how long tasks leave the room of a gang that did not fit; the head asks again
// before.
const keepFor = 5 * second

// TakeRoom takes room for one worker; false = there is none now, or it is somebody else's
// turn, and the caller is to be told when some is given back (RoomGiven).
func (c *Core) TakeRoom(now int64, need wire.Resources) (Slot, bool) {
	return c.TakeRoomFor(now, Who{}, need, 0)
}

// TakeRoomFor is TakeRoom for a job, and for tasks that take no longer than the given time
// (0 = nobody knows): they may use room that is kept for a gang which starts later.
func (c *Core) TakeRoomFor(now int64, w Who, need wire.Resources, time int64) (Slot, bool) {
	c.now = max(c.now, now)
	if c.s.phase.Phase >= Ending {
		return Slot{}, false
	}
	if c.heldRoom(now, time).Fits(need) && c.mayTake(w, need) {
		if slot, ok := c.take(w, need); ok {
			p := c.portion(w.Job)
			p.tasks, p.asked = p.tasks.Add(need, 1), 0
			c.count(p)
			c.leases.tasks = c.leases.tasks.Add(need, 1)
			return slot, true
		}
	}
	c.asks(w, need)
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
	return c.Contended() || c.Owed()
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
	return lend && c.Contended()
}

// CouldRoom reports whether the node, were it empty, has room for need.
func (c *Core) CouldRoom(need wire.Resources) bool { return c.pool.could(need) }

// Total is what the node has.
func (c *Core) Total() wire.Resources { return c.pool.total }

// Owed reports whether the core is to have an event soon: it is its turn, or it has
// something to say.
func (c *Core) Owed() bool { return c.owed || len(c.givesBack) > 0 }

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

// queueStarves reports whether a queued try has waited too long for what others have.
func (c *Core) queueStarves(now int64) bool {
	return slices.ContainsFunc(c.s.jobs, func(j *job) bool {
		return j.queue.n > 0 && j.blocked != 0 && now-j.blocked >= starveAfter
	})
}

// Job is what the node knows of a job; nil = nothing.
func (c *Core) Job(id wire.JobID) *wire.Job {
	if j := c.s.byJob[id]; j != nil {
		return j.spec
	}
	return nil
}
