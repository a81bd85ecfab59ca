package tasks

import (
	"fmt"

	"launcher/wire/sdk"
)

// Lineage: tasks that have ended, kept to make their outputs again.

// keep keeps a task that has ended, to be run again.
func (c *Core) keep(t *task) {
	t.kept, t.cost = true, int64(len(t.body))
	for d := range t.deps().all() {
		if o := c.objects[d]; o != nil && !o.fetched { // else it was put, and is gone, or its owner has it
			if o.lineage++; o.task == nil {
				t.cost += int64(len(o.data))
			}
		}
	}
	c.lineage += t.cost
	c.kept = append(c.kept, t)
}

// mayLose reports whether an output of a task that has ended is in shared memory.
func (c *Core) mayLose(t *task) bool {
	for i := range t.outputs() {
		if o := c.objects[t.id.With(i+1)]; o != nil && o.kind == sdk.Shared {
			return true
		}
	}
	return false
}

// again makes an object again whose value is gone.
func (c *Core) again(o *object) {
	t := o.task
	if o.state != freed {
		return
	}
	if t == nil || t.retries == 0 && t.shape.retries == 0 || t.isCall() && c.peerOf(t) != nil {
		o.state = missing
		c.fail(o, c.errorOf("reconstruction", fmt.Sprintf("object %s is lost and cannot be made again: what made it is not known any more, or must not be repeated", o.id), nil))
		return
	}
	o.state = missing
	if t.state != done {
		return // under way
	}
	// Its other outputs stay as they are: a value that is there is not replaced.
	c.record(recAgain, 0, 0, o.id[:])
	c.newAttempt(t)
	if t.isCall() {
		t.call.at = callHere
		c.call(t)
		return
	}
	c.need(t)
}
