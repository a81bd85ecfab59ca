package core

import "launcher/wire"

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
