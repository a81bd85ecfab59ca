package core

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"launcher/wire"
)

// Bundles of placement groups: room that was taken out of the node's and is a pool of its
// own, with its own cores and GPUs. Whoever has room of a bundle has its id in the Slot,
// and gives it back there.

// bundle is one that this node keeps.
type bundle struct {
	RecBundle
	room *pool
	over bool // dropped, and gone when the last one has given back what it has of it
}

// order sorts bundles.
func order(a, b wire.BundleID) int {
	return cmp.Or(slices.Compare(a.Group[:], b.Group[:]), cmp.Compare(a.Index, b.Index))
}

// keepBundle makes a bundle of a slot that was taken.
func (p *pool) keepBundle(r RecBundle) *bundle {
	var gpus []wire.GPU
	for _, s := range r.Slot.GPUs {
		g := wire.GPU{UUID: s.UUID}
		if i := slices.IndexFunc(p.gpus, func(x gpu) bool { return x.uuid == s.UUID }); i >= 0 {
			g = p.gpus[i].info
			g.Busy, g.By = false, ""
		}
		gpus = append(gpus, g)
	}
	b := &bundle{RecBundle: r, room: newPool(r.Need, gpus, r.Slot.CPUs, p.topo)}
	for i, s := range r.Slot.GPUs {
		b.room.gpus[i].used = wire.Unit - s.Units // the rest is not the bundle's
	}
	p.bundles[r.ID] = b
	return b
}

// of is the pool that a slot is of.
func (p *pool) of(s Slot) *pool {
	if b := p.bundles[s.Bundle]; b != nil {
		return b.room
	}
	return p
}

// dropBundle gives a bundle's room back, at once or when nothing has any of it.
func (p *pool) dropBundle(id wire.BundleID) {
	if b := p.bundles[id]; b != nil {
		b.over = true
		p.bundleOver(id)
	}
}

// bundleOver ends a bundle that was dropped and is not used any more.
func (p *pool) bundleOver(id wire.BundleID) {
	if b := p.bundles[id]; b != nil && b.over && b.room.free.Equal(b.Need) {
		delete(p.bundles, id)
		p.give(b.Need, b.Slot)
	}
}

// bundlesOf are the bundles that a shape of a group may have room of, in order.
func (p *pool) bundlesOf(g wire.GroupID, index int32) (out []*bundle) {
	if index >= 0 {
		if b := p.bundles[wire.BundleID{Group: g, Index: uint32(index)}]; b != nil && b.ready() {
			out = append(out, b)
		}
		return out
	}
	for id, b := range p.bundles {
		if id.Group == g && b.ready() {
			out = append(out, b)
		}
	}
	slices.SortFunc(out, func(a, b *bundle) int { return order(a.ID, b.ID) })
	return out
}

func (b *bundle) ready() bool { return !b.over && b.Until == 0 }

// takeIn takes room of a group.
func (p *pool) takeIn(s *wire.Strategy, need wire.Resources) (Slot, bool) {
	for _, b := range p.bundlesOf(s.Group, s.Bundle) {
		if slots, ok := b.room.take(need, 1); ok {
			slots[0].Bundle = b.ID
			return slots[0], true
		}
	}
	return Slot{}, false
}

// times is for how many of need a group has room here.
func (p *pool) times(s *wire.Strategy, need wire.Resources, limit int) (n int) {
	for _, b := range p.bundlesOf(s.Group, s.Bundle) {
		n += b.room.available().Times(need, limit-n)
	}
	return n
}

// HasGroup reports whether this node keeps a bundle that tasks of a strategy may run in.
func (c *Core) HasGroup(s *wire.Strategy) bool { return len(c.pool.bundlesOf(s.Group, s.Bundle)) > 0 }

// TakeGroup takes room for one worker out of a bundle.
func (c *Core) TakeGroup(s *wire.Strategy, need wire.Resources) (Slot, bool) {
	if c.s.phase.Phase >= Ending {
		return Slot{}, false
	}
	return c.pool.takeIn(s, need)
}

// bundleOrder does what the head wants of bundles.
func (c *Core) bundleOrder(m wire.BundleOrder) {
	switch m.What {
	case wire.BundleReserve:
		until := m.Until
		if m.Commit {
			until = 0
		}
		why := ""
		if !m.Commit && until <= c.now {
			why = "the reservation is over before it began"
		} else {
			why = c.takeBundles(m.Group, m.Bundles, until)
		}
		c.tell(wire.MsgBundleNews, wire.BundleNews{Group: m.Group, Round: m.Round, OK: why == "", Why: why})
	case wire.BundleCommit:
		for _, x := range m.Bundles {
			if b := c.pool.bundles[wire.BundleID{Group: m.Group, Index: x.Index}]; b != nil && b.Until != 0 {
				b.Until = 0
				c.record(b.RecBundle)
				c.roomGiven = true
			}
		}
	case wire.BundleDrop:
		for _, x := range m.Bundles {
			c.dropBundle(wire.BundleID{Group: m.Group, Index: x.Index}, m.Why)
		}
	}
}

// takeBundles takes the room of bundles, all or none; why says what is in the way.
func (c *Core) takeBundles(g wire.GroupID, bundles []wire.Bundle, until int64) (why string) {
	if c.s.phase.Phase != Working {
		return "the node leaves"
	}
	var got []RecBundle
	for _, x := range bundles {
		id := wire.BundleID{Group: g, Index: x.Index}
		if had := c.pool.bundles[id]; had != nil {
			if had.over {
				why = "tasks of a group that was removed still have the room"
				break
			}
			if had.Until != until { // of an order whose end was lost with its session
				had.Until = until
				c.record(had.RecBundle)
			}
			continue
		}
		slots, ok := []Slot(nil), c.roomForGroup(g).Fits(x.Need) && !c.queueStarves(c.now)
		if ok {
			slots, ok = c.pool.take(x.Need, 1)
		}
		if !ok {
			why = "free are " + c.roomForGroup(g).String()
			break
		}
		got = append(got, RecBundle{ID: id, Need: x.Need, Slot: slots[0], Until: until})
	}
	for _, r := range got {
		if why != "" {
			c.pool.give(r.Need, r.Slot)
			continue
		}
		c.record(r)
		c.pool.keepBundle(r)
		c.leases.tasks = c.leases.tasks.Add(r.Need, 1)
	}
	c.roomGiven = c.roomGiven || why == "" && until == 0
	return why
}

// dropBundle lets go of a bundle. What runs in it is to end.
func (c *Core) dropBundle(id wire.BundleID, why string) {
	b := c.pool.bundles[id]
	if b == nil || b.over {
		return
	}
	c.record(RecBundleOver{ID: id})
	c.leases.tasks = c.leases.tasks.Add(b.Need, -1)
	for lease, g := range c.leases.gives {
		if st := &g.shape.Strategy; st.Kind == wire.StrategyGroup && st.Group == id.Group && (st.Bundle < 0 || uint32(st.Bundle) == id.Index) {
			delete(c.leases.gives, lease) // the head has ended it, or does when it hears
		}
	}
	c.pool.dropBundle(id)
	c.roomGiven, c.admitting = true, true
	c.do(BundleOver{ID: id, Why: why})
}

// keptBundles is what this node keeps, for a head.
func (c *Core) keptBundles() (kept []wire.BundleID) {
	for id, b := range c.pool.bundles {
		if b.ready() {
			kept = append(kept, id)
		}
	}
	slices.SortFunc(kept, order)
	return kept
}

// bundlesDue ends reservations that nobody has committed, and says when the next one is
// due.
func (c *Core) bundlesDue() (at int64) {
	for _, id := range slices.SortedFunc(maps.Keys(c.pool.bundles), order) {
		switch b := c.pool.bundles[id]; {
		case b.Until == 0 || b.over:
		case c.now >= b.Until:
			c.dropBundle(id, "its reservation was not confirmed in time")
		case at == 0 || b.Until < at:
			at = b.Until
		}
	}
	return at
}

// checkBundles compares the counts of bundles with each other.
func (c *Core) checkBundles() error {
	for id, b := range c.pool.bundles {
		if a := b.room.free; !b.Need.Fits(wire.Resources{GPU: a.GPU, Memory: a.Memory}) {
			return fmt.Errorf("bundle %v has %s, and %s of it are free", id, b.Need, a)
		}
	}
	return nil
}
