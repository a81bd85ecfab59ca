package tasks

import (
	"launcher/wire"
)

// A job lives as long as it has a driver, or a detached actor, on any node. What its tasks
// have made elsewhere (actors, tasks whose results somebody still wants) does not end with the
// conversation of the two agents, but when the head says that the job does.

// Programs is what jobs have here, for the head, and whether that has changed since it was
// last asked for.
func (c *Core) Programs() (p wire.Programs, changed bool) {
	if !c.programsDue {
		return p, false
	}
	c.programsDue = false
	for _, key := range sortedKeys(c.jobs) {
		switch j := c.jobs[key]; {
		case j.drivers > 0:
			p.Jobs = append(p.Jobs, key)
		case j.peers == 0:
			p.Left = append(p.Left, key)
		default:
			p.Held = append(p.Held, key)
		}
	}
	return p, true
}

// jobLess: one thing less that a job lives for here.
func (c *Core) jobLess(j *job) {
	c.programsDue = true
	if j.drivers == 0 && j.peers == 0 && j.home && c.jobs[j.key] == j {
		c.endJob(j)
	}
}

// JobsOver: nothing of these jobs lives on any node.
func (c *Core) JobsOver(now int64, keys []string) {
	c.now = now
	for _, key := range keys {
		if j := c.jobs[key]; j != nil && j.drivers+j.peers == 0 {
			c.endJob(j)
		}
	}
}

// JobsNeverAgain: nor ever will, whatever other nodes hold here. Actors on two nodes that have
// handles of each other would live for ever.
func (c *Core) JobsNeverAgain(now int64, keys []string) {
	c.now = now
	for _, key := range keys {
		if j := c.jobs[key]; j != nil && j.drivers == 0 {
			c.endJob(j)
		}
	}
}

// tickJobs ends the jobs that have nothing left here.
func (c *Core) tickJobs() {
	if c.now < c.jobsAt {
		return
	}
	c.jobsAt = c.now + second
	left := map[*job]bool{}
	for _, j := range c.jobs {
		if j.drivers+j.peers == 0 {
			left[j] = true
		}
	}
	if len(left) == 0 {
		return
	}
	for _, t := range c.tasks {
		if t.state != done {
			delete(left, t.shape.job)
		}
	}
	for _, key := range sortedKeys(c.jobs) {
		if j := c.jobs[key]; left[j] {
			c.endJob(j)
		}
	}
}

// endJob ends all that is left of a job here.
func (c *Core) endJob(j *job) {
	c.record(recJobOver, 0, 0, []byte(j.key))
	c.programsDue = true
	j.over = true
	delete(c.jobs, j.key)
	for _, t := range c.sortedTasks() {
		if t.shape.job == j && t.state != done {
			if t.actor != nil {
				c.endActor(t, "its job is over", true)
				continue
			}
			t.cancel = true
			if t.state != running {
				c.fails(t, c.cancelled(t))
			}
		}
	}
	for _, w := range c.sortedClients() {
		if w.pool == nil || w.job != j {
			continue
		}
		c.ends(w)
		c.do(StopWorker{ID: w.ID, Force: true})
	}
	c.do(JobOver{Job: j.key})
}
