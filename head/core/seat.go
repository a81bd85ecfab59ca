package core

import (
	"cmp"
	"fmt"

	"launcher/wire"
)

// A head with Config.Roam goes into an allocation of that pool, and on to another before its
// own ends; while there is none that lasts it is at home. The shell does it: MoveHead.

const (
	// settled is how long a node has to be in before the head goes there by itself.
	settled = 3 * second
	// moveRest is how long after a move that failed none is tried.
	moveRest = second
	// shyFor is how long a node that could not take the head is not asked again.
	shyFor = 30 * second
	// stayBound is for how long a node that is done with is kept for the head on it.
	stayBound = 30 * second
	// lastSteps is how long before work on its node is stopped the head moves though that
	// has not left yet, and mostSteps how long after it was to.
	lastSteps = 8 * second
	mostSteps = 15 * second
)

// seat is the soft state of where the head is.
type seat struct {
	moving  bool
	next    int64                 // no move before
	shy     map[wire.NodeID]int64 // until when not to ask
	told    string                // why it has to go, from outside
	leaving int64                 // since when it has to go
	trouble string                // of the newest move
}

// keepSeat has the head moved where it is time to.
func (c *Core) keepSeat() {
	if c.cfg.Roam == "" || c.seat.moving || c.now < c.seat.next {
		return
	}
	why := c.mustMove()
	if why == "" {
		c.seat.leaving = 0
		if c.cfg.Seat != "" || c.recovering || c.d.st.Down != nil {
			return
		}
	} else if c.seat.leaving == 0 {
		c.seat.leaving = c.now
	}
	if why != "" && c.workLeaves() {
		return
	}
	to := wire.NodeID("")
	n := c.bestSeat(why != "")
	switch {
	case n != nil && c.d.st.Down == nil:
		to = n.id
		why = cmp.Or(why, fmt.Sprintf("node %s is in", n.id))
	case why == "":
		return
	case c.d.st.Down == nil:
		why += fmt.Sprintf(", and no other node of pool %s lasts", c.cfg.Roam)
	}
	c.seat.moving = true
	c.effect(MoveHead{Node: to, Why: why})
}

// mustMove says why the head cannot stay where it is; "" = it can.
func (c *Core) mustMove() string {
	if c.cfg.Seat == "" {
		return ""
	}
	n := c.nodes[c.cfg.Seat]
	switch {
	case c.d.st.Down != nil:
		return "the cluster goes down"
	case c.seat.told != "":
		return c.seat.told
	case n == nil:
		return fmt.Sprintf("node %s is gone", c.cfg.Seat)
	case c.durable(n).Drain != nil:
		return fmt.Sprintf("node %s leaves: %s", n.id, cmp.Or(c.durable(n).Drain.Why, "it is not needed"))
	}
	return ""
}

// workLeaves reports whether the head waits for work that has been told to save and leave its
// node, so that its last steps are counted here and need not be told to the next head again.
func (c *Core) workLeaves() bool {
	n := c.nodes[c.cfg.Seat]
	if n == nil || !n.conn || c.d.st.Down != nil {
		return false
	}
	work := len(n.parts) > 0
	for _, s := range n.shares {
		work = work || s.tries.len() > 0 || len(s.running) > 0
	}
	d := c.durable(n).Drain
	return work && d != nil && c.now-c.seat.leaving < mostSteps && (d.Deadline == 0 || c.now < d.Deadline-lastSteps)
}

// bestSeat is the node that lasts longest of those that last long enough; nil = none does.
func (c *Core) bestSeat(now bool) (best *node) {
	for _, n := range c.order {
		if n.pool != c.cfg.Roam || n.id == c.cfg.Seat || !c.usable(n) || c.now < c.seat.shy[n.id] || !now && c.now-n.since < settled {
			continue
		}
		if n.ends != 0 && n.ends-c.now-c.lead(n) < min(usefulFor, c.life(n)/2) {
			continue
		}
		if best == nil || best.ends != 0 && (n.ends == 0 || n.ends > best.ends) {
			best = n
		}
	}
	return best
}

// awaitSeat reports whether a node, or with nil the whole cluster, has to wait with its end
// for the head to be gone from there.
func (c *Core) awaitSeat(n *node) bool {
	if c.cfg.Roam == "" || c.cfg.Seat == "" || n != nil && n.id != c.cfg.Seat {
		return false
	}
	return c.seat.leaving == 0 || c.now-c.seat.leaving < stayBound
}

func (c *Core) moveFailed(ev MoveFailed) {
	c.seat.moving, c.seat.next = false, c.now+moveRest
	c.seat.trouble = ev.Err.Error()
	if ev.Node != "" {
		if c.seat.shy == nil {
			c.seat.shy = map[wire.NodeID]int64{}
		}
		c.seat.shy[ev.Node] = c.now + shyFor
	}
}

// seatInfo says where the head is and how it came there.
func (c *Core) seatInfo(x *wire.ClusterInfo) {
	if c.cfg.Roam == "" {
		return
	}
	x.HeadNode, x.HeadMoves, x.HeadMoved, x.HeadWhy = c.cfg.Seat, c.d.st.Moves, c.d.st.Moved, c.d.st.Head.Why
	if c.seat.trouble != "" {
		x.HeadWhy = cmp.Or(x.HeadWhy, "no node has taken it")
		x.HeadWhy += "; could not move: " + c.seat.trouble
	}
}
