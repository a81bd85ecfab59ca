package sim

import (
	"fmt"
	"slices"

	"launcher/head/core"
	"launcher/wire"
)

// conn is a connection between an agent and the head: in order in each direction,
// delayed, and when it is cut, what is under way is lost.
type conn struct {
	w       *world
	m       *machine
	life    int // of the agent
	head    int // life of the head
	dead    bool
	upAt    int64 // newest delivery to the head
	downAt  int64
	greeted bool
}

// toHead sends an agent's message.
func (c *conn) toHead(msg any) {
	c.upAt = max(c.upAt, c.w.now+c.delay())
	c.w.after(c.upAt-c.w.now, func() {
		h := c.w.head
		if c.dead || h.life != c.head || !h.alive {
			return
		}
		if hello, ok := msg.(wire.Hello); ok {
			if old := h.conns[c.m.id]; old != nil && old != c {
				if old.m.epoch > c.m.epoch {
					c.cut(0)
					return
				}
				old.dead = true
			}
			h.conns[c.m.id] = c
			c.greeted = true
			h.step(core.AgentUp{Node: hello.Node, Epoch: hello.Epoch, Hello: hello})
			return
		}
		h.step(core.AgentMsg{Node: c.m.id, Epoch: c.m.epoch, Msg: msg})
	})
}

// toAgent sends a message of the head's.
func (c *conn) toAgent(msg any) {
	c.downAt = max(c.downAt, c.w.now+c.delay())
	c.w.after(c.downAt-c.w.now, func() {
		if !c.dead && c.m.life == c.life && c.m.up {
			c.m.headSays(msg)
		}
	})
}

func (c *conn) delay() int64 {
	if c.w.rng.IntN(50) == 0 {
		return c.w.between(0, 400*millisecond)
	}
	return c.w.between(50_000, 5*millisecond)
}

// cut ends the connection. Each side learns it by itself, the head perhaps never; the
// agent comes back after quiet.
func (c *conn) cut(quiet int64) {
	if c.dead {
		return
	}
	c.dead = true
	w, m := c.w, c.m
	life := c.life
	w.after(w.between(0, 300*millisecond), func() {
		if m.life == life && m.up && m.conn == c {
			m.conn = nil
			m.headGone()
			m.connectAfter(quiet + w.between(20*millisecond, 500*millisecond))
		}
	})
	h, hl := w.head, c.head
	if w.rng.IntN(4) == 0 {
		return // no FIN ever arrives
	}
	w.after(w.between(0, 2*second), func() {
		if h.life == hl && h.alive && h.conns[m.id] == c {
			delete(h.conns, m.id)
			h.step(core.AgentDown{Node: m.id, Epoch: m.epoch, Cause: "connection lost"})
		}
	})
}

func sortedNodes[V any](m map[wire.NodeID]V) []wire.NodeID {
	out := make([]wire.NodeID, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// brief is a message in the trace; it is rendered only when there is one.
type brief struct{ v any }

func (b brief) String() string {
	s := fmt.Sprintf("%T%+v", b.v, b.v)
	if len(s) > 400 {
		s = s[:400] + "..."
	}
	return s
}
