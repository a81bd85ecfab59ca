package core

import (
	"launcher/wire"
)

// leases are this node's part in two-level scheduling: room that it has granted to
// others, what its own tasks ask of others, and room that is kept for a gang. None of it
// outlives the session with the head.
type leases struct {
	gives map[wire.LeaseID]*given

	demand    wire.Demand
	demandDue bool  // it was changed since it was told
	demandAt  int64 // when it may be told again

	tasks wire.Resources // what TakeRoom has given out, less what LendRoom has lent
	told  wire.Resources // tasksUse in the last beat

	hold      wire.Hold
	holdUntil int64 // 0 = there is none
}

// given is a lease on this node's room.
type given struct {
	shape  wire.Shape
	number uint32 // of the node's life that it was given to
	slots  int
	used   int
}

func newLeases() leases { return leases{gives: map[wire.LeaseID]*given{}} }

// unusedLeases is what leases keep free, but for the given one.
func (c *Core) unusedLeases(but wire.LeaseID) (r wire.Resources) {
	for id, g := range c.leases.gives {
		if id != but && g.slots > g.used {
			r = r.Add(g.shape.Resources, int64(g.slots-g.used))
		}
	}
	return r
}

// tasksUse is what the head is to count as the tasks' own.
func (c *Core) tasksUse() wire.Resources {
	r := c.leases.tasks
	for _, g := range c.leases.gives {
		if g.slots > g.used {
			r = r.Add(g.shape.Resources, int64(g.slots-g.used))
		}
	}
	return r
}

// roomBeside is what is free beside the leases of others and what is kept for a gang. A
// task that is over before the gang is to start may use what is kept.
func (c *Core) roomBeside(now, time int64, lease wire.LeaseID) wire.Resources {
	r := c.pool.available().Add(c.unusedLeases(lease), -1)
	l := &c.leases
	if now < l.holdUntil && !(time > 0 && l.hold.Start > 0 && now+time <= l.hold.Start) {
		r = r.Add(l.hold.Need, -1)
	}
	return r
}

// leaseOffer grants of an offer what there is room for now.
func (c *Core) leaseOffer(m wire.LeaseOffer) {
	if c.leases.gives[m.Lease] != nil {
		return
	}
	why := ""
	n := 0
	switch {
	case c.s.phase.Phase != Working:
		why = "the node leaves"
	case c.now > m.Until:
		why = "the offer came too late"
	case c.queueStarves(c.now):
		why = "tasks of jobs wait for the room"
	default:
		n = c.roomBeside(c.now, m.Shape.Time, 0).Times(m.Shape.Resources, int(min(m.Slots, 1<<16)))
		why = "free are " + c.pool.available().String()
	}
	if n > 0 {
		why = ""
		c.leases.gives[m.Lease] = &given{shape: m.Shape, number: m.Number, slots: n}
	}
	c.tell(wire.MsgLeaseGrant, wire.LeaseGrant{Lease: m.Lease, Slots: uint32(n), Why: why})
}

// leaseCut takes slots of a lease away, on either side of it.
func (c *Core) leaseCut(m wire.LeaseCut) {
	if g := c.leases.gives[m.Lease]; g != nil {
		g.slots -= min(g.slots, int(m.Slots))
		if g.slots == 0 {
			delete(c.leases.gives, m.Lease)
		}
		c.roomGiven, c.admitting = true, true
	}
	c.do(LeaseLess{m})
}

// voidLeases ends all leases: the head that they came by is gone, or does not know.
func (c *Core) voidLeases() {
	if len(c.leases.gives) > 0 || c.leases.holdUntil != 0 {
		c.roomGiven, c.admitting = true, true
	}
	clear(c.leases.gives)
	c.leases.hold, c.leases.holdUntil = wire.Hold{}, 0
	c.do(LeasesEnd{})
}

// holdRoom keeps room for a gang, or not any more.
func (c *Core) holdRoom(m wire.Hold) {
	c.leases.hold, c.leases.holdUntil = m, c.now+wire.HoldFor
	if m.Need.Nothing() {
		c.leases.holdUntil = 0
		c.roomGiven = true
	}
}

// holdOver ends a hold that the head has not repeated.
func (c *Core) holdOver() {
	if c.leases.holdUntil != 0 && c.now >= c.leases.holdUntil {
		c.leases.hold, c.leases.holdUntil = wire.Hold{}, 0
		c.roomGiven = true
	}
}

// tellDemand tells the head what waits, when it changed, and not too often.
func (c *Core) tellDemand() {
	l := &c.leases
	if !l.demandDue || !c.welcome || c.now < l.demandAt {
		return
	}
	l.demandDue, l.demandAt = false, c.now+wire.DemandEvery
	c.tell(wire.MsgDemand, l.demand)
}

// TakeRoomFor is TakeRoom for one whose tasks take no longer than the given time: it may
// use room that is kept for a gang which starts later.
func (c *Core) TakeRoomFor(now int64, need wire.Resources, time int64) (Slot, bool) {
	return c.takeRoom(now, need, time, 0)
}

// Leased reports whether a lease on this node stands and is one of the given node's life.
func (c *Core) Leased(id wire.LeaseID, number uint32) bool {
	g := c.leases.gives[id]
	return g != nil && g.number == number
}

// TakeLeased takes room for one worker under a lease; false = there is none now, or the
// lease is over or used up.
func (c *Core) TakeLeased(now int64, id wire.LeaseID) (Slot, bool) {
	g := c.leases.gives[id]
	if g == nil || g.used >= g.slots {
		return Slot{}, false
	}
	s, ok := c.takeRoom(now, g.shape.Resources, g.shape.Time, id)
	if ok {
		g.used++
	}
	return s, ok
}

// GiveLeased gives back what TakeLeased gave; the lease may be over meanwhile.
func (c *Core) GiveLeased(id wire.LeaseID, need wire.Resources, s Slot) (wanted bool) {
	if g := c.leases.gives[id]; g != nil && g.used > 0 {
		g.used--
	}
	return c.GiveRoom(need, s)
}
