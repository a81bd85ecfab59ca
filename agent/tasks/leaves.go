package tasks

import (
	"slices"

	"launcher/wire/sdk"
)

// Nodes that leave: what only they have and others need is moved before they go. A node
// that leaves itself has copies of its own objects kept by one that stays, which is where
// those who refer to them find them afterwards (copies.go). What it has made for other
// nodes those bring to themselves.

const (
	movesAtOnce = 16     // objects that are being brought
	lookAgain   = second // for objects that are to be moved
)

// going is what is known of nodes that leave.
type going struct {
	nodes  map[uint32]bool
	haven  uint32      // the node that takes what is this one's; 0 = none is chosen
	queue  []id        // to be brought here
	coming map[id]bool // being brought
	looked int64
}

// NodeLeaves: a node, which may be this one, is to leave; it may have been said before.
func (c *Core) NodeLeaves(now int64, number uint32) {
	c.now = now
	if c.going.nodes[number] {
		return
	}
	if c.going.nodes == nil {
		c.going.nodes, c.going.coming = map[uint32]bool{}, map[id]bool{}
	}
	c.going.nodes[number] = true
	c.notHaven(number)
	c.going.looked = 0
	c.tickLeaves()
}

// notHaven: a node takes no more, or is gone.
func (c *Core) notHaven(number uint32) {
	if c.going.haven == number {
		c.going.haven = 0
	}
}

// onlyHere reports whether a value that an agent refers to would be gone with this node.
func (c *Core) onlyHere(o *object, cl *client) bool {
	switch {
	case o.state != here || o.fetched || !o.heldBy(cl.ID) || o.task != nil && o.task.actor != nil:
		return false
	case c.mine(o.id):
		return (o.kind == sdk.Shared || o.kind == sdk.Inline) && len(c.copied[o.id].nodes()) == 0
	}
	return o.kind == sdk.Shared && o.where == 0
}

// OnlyHere reports whether there is such a value.
func (c *Core) OnlyHere() bool {
	for _, cl := range c.clients {
		if cl.Kind == sdk.KindPeer {
			for o := range cl.things {
				if c.onlyHere(o, cl) {
					return true
				}
			}
		}
	}
	return false
}

// tickLeaves looks for what is to be moved.
func (c *Core) tickLeaves() {
	if len(c.going.nodes) == 0 || c.going.looked != 0 && c.now-c.going.looked < lookAgain {
		return
	}
	c.going.looked = c.now
	if c.going.nodes[c.cfg.Number] {
		c.moveAway()
		return // nothing is brought here
	}
	c.going.queue = c.going.queue[:0]
	for _, o := range c.objects {
		if o.where != 0 && c.going.nodes[o.where] && o.state == here && !c.going.coming[o.id] {
			c.going.queue = append(c.going.queue, o.id)
		}
	}
	sortIDs(c.going.queue)
	c.bring()
}

// moveAway has copies kept of what is this node's and only here.
func (c *Core) moveAway() {
	var all []id
	for _, cl := range c.clients {
		if cl.Kind != sdk.KindPeer {
			continue
		}
		for o := range cl.things {
			if c.mine(o.id) && c.onlyHere(o, cl) && c.copied[o.id] == nil {
				all = append(all, o.id)
			}
		}
	}
	sortIDs(all)
	for _, x := range slices.Compact(all) {
		if c.going.haven != 0 {
			_ = c.Copy(c.now, x, 1, c.going.haven)
			continue
		}
		// The first shows where there is room.
		c.copied[x] = &copied{want: 1, at: c.now}
		c.recordCopies(x, c.copied[x])
		c.do(Choose{ID: x, Want: 1})
		return
	}
}

// bring brings some of what nodes have that leave.
func (c *Core) bring() {
	for len(c.going.queue) > 0 && len(c.going.coming) < movesAtOnce {
		o := c.objects[c.going.queue[0]]
		c.going.queue = c.going.queue[1:]
		switch {
		case o == nil || o.where == 0 || o.state != here:
		case c.store.Resident(o.id):
			c.take(o)
		default:
			c.going.coming[o.id] = true
			c.restore(o)
		}
	}
}

// brought: an object is here now, or cannot be: it is tried again.
func (c *Core) brought(x id, err error) {
	if !c.going.coming[x] {
		return
	}
	delete(c.going.coming, x)
	if o := c.objects[x]; err == nil && o != nil && o.state == here && c.going.nodes[o.where] {
		c.take(o)
	}
	c.bring()
}

// take makes what was a copy here the value itself.
func (c *Core) take(o *object) {
	c.store.Own(o.id)
	c.elsewhere(o)
}
