package core

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"launcher/internal/errs"
	"launcher/wire"
)

// whyNot says what a group waits for.
func (c *Core) whyNot(g *group) string {
	why := g.why
	if h := c.groups.hold; h != nil && h.group == g {
		var on []string
		for _, n := range c.order {
			if n.held == h {
				on = append(on, string(n.id))
			}
		}
		why += "; room is held for it on " + strings.Join(on, ", ")
	}
	return why
}

// whyGroups says what the groups of a job wait for.
func (c *Core) whyGroups(job string) (out []string) {
	for _, g := range c.groups.wait {
		if g.spec.Job == job {
			open := 0
			for _, at := range g.at {
				if at == "" {
					open++
				}
			}
			out = append(out, fmt.Sprintf("placement group %s (%s) waits for room for %d of its %d bundles: %s", cmp.Or(g.spec.Name, g.spec.ID.String()), g.state, open, len(g.at), cmp.Or(c.whyNot(g), "it is being placed")))
		}
	}
	return out
}

// groupRequest serves what agents and commands ask about groups.
func (c *Core) groupRequest(id uint64, r wire.GroupRequest) {
	out := []wire.GroupInfo{}
	tell := func(g *group) {
		if g != nil {
			out = append(out, wire.GroupInfo{Spec: g.spec, State: g.state, Nodes: slices.Clone(g.at), Why: c.whyNot(g)})
		}
	}
	switch r.What {
	case wire.GroupList:
		for _, g := range c.sortedGroups() {
			tell(g)
		}
	case wire.GroupFind:
		tell(c.groups.all[c.groups.names[r.Name]])
	case wire.GroupLook:
		tell(c.groups.all[r.ID])
		if why := c.groups.over[r.ID]; len(out) == 0 && why != "" {
			out = append(out, wire.GroupInfo{Spec: wire.GroupSpec{ID: r.ID}, State: wire.GroupRemoved, Why: why})
		}
	case wire.GroupRemove:
		if g := c.groups.all[r.ID]; g != nil {
			c.removeGroup(g, removed)
		}
	default:
		c.fail(id, errs.New(errs.Version, "the head does not know the question %.40q about placement groups", r.What))
		return
	}
	c.answer(id, out)
}
