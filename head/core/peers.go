package core

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

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
		c.send(n, wire.MsgPeer, c.peerFor(n, k))
	}
}

// peerFor describes a life of a node to another, which may need help to reach it.
func (c *Core) peerFor(to *node, number uint32) wire.Peer {
	p := c.peer(number)
	if r, told := to.reaches[number]; told && !r.ok && !p.Gone {
		p.Far, p.Via = true, c.between(to, c.byNumber(number))
	}
	return p
}

// peer describes a life of a node.
func (c *Core) peer(number uint32) wire.Peer {
	p := wire.Peer{Number: number}
	if n := c.byNumber(number); n != nil {
		p.Node, p.Addr, p.Addrs = n.id, n.hello.Addr, n.hello.Addrs
		p.Leaves = c.durable(n).Drain != nil
		return p
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

func (c *Core) byNumber(number uint32) *node {
	for _, n := range c.order {
		if c.durable(n).Number == number {
			return n
		}
	}
	return nil
}

// NodeOf is the node whose life has that number; "" = it is over.
func (c *Core) NodeOf(number uint32) wire.NodeID {
	if n := c.byNumber(number); n != nil {
		return n.id
	}
	return ""
}

// tellPeers tells who follows a node's life that something of it has changed. What was
// reached before may not be where it was.
func (c *Core) tellPeers(number uint32) {
	for _, m := range c.order {
		delete(m.reaches, number)
	}
	c.newsOf(number)
}

// newsOf tells them, where it is what it was.
func (c *Core) newsOf(number uint32) {
	for _, m := range c.order {
		if m.watches[number] {
			c.send(m, wire.MsgPeer, c.peerFor(m, number))
		}
	}
}

// reach is what a node has told of reaching another without help.
type reach struct {
	ok   bool
	addr string
	why  string
	at   int64
}

const (
	// maxVia is how many nodes are named that may relay.
	maxVia = 3
	// probeFor is how long an answer to Probe is waited for before it is asked again.
	probeFor = 15 * second
	// apartFor is how long a node is believed that it does not reach another, when a gang
	// waits for it.
	apartFor = 30 * second
)

// reach: a node says that it reaches another one, or that it does not.
func (c *Core) reach(n *node, m wire.Reach) {
	if to := c.byNumber(m.Number); to != nil && to != n && len(n.reaches) < wire.MaxPeers {
		n.reaches[m.Number] = reach{ok: m.OK, addr: m.Addr, why: m.Why, at: c.now}
		delete(n.probed, m.Number)
	}
	if !m.OK {
		c.send(n, wire.MsgPeer, c.peerFor(n, m.Number))
	}
	c.full = true
}

// between are nodes that may reach both a and b: those that are known to come first, those
// that are known not to do not come.
func (c *Core) between(a, b *node) (out []uint32) {
	var maybe []uint32
	for _, n := range c.order {
		if n == a || n == b || !c.usable(n) || c.apart(a, n) != "" || c.apart(n, b) != "" {
			continue
		}
		if k := c.durable(n).Number; c.linked(a, n) && c.linked(n, b) {
			out = append(out, k)
		} else {
			maybe = append(maybe, k)
		}
	}
	out = append(out, maybe...)
	return out[:min(len(out), maxVia)]
}

// apart says which of two nodes does not reach the other, "" when that is not known.
func (c *Core) apart(a, b *node) string {
	for _, x := range [][2]*node{{a, b}, {b, a}} {
		if r, told := x[0].reaches[c.durable(x[1]).Number]; told && !r.ok {
			return fmt.Sprintf("%s does not reach %s (%s)", x[0].id, x[1].id, r.why)
		}
	}
	return ""
}

// linked reports whether both are known to reach the other.
func (c *Core) linked(a, b *node) bool {
	return a.reaches[c.durable(b).Number].ok && b.reaches[c.durable(a).Number].ok
}

// needsSockets reports whether a gang's ranks open sockets to each other themselves, as
// torch's do: then it must be on nodes that reach each other, and no relay helps. That is
// so when it is started by torchrun, when its command or environment names MASTER_ADDR, or
// when who submitted it has seen so in its program.
func needsSockets(s *wire.JobSpec) bool {
	if s.Sockets {
		return true
	}
	for _, a := range s.Command {
		base := a[strings.LastIndexByte(a, '/')+1:]
		if base == "torchrun" || a == "torch.distributed.run" || a == "torch.distributed.launch" || strings.Contains(a, "MASTER_ADDR") {
			return true
		}
	}
	return slices.ContainsFunc(s.Env, func(kv string) bool { return strings.HasPrefix(kv, "MASTER_ADDR=") })
}

// option is a node for a gang, with the ranks that it has room for.
type option struct {
	n *node
	k uint32
}

// maxSeeds bounds from how many nodes a set is grown of nodes that reach each other.
const maxSeeds = 32

// meeting narrows the nodes for a gang, which are in order of preference, to some that
// reach each other. Ranks that open sockets themselves run on no others, and what is not
// known is asked of the nodes first; the rest only avoid, where they can, nodes that are
// known to be apart.
func (c *Core) meeting(j *job, opts []option, want uint32) []option {
	s := &j.d.Spec
	enough := func(set []option) bool {
		sum := uint32(0)
		for _, o := range set {
			sum += o.k
		}
		return sum >= want && len(set) >= int(s.Nodes)
	}
	if s.Nodes <= 1 && enough(opts[:1]) {
		return opts
	}
	for seed := range opts[:min(len(opts), maxSeeds)] {
		set := []option{opts[seed]}
		for i, o := range opts {
			if !enough(set) && i != seed && !slices.ContainsFunc(set, func(x option) bool { return c.apart(x.n, o.n) != "" }) {
				set = append(set, o)
			}
		}
		if !enough(set) {
			continue
		}
		if needsSockets(s) && c.askAll(set) {
			return nil
		}
		return set
	}
	if needsSockets(s) {
		return nil
	}
	return opts
}

// askAll has nodes try to reach each other where that is not known, and reports whether
// it is not.
func (c *Core) askAll(set []option) (asked bool) {
	for _, a := range set {
		var numbers []uint32
		for _, b := range set {
			k := c.durable(b.n).Number
			if _, told := a.n.reaches[k]; a.n == b.n || told {
				continue
			}
			asked = true
			if at, ok := a.n.probed[k]; !ok || c.now-at >= probeFor {
				numbers = append(numbers, k)
			}
		}
		if len(numbers) > 0 {
			c.probe(a.n, numbers)
		}
	}
	return asked
}

// askAgain has nodes that a gang waits for try again to reach those that they did not.
func (c *Core) askAgain(j *job) {
	for _, a := range c.order {
		var numbers []uint32
		for k, r := range a.reaches {
			if !r.ok && c.now-r.at >= apartFor && c.now-a.probed[k] >= probeFor && c.usable(a) && c.eligible(a, j) == "" {
				numbers = append(numbers, k)
			}
		}
		if len(numbers) > 0 {
			slices.Sort(numbers)
			c.probe(a, numbers)
		}
	}
}

func (c *Core) probe(n *node, numbers []uint32) {
	if n.probed == nil {
		n.probed = map[uint32]int64{}
	}
	for _, k := range numbers {
		n.probed[k] = c.now
	}
	c.send(n, wire.MsgProbe, wire.Probe{Numbers: numbers})
}

// hostOf is the host of host:port.
func hostOf(addr string) string {
	return strings.Trim(addr[:max(0, strings.LastIndexByte(addr, ':'))], "[]")
}

// whyApart says which nodes keep a gang whose ranks open sockets themselves from starting.
func (c *Core) whyApart(j *job) (out []string) {
	if !needsSockets(&j.d.Spec) {
		return nil
	}
	var on []*node
	for _, n := range c.order {
		if c.usable(n) && c.eligible(n, j) == "" {
			on = append(on, n)
		}
	}
	for i, a := range on {
		for _, b := range on[:i] {
			if why := c.apart(a, b); why != "" && len(out) < maxApart {
				out = append(out, "its ranks open sockets to each other, so they must be on nodes that reach each other: "+why)
			}
		}
	}
	return out
}

const maxApart = 8
