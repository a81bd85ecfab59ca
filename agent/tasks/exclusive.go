package tasks

import (
	"fmt"
	"slices"
)

// Exclusive actors are never in two places. One on a node that cannot be reached may still
// be there: it lives again when that node is proved dead, or when it has certainly ended
// itself, for want of its owner.

const (
	// ownerBound is for how long an exclusive actor goes on without its owner's agent.
	ownerBound = 30 * second
	// exclusiveBound is when its owner takes it for ended, after the connection broke. The
	// other side may notice that later.
	exclusiveBound = 45 * second
)

// NodeSilent is NodeGone without proof that what it had has ended.
func (c *Core) NodeSilent(now int64, number uint32, why string) {
	c.silent = true
	c.NodeGone(now, number, why)
	c.silent = false
}

// silentNode gives the node that may still have an exclusive actor; 0 = none has.
func (c *Core) silentNode(t *task) uint32 {
	if !c.silent || !t.shape.actor.Exclusive || t.actor.sentTo == 0 {
		return 0
	}
	since := c.now
	if w := t.worker(); w != nil && w.away != 0 {
		since = w.away
	}
	t.actor.until = since + exclusiveBound
	return t.actor.sentTo
}

// holdBack has a creation wait until its actor may live again.
func (c *Core) holdBack(t *task, number uint32) {
	if t.retries > 0 {
		t.retries--
	}
	t.attempt++
	c.leaves(t)
	t.state, t.actor.left = waiting, number
	c.queued += int64(len(t.body))
	c.heldBack = append(c.heldBack, t)
}

// isLet: the log gives out a creation that was held back before.
func (c *Core) isLet(t *task) {
	if t != nil && t.state == waiting && t.actor != nil && t.actor.left != 0 {
		t.actor.until = 0
		c.letLive(0)
	}
}

// letLive puts the creations that may go on in their queues: of a node that is proved dead
// (0 = none), and those whose time has come.
func (c *Core) letLive(dead uint32) {
	c.heldBack = slices.DeleteFunc(c.heldBack, func(t *task) bool {
		a := t.actor
		if t.state != waiting {
			return true
		}
		if a.left != dead && c.now < a.until {
			return false
		}
		a.until, a.left = 0, 0
		c.enqueue(t)
		return true
	})
}

// endAlone ends the exclusive actors of another node, whatever they have come to, whose agent
// has not been heard for too long.
func (c *Core) endAlone(p *client) {
	if p.unheard == 0 || p.alone || c.now-p.unheard < ownerBound {
		return
	}
	p.alone = true
	for _, t := range c.sortedTasks() {
		if t.client == p.ID && t.actor != nil && t.state != done && t.shape.actor.Exclusive {
			c.stop(t, true)
		}
	}
}

// whyHeldBack says until when an actor is not to live again.
func (c *Core) whyHeldBack(t *task) string {
	return fmt.Sprintf("waits %d s, or for proof that node number %d is dead: it may still live there, and is never in two places", max(0, t.actor.until-c.now)/second, t.actor.left)
}
