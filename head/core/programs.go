package core

import (
	"fmt"
	"slices"

	"launcher/wire"
)

// heldFor is for how long a program must be gone before what nodes hold of it for each other
// is ended: what the driver's node says of a new program may come after what others do.
const heldFor = 10 * second

// Jobs of programs, as the nodes tell of them (wire/programs.go). The head keeps none of it:
// nodes say it again in Hello.

// programs takes what a node has of jobs.
func (c *Core) programs(n *node, p wire.Programs) {
	for _, j := range n.programs.Jobs {
		if c.living[j]--; c.living[j] <= 0 {
			delete(c.living, j)
		}
	}
	n.programs = p
	for _, j := range p.Jobs {
		c.living[j]++
	}
	c.jobsDue = true
}

// endPrograms ends what is left of jobs that live nowhere. Before all nodes have said what
// they have, nobody knows.
func (c *Core) endPrograms() {
	if !c.jobsDue || c.recovering {
		return
	}
	c.jobsDue = false
	for _, g := range c.sortedGroups() {
		if !g.spec.Detached && !c.lives(g.spec.Job) {
			c.removeGroup(g, "its job is over")
		}
	}
	for _, n := range c.order {
		var over []string
		for _, j := range n.programs.Left {
			if !c.lives(j) {
				over = append(over, j)
			}
		}
		if len(over) > 0 {
			c.send(n, wire.MsgJobsOver, wire.JobsOver{Jobs: over})
		}
	}
}

// endHeld ends what nodes hold of programs for each other, once those are gone for good.
func (c *Core) endHeld() {
	if c.recovering {
		return
	}
	since := map[string]int64{}
	over := map[string]bool{}
	for _, n := range c.order {
		for _, j := range n.programs.Held {
			if !c.goneForGood(j) {
				continue
			}
			if since[j] = c.goneSince[j]; since[j] == 0 {
				since[j] = c.now
			}
			over[j] = c.now-since[j] >= heldFor
		}
	}
	c.goneSince = since
	for _, n := range c.order {
		held := slices.DeleteFunc(slices.Clone(n.programs.Held), func(j string) bool { return !over[j] })
		if len(held) > 0 && n.conn {
			c.send(n, wire.MsgJobsOver, wire.JobsOver{Held: held})
		}
	}
}

// goneForGood reports whether a job lives nowhere and never will again: it is a program that
// was started by hand, and the node where it was started says that it is gone, or is gone.
func (c *Core) goneForGood(job string) bool {
	var node, client uint32
	if _, err := fmt.Sscanf(job, "d%d-%d", &node, &client); err != nil || c.lives(job) {
		return false
	}
	for _, n := range c.order {
		if d := c.durable(n); d != nil && d.Number == node {
			return n.conn
		}
	}
	return true
}

// lives reports whether a job has a driver or a detached actor on any node.
func (c *Core) lives(job string) bool {
	if c.living[job] > 0 {
		return true
	}
	for _, a := range c.d.st.Actors {
		if a.Will.Job == job {
			return true
		}
	}
	return false
}
