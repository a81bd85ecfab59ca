package core

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"launcher/wire"
)

const (
	// groupFor is how long a node keeps bundles that are not committed.
	groupFor = 5 * second
	// groupPause is before a group that found no room is tried again, twice as long each
	// time, unless room comes free meanwhile.
	groupPause     = 100 * millisecond
	groupLastPause = second
	// groupRefused is how long a node is not asked again for slots in a bundle that had none.
	groupRefused = 50 * millisecond
	// groupStarves is after how long room is held for the oldest group that waits.
	groupStarves = second
	// orphanFor is how long a node may keep bundles of a group that nobody has told of.
	orphanFor = 30 * second
	// unknownFor is how long tasks may wait for a group that nobody has told of.
	unknownFor = second
	// removed is why a group is over that somebody removed.
	removed = "it was removed"
	// maxGroupsOver bounds how many groups that were removed are remembered.
	maxGroupsOver = 10_000
)

// group is a placement group (wire/group.go). The owners of groups tell a new head of them; in
// the journal are those that outlive their owner (RecGroup).
type group struct {
	spec  wire.GroupSpec
	owner wire.NodeID
	at    []wire.NodeID // per bundle; "" = nowhere
	state wire.GroupState
	why   string

	round uint64                // of what is being reserved; 0 = nothing is
	plan  map[wire.NodeID][]int // the bundles of that, by node
	kept  map[wire.NodeID]bool  // nodes that have answered
	until int64                 // when it is given up
	next  int64                 // when it is tried again
	pause int64
	since int64                 // when it began to wait
	cool  map[wire.NodeID]int64 // nodes that have no room in their bundles now
}

// groups is all that the head knows of them.
type groups struct {
	all    map[wire.GroupID]*group
	names  map[string]wire.GroupID
	wait   []*group                // that want room, oldest first
	hold   *hold                   // of one of them
	over   map[wire.GroupID]string // why they were removed
	past   []wire.GroupID          // of over, oldest first
	round  uint64
	orphan map[wire.NodeID]orphans
}

// orphans are bundles that a node kept when it greeted.
type orphans struct {
	kept []wire.BundleID
	due  int64 // when those that nobody knows are dropped
}

func newGroups() groups {
	return groups{all: map[wire.GroupID]*group{}, names: map[string]wire.GroupID{}, over: map[wire.GroupID]string{}, orphan: map[wire.NodeID]orphans{}}
}

// groupTold takes what an owner says of its groups.
func (c *Core) groupTold(n *node, m wire.GroupTell) {
	for _, x := range m.Made {
		c.groupMade(n, x)
	}
	for _, id := range m.Over {
		if g := c.groups.all[id]; g != nil {
			c.removeGroup(g, removed)
		} else {
			c.groupOver(id, removed)
		}
	}
}

func (c *Core) groupMade(n *node, x wire.GroupTold) {
	id := x.Spec.ID
	g := c.groups.all[id]
	switch had, named := c.groups.names[x.Spec.Name]; {
	case g != nil: // once more
		if !c.recovering {
			c.tellGroup(g)
		}
		return
	case c.groups.over[id] != "":
		c.send(n, wire.MsgGroupNews, wire.GroupNews{ID: id, State: wire.GroupRemoved, Why: c.groups.over[id]})
		return
	case !x.Spec.Detached && !c.lives(x.Spec.Job) && !c.recovering:
		c.groupOver(id, "its job is over")
		c.send(n, wire.MsgGroupNews, wire.GroupNews{ID: id, State: wire.GroupRemoved, Why: c.groups.over[id]})
		return
	case x.Spec.Name != "" && named && had != id:
		c.send(n, wire.MsgGroupNews, wire.GroupNews{ID: id, State: wire.GroupConflict, Why: fmt.Sprintf("there is a placement group %q already", x.Spec.Name)})
		return
	case len(x.Spec.Bundles) == 0 || len(x.Spec.Bundles) > wire.MaxBundles:
		c.send(n, wire.MsgGroupNews, wire.GroupNews{ID: id, State: wire.GroupRemoved, Why: fmt.Sprintf("a group has 1 to %d bundles", wire.MaxBundles)})
		return
	}
	if why := overLimit(x.Spec.Limits, x.Spec.Whole()); why != "" {
		c.groupOver(id, why)
		c.send(n, wire.MsgGroupNews, wire.GroupNews{ID: id, State: wire.GroupRemoved, Why: why})
		return
	}
	g = c.newGroup(x.Spec, n.id)
	if x.Spec.Detached {
		c.keepGroup(g)
	}
	if len(x.Nodes) == len(g.at) {
		copy(g.at, x.Nodes)
	}
	for i, at := range g.at {
		if at != "" && c.nodes[at] == nil {
			g.at[i] = ""
		}
	}
	switch {
	case g.placed():
		g.state = wire.GroupCreated
	case len(x.Nodes) == 0:
		c.groupWaits(g)
	default:
		g.state = wire.GroupMoving
		c.groupWaits(g)
	}
	if len(x.Nodes) == 0 || g.state != wire.GroupCreated {
		c.tellGroup(g)
	}
}

func (c *Core) newGroup(spec wire.GroupSpec, owner wire.NodeID) *group {
	g := &group{spec: spec, owner: owner, at: make([]wire.NodeID, len(spec.Bundles)), cool: map[wire.NodeID]int64{}}
	c.groups.all[spec.ID] = g
	if spec.Name != "" {
		c.groups.names[spec.Name] = spec.ID
	}
	return g
}

// keepGroup has a group outlive its owner's node.
func (c *Core) keepGroup(g *group) {
	if c.d.st.Groups[g.spec.ID] == nil {
		c.record(RecGroup{Spec: g.spec, At: c.now})
	}
}

// loadGroups takes up the groups of the journal; nodes that greet say where they are.
func (c *Core) loadGroups() {
	for _, r := range slices.SortedFunc(maps.Values(c.d.st.Groups), func(a, b *RecGroup) int { return cmp.Compare(a.At, b.At) }) {
		var owner wire.NodeID
		for _, d := range c.d.st.Nodes {
			if d.Number == r.Spec.Owner {
				owner = d.ID
			}
		}
		g := c.newGroup(r.Spec, owner)
		g.state = wire.GroupMoving
	}
}

// groupsRecovered has what the nodes do not keep any more of the journal's groups placed
// again.
func (c *Core) groupsRecovered() {
	for _, r := range slices.SortedFunc(maps.Values(c.d.st.Groups), func(a, b *RecGroup) int { return cmp.Compare(a.At, b.At) }) {
		g := c.groups.all[r.Spec.ID]
		if g.placed() {
			g.state = wire.GroupCreated
		} else {
			c.groupWaits(g)
		}
		c.tellGroup(g)
	}
}

func (g *group) name() string { return cmp.Or(g.spec.Name, g.spec.ID.String()) }

func (g *group) placed() bool { return !slices.Contains(g.at, "") }

// groupWaits has room looked for.
func (c *Core) groupWaits(g *group) {
	if !slices.Contains(c.groups.wait, g) {
		c.groups.wait = append(c.groups.wait, g)
		g.since = c.now
	}
	g.next, g.pause = 0, groupPause
	c.wanting()
}

// tellGroup tells the owner how its group is.
func (c *Core) tellGroup(g *group) {
	if n := c.nodes[g.owner]; n != nil && c.durable(n).Number == g.spec.Owner {
		c.send(n, wire.MsgGroupNews, wire.GroupNews{ID: g.spec.ID, State: g.state, Nodes: slices.Clone(g.at), Why: g.why})
	}
}

// removeGroup ends a group.
func (c *Core) removeGroup(g *group, why string) {
	c.dropPlan(g, why)
	on := map[wire.NodeID][]int{}
	for i, id := range g.at {
		if id != "" {
			on[id] = append(on[id], i)
		}
	}
	c.orderAll(g, on, wire.BundleOrder{What: wire.BundleDrop, Why: "its placement group was removed"})
	g.state, g.why = wire.GroupRemoved, why
	c.tellGroup(g)
	delete(c.groups.all, g.spec.ID)
	if c.groups.names[g.spec.Name] == g.spec.ID {
		delete(c.groups.names, g.spec.Name)
	}
	c.groups.wait = slices.DeleteFunc(c.groups.wait, func(x *group) bool { return x == g })
	c.keepGroupRoom()
	c.groupOver(g.spec.ID, why)
	if c.d.st.Groups[g.spec.ID] != nil {
		c.record(RecGroupOver{ID: g.spec.ID})
	}
	c.groupDemand(g.spec.ID)
}

// groupOver remembers for a while that a group was removed.
func (c *Core) groupOver(id wire.GroupID, why string) {
	if c.groups.over[id] != "" {
		return
	}
	c.groups.over[id] = why
	c.groups.past = append(c.groups.past, id)
	if len(c.groups.past) > maxGroupsOver {
		delete(c.groups.over, c.groups.past[0])
		c.groups.past = c.groups.past[1:]
	}
}

// orderAll sends an order about bundles to their nodes.
func (c *Core) orderAll(g *group, on map[wire.NodeID][]int, o wire.BundleOrder) {
	for _, id := range slices.Sorted(maps.Keys(on)) {
		n := c.nodes[id]
		if n == nil {
			continue
		}
		o.Group, o.Bundles = g.spec.ID, nil
		for _, i := range on[id] {
			b := wire.Bundle{Index: uint32(i)}
			if o.What == wire.BundleReserve {
				b.Need = g.spec.Bundles[i]
				o.Until = c.now + groupFor + n.offset
			}
			o.Bundles = append(o.Bundles, b)
		}
		c.send(n, wire.MsgBundleOrder, o)
	}
}

// sum is what some of the bundles need.
func (g *group) sum(of []int) (r wire.Resources) {
	for _, i := range of {
		r = r.Add(g.spec.Bundles[i], 1)
	}
	return r
}

// placeGroups finds room for groups that wait, in the order in which they were made.
func (c *Core) placeGroups() {
	for _, g := range slices.Clone(c.groups.wait) {
		switch {
		case g.round != 0 && c.now >= g.until:
			c.groupFails(g, "a node did not answer in time")
		case g.round == 0 && (c.now >= g.next || c.groups.hold != nil && c.groups.hold.group == g):
			c.tryGroup(g)
		}
	}
	c.keepGroupRoom()
}

// tryGroup reserves the room of a group, if there is some.
func (c *Core) tryGroup(g *group) {
	if why := c.groupAtLimit(g); why != "" {
		c.groupFails(g, why)
		return
	}
	var sites []*groupSite
	asks := &wire.Shape{}
	for _, n := range c.order {
		if c.usable(n) && (c.mayLease(n, asks) || n.held.group == g) {
			sites = append(sites, &groupSite{n: n, room: c.leaseRoom(n)})
		}
	}
	plan, why := placeBundles(g, sites)
	if plan == nil {
		c.groupFails(g, why)
		return
	}
	c.groups.round++
	g.round, g.until = c.groups.round, c.now+groupFor-second
	g.plan, g.kept = map[wire.NodeID][]int{}, map[wire.NodeID]bool{}
	for _, i := range slices.Sorted(maps.Keys(plan)) {
		g.plan[plan[i].id] = append(g.plan[plan[i].id], i)
	}
	for id, of := range g.plan {
		n := c.nodes[id]
		n.offered = n.offered.Add(g.sum(of), 1)
		n.idle = 0
	}
	c.orderAll(g, g.plan, wire.BundleOrder{What: wire.BundleReserve, Round: g.round, Commit: len(g.plan) == 1})
}

// groupFails has a group tried again later.
func (c *Core) groupFails(g *group, why string) {
	c.dropPlan(g, why)
	g.next, g.pause = c.now+g.pause, min(2*g.pause, groupLastPause)
	if g.why != why {
		g.why = why
		c.tellGroup(g)
	}
}

// dropPlan gives back what was being reserved.
func (c *Core) dropPlan(g *group, why string) {
	if g.round == 0 {
		return
	}
	for id, of := range g.plan {
		if n := c.nodes[id]; n != nil && !g.kept[id] {
			n.offered = n.offered.Add(g.sum(of), -1)
		}
	}
	c.orderAll(g, g.plan, wire.BundleOrder{What: wire.BundleDrop, Why: why})
	g.round, g.plan, g.kept = 0, nil, nil
}

// bundleNews takes a node's answer.
func (c *Core) bundleNews(n *node, m wire.BundleNews) {
	g := c.groups.all[m.Group]
	if g == nil || g.round == 0 || g.round != m.Round || g.plan[n.id] == nil || g.kept[n.id] {
		return
	}
	need := g.sum(g.plan[n.id])
	n.offered = n.offered.Add(need, -1)
	g.kept[n.id] = true
	if !m.OK {
		n.free = wire.Resources{} // its next Beat says what it really has
		c.groupFails(g, "node "+string(n.id)+" has no room: "+m.Why)
		return
	}
	n.tasks, n.free = n.tasks.Add(need, 1), n.free.Add(need, -1) // as its later Beats say
	n.beat.Lasting = n.beat.Lasting.Add(need, 1)
	if len(g.kept) < len(g.plan) {
		return
	}
	if len(g.plan) > 1 {
		c.orderAll(g, g.plan, wire.BundleOrder{What: wire.BundleCommit})
	}
	for id, of := range g.plan {
		for _, i := range of {
			g.at[i] = id
		}
	}
	g.round, g.plan, g.kept = 0, nil, nil
	g.state, g.why = wire.GroupCreated, ""
	c.groups.wait = slices.DeleteFunc(c.groups.wait, func(x *group) bool { return x == g })
	c.keepGroupRoom()
	c.tellGroup(g)
	c.wanting()
}

// bundlesKept compares what a node keeps, who has just greeted, with what it should.
func (c *Core) bundlesKept(n *node, kept []wire.BundleID) {
	has := map[wire.BundleID]bool{}
	for _, b := range kept {
		has[b] = true
	}
	if c.recovering {
		for _, b := range kept {
			if r := c.d.st.Groups[b.Group]; r != nil && int(b.Index) < len(r.Spec.Bundles) {
				c.groups.all[b.Group].at[b.Index] = n.id
			}
		}
	}
	c.bundlesLost(n, func(b wire.BundleID) bool { return !has[b] })
	if len(kept) > 0 {
		c.groups.orphan[n.id] = orphans{kept: kept, due: c.now + orphanFor}
	} else {
		delete(c.groups.orphan, n.id)
	}
}

// bundlesLost has bundles of a node placed again.
func (c *Core) bundlesLost(n *node, lost func(wire.BundleID) bool) {
	for _, g := range c.sortedGroups() {
		moved := false
		for i, id := range g.at {
			if id == n.id && lost(wire.BundleID{Group: g.spec.ID, Index: uint32(i)}) {
				g.at[i], moved = "", true
			}
		}
		if moved {
			c.dropPlan(g, "a node is gone")
			g.state, g.why = wire.GroupMoving, "bundles on node "+string(n.id)+" are lost"
			c.groupWaits(g)
			c.tellGroup(g)
		}
	}
}

func (c *Core) sortedGroups() []*group {
	return slices.SortedFunc(maps.Values(c.groups.all), func(a, b *group) int { return slices.Compare(a.spec.ID[:], b.spec.ID[:]) })
}

// groupsUnanswered gives up what is being reserved on a node whose session is over.
func (c *Core) groupsUnanswered(n *node) {
	for _, g := range slices.Clone(c.groups.wait) {
		if g.round != 0 && g.plan[n.id] != nil {
			c.groupFails(g, "node "+string(n.id)+" has lost its connection")
		}
	}
}

// groupsGone ends what a node that is gone had to do with groups.
func (c *Core) groupsGone(n *node, number uint32) {
	delete(c.groups.orphan, n.id)
	for _, g := range c.sortedGroups() {
		if g.spec.Owner == number {
			c.keepGroup(g)
		}
	}
	c.bundlesLost(n, func(wire.BundleID) bool { return true })
}

// watchGroups lets time pass for groups.
func (c *Core) watchGroups() {
	if len(c.groups.wait) > 0 {
		c.wanting()
	}
	for _, id := range sortedKeys(c.groups.orphan) {
		o := c.groups.orphan[id]
		if c.now < o.due {
			continue
		}
		delete(c.groups.orphan, id)
		for _, b := range o.kept {
			if g := c.groups.all[b.Group]; g == nil || int(b.Index) >= len(g.at) || g.at[b.Index] != id && g.plan[id] == nil {
				c.send(c.nodes[id], wire.MsgBundleOrder, wire.BundleOrder{What: wire.BundleDrop, Group: b.Group, Bundles: []wire.Bundle{{Index: b.Index}}, Why: "nobody has told of its placement group"})
			}
		}
	}
	c.groupDemand(wire.GroupID{})
}

// groupDemand fails the tasks that wait for a group which is not there, or cannot ever run
// there: of one group, or with the zero id of all.
func (c *Core) groupDemand(of wire.GroupID) {
	for _, n := range c.order {
		for _, id := range sortedKeys(n.demands) {
			d := n.demands[id]
			if s := &d.spec.Strategy; s.Kind != wire.StrategyGroup || !of.IsZero() && s.Group != of {
				continue
			}
			if x := c.neverGrouped(&d.spec, c.now-d.at >= unknownFor); x.Why != "" {
				x.Shape = id
				c.send(n, wire.MsgInfeasible, x)
				delete(n.demands, id)
			}
		}
	}
}

// neverGrouped says why tasks can never run in their group.
func (c *Core) neverGrouped(s *wire.Shape, late bool) (x wire.Infeasible) {
	st := &s.Strategy
	g := c.groups.all[st.Group]
	switch {
	case g == nil && (late || c.groups.over[st.Group] != "") && !c.recovering:
		x.Code, x.Why = "group_removed", fmt.Sprintf("placement group %s was removed", st.Group)
		if why := c.groups.over[st.Group]; why != "" && why != removed {
			x.Why += ": " + why
		}
	case g == nil:
	case int(st.Bundle) >= len(g.at):
		x.Why = fmt.Sprintf("it asks for bundle %d of placement group %s, which has %d", st.Bundle, st.Group, len(g.at))
	default:
		for i, b := range g.spec.Bundles {
			if (st.Bundle < 0 || int(st.Bundle) == i) && b.Fits(s.Resources) {
				return x
			}
		}
		x.Why = fmt.Sprintf("it asks for %s, which no bundle of placement group %s has that it may use", s.Resources, st.Group)
	}
	return x
}

// matchGroups leases slots in the bundles of groups to tasks that are not where those are.
func (c *Core) matchGroups() {
	for _, n := range c.order {
		for _, id := range sortedKeys(n.demands) {
			d := n.demands[id]
			st := &d.spec.Strategy
			g := c.groups.all[st.Group]
			if st.Kind != wire.StrategyGroup || g == nil || d.want() == 0 {
				continue
			}
			room := map[*node]int{}
			for i, at := range g.at {
				on := c.nodes[at]
				if on == nil || on == n || st.Bundle >= 0 && int(st.Bundle) != i || !c.usable(on) || c.now < g.cool[at] {
					continue
				}
				room[on] += g.spec.Bundles[i].Times(d.spec.Resources, maxWindow)
			}
			for _, on := range slices.SortedFunc(maps.Keys(room), func(a, b *node) int { return cmp.Or(cmp.Compare(room[b], room[a]), byName(a, b)) }) {
				k := room[on]
				for _, l := range on.gives {
					if x := &l.spec.Strategy; x.Kind == wire.StrategyGroup && x.Group == st.Group && (x.Bundle == st.Bundle || x.Bundle < 0 || st.Bundle < 0) {
						k -= l.slots
					}
				}
				if k = min(k, d.want()); k > 0 {
					d.flying += k
					c.offer(d, on, k, false)
				}
			}
		}
	}
}

// refusedIn: a bundle had no room for a lease.
func (c *Core) refusedIn(l *lease) {
	if g := c.groups.all[l.spec.Strategy.Group]; g != nil {
		g.cool[l.on.id] = c.now + groupRefused
		if c.leasing == 0 {
			c.leasing = c.now + groupRefused
		}
	}
}

// groupDemandOf is how many nodes of a pool the groups that wait could use.
func (c *Core) groupDemandOf(p *pool) int {
	need := 0.0
	for _, g := range c.groups.wait {
		for i, id := range g.at {
			if id != "" || i < len(g.spec.Labels) && !wire.Matches(g.spec.Labels[i], p.spec.Labels) {
				continue
			}
			switch {
			case p.shape == nil:
				need = max(need, 1)
			case g.spec.Strategy == wire.GroupStrictSpread:
				need++
			default:
				if per := p.shape.Times(g.spec.Bundles[i], maxWindow); per > 0 {
					need += 1 / float64(per)
				}
			}
		}
	}
	if n := int(need); float64(n) == need {
		return n
	}
	return int(need) + 1
}
