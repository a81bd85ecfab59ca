package tasks

import (
	"encoding/binary"
	"maps"
	"slices"

	"launcher/wire"
	"launcher/wire/sdk"
)

// simConn is a conversation that one agent has with the other, whose client it is: about tasks
// of a key, or about what the other owns and this one refers to.
type simConn struct {
	from   *sim
	id     uint32 // the client that stands for the other agent; simBorrow
	who    Client
	far    uint32 // the client that it is there
	live   bool   // what is written arrives
	here   bool   // its own side takes it for open
	there  bool   // the other side does
	ends   bool   // it is closed after what was written
	gone   bool   // its own side does not want it any more
	since  int64  // when its own side last had it, or first wanted it
	broken int64
	out    []message
	back   []message

	// Of references:
	copies map[id][]byte // that the other is to keep
	held   map[id]bool
	wanted map[id]bool
	seq    uint64 // of the newest reference
	acked  uint64 // that is known to the owner
}

const (
	simBorrow = 1 << 20 // the client that stands for references to the other's objects
	// noticeBound is how much later than the other one side sees that a connection broke.
	noticeBound = 10 * second
	simReopen   = 15 * second // as reopenFor
)

func (c *simConn) to() *sim { return c.from.peer }

// borrow gives a node's conversation about what the other owns.
func (s *sim) borrow() *simConn {
	for _, c := range s.pair.conns {
		if c.from == s && c.id == simBorrow && !c.gone {
			return c
		}
	}
	c := &simConn{from: s, id: simBorrow, who: Client{Kind: sdk.KindPeer, Peer: s.cfg.Number}, since: s.now, copies: map[id][]byte{}, held: map[id]bool{}, wanted: map[id]bool{}}
	s.pair.conns = append(s.pair.conns, c)
	return c
}

// tellPeer does what one agent wants of the other.
func (s *sim) tellPeer(e Effect) {
	if s.pair.left {
		s.tellNobody(e)
		return
	}
	switch e := e.(type) {
	case Copy:
		b := s.borrow()
		b.copies[e.ID] = e.Body
		b.tells(sdk.MsgPeerCopy, e.Body, 0)
	case Uncopy:
		b := s.borrow()
		delete(b.copies, e.ID)
		b.tells(sdk.MsgPeerUncopy, e.ID[:], 0)
	case Choose:
		if !s.pair.leaving || s == s.pair.nodes[1] {
			s.later = append(s.later, func() { _ = s.c.Copy(s.now, e.ID, e.Want, s.peer.cfg.Number) })
		}
	case OpenPeer:
		who := Client{Kind: sdk.KindPeer, Peer: s.cfg.Number, Job: e.Key.Job, Language: e.Key.Language, Program: e.Key.Program, Dir: e.Key.Dir}
		s.pair.conns = append(s.pair.conns, &simConn{from: s, id: e.ID, who: who, since: s.now})
	case ClosePeer:
		for _, c := range s.pair.conns {
			if c.from == s && c.id == e.ID {
				c.ends, c.gone = true, true
			}
		}
		s.pair.sweep()
	case Borrow:
		if b := s.borrow(); !b.held[e.ID] {
			b.held[e.ID] = true
			b.seq++
			b.tells(sdk.MsgHold, e.ID[:], b.seq)
		}
	case Unfetch:
		b := s.borrow()
		if delete(b.wanted, e.ID); b.held[e.ID] {
			delete(b.held, e.ID)
			b.tells(sdk.MsgRelease, e.ID[:], 0)
		}
	case Fetch:
		if b := s.borrow(); !b.wanted[e.ID] {
			b.wanted[e.ID] = true
			b.tells(sdk.MsgGet, append(append(le32(sdk.GetValue), le32(0)...), e.ID[:]...), 0)
		}
	case LeaseIdle:
		if g := s.peer.room.gives[e.Lease]; g != nil {
			if g.slots -= int(e.Slots); g.slots <= 0 {
				delete(s.peer.room.gives, e.Lease)
			}
		}
	}
}

// tells writes a frame, if the connection seems to be there.
func (c *simConn) tells(typ uint16, body []byte, ack uint64) {
	if c.here && c.live {
		c.out = append(c.out, message{typ: typ, body: slices.Clone(body), ack: ack})
	}
}

// sendPeer takes what an agent writes to a client that is the other. It leaves after all
// references that are new are known to their owner.
func (s *sim) sendPeer(client uint32, b []byte) {
	for _, c := range s.pair.conns {
		out := &c.out
		switch {
		case c.from == s && c.id == client && c.here:
		case c.from != s && c.far == client && c.there:
			out = &c.back
		default:
			continue
		}
		after := uint64(0)
		if c.id != simBorrow {
			after = s.borrow().seq
		}
		for len(b) > 0 {
			n := int(binary.LittleEndian.Uint32(b)) + 4
			if c.live {
				*out = append(*out, message{typ: binary.LittleEndian.Uint16(b[4:]), body: slices.Clone(b[8:n]), after: after})
			}
			b = b[n:]
		}
		return
	}
}

// ready reports whether a side's next frame may leave.
func (c *simConn) ready(from *sim, q []message) bool {
	return c.live && len(q) > 0 && (q[0].after == 0 || from.borrow().acked >= q[0].after)
}

// bring carries one frame to the other agent, or back.
func (p *simPair) bring(c *simConn, back bool) {
	if back {
		m := c.back[0]
		c.back = c.back[1:]
		if !c.gone {
			c.from.hear(c, m)
			c.from.take()
		}
		return
	}
	m := c.out[0]
	c.out = c.out[1:]
	o := c.to()
	if m.typ == sdk.MsgPeerSubmit {
		o.given++
	}
	if c.acked = max(c.acked, m.ack); o.c.clients[c.far] != nil {
		if err := o.c.Frame(o.now, c.far, m.typ, m.body); err != nil {
			o.t.Fatalf("frame %#x: %v", m.typ, err)
		}
	}
	o.take()
	p.sweep()
}

// hear takes a frame of the agent that this one is a client of.
func (s *sim) hear(c *simConn, m message) {
	if c.id != simBorrow {
		if err := s.c.Remote(s.now, c.id, m.typ, m.body); err != nil {
			s.t.Fatalf("frame %#x: %v", m.typ, err)
		}
		return
	}
	x := id(m.body[:16])
	switch m.typ {
	case sdk.MsgPeerCopied:
		s.c.Copied(s.now, x, s.peer.cfg.Number, string(m.body[16:]))
	case sdk.MsgPeerSpare:
		v, nodes, _, err := sdk.CutGiven(m.body[16:])
		if err != nil {
			s.t.Fatal(err)
		}
		s.c.Spare(x, v, nodes)
	}
	if m.typ == sdk.MsgObject && c.wanted[x] {
		delete(c.wanted, x)
		v, _, _, err := sdk.CutGiven(m.body[16:])
		if err != nil {
			s.t.Fatal(err)
		}
		if v.Kind == sdk.Elsewhere {
			v.Kind = sdk.Shared
			s.copies(x)
		}
		s.c.Fetched(s.now, x, v.Kind, v.Form, v.Size, slices.Clone(v.Bytes), idsOf(v.Refs))
	}
}

// connect opens a connection, for the first time or again.
func (p *simPair) connect(c *simConn) {
	s, o := c.from, c.to()
	x := c.who
	if x.ID = o.c.FindPeer(x); x.ID == 0 {
		x.ID = o.c.NextClient()
		if err := o.c.Connect(o.now, x); err != nil {
			s.t.Fatal(err)
		}
	} else {
		for _, old := range p.conns {
			if old.from == s && old.far == x.ID && old != c {
				old.live, old.there = false, false
			}
		}
		o.c.Back(o.now, x.ID)
	}
	c.far, c.live, c.here, c.there, c.out, c.back = x.ID, true, true, true, nil, nil
	if c.id != simBorrow {
		s.c.RemoteOpen(s.now, c.id)
	} else {
		all := flat(sorted(c.held))
		c.tells(sdk.MsgHold, all, 0)
		keep := maps.Clone(c.held)
		for x := range c.copies {
			keep[x] = true
		}
		c.tells(sdk.MsgPeerKeep, flat(sorted(keep)), 0)
		for _, x := range slices.SortedFunc(maps.Keys(c.copies), func(a, b id) int { return slices.Compare(a[:], b[:]) }) {
			c.tells(sdk.MsgPeerCopy, c.copies[x], 0)
		}
		c.tells(sdk.MsgHold, nil, c.seq)
		if len(c.wanted) > 0 {
			c.tells(sdk.MsgGet, append(append(le32(sdk.GetValue), le32(0)...), flat(sorted(c.wanted))...), 0)
		}
	}
	o.take()
	s.take()
	p.sweep()
}

func sorted(m map[id]bool) (out []id) {
	for x := range m {
		out = append(out, x)
	}
	sortIDs(out)
	return out
}

// breaks ends a connection; some of what was written arrives.
func (p *simPair) breaks(c *simConn) {
	if !c.live {
		return
	}
	for _, back := range []bool{false, true} {
		from, q := c.from, &c.out
		if back {
			from, q = c.to(), &c.back
		}
		for n := p.rng.IntN(len(*q) + 1); n > 0 && c.ready(from, *q); n-- {
			p.bring(c, back)
		}
	}
	c.live, c.broken, c.out, c.back = false, p.now, nil, nil
}

// notices: one side sees that it is broken.
func (p *simPair) notices(c *simConn, far bool) {
	if far {
		if c.there = false; c.to().c.clients[c.far] != nil {
			c.to().c.Away(p.now, c.far)
		}
	} else {
		c.here, c.since = false, p.now
		if c.id != simBorrow && !c.gone {
			c.from.c.RemoteClosed(p.now, c.id)
		}
	}
	p.sweep()
}

// sweep forgets connections that are over.
func (p *simPair) sweep() {
	for _, c := range slices.Clone(p.conns) {
		if c.ends && c.live && len(c.out) == 0 {
			c.live, c.there = false, false
			c.to().c.Gone(p.now, c.far, "it needs nothing here any more")
		}
	}
	p.conns = slices.DeleteFunc(p.conns, func(c *simConn) bool { return c.gone && !c.live && !c.there })
}

// died: an agent is no more, and with it its ends of all connections.
func (p *simPair) died(s *sim) {
	for _, c := range p.conns {
		if c.live, c.out, c.back = false, nil, nil; c.broken == 0 {
			c.broken = p.now
		}
		if c.from == s {
			c.here, c.gone, c.ends = false, true, false
		} else {
			c.there = false
		}
	}
	p.sweep()
	// The head takes back what was leased by this life of the agent, and to it.
	o := s.peer
	clear(s.room.gives)
	clear(o.room.gives)
	for _, x := range o.c.leases.sorted() {
		if x.Number == s.cfg.Number {
			o.c.LeaseCut(o.now, wire.LeaseCut{Lease: x.Lease, Slots: uint32(x.slots)})
		}
	}
}

// links are what connections can do next.
func (p *simPair) links() (can []func()) {
	for _, c := range p.conns {
		if c.ready(c.from, c.out) {
			can = append(can, func() { p.bring(c, false) })
		}
		if c.ready(c.to(), c.back) {
			can = append(can, func() { p.bring(c, true) })
		}
		if !c.live && c.here {
			can = append(can, func() { p.notices(c, false) })
		}
		if !c.live && c.there {
			can = append(can, func() { p.notices(c, true) })
		}
		if !c.live && !c.here && !c.gone && !p.cut {
			can = append(can, func() { p.connect(c) })
		}
	}
	return can
}

// late does what connections do by time.
func (p *simPair) late() {
	for _, c := range slices.Clone(p.conns) {
		if !c.live && p.now-c.broken >= noticeBound {
			if c.here {
				p.notices(c, false)
			}
			if c.there {
				p.notices(c, true)
			}
		}
		if p.cut && !c.here && !c.gone && p.now-c.since > simReopen {
			p.givesUp(c)
		}
	}
	p.sweep()
}

// givesUp: the other agent has not been reached for too long.
func (p *simPair) givesUp(c *simConn) {
	s := c.from
	if l := s.ledger; l != nil && (c.id != simBorrow || len(c.wanted) > 0) {
		l.silences++
		l.lostNode = true
	}
	if c.id != simBorrow {
		c.gone = true
		s.c.RemoteGone(p.now, c.id, "it cannot be reached", true)
		return
	}
	for _, x := range sorted(c.wanted) {
		delete(c.wanted, x)
		if s.c.Unreached(p.now, x, "no way") {
			continue
		}
		data := s.c.errorOf("lost", "its owner cannot be reached", nil)
		s.c.Fetched(p.now, x, sdk.Failure, 1, int64(len(data)), data, nil)
	}
	c.acked = c.seq
}
