package core

import (
	"fmt"
	"slices"

	"launcher/wire"
)

// lost gives the newest checkpoint when that is one that is gone.
func (c *checkD) lost() (x RecCheckpoint, ok bool) {
	if c == nil || len(c.List) == 0 {
		return x, false
	}
	x = c.List[len(c.List)-1]
	return x, x.Gone
}

// startLost reports whether what a gang was started from was lost since: a node that had
// not heard of the start cannot begin with the others any more.
func (j *jobD) startLost(i uint32) bool {
	c, g := j.Checks[i], j.Gangs[i]
	_, ok := c.lost()
	return ok && g != nil && slices.ContainsFunc(c.List, func(x RecCheckpoint) bool { return x.Gone && x.At >= g.At })
}

// lostChecks says which checkpoints of a job were lost, and where it goes on without.
func (j *jobD) lostChecks() (out []string) {
	const most = 8
	for _, i := range sortedKeys(j.Checks) {
		x, ok := j.Checks[i].lost()
		if !ok {
			continue
		}
		if len(out) == most {
			return append(out, "and others")
		}
		from := "at the start"
		if path, step := j.newest(i); path != "" {
			from = fmt.Sprintf("from the checkpoint at step %d", step)
		}
		out = append(out, fmt.Sprintf("the checkpoint of task %s at step %d was lost with the head's machine; a restart begins %s", wire.Task{Job: j.ID, Index: i}, x.Step, from))
	}
	return out
}
