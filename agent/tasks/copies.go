package tasks

import (
	"encoding/binary"
	"fmt"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// Objects of which other nodes keep copies, so that they survive their owner. To keep one
// is no reference: the owner says when it is over, and after the owner's death whoever
// refers to the object takes the value from where a copy is.

// copied is an object of this node's that others keep copies of.
type copied struct {
	want int // on other nodes
	on   []keeper
	at   int64 // when more nodes were last looked for
}

type keeper struct {
	number uint32
	done   bool
}

// spare is another node's object that a copy is kept of here.
type spare struct {
	id     id
	v      sdk.Value // Inline, or Shared
	refs   []id
	nodes  []uint32
	done   bool
	orphan int64 // since when its owner is gone; 0 = it is not
}

// spareAt is where copies of another node's object are, for when that is gone.
type spareAt struct {
	v      sdk.Value
	nodes  []uint32
	wanted bool // it is being brought
}

const (
	// orphanFor is how long a copy stays when its owner is gone: those who refer to the
	// object hear of that too, and take it.
	orphanFor = 60 * second
	// copyAgain is how often nodes are looked for that could keep a copy that is missing.
	copyAgain = 5 * second
)

// Copy has more nodes keep an object of this node's, of which there are to be want copies
// elsewhere.
func (c *Core) Copy(now int64, x id, want int, on ...uint32) error {
	c.now = now
	o := c.objects[x]
	if o == nil || o.fetched || o.state != here {
		return errs.New(errs.NotFound, "object %s is not here", x)
	}
	if o.kind == sdk.Failure {
		return nil // who asks for it is told
	}
	k := c.copied[x]
	if k == nil {
		k = &copied{}
		c.copied[x] = k
	}
	k.want, k.at = want, now
	if c.going.nodes[c.cfg.Number] && len(on) > 0 && c.going.haven != on[0] {
		c.going.haven, c.going.looked = on[0], 0
	}
	for _, n := range on {
		if !slices.ContainsFunc(k.on, func(k keeper) bool { return k.number == n }) {
			k.on = append(k.on, keeper{number: n})
			c.doCopy(o, n)
		}
	}
	c.recordCopies(x, k)
	return nil
}

func (c *Core) doCopy(o *object, number uint32) {
	c.do(Copy{ID: o.id, Number: number, Body: c.appendGiven(slices.Clone(o.id[:]), o)})
}

// Copies says on how many other nodes copies of an object are, of how many.
func (c *Core) Copies(x id) (have, want int) {
	k := c.copied[x]
	if k == nil {
		return 0, 0
	}
	return len(k.nodes()), k.want
}

// nodes are those that have a copy.
func (k *copied) nodes() (out []uint32) {
	if k == nil {
		return nil
	}
	for _, k := range k.on {
		if k.done {
			out = append(out, k.number)
		}
	}
	return out
}

// Copied: a node keeps a copy, or says why it cannot.
func (c *Core) Copied(now int64, x id, number uint32, why string) {
	c.now = now
	k := c.copied[x]
	if k == nil {
		return
	}
	i := slices.IndexFunc(k.on, func(k keeper) bool { return k.number == number })
	switch {
	case i < 0:
	case why != "":
		c.notHaven(number)
		k.on = slices.Delete(k.on, i, i+1)
		c.recordCopies(x, k)
	case !k.on[i].done:
		k.on[i].done = true
		o := c.objects[x]
		for _, h := range append([]uint32{o.holder}, o.holders()...) {
			if cl := c.clients[h]; cl != nil {
				c.tellSpare(cl, o)
			}
		}
	}
}

// tellSpare tells an agent that refers to an object where copies of it are.
func (c *Core) tellSpare(cl *client, o *object) {
	nodes := c.copied[o.id].nodes()
	if cl.Kind != sdk.KindPeer || len(nodes) == 0 || o.state != here {
		return
	}
	at := c.frame(cl, sdk.MsgPeerSpare, 0)
	cl.out = append(cl.out, o.id[:]...)
	if o.kind == sdk.Shared {
		cl.out = sdk.AppendElsewhere(cl.out, o.form, bytesOfIDs(o.refs()), o.size, nodes)
	} else {
		cl.out = c.appendGiven(cl.out, o)
	}
	cl.finish(at)
}

// uncopy: an object of this node's is not needed any more.
func (c *Core) uncopy(x id) {
	if k := c.copied[x]; k != nil {
		delete(c.copied, x)
		for _, k := range k.on {
			c.do(Uncopy{ID: x, Number: k.number})
		}
	}
}

// Spare: the owner of an object says where copies of it are.
func (c *Core) Spare(x id, v sdk.Value, nodes []uint32) {
	if o := c.objects[x]; o != nil && o.fetched {
		v.Refs, v.Bytes = slices.Clone(v.Refs), slices.Clone(v.Bytes)
		o.linked().spare = &spareAt{v: v, nodes: nodes}
	}
}

// Keeps reports whether a copy of another node's object is kept here.
func (c *Core) Keeps(x id) bool { return c.spares[x] != nil }

// peerCopy begins to keep a copy of an object for its owner, or says again that it is.
func (c *Core) peerCopy(cl *client, b []byte) error {
	if len(b) < 16 {
		return errs.New(errs.Corrupt, "PeerCopy is cut short")
	}
	x := id(b[:16])
	if x.Node() != cl.Peer || cl.Job != "" {
		return errs.New(errs.Permission, "node number %d wants a copy kept of object %s, which is not its own", cl.Peer, x)
	}
	if s := c.spares[x]; s != nil {
		if s.done {
			c.tellCopied(s, "")
		}
		return nil
	}
	s, err := c.keepSpare(b)
	switch {
	case err != nil:
		return err
	case s.done:
		c.tellCopied(s, "")
	default:
		c.do(Restore{ID: x, Nodes: s.nodes})
	}
	return nil
}

func (c *Core) keepSpare(b []byte) (*spare, error) {
	v, nodes, _, err := sdk.CutGiven(b[16:])
	if err != nil {
		return nil, err
	}
	s := &spare{id: id(b[:16]), v: v, refs: idsOf(v.Refs), nodes: nodes, done: v.Kind != sdk.Elsewhere}
	if s.v.Refs, s.v.Bytes = nil, slices.Clone(v.Bytes); !s.done {
		s.v.Kind = sdk.Shared
	}
	for _, r := range s.refs {
		if o := c.lookup(r); o != nil {
			o.uses++
		}
	}
	c.spares[s.id] = s
	return s, nil
}

// tellCopied answers a PeerCopy. If the owner is not connected, it asks again.
func (c *Core) tellCopied(s *spare, why string) {
	for _, cl := range c.sortedClients() {
		if cl.Kind == sdk.KindPeer && cl.Peer == s.id.Node() && cl.Job == "" && cl.away == 0 {
			at := c.frame(cl, sdk.MsgPeerCopied, 0)
			cl.out = append(append(cl.out, s.id[:]...), why...)
			cl.finish(at)
		}
	}
}

// spareCame: the bytes of an object of which a copy is to be kept are here, or cannot be.
func (c *Core) spareCame(s *spare, err error) {
	if err != nil {
		c.tellCopied(s, err.Error())
		c.dropSpare(s)
		return
	}
	s.done = true
	c.store.Own(s.id)
	c.tellCopied(s, "")
}

// dropSpare ends the keeping of a copy.
func (c *Core) dropSpare(s *spare) {
	delete(c.spares, s.id)
	for _, r := range s.refs {
		c.unuse(r)
	}
	if o := c.objects[s.id]; s.done && s.v.Kind == sdk.Shared && (o == nil || o.state != here) {
		c.frees = append(c.frees, s.id)
	}
}

// unspare drops copies that are not wanted: of those of a node, or of all.
func (c *Core) unspare(drop func(*spare) bool) {
	for _, s := range c.sortedSpares() {
		if drop(s) {
			c.dropSpare(s)
		}
	}
}

func (c *Core) sortedSpares() []*spare {
	out := make([]*spare, 0, len(c.spares))
	for _, s := range c.spares {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *spare) int { return slices.Compare(a.id[:], b.id[:]) })
	return out
}

// bySpare gives another node's object the value that is kept here; false = it is not.
func (c *Core) bySpare(o *object) bool {
	s := c.spares[o.id]
	if s == nil || !s.done {
		return false
	}
	c.Fetched(c.now, o.id, s.v.Kind, s.v.Form, s.v.Size, s.v.Bytes, s.refs)
	return true
}

// Inherit is for a value that the owner was asked for and cannot give any more: it is dead.
// false = it is lost.
func (c *Core) Inherit(now int64, x id) bool {
	c.now = now
	o := c.objects[x]
	return o != nil && o.state != here && c.inheritSpare(o)
}

// inheritSpare takes the value of an object whose owner is gone from where a copy is; false =
// there is none.
func (c *Core) inheritSpare(o *object) bool {
	if o.state == here {
		switch {
		case o.kind != sdk.Shared:
		case c.store.Resident(o.id):
			c.store.Own(o.id) // it cannot be had again
		case o.links != nil && o.links.spare != nil:
			c.do(Restore{ID: o.id, Nodes: o.links.spare.nodes})
		}
		return true
	}
	if c.bySpare(o) {
		return true
	}
	if o.links == nil || o.links.spare == nil {
		return false
	}
	s := o.links.spare
	if s.wanted {
		return true
	}
	if s.v.Kind != sdk.Elsewhere {
		c.Fetched(c.now, o.id, s.v.Kind, s.v.Form, s.v.Size, s.v.Bytes, idsOf(s.v.Refs))
		return true
	}
	s.wanted = true
	c.do(Restore{ID: o.id, Nodes: s.nodes})
	return true
}

// inherited: a copy has been brought here after the death of its owner, or cannot be;
// false = none was wanted.
func (c *Core) inherited(o *object, err error) bool {
	if o.links == nil || o.links.spare == nil || !o.links.spare.wanted {
		return false
	}
	s := o.links.spare
	o.links.spare = nil
	if err != nil {
		c.fail(o, c.errorOf("owner_died", fmt.Sprintf("object %s is lost with the node that owned it, and its copies cannot be had: %s", o.id, err), nil))
		return true
	}
	c.store.Own(o.id)
	c.Fetched(c.now, o.id, sdk.Shared, s.v.Form, s.v.Size, nil, idsOf(s.v.Refs))
	return true
}

// copiesGone: a node is gone. What it kept is to be kept by others; what is kept here of
// its objects stays for a while.
func (c *Core) copiesGone(number uint32) {
	c.notHaven(number)
	delete(c.going.nodes, number)
	for _, s := range c.spares {
		if s.id.Node() == number {
			s.orphan = c.now
		}
	}
	for _, x := range c.sortedCopied() {
		k := c.copied[x]
		if i := slices.IndexFunc(k.on, func(k keeper) bool { return k.number == number }); i >= 0 {
			k.on = slices.Delete(k.on, i, i+1)
			c.recordCopies(x, k)
			k.at = c.now - copyAgain
		}
	}
	c.tickCopies()
}

func (c *Core) sortedCopied() []id {
	out := make([]id, 0, len(c.copied))
	for x := range c.copied {
		out = append(out, x)
	}
	sortIDs(out)
	return out
}

// tickCopies has nodes looked for where copies are missing, and drops those whose time is
// over.
func (c *Core) tickCopies() {
	if len(c.spares) > 0 {
		c.unspare(func(s *spare) bool { return s.orphan != 0 && c.now-s.orphan >= orphanFor })
	}
	if len(c.copied) == 0 {
		return
	}
	for _, x := range c.sortedCopied() {
		if k := c.copied[x]; len(k.on) < k.want && c.now-k.at >= copyAgain {
			k.at = c.now
			var not []uint32
			for _, k := range k.on {
				not = append(not, k.number)
			}
			c.do(Choose{ID: x, Want: k.want, Not: not})
		}
	}
}

// resumeCopies says again, after a restart of this agent, what is to be kept where.
func (c *Core) resumeCopies() {
	for _, x := range c.sortedCopied() {
		o := c.objects[x]
		if o == nil || o.state != here {
			delete(c.copied, x)
			continue
		}
		for _, k := range c.copied[x].on {
			c.doCopy(o, k.number)
		}
	}
	for _, s := range c.sortedSpares() {
		c.do(Watch{Number: s.id.Node()})
		if s.v.Kind == sdk.Shared {
			c.do(Restore{ID: s.id, Nodes: s.nodes})
		}
	}
}

// recordCopies writes down who is to keep copies of an object.
func (c *Core) recordCopies(x id, k *copied) {
	c.record(recCopies, uint32(k.want), 0, copiesRecord(x, k))
}

func copiesRecord(x id, k *copied) []byte {
	b := slices.Clone(x[:])
	for _, k := range k.on {
		b = append32(b, k.number)
	}
	return b
}

func (c *Core) restoreCopies(want uint32, b []byte) error {
	if len(b) < 16 || len(b)%4 != 0 {
		return errs.New(errs.Corrupt, "a record of tasks is damaged")
	}
	k := &copied{want: int(want)}
	for n := b[16:]; len(n) > 0; n = n[4:] {
		k.on = append(k.on, keeper{number: binary.LittleEndian.Uint32(n)})
	}
	if c.objects[id(b[:16])] != nil {
		c.copied[id(b[:16])] = k
	}
	return nil
}

// copyRecords are what a snapshot says of copies.
func (c *Core) copyRecords(add func(kind uint8, client uint32, typ uint16, body []byte)) {
	for _, x := range c.sortedCopied() {
		k := c.copied[x]
		add(recCopies, uint32(k.want), 0, copiesRecord(x, k))
	}
	for _, s := range c.sortedSpares() {
		b := slices.Clone(s.id[:])
		if s.v.Kind == sdk.Shared {
			b = sdk.AppendElsewhere(b, s.v.Form, bytesOfIDs(s.refs), s.v.Size, s.nodes)
		} else {
			b = sdk.AppendValue(b, s.v.Kind, s.v.Form, s.refs, s.v.Size, s.v.Bytes)
		}
		add(recSpare, 0, 0, b)
	}
}

func bytesOfIDs(ids []wire.ObjectID) []byte {
	out := make([]byte, 0, 16*len(ids))
	for _, x := range ids {
		out = append(out, x[:]...)
	}
	return out
}
