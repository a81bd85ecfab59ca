package core

import (
	"cmp"

	"launcher/wire"
)

// peerAsk: a node wants to know of lives of nodes, now and whenever they change.
func (c *Core) peerAsk(n *node, m wire.PeerAsk) {
	for _, k := range m.Numbers {
		if m.Drop {
			delete(n.watches, k)
			continue
		}
		if len(n.watches) < wire.MaxPeers || n.watches[k] {
			n.watches[k] = true
		}
		c.send(n, wire.MsgPeer, c.peer(k))
	}
}

// peer describes a life of a node.
func (c *Core) peer(number uint32) wire.Peer {
	p := wire.Peer{Number: number}
	for _, n := range c.order {
		if d := c.durable(n); d.Number == number {
			p.Node, p.Addr = n.id, n.hello.Addr
			return p
		}
	}
	p.Gone, p.Proof, p.Cause = true, true, "that life of the node is over"
	for _, d := range c.d.st.Nodes {
		if d.Number == number {
			p.Node, p.Cause, p.Proof = d.ID, cmp.Or(d.Cause, p.Cause), d.State == nodeGone
		}
	}
	p.Moved = c.movedFrom(number)
	if number == 0 || number > c.d.st.Numbers {
		p.Cause = "no node of the cluster ever had that number"
	}
	return p
}

// tellPeers tells who follows a node's life that something of it has changed.
func (c *Core) tellPeers(number uint32) {
	for _, m := range c.order {
		if m.watches[number] {
			c.send(m, wire.MsgPeer, c.peer(number))
		}
	}
}
