package tasks

import (
	"slices"

	"launcher/wire/sdk"
)

// refuse lets go of the outputs of an attempt that counts no more.
func (c *Core) refuse(number uint32, res sdk.Result, rest []byte) {
	if t := c.tasks[res.Task]; t == nil || t.state == done {
		c.letGoAt(number, res.Task) // it is kept until then if it is a call or an actor
	}
	for i := range res.Values {
		v, _, more, err := sdk.CutGiven(rest)
		if err != nil {
			return
		}
		rest = more
		x := res.Task.With(uint32(i) + 1)
		if o := c.objects[x]; v.Kind == sdk.Elsewhere && (o == nil || o.where != number) {
			c.letGoAt(number, x)
		}
	}
}

// letGoAt tells a node, whatever it has there for which key.
func (c *Core) letGoAt(number uint32, x id) {
	for _, r := range c.sortedRemotes() {
		if r.number == number {
			c.letGo(r, x)
		}
	}
}

// elsewhere lets go of the copy that another node has.
func (c *Core) elsewhere(o *object) {
	if o.where != 0 {
		c.letGo(c.byClient[o.at], o.id)
		o.where, o.at = 0, 0
	}
}

// nodes are those that have an object besides this one.
func (o *object) nodes() []uint32 {
	if o.where == 0 {
		return nil
	}
	return []uint32{o.where}
}

// loseAt loses the objects that were on a node that is gone, but for those that have been
// copied here meanwhile.
func (c *Core) loseAt(there func(*object) bool, why string) {
	var lost []*object
	for _, o := range c.objects {
		if o.where != 0 && there(o) {
			lost = append(lost, o)
		}
	}
	slices.SortFunc(lost, byID)
	for _, o := range lost {
		o.where, o.at = 0, 0
		if o.state == here && o.kind == sdk.Shared && !c.store.Resident(o.id) {
			c.recordLost(o.id)
			c.lose(o, why)
		}
	}
}
