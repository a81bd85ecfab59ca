package core

import (
	"slices"

	"launcher/internal/errs"
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

	crowded bool // tasks have all the workers that they may have

	hold      wire.Hold
	holdUntil int64 // 0 = there is none
}

// given is a lease on this node's room.
type given struct {
	shape  wire.Shape
	number uint32 // of the node's life that it was given to
	slots  int
	used   int
	lent   int // of used: tasks that wait, whose cores are lent out
}

// limited: the room is its job's only while the job has not reached its limits, so what a
// task lends is the head's to give.
func (g *given) limited() bool { return len(g.shape.Limits) > 0 }

// usable is how many of its slots may be taken.
func (g *given) usable() int {
	if g.limited() {
		return g.slots - g.used
	}
	return g.slots - g.used + g.lent
}

func newLeases() leases { return leases{gives: map[wire.LeaseID]*given{}} }

// unusedLeases is what leases keep free.
func (c *Core) unusedLeases() (r wire.Resources) {
	for _, g := range c.leases.gives {
		r = r.Add(g.shape.Resources, int64(g.unused()))
	}
	return r
}

// tasksUse is what the head is to count as the tasks' own.
func (c *Core) tasksUse() wire.Resources { return c.leases.tasks.Add(c.unusedLeases(), 1) }

// roomBeside is what is free beside the leases of others and what is kept for a gang.
func (c *Core) roomBeside(now, time int64) wire.Resources {
	return c.heldRoom(now, time).Add(c.unusedLeases(), -1)
}

// heldRoom is what is free, leases that are not used included, but for what is kept for
// gangs.
func (c *Core) heldRoom(now, time int64) wire.Resources {
	return c.pool.available().Add(c.keptFree(now, time), -1)
}

// keptFree is what is kept for a gang: what is over before that is to start may use it.
func (c *Core) keptFree(now, time int64) (r wire.Resources) {
	if l := &c.leases; now < l.holdUntil && !(time > 0 && l.hold.Start > 0 && now+time <= l.hold.Start) {
		r = l.hold.Need
	}
	if now < c.keptUntil && !r.Fits(c.kept) {
		r = c.kept
	}
	return r
}

// roomForGroup is roomBeside for bundles of a group: what is kept for it is its own.
func (c *Core) roomForGroup(g wire.GroupID) wire.Resources {
	if c.leases.hold.Job == 0 && c.leases.hold.Group == g {
		return c.pool.available().Add(c.unusedLeases(), -1)
	}
	return c.roomBeside(c.now, 0)
}

// Yields reports whether tasks of which each takes the given time at most (0 = nobody knows)
// are to leave the room that they have when they end: some is kept for others that is not
// free yet.
func (c *Core) Yields(now, time int64) bool {
	return now < c.leases.holdUntil && c.roomBeside(now, time).Negative()
}

// KeptFor names what room of this node is kept for; "" = nothing.
func (c *Core) KeptFor(now int64) string {
	switch l := &c.leases; {
	case now >= l.holdUntil:
		return ""
	case l.hold.Job != 0:
		s := "job " + utoa(int64(l.hold.Job))
		if l.hold.Start > now {
			s += ", which starts in " + span(l.hold.Start-now) + " at the latest"
		}
		return s
	default:
		return "placement group " + l.hold.Group.String()
	}
}

// SetLasting says what actors have of this node's room, bundles aside, and whether others
// need values that only this node has.
func (c *Core) SetLasting(r wire.Resources, needed bool) { c.actors, c.needed = r, needed }

// lasting is what does not come free by itself.
func (c *Core) lasting() wire.Resources {
	r := c.actors
	for _, b := range c.pool.bundles {
		r = r.Add(b.Need, 1)
	}
	return r
}

// takeForGang takes room for ranks of a gang, if need be that of unused leases of no
// higher priority.
func (c *Core) takeForGang(j *job, n int) ([]Slot, bool) {
	return c.takeFor(j.spec.Spec.Resources, n, func(g *given) bool { return g.shape.Priority <= j.spec.Spec.Priority })
}

// unusedOf counts the slots of leases on a group's bundles here that nothing runs in.
func (c *Core) unusedOf(s *wire.Strategy) (n int) {
	for _, g := range c.leases.gives {
		if x := &g.shape.Strategy; x.Kind == wire.StrategyGroup && x.Group == s.Group && (x.Bundle == s.Bundle || x.Bundle < 0 || s.Bundle < 0) {
			n += max(0, g.slots-g.used)
		}
	}
	return n
}

// lessGiven makes a lease on this node smaller.
func (c *Core) lessGiven(id wire.LeaseID, n int) {
	if g := c.leases.gives[id]; g != nil {
		if g.slots -= min(g.slots, n); g.slots == 0 {
			delete(c.leases.gives, id)
		}
		c.roomGiven, c.admitting = true, true
	}
}

// leaseIdle gives slots of a lease back. A lease of this node on itself (SPREAD, labels)
// has both its sides here.
func (c *Core) leaseIdle(ev LeaseIdle) {
	c.tell(wire.MsgLeaseBack, wire.LeaseBack{Lease: ev.Lease, Slots: ev.Slots})
	c.lessGiven(ev.Lease, int(ev.Slots))
}

// Crowded says whether tasks have all the workers that they may have: no more of other
// nodes' are wanted then.
func (c *Core) Crowded(crowded bool) { c.leases.crowded = crowded }

// leaseOffer grants of an offer what there is room for now, or, if the offer may wait,
// what there is once it is its turn.
func (c *Core) leaseOffer(m wire.LeaseOffer) {
	if c.leases.gives[m.Lease] != nil || slices.ContainsFunc(c.offers, func(o offer) bool { return o.Lease == m.Lease }) {
		return
	}
	why := c.refusesOffer(&m)
	n := 0
	switch {
	case why != "":
	case m.Shape.Strategy.Kind == wire.StrategyGroup:
		st := &m.Shape.Strategy
		limit := int(min(m.Slots, 1<<16))
		n = max(0, c.pool.times(st, m.Shape.Resources, limit+c.unusedOf(st))-c.unusedOf(st))
		why = "the bundle has no room for it"
	case m.Wait:
		c.offers = append(c.offers, offer{LeaseOffer: m, at: c.now})
		c.admitting = true
		return
	default:
		if c.mayTake(offerWho(&m), m.Shape.Resources) {
			n = c.roomBeside(c.now, m.Shape.Time).Times(m.Shape.Resources, int(min(m.Slots, 1<<16)))
		}
		why = "free are " + c.pool.available().String()
	}
	c.grant(&m, n, why)
}

// refusesOffer says why an offer is not even looked at; "" = it is.
func (c *Core) refusesOffer(m *wire.LeaseOffer) string {
	switch {
	case c.s.phase.Phase != Working:
		return "the node leaves"
	case c.now > m.Until:
		return "the offer came too late"
	case c.leases.crowded:
		return "it has as many workers as it may have"
	}
	return ""
}

func offerWho(m *wire.LeaseOffer) Who { return Who{m.Shape.Owner, m.Shape.Priority} }

// grant answers an offer.
func (c *Core) grant(m *wire.LeaseOffer, n int, why string) {
	if n > 0 {
		why = ""
		c.leases.gives[m.Lease] = &given{shape: m.Shape, number: m.Number, slots: n}
	}
	c.tellBack() // the head is not to count the same room twice
	c.tell(wire.MsgLeaseGrant, wire.LeaseGrant{Lease: m.Lease, Slots: uint32(n), Why: why})
}

// tellBack says which slots are given back.
func (c *Core) tellBack() {
	for _, b := range c.givesBack {
		c.tell(wire.MsgLeaseBack, b)
	}
	c.givesBack = nil
}

// offer is one that waits for its turn: room that is given back until then goes to it as
// to whoever else waits.
type offer struct {
	wire.LeaseOffer
	at int64
}

// offersDue answers the offers that have waited for as long as they may.
func (c *Core) offersDue() {
	c.offers = slices.DeleteFunc(c.offers, func(o offer) bool {
		why := c.refusesOffer(&o.LeaseOffer)
		if why != "" {
			c.grant(&o.LeaseOffer, 0, why)
		}
		return why != ""
	})
}

// takeOffer grants one slot of an offer whose turn it is, if there is room.
func (c *Core) takeOffer(o offer) bool {
	w, need := offerWho(&o.LeaseOffer), o.Shape.Resources
	if !c.heldRoom(c.now, o.Shape.Time).Fits(need) {
		return false
	}
	// Taken and given back at once: from here on it is the lease that keeps it.
	slot, ok := c.take(w, need)
	if !ok {
		return false
	}
	c.pool.give(need, slot)
	c.grant(&o.LeaseOffer, 1, "")
	c.offers = slices.DeleteFunc(c.offers, func(x offer) bool { return x.Lease == o.Lease })
	p := c.portion(w.Job)
	p.tasks = p.tasks.Add(need, 1)
	c.count(p)
	return true
}

// leaseCut takes slots of a lease away, on either side of it.
func (c *Core) leaseCut(m wire.LeaseCut) {
	c.offers = slices.DeleteFunc(c.offers, func(o offer) bool { return o.Lease == m.Lease })
	if !m.Taken {
		c.lessGiven(m.Lease, int(m.Slots))
	}
	c.do(LeaseLess{m})
}

// voidLeases ends all leases: the head that they came by is gone, or does not know.
func (c *Core) voidLeases() {
	if len(c.leases.gives) > 0 || c.leases.holdUntil != 0 {
		c.roomGiven, c.admitting = true, true
	}
	clear(c.leases.gives)
	c.offers = nil
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

// Leased reports whether a lease on this node stands and is one of the given node's life.
func (c *Core) Leased(id wire.LeaseID, number uint32) bool {
	g := c.leases.gives[id]
	return g != nil && g.number == number
}

// TakeLeased takes room for one worker under a lease; false = there is none now, or the
// lease is over or used up.
func (c *Core) TakeLeased(now int64, id wire.LeaseID) (Slot, bool) {
	g := c.leases.gives[id]
	if g == nil || g.usable() <= 0 {
		return Slot{}, false
	}
	if st := &g.shape.Strategy; st.Kind == wire.StrategyGroup {
		s, ok := c.pool.takeIn(st, g.shape.Resources)
		if ok {
			g.used++
		}
		return s, ok
	}
	w := Who{g.shape.Owner, g.shape.Priority}
	c.now = max(c.now, now)
	if !c.mayTake(w, g.shape.Resources) {
		c.asks(w, g.shape.Resources)
		return Slot{}, false
	}
	slots, ok := c.pool.take(g.shape.Resources, 1)
	if !ok {
		return Slot{}, false
	}
	g.used++
	p := c.portion(w.Job)
	p.tasks = p.tasks.Add(g.shape.Resources, 1)
	c.count(p)
	c.leases.tasks = c.leases.tasks.Add(g.shape.Resources, 1)
	return slots[0], true
}

// LendLeased lets another task have the slot of one that waits, or takes it back: one of the
// same lease, or, where the job has limits, any that the head gives a slot. It is not kept
// free meanwhile: whoever comes first has the room.
func (c *Core) LendLeased(id wire.LeaseID, lend bool) {
	if g := c.leases.gives[id]; g != nil {
		if lend {
			g.lent++
		} else {
			g.lent--
		}
	}
}

// GiveLeased gives back what TakeLeased gave; the lease may be over meanwhile.
func (c *Core) GiveLeased(id wire.LeaseID, need wire.Resources, s Slot) (wanted bool) {
	if g := c.leases.gives[id]; g != nil && g.used > 0 {
		g.used--
	}
	return c.GiveRoom(need, s)
}

// Check compares the counts of room with each other; for tests and the simulator.
func (c *Core) Check() error {
	free := c.pool.available().Add(c.unusedLeases(), -1)
	if free.Negative() {
		return errs.New(errs.Internal, "%s is free and leases keep %s", c.pool.available(), c.unusedLeases())
	}
	for id, g := range c.leases.gives {
		if g.used < 0 || g.slots <= 0 {
			return errs.New(errs.Internal, "lease %d has %d slots, %d are used", id, g.slots, g.used)
		}
	}
	return c.checkBundles()
}
