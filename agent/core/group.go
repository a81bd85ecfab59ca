package core

import (
	"maps"
	"slices"

	"launcher/wire"
)

// Placement groups that were made on this node. They are in the journal, so that a head
// that was restarted hears of them again, with where they are.

// ownGroup is one of them.
type ownGroup struct {
	Spec  wire.GroupSpec
	State wire.GroupState
	Nodes []wire.NodeID
	why   string
}

// makeGroup takes a new group: it lies on this node if it may, and the head is told of
// it; else the head finds room for it.
func (c *Core) makeGroup(spec wire.GroupSpec) {
	if c.s.groups[spec.ID] != nil {
		c.do(GroupChanged{ID: spec.ID}) // told twice
		return
	}
	r := RecGroup{Spec: spec}
	if c.fitsHere(&spec) {
		bundles := make([]wire.Bundle, len(spec.Bundles))
		for i, need := range spec.Bundles {
			bundles[i] = wire.Bundle{Index: uint32(i), Need: need}
		}
		if c.takeBundles(spec.ID, bundles, 0) == "" {
			r.State, r.Nodes = wire.GroupCreated, slices.Repeat([]wire.NodeID{c.cfg.Hello.Node}, len(bundles))
		}
	}
	c.record(r)
	c.grouped.Made = append(c.grouped.Made, wire.GroupTold{Spec: spec, Nodes: r.Nodes})
	c.do(GroupChanged{ID: spec.ID})
}

// fitsHere reports whether a group may lie on this node alone without the head's choice.
func (c *Core) fitsHere(s *wire.GroupSpec) bool {
	if s.Name != "" || len(s.Limits) > 0 || len(s.Bundles) > 1 && s.Strategy != wire.GroupPack && s.Strategy != wire.GroupStrictPack {
		return false
	}
	for _, l := range s.Labels {
		if !wire.Matches(l, c.cfg.Hello.Labels) {
			return false
		}
	}
	return true
}

// endGroup ends a group of this node.
func (c *Core) endGroup(id wire.GroupID, why string) {
	g := c.s.groups[id]
	if g == nil {
		c.do(GroupChanged{ID: id, Over: true, Why: why})
		return
	}
	for i := range g.Spec.Bundles {
		c.dropBundle(wire.BundleID{Group: id, Index: uint32(i)}, why)
	}
	c.record(RecGroupOver{ID: id})
	c.grouped.Over = append(c.grouped.Over, id)
	c.do(GroupChanged{ID: id, Over: true, Why: why})
}

// groupNews takes what the head says of a group.
func (c *Core) groupNews(m wire.GroupNews) {
	g := c.s.groups[m.ID]
	switch {
	case g == nil:
	case m.State >= wire.GroupRemoved:
		for i := range g.Spec.Bundles {
			c.dropBundle(wire.BundleID{Group: m.ID, Index: uint32(i)}, m.Why)
		}
		c.record(RecGroupOver{ID: m.ID})
		c.do(GroupChanged{ID: m.ID, Over: true, Conflict: m.State == wire.GroupConflict, Why: m.Why})
	default:
		if g.State != m.State || !slices.Equal(g.Nodes, m.Nodes) {
			c.record(RecGroup{Spec: g.Spec, State: m.State, Nodes: m.Nodes})
		}
		c.s.groups[m.ID].why = m.Why
		c.do(GroupChanged{ID: m.ID, Told: true})
	}
}

// tellGroups tells the head what is new, or with all what there is.
func (c *Core) tellGroups(all bool) {
	if !c.welcome {
		return
	}
	if all {
		c.grouped.Made = nil
		for _, id := range c.s.groupIDs() {
			g := c.s.groups[id]
			c.grouped.Made = append(c.grouped.Made, wire.GroupTold{Spec: g.Spec, Nodes: g.Nodes})
		}
	}
	for m := &c.grouped; len(m.Made)+len(m.Over) > 0; {
		n := min(len(m.Made), maxTold)
		c.tell(wire.MsgGroupTell, wire.GroupTell{Made: m.Made[:n:n], Over: m.Over})
		m.Made, m.Over = m.Made[n:], nil
	}
	c.grouped = wire.GroupTell{}
}

// maxTold bounds the groups of one message.
const maxTold = 256

// Group is what this node knows of a group that was made here.
func (c *Core) Group(id wire.GroupID) (info wire.GroupInfo, ok bool) {
	g := c.s.groups[id]
	if g == nil {
		return info, false
	}
	return wire.GroupInfo{Spec: g.Spec, State: g.State, Nodes: g.Nodes, Why: g.why}, true
}

// Groups are all that were made here.
func (c *Core) Groups() (all []wire.GroupInfo) {
	for _, id := range c.s.groupIDs() {
		info, _ := c.Group(id)
		all = append(all, info)
	}
	return all
}

func (s *State) groupIDs() []wire.GroupID {
	out := make([]wire.GroupID, 0, len(s.groups))
	for id := range s.groups {
		out = append(out, id)
	}
	slices.SortFunc(out, func(a, b wire.GroupID) int { return slices.Compare(a[:], b[:]) })
	return out
}

// SetPrograms says what programs have on this node.
func (c *Core) SetPrograms(p wire.Programs) { c.programs = p }

// tellPrograms tells the head that this has changed: before it hears what they have made,
// which is of jobs that live.
func (c *Core) tellPrograms() {
	if c.welcome && c.programsDue {
		c.programsDue = false
		c.tell(wire.MsgPrograms, c.programs)
	}
}

// SetActors takes what is new of the detached actors of this node.
func (c *Core) SetActors(t wire.ActorTell) {
	for _, w := range t.Made {
		c.detached[w.Actor] = w
	}
	for _, id := range t.Over {
		delete(c.detached, id)
	}
}

// tellActors tells the head what is new, or with all what there is.
func (c *Core) tellActors(all bool) {
	if !c.welcome || !all && len(c.willed.Made)+len(c.willed.Over) == 0 {
		return
	}
	m := c.willed
	if c.willed = (wire.ActorTell{}); all {
		m.Made = nil
		for _, id := range slices.SortedFunc(maps.Keys(c.detached), func(a, b wire.ObjectID) int { return slices.Compare(a[:], b[:]) }) {
			m.Made = append(m.Made, c.detached[id])
		}
		if ids := m.Made; len(ids) > 0 { // one by one: wills may be long
			for _, w := range ids {
				c.tell(wire.MsgActorTell, wire.ActorTell{Made: []wire.ActorWill{w}})
			}
		}
		m.All = true
		for i := range m.Made {
			m.Made[i] = wire.ActorWill{Actor: m.Made[i].Actor}
		}
	}
	c.tell(wire.MsgActorTell, m)
}
