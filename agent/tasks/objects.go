package tasks

import (
	"fmt"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// lookup finds an object; another node's is made known. nil = there is no such object of
// this node's.
func (c *Core) lookup(x id) *object {
	if o := c.objects[x]; o != nil {
		return o
	}
	if c.mine(x) || x.Node() == 0 { // no node has number 0
		t := c.tasks[x.Task()]
		if t != nil && t.actor != nil && x.Index() > 1 {
			return c.askLife(t, x)
		}
		if t == nil || t.stream == nil || x.Index() == 0 || x.Index() > wire.ItemIndexMax || t.stream.left {
			return nil
		}
		return c.item(t, x.Index()-1)
	}
	o := &object{id: x, state: pending, fetched: true}
	c.objects[x] = o
	c.do(Borrow{ID: x})
	return o
}

// want has the value of another node's object brought here.
func (c *Core) want(o *object) {
	if o.fetched && !o.asked && o.state != here && !c.bySpare(o) {
		o.asked = true
		c.do(Fetch{ID: o.id})
	}
}

// lostError is what a reader of an object gets that is not here.
func (c *Core) lostError(x id) []byte {
	return c.errorOf("lost", fmt.Sprintf("object %s is not known to node %s: its last reference is gone, or it never was", x, c.cfg.Node), nil)
}

// put takes an object that a client made itself.
func (c *Core) put(cl *client, b []byte) error {
	if len(b) < 16 {
		return errs.New(errs.Corrupt, "Put is cut short")
	}
	x := id(b[:16])
	v, _, err := sdk.CutValue(b[16:])
	if err != nil {
		return err
	}
	if x.Node() != c.cfg.Number || x.Client() != cl.ID || !x.Put() {
		return errs.New(errs.Permission, "client %d puts object %s, which is not its to put", cl.ID, x)
	}
	if c.objects[x] != nil || !cl.fresh(x.N()) {
		return nil // sent again
	}
	o := &object{id: x, state: pending, made: c.now}
	c.hold(o, cl.ID)
	c.objects[x] = o
	c.fill(cl, o, &v)
	return nil
}

// fresh reports whether a client's count is used for the first time. Clients count in
// order, nearly; what was sent again after a break is known by its count.
func (cl *client) fresh(n uint64) bool {
	if n > cl.seen {
		for k := cl.seen + 1; k < n && len(cl.gaps) < 1<<16; k++ {
			if cl.gaps == nil {
				cl.gaps = map[uint64]struct{}{}
			}
			cl.gaps[k] = struct{}{}
		}
		cl.seen = n
		return true
	}
	if _, ok := cl.gaps[n]; ok {
		delete(cl.gaps, n)
		return true
	}
	return false
}

// fill gives an object the value that a client sent.
func (c *Core) fill(cl *client, o *object, v *sdk.Value) {
	if o.state == here {
		return // made again, or told again
	}
	o.kind, o.form, o.size, o.data = v.Kind, v.Form, v.Size, nil
	switch v.Kind {
	case sdk.Shared:
		if !c.mute {
			if err := c.store.Seal(cl.ID, o.id, v.Form, v.Segment, v.Offset, v.Size); err != nil {
				c.fail(o, c.errorOf("full", err.Error(), o.task, errs.HintsOf(err)...))
				return
			}
		}
	default:
		o.data = slices.Clone(v.Bytes)
	}
	c.refer(o, idsOf(v.Refs))
	c.arrive(o)
}

// refer has an object hold what is inside its value.
func (c *Core) refer(o *object, refs []id) {
	if o.links != nil {
		o.links.refs = nil
	}
	for _, x := range refs {
		if in := c.lookup(x); in != nil {
			in.uses++
			o.linked().refs = append(o.refs(), x)
		}
	}
}

// fail gives an object an error for a value.
func (c *Core) fail(o *object, data []byte) {
	if o.state == here {
		return
	}
	o.kind, o.form, o.size, o.data = sdk.Failure, 1, int64(len(data)), data
	if o.links != nil {
		o.links.refs = nil
	}
	c.arrive(o)
}

// arrive tells everybody that an object has its value.
func (c *Core) arrive(o *object) {
	o.state = here
	if o.made == 0 {
		o.made = c.now
	}
	subs := o.subs
	o.subs = nil
	for _, s := range subs {
		c.answer(o, s)
	}
	ws := o.waiters()
	if ws != nil {
		o.links.waiters = nil
	}
	for _, t := range ws {
		if t.missing--; t.missing == 0 && t.state == waiting {
			c.enqueue(t)
		}
	}
	c.unneeded(o)
	if g := o.linked().callee; g != nil {
		c.found(g)
	}
}

// answer tells a subscriber, and lets it go on when it waits for nothing else.
func (c *Core) answer(o *object, s sub) {
	if cl := c.clients[s.client]; cl != nil {
		c.tellObject(cl, o, s.flags)
		c.let(o, s.client)
	}
	c.came(s.level)
}

// came: one of the things that a level waits for, if there is one, is there or not wanted
// any more.
func (c *Core) came(l *level) {
	if l != nil {
		if l.waits--; l.waits == 0 {
			c.goesOn(l)
		}
	}
}

// tellObject writes an Object frame.
func (c *Core) tellObject(cl *client, o *object, flags uint32) {
	if cl.Kind == sdk.KindPeer {
		at := c.frame(cl, sdk.MsgObject, 0)
		cl.out = append(cl.out, o.id[:]...)
		cl.out = c.appendGiven(cl.out, o)
		cl.finish(at)
	} else if later := flags&sdk.GetValue != 0 && o.kind == sdk.Inline && c.behind(cl); later || flags&sdk.GetValue == 0 && o.kind != sdk.End {
		flag := sdk.ReadyOnly
		if later {
			flag |= sdk.Later
		}
		at := c.frame(cl, sdk.MsgObject, flag)
		cl.out = append(cl.out, o.id[:]...)
		cl.out = sdk.AppendValue(cl.out, o.kind, o.form, nil, o.size, nil)
		cl.finish(at)
	} else {
		at := c.frame(cl, sdk.MsgObject, 0)
		cl.out = append(cl.out, o.id[:]...)
		cl.out = sdk.AppendValue(cl.out, o.kind, o.form, o.refs(), o.size, o.data)
		cl.finish(at)
	}
	if t := c.tasks[o.id.Task()]; t != nil && t.stream != nil && o.kind != sdk.End {
		c.taken(t, o.id.Index())
	}
}

// behind reports whether so much waits for a client to read it that values can wait too.
func (c *Core) behind(cl *client) bool {
	n := len(cl.out)
	if c.cfg.Unread != nil {
		n += c.cfg.Unread(cl.ID)
	}
	return n > c.cfg.MaxUnread
}

// tellError answers for an object that is not here.
func (c *Core) tellError(cl *client, x id, data []byte) {
	at := c.frame(cl, sdk.MsgObject, 0)
	cl.out = append(cl.out, x[:]...)
	cl.out = sdk.AppendValue(cl.out, sdk.Failure, 1, nil, int64(len(data)), data)
	cl.finish(at)
}

// get subscribes a client to objects.
func (c *Core) get(cl *client, b []byte) error {
	if len(b) < 8 {
		return errs.New(errs.Corrupt, "Get is cut short")
	}
	flags := u32(b)
	l := cl.top()
	err := sdk.IDs(b[8:], func(x id) {
		o := c.lookup(x)
		if o == nil || o.kind == 0 && o.state == here {
			c.tellError(cl, x, c.lostError(x))
			return
		}
		if o.state == freed {
			c.again(o)
		}
		c.want(o)
		if o.state == here && (o.kind != sdk.Shared || flags&sdk.GetValue == 0 || cl.Kind == sdk.KindPeer || c.store.Resident(x)) {
			c.tellObject(cl, o, flags)
			c.unneeded(o) // the end of a stream may be there for this question only
			return
		}
		if o.state == here { // on disk
			c.restore(o)
		}
		for i := range o.subs {
			if o.subs[i].client == cl.ID {
				o.subs[i].flags |= flags
				if flags&sdk.GetBlocks != 0 && o.subs[i].level == nil {
					o.subs[i].waits(l, x)
				}
				return
			}
		}
		s := sub{client: cl.ID, flags: flags}
		if flags&sdk.GetBlocks != 0 {
			s.waits(l, x)
		}
		o.subs = append(o.subs, s)
		cl.has(o)
	})
	if l.waits > 0 {
		c.blocks(l)
	}
	return err
}

// restore has a spilled object read back; whoever waits for it is answered then.
func (c *Core) restore(o *object) {
	if o.gets++; o.gets == 1 {
		c.do(Restore{ID: o.id, Nodes: append(o.nodes(), c.copied[o.id].nodes()...)})
	}
}

// Restored: the store has brought a spilled object back, or cannot (err).
func (c *Core) Restored(now int64, x id, err error) {
	c.now = now
	defer c.brought(x, err)
	o, s := c.objects[x], c.spares[x]
	if s != nil && !s.done {
		c.spareCame(s, err)
	}
	switch {
	case o == nil && s == nil && err == nil:
		c.frees = append(c.frees, x) // it is not wanted any more
		return
	case o == nil, o.state != here && c.inherited(o, err), o.state != here || o.kind != sdk.Shared:
		return
	}
	o.gets = 0
	switch {
	case errs.Is(err, errs.Exhausted):
		c.noRoom(o, err)
		return
	case err != nil:
		c.recordLost(x)
		c.lose(o, err.Error())
		return
	}
	subs := o.subs
	o.subs = nil
	for _, s := range subs {
		c.answer(o, s)
	}
	c.unneeded(o)
}

// NoRoom: memory is full, so another node's object could not be brought here. A task that
// needs it fails.
func (c *Core) NoRoom(now int64, x id, err error) {
	c.now = now
	o := c.objects[x]
	switch {
	case o == nil:
	case o.state != here && len(o.waiters()) > 0:
		data := c.errorOf("full", err.Error(), nil, errs.HintsOf(err)...)
		c.Fetched(now, x, sdk.Failure, 1, int64(len(data)), data, nil)
	default:
		o.gets, o.asked = 0, false
		c.noRoom(o, err)
	}
}

// noRoom tells those who asked for an object that there is no room for it. It stays where
// it is, for whoever asks again.
func (c *Core) noRoom(o *object, err error) {
	data := c.errorOf("full", err.Error(), nil, errs.HintsOf(err)...)
	subs := o.subs
	o.subs = nil
	for _, s := range subs {
		if cl := c.clients[s.client]; cl != nil {
			c.tellError(cl, o.id, data)
		}
		c.came(s.level)
	}
	c.unneeded(o)
}

// Lost: a shared object's value is gone. It is made again when something wants it.
func (c *Core) Lost(now int64, x id, why string) {
	c.now = now
	if o := c.objects[x]; o != nil && o.state == here && len(c.copied[x].nodes()) > 0 {
		if o.gets = 0; len(o.subs) > 0 {
			c.restore(o)
		}
		return
	}
	c.recordLost(x)
	if o := c.objects[x]; o != nil && o.state == here && o.kind == sdk.Shared && !o.fetched && o.where == 0 {
		c.lose(o, why)
	}
}

func (c *Core) lose(o *object, why string) {
	o.gets = 0
	c.elsewhere(o)
	c.unrefer(o)
	o.data, o.kind = nil, 0
	if o.task == nil {
		o.state = missing
		c.fail(o, c.errorOf("lost", fmt.Sprintf("object %s is lost: %s", o.id, why), nil, "put(x, copies=2) keeps a second copy; the result of a task is made again by itself"))
		return
	}
	o.state = freed
	if len(o.subs) > 0 || len(o.waiters()) > 0 {
		c.again(o)
	}
}

// Fetched: the value of another node's object, as a value of a frame would be.
func (c *Core) Fetched(now int64, x id, kind, form uint8, size int64, data []byte, refs []id) {
	c.now = now
	o := c.objects[x]
	if o == nil || o.state == here {
		return
	}
	o.kind, o.form, o.size, o.data = kind, form, size, data
	c.recordFetched(o, refs)
	c.refer(o, refs)
	c.arrive(o)
}

// release takes a client's reference away.
func (c *Core) release(cl *client, x id) {
	if x.Index() == 0 {
		switch t := c.tasks[x]; {
		case t == nil || t.client != cl.ID:
		case cl.Kind == sdk.KindPeer && (t.isCall() || t.actor != nil):
			c.accounted(t)
		case t.stream != nil:
			c.leaveStream(t)
		}
		return
	}
	if o := c.objects[x]; o != nil {
		c.drop(o, cl.ID)
		c.unask(o, cl.ID)
		c.unneeded(o)
	}
}

// unuse takes a task's or a value's reference away.
func (c *Core) unuse(x id) {
	if o := c.objects[x]; o != nil {
		o.uses--
		c.unneeded(o)
	}
}

// unrefer lets go of what is inside a value.
func (c *Core) unrefer(o *object) {
	refs := o.refs()
	if refs != nil {
		o.links.refs = nil
	}
	for _, r := range refs {
		c.unuse(r)
	}
}

// unneeded frees an object that nothing wants any more.
func (c *Core) unneeded(o *object) {
	if o.needed() {
		return
	}
	if o.fetched {
		delete(c.objects, o.id)
		c.do(Unfetch{ID: o.id})
		if o.state == here && o.kind == sdk.Shared && c.spares[o.id] == nil {
			c.frees = append(c.frees, o.id)
		}
		c.unrefer(o)
		c.unlink(o)
		return
	}
	if o.state == pending || o.state == missing {
		return // its task makes it, and then it is looked at again
	}
	if o.lineage > 0 && o.task == nil && o.state == here && o.kind == sdk.Inline {
		return // a small argument that was put, of a task that may have to run again
	}
	if o.state == here {
		if o.kind == sdk.Shared {
			c.frees = append(c.frees, o.id)
			c.elsewhere(o)
		}
		o.state, o.data, o.kind = freed, nil, 0
		c.unrefer(o)
	}
	if o.lineage > 0 && o.task != nil {
		return
	}
	delete(c.objects, o.id)
	c.uncopy(o.id)
	c.unlink(o)
}

// unlink takes an object that is not referred to any more from the task that made it.
func (c *Core) unlink(o *object) {
	if len(c.callees) > 0 && o.id.Index() == 1 {
		c.forgetCallee(o.id.Task())
	}
	if t := o.task; t != nil {
		o.task = nil
		switch t.alive--; {
		case t.alive > 0:
		case t.actor != nil:
			c.unwanted(t)
		case t.state == done && t.stream == nil && !c.stays(t):
			c.forget(t)
		}
	}
}

// unsubscribe takes all of a client's questions back.
func (c *Core) unsubscribe(cl *client) {
	for o := range c.thingsOf(cl) {
		c.unask(o, cl.ID)
	}
}

// unask takes a client's question for one object back.
func (c *Core) unask(o *object, client uint32) {
	o.subs = slices.DeleteFunc(o.subs, func(s sub) bool {
		if s.client == client {
			c.came(s.level)
		}
		return s.client == client
	})
	c.let(o, client)
}
