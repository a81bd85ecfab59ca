package core

import (
	"slices"

	"launcher/wire"
)

const (
	// offerFor is how long an agent has to answer an offer.
	offerFor = 3 * second
	// matchEvery bounds how often demand is matched with room.
	matchEvery = 10 * millisecond
	// leaseEpoch is the lowest bit of the head's epoch in a LeaseID.
	leaseEpoch = 40
)

// lease is room on one node for another one's tasks.
type lease struct {
	id    wire.LeaseID
	to    *node // who runs its tasks there
	on    *node
	shape uint32 // of to
	spec  wire.Shape
	slots int
	seq   uint64 // of Leased; 0 = the offer is not answered
	at    int64  // of the offer, then of the grant
	wait  bool   // the offer waits for its turn there
}

// demand is what a node has waiting of one shape.
type demand struct {
	n       *node
	id      uint32
	spec    wire.Shape
	waiting int
	since   int64
	near    uint32
	flying  int    // slots under way to it, or told and not counted in
	has     int    // slots of all its leases
	told    string // why it gets nothing, as its node was told
	at      int64  // since when the head knows of it
	hungry  int64  // since when it wants more and gets nothing; 0 = it does not
}

// room is what a number of its slots takes of the node's room: those in a bundle of a group
// nothing.
func (l *lease) room(slots int) wire.Resources {
	if l.spec.Strategy.Kind == wire.StrategyGroup {
		return wire.Resources{}
	}
	return wire.Resources{}.Add(l.spec.Resources, int64(slots))
}

// flying reports whether who asked has not counted it in yet.
func (l *lease) flying() bool { return !l.wait && (l.seq == 0 || l.seq > l.to.leaseSeen) }

func (d *demand) want() int { return max(0, d.waiting-d.flying) }

// demanded takes a node's new demand.
func (c *Core) demanded(n *node, m wire.Demand) {
	old := n.demands
	n.leaseSeen = m.Seen
	n.demands = map[uint32]*demand{}
	for i, x := range m.Shapes {
		if i >= wire.MaxDemand {
			break
		}
		d := &demand{n: n, id: x.ID, spec: x.Shape, waiting: int(min(x.Waiting, 1<<30)), since: min(c.now, x.Since-n.offset), near: x.Near}
		if o := old[x.ID]; o != nil && o.waiting > 0 {
			d.hungry, d.at, d.told = o.hungry, o.at, o.told
		} else if d.at = c.now; x.Shape.Strategy.Kind == wire.StrategyGroup {
			if never := c.neverGrouped(&x.Shape, false); never.Why != "" && x.Waiting > 0 {
				never.Shape = x.ID
				c.send(n, wire.MsgInfeasible, never)
				continue
			}
		} else if why := c.neverLeased(n, &x.Shape); why != "" && x.Waiting > 0 {
			c.send(n, wire.MsgInfeasible, wire.Infeasible{Shape: x.ID, Why: why})
			continue
		}
		n.demands[x.ID] = d
	}
	c.anyLease = true
	for _, l := range n.takes {
		if d := n.demands[l.shape]; d != nil {
			d.has += l.slots
			if l.flying() {
				d.flying += l.slots
			}
		}
	}
	c.wanting()
}

// wanting has demand looked at soon.
func (c *Core) wanting() {
	if c.leasing == 0 {
		c.leasing = max(c.now, c.matched+matchEvery)
	}
}

// offer asks for room: for what is there, or, to wait, for what others give back.
func (c *Core) offer(d *demand, on *node, slots int, wait bool) {
	c.leaseID++
	l := &lease{id: wire.LeaseID(uint64(c.Epoch())<<leaseEpoch | c.leaseID), to: d.n, on: on, shape: d.id, spec: d.spec, slots: slots, at: c.now, wait: wait}
	d.n.takes[l.id], on.gives[l.id] = l, l
	if !wait {
		on.offered = on.offered.Add(l.room(slots), 1)
		d.hungry = 0
	}
	on.idle = 0
	d.has += slots
	c.send(on, wire.MsgLeaseOffer, wire.LeaseOffer{Lease: l.id, For: d.n.id, Number: c.durable(d.n).Number, Shape: l.spec, Slots: uint32(slots), Until: c.now + offerFor + on.offset, Wait: wait})
}

// leaseGranted takes the answer to an offer.
func (c *Core) leaseGranted(n *node, m wire.LeaseGrant) {
	l := n.gives[m.Lease]
	if l == nil || l.seq != 0 {
		if l == nil && m.Slots > 0 {
			c.send(n, wire.MsgLeaseCut, wire.LeaseCut{Lease: m.Lease, Slots: m.Slots, Why: "it is not wanted any more"})
		}
		return
	}
	got := min(int(m.Slots), l.slots)
	d, waited := l.to.demands[l.shape], l.wait
	if l.wait = false; !waited {
		n.offered = n.offered.Add(l.room(l.slots), -1)
	}
	if d != nil {
		if d.has -= l.slots - got; waited {
			d.flying += got
		} else {
			d.flying -= l.slots - got
		}
	}
	l.slots = got
	if got == 0 {
		c.dropLease(l)
		if l.spec.Strategy.Kind == wire.StrategyGroup {
			c.refusedIn(l)
			return
		}
		if waited {
			return
		}
		// Its next Beat says what it really has; until then it has nothing.
		n.free = wire.Resources{}
		c.wanting()
		return
	}
	// Later Beats count it in; this one cannot.
	n.tasks = n.tasks.Add(l.room(got), 1)
	n.free = n.free.Add(l.room(got), -1)
	l.to.leasedSeq++
	l.seq, l.at = l.to.leasedSeq, c.now
	c.send(l.to, wire.MsgLeased, wire.Leased{Seq: l.seq, Lease: l.id, Shape: l.shape, Node: n.id, Number: c.durable(n).Number, Addr: n.hello.Addr, Slots: uint32(got)})
}

// leaseBack takes slots back that one side gives up; the other side is told.
func (c *Core) leaseBack(n *node, m wire.LeaseBack) {
	l := n.takes[m.Lease]
	if m.Given {
		l = n.gives[m.Lease]
	}
	if l == nil {
		return
	}
	k := min(int(m.Slots), l.slots)
	switch {
	case m.Given:
		c.send(l.to, wire.MsgLeaseCut, wire.LeaseCut{Lease: l.id, Slots: uint32(k), Why: "node " + string(n.id) + " needs the room", Taken: true})
		c.cut(l, k, "")
	case l.to == l.on: // it has taken its own room back at once
		c.cut(l, k, "")
	default:
		c.cut(l, k, "", l.on)
	}
	c.wanting()
}

// cut makes a lease smaller, or ends it, and tells the given nodes. The room itself comes
// back with the Beats of the node that gave it.
func (c *Core) cut(l *lease, k int, why string, tell ...*node) {
	l.slots -= k
	if d := l.to.demands[l.shape]; d != nil {
		d.has -= k
		if l.flying() {
			d.flying -= k
		}
	}
	if l.seq == 0 && !l.wait {
		l.on.offered = l.on.offered.Add(l.room(k), -1)
	}
	for _, n := range slices.Compact(tell) {
		c.send(n, wire.MsgLeaseCut, wire.LeaseCut{Lease: l.id, Slots: uint32(k), Why: why})
	}
	if why != "" && l.seq != 0 {
		c.remains(l, k)
	}
	if l.slots == 0 {
		c.dropLease(l)
	}
}

func (c *Core) dropLease(l *lease) {
	delete(l.to.takes, l.id)
	delete(l.on.gives, l.id)
	l.on.tasked = c.now
}

// endLeases ends what a node has given and taken: it is away, gone, or begins anew.
func (c *Core) endLeases(n *node, why string) {
	for _, id := range sortedKeys(n.gives) {
		l := n.gives[id]
		c.cut(l, l.slots, why, l.to)
	}
	for _, id := range sortedKeys(n.takes) {
		l := n.takes[id]
		c.cut(l, l.slots, why, l.on)
	}
	c.groupsUnanswered(n)
	n.demands, n.leasedSeq, n.leaseSeen, n.offered = map[uint32]*demand{}, 0, 0, wire.Resources{}
	c.wanting()
}

// takeBack cuts the leases of a node that drains or is to be left to a gang.
func (c *Core) takeBack(n *node, why string, which func(*lease) bool) {
	for _, id := range sortedKeys(n.gives) {
		if l := n.gives[id]; which == nil || which(l) {
			c.cut(l, l.slots, why, l.to, n)
		}
	}
}

// watchLeases ends offers that nobody answers.
func (c *Core) watchLeases() {
	for _, n := range c.order {
		for _, id := range sortedKeys(n.gives) {
			if l := n.gives[id]; l.seq == 0 && c.now-l.at > offerFor {
				c.cut(l, l.slots, "it was not answered in time", n)
			}
		}
		if c.durable(n).Drain != nil {
			c.takeBack(n, "node "+string(n.id)+" is drained", nil)
		}
	}
	c.anyLease = false
	for _, n := range c.order {
		c.anyLease = c.anyLease || len(n.demands)+len(n.gives) > 0
		for _, id := range sortedKeys(n.demands) {
			d := n.demands[id]
			if d.want() > 0 {
				c.wanting()
			}
			if d.want() == 0 || d.flying > 0 {
				d.hungry = 0
			}
		}
	}
}

// beatRoom takes what a node's beat says for leases and holds.
func (c *Core) beatRoom(n *node, b *wire.Beat) {
	if !n.free.Equal(b.Free) || !n.tasks.Equal(b.Tasks) {
		c.wanting()
	}
	if !n.tasks.Equal(b.Tasks) {
		c.touchNode(n)
	}
	n.free, n.tasks = b.Free, b.Tasks
	if n.beat.Needed != b.Needed {
		c.touchNode(n)
	}
	if !n.tasks.Nothing() || b.Needed {
		n.idle, n.tasked = 0, c.now
	}
}
