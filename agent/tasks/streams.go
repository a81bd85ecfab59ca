package tasks

import (
	"maps"
	"slices"

	"launcher/internal/errs"
	"launcher/wire/sdk"
)

// startStream has a task give its items as they come.
func (c *Core) startStream(t *task, s *stream) {
	t.stream = s
	s.ahead = map[uint32]bool{}
	if cl := c.clients[t.client]; cl != nil && !s.left {
		if cl.streams == nil {
			cl.streams = map[*task]struct{}{}
		}
		cl.streams[t] = struct{}{}
	}
}

// item is an item of a stream; it is made when it is first asked for or first made.
func (c *Core) item(t *task, i uint32) *object {
	o := &object{id: t.id.With(i + 1), state: pending}
	s := t.stream
	switch {
	case i < s.made:
		return nil // it was there, and its last reference is gone
	case s.over && i == s.made && s.last != nil:
		o.state, o.kind, o.form, o.data, o.size = here, sdk.Failure, 1, s.last, int64(len(s.last))
	case s.over:
		o.state, o.kind = here, sdk.End
	}
	c.objects[o.id] = o
	if o.state == pending {
		s.ahead[i] = true
	}
	return o
}

// yield takes an item of a stream.
func (c *Core) yield(cl *client, b []byte) error {
	if len(b) < 24 {
		return errs.New(errs.Corrupt, "Yield is cut short")
	}
	t := c.tasks[id(b[:16])]
	attempt, i := u32(b[16:]), u32(b[20:])
	v, _, err := sdk.CutValue(b[24:])
	if err != nil {
		return err
	}
	if t == nil || t.worker() != cl || t.attempt != attempt || t.stream == nil || i >= maxItems {
		return nil
	}
	s := t.stream
	if i < s.made {
		return nil // made by an earlier attempt
	}
	o := c.made(t, i)
	if v.Kind == sdk.Shared || v.Kind == sdk.Inline {
		c.fill(cl, o, &v)
	}
	if p := c.clients[t.client]; p != nil && p.Kind == sdk.KindPeer {
		c.reportItem(p, t, o)
	}
	return nil
}

// made gives the object of an item that has come, held by who reads the stream.
func (c *Core) made(t *task, i uint32) *object {
	o := c.objects[t.id.With(i+1)]
	if o == nil {
		o = &object{id: t.id.With(i + 1), state: pending}
		c.objects[o.id] = o
	}
	if !t.stream.left {
		c.hold(o, t.client)
	}
	t.stream.made = i + 1
	delete(t.stream.ahead, i)
	return o
}

// taken tells a generator how far its reader is.
func (c *Core) taken(t *task, n uint32) {
	s := t.stream
	if n <= s.taken {
		return
	}
	s.taken = n
	if w := t.worker(); w != nil && t.shape.window > 0 {
		c.tell(w, sdk.MsgConsumed, t.id, n)
	}
}

// endStream ends a stream, with an error or well.
func (c *Core) endStream(t *task, data []byte) {
	s := t.stream
	s.over, s.last = true, data
	for _, i := range slices.Sorted(maps.Keys(s.ahead)) { // readers that are ahead
		o := c.objects[t.id.With(i+1)]
		if o == nil || o.state != pending {
			continue
		}
		if data != nil && i == s.made {
			c.fail(o, data)
			continue
		}
		o.kind = sdk.End
		c.arrive(o)
	}
	clear(s.ahead)
	if s.left {
		t.stream = nil
	}
}

// leaveStream: the reader wants no more of it, so it is not made any further.
func (c *Core) leaveStream(t *task) {
	s := t.stream
	s.left = true
	if cl := c.clients[t.client]; cl != nil {
		delete(cl.streams, t)
	}
	for i := s.taken; i < s.made; i++ {
		if o := c.objects[t.id.With(i+1)]; o != nil {
			c.drop(o, t.client)
			c.unneeded(o)
		}
	}
	if t.state == done {
		c.forget(t)
		return
	}
	c.cancel(t.id, 0)
}
