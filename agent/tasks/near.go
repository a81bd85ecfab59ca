package tasks

import (
	"launcher/wire"
	"launcher/wire/sdk"
)

const (
	// largeArguments are those for which a task goes to the node that has them, if that has
	// room within nearWait: to bring less here is quicker than to ask.
	largeArguments = 4 << 20
	nearWait       = 200 * millisecond
	// nearDeps is how many arguments are looked at.
	nearDeps = 256
)

// near is the node that has most of what a task needs and this one has not, and how much
// more than this one; 0 = none.
func (c *Core) near(t *task) (best uint32, more int64) {
	var there map[uint32]int64
	have, n := int64(0), 0
	for d := range t.deps().all() {
		if n++; n > nearDeps {
			break
		}
		switch o := c.objects[d]; {
		case o == nil || o.state != here || o.kind != sdk.Shared:
		case o.where == 0 || c.store.Resident(d):
			have += o.size
		case there == nil:
			there = map[uint32]int64{o.where: o.size}
		default:
			there[o.where] += o.size
		}
	}
	for on, size := range there {
		if size -= have; size > more || size == more && on < best {
			best, more = on, size
		}
	}
	return best, more
}

// goesNear reports whether a task that waits for room is to run where its arguments are:
// for a moment nowhere else will do.
func (c *Core) goesNear(t *task) bool {
	if s := t.shape; s.place.Kind != wire.StrategyDefault || s.actor != nil || c.alone || t.lease != 0 || c.now-t.ready >= nearWait {
		return false
	}
	_, more := c.near(t)
	return more >= largeArguments
}

// nextHere is the task of a shape that may begin here now.
func (c *Core) nextHere(s *shape) *task {
	if t := s.queue.first(); t != nil && !c.goesNear(t) {
		return t
	}
	return nil
}

// prefetch brings a large argument from the node that has it before its task begins.
func (c *Core) prefetch(o *object) {
	if o.state == here && o.where != 0 && !c.mute && !c.store.Resident(o.id) {
		c.restore(o)
	}
}

// prefetchAll brings what a task needs that is about to begin here.
func (c *Core) prefetchAll(t *task) {
	for d := range t.deps().all() {
		if o := c.objects[d]; o != nil {
			c.prefetch(o)
		}
	}
}
