package core

import (
	"cmp"
	"fmt"
	"slices"

	"launcher/wire"
)

// groupSite is a node that bundles of a group may be placed on.
type groupSite struct {
	n    *node
	room wire.Resources // what is left of it
	has  int            // bundles of the group that are there
}

// placeBundles finds a site for each bundle that has none, or says why there is not enough
// room. sites are changed by it.
func placeBundles(g *group, sites []*groupSite) (plan map[int]*node, why string) {
	var open []int
	on := map[wire.NodeID]*groupSite{}
	for _, s := range sites {
		on[s.n.id] = s
	}
	var only *groupSite // with STRICT_PACK, where the others are
	for i, id := range g.at {
		if id == "" {
			open = append(open, i)
		} else if s := on[id]; s != nil {
			s.has++
			only = s
		}
	}
	// The largest first: the small ones fit in what they leave.
	slices.SortStableFunc(open, func(a, b int) int { return cmp.Compare(size(g.spec.Bundles[b]), size(g.spec.Bundles[a])) })
	switch {
	case g.spec.Strategy == wire.GroupStrictSpread:
		return g.strictSpread(open, sites)
	case g.spec.Strategy == wire.GroupSpread:
		return g.each(open, sites, func(a, b *groupSite) int {
			return cmp.Or(cmp.Compare(a.has, b.has), cmp.Compare(size(b.room), size(a.room)))
		})
	case g.spec.Strategy == wire.GroupStrictPack && only != nil:
		sites = []*groupSite{only}
	}
	if plan := g.onOne(open, sites); plan != nil {
		return plan, ""
	}
	if g.spec.Strategy == wire.GroupStrictPack {
		return nil, fmt.Sprintf("no node has room for all %d bundles", len(open))
	}
	return g.each(open, sites, func(a, b *groupSite) int {
		return cmp.Or(cmp.Compare(b.has, a.has), cmp.Compare(size(b.room), size(a.room)))
	})
}

// size orders amounts of room.
func size(r wire.Resources) float64 {
	s := float64(r.CPU)/wire.Unit + 64*float64(r.GPU)/wire.Unit + float64(r.Memory)/(64<<30)
	for _, v := range r.Custom {
		s += float64(v) / wire.Unit
	}
	return s
}

// may reports whether a bundle's labels allow a node.
func (g *group) may(i int, n *node) bool {
	return i >= len(g.spec.Labels) || wire.Matches(g.spec.Labels[i], n.hello.Labels)
}

func (s *groupSite) put(need wire.Resources) {
	s.room = s.room.Add(need, -1)
	s.has++
}

// onOne places all on the node that has some of the group, or else the least room to spare.
func (g *group) onOne(open []int, sites []*groupSite) map[int]*node {
	var best *groupSite
	for _, s := range sites {
		room, ok := s.room, true
		for _, i := range open {
			if ok = g.may(i, s.n) && room.Fits(g.spec.Bundles[i]); !ok {
				break
			}
			room = room.Add(g.spec.Bundles[i], -1)
		}
		if ok && (best == nil || cmp.Or(cmp.Compare(best.has, s.has), cmp.Compare(size(s.room), size(best.room))) < 0) {
			best = s
		}
	}
	if best == nil {
		return nil
	}
	plan := map[int]*node{}
	for _, i := range open {
		plan[i] = best.n
	}
	return plan
}

// each places one after the other, on the best node that has room.
func (g *group) each(open []int, sites []*groupSite, better func(a, b *groupSite) int) (map[int]*node, string) {
	plan := map[int]*node{}
	for _, i := range open {
		var best *groupSite
		for _, s := range sites {
			if g.may(i, s.n) && s.room.Fits(g.spec.Bundles[i]) && (best == nil || better(s, best) < 0) {
				best = s
			}
		}
		if best == nil {
			return nil, g.noRoom(i)
		}
		best.put(g.spec.Bundles[i])
		plan[i] = best.n
	}
	return plan, ""
}

// strictSpread finds a node for each bundle that no other has: a matching, by moving those
// that were placed before along.
func (g *group) strictSpread(open []int, sites []*groupSite) (map[int]*node, string) {
	of := map[*groupSite]int{} // the bundle of a site, counted from 1
	var place func(i int, seen map[*groupSite]bool) bool
	place = func(i int, seen map[*groupSite]bool) bool {
		for _, s := range sites {
			if seen[s] || s.has > 0 || !g.may(i, s.n) || !s.room.Fits(g.spec.Bundles[i]) {
				continue
			}
			seen[s] = true
			if of[s] == 0 || place(of[s]-1, seen) {
				of[s] = i + 1
				return true
			}
		}
		return false
	}
	for _, i := range open {
		if !place(i, map[*groupSite]bool{}) {
			return nil, g.noRoom(i) + " that has no other bundle of the group"
		}
	}
	plan := map[int]*node{}
	for s, i := range of {
		plan[i-1] = s.n
	}
	return plan, ""
}

func (g *group) noRoom(i int) string {
	return fmt.Sprintf("bundle %d needs %s, and there is no node with such room", i, g.spec.Bundles[i])
}
