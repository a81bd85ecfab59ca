package launcher

import (
	"context"
	"runtime"

	"launcher/wire"
	"launcher/wire/sdk"
)

// What the agent was asked about an object.
const (
	askedNothing uint8 = iota
	askedReady
	askedValue
)

// ended reports whether the object is far enough for who waits: for its value, or only
// for its end.
func (o *object) ended(values bool) bool {
	s := o.state.Load()
	return s > stateReady || s == stateReady && !values
}

// missing is how many of n objects are still to come. With values it gives the error of
// one that failed.
func missing(hs []*handle, n int, values bool) (int, error) {
	for _, h := range hs {
		switch {
		case h == nil:
			return 0, errNoRef
		case h.released.Load():
			return 0, ErrReleased
		case !h.o.ended(values):
		case values && h.o.state.Load() == stateFailed:
			return 0, h.o.err
		default:
			n--
		}
	}
	return n, nil
}

// await waits until n of the objects have ended. With values it waits for them to be
// here, and the first that failed is enough.
func await(ctx context.Context, hs []*handle, n int, values bool) error {
	if need, err := missing(hs, n, values); need <= 0 || err != nil || ctx.Err() != nil {
		if err == nil && need > 0 {
			err = ctx.Err()
		}
		return err
	}
	var c *client
	for _, h := range hs {
		if h.o.c != nil {
			c = h.o.c
		}
	}
	w := &waiter{values: values, done: make(chan struct{})}
	c.mu.Lock()
	if need, err := missing(hs, n, values); need <= 0 || err != nil { // some came since
		c.mu.Unlock()
		return err
	} else {
		w.need = need
	}
	depth := c.worker.depth()
	lends := c.worker.lends() || c.hello.Proc != "" && c.worker == nil // its cores, to others
	c.want(hs, w, lends)
	if depth > 0 && c.waiting == 0 {
		c.worker.handBack(c.worker.begun + 1)
	}
	if lends {
		c.waiting++
	}
	c.mu.Unlock()
	c.flush()
	err := c.waitFor(ctx, w, depth)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.worker.settle(depth)
	if lends {
		c.waiting--
	}
	if w.need > 0 || len(hs) > 1 {
		open := false
		for _, h := range hs {
			h.o.forget(w)
			open = open || !h.o.ended(values)
		}
		if open && lends && c.waiting == 0 {
			c.out.empty(sdk.MsgAwake) // what is still open is not waited for
			c.nudge()
		}
	}
	if err == nil && values {
		_, err = missing(hs, n, values)
	}
	runtime.KeepAlive(hs)
	return err
}

// waitFor waits for w. A task that waits has those that come meanwhile run in its place.
func (c *client) waitFor(ctx context.Context, w *waiter, depth int) error {
	var nested chan struct{}
	if depth > 0 {
		nested = c.worker.nested
	}
	for {
		select {
		case <-w.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-nested:
			c.worker.onTop()
		}
	}
}

// want has w wait for the objects that have not ended, and asks the agent for those; w
// may be nil. The agent is told when a task blocks until they are there. mu must be held.
func (c *client) want(hs []*handle, w *waiter, blocks bool) {
	values := w == nil || w.values
	level, flags := askedReady, uint32(0)
	if values {
		level, flags = askedValue, sdk.GetValue
	}
	if blocks {
		flags |= sdk.GetBlocks
	}
	begun := false
	for _, h := range hs {
		if h.o.c == nil || h.o.ended(values) {
			continue
		}
		if w != nil {
			h.o.waiters = append(h.o.waiters, w)
		}
		if h.o.asked < level || blocks {
			begun = c.askFor(h.o, level, flags, begun)
		}
	}
	if values && len(hs) == 1 {
		begun = c.askAhead(hs[0].o, begun)
	}
	if begun {
		c.out.close()
	}
}

// askFor puts an object into a Get frame, which it begins if there is none; mu must be
// held.
func (c *client) askFor(o *object, level uint8, flags uint32, begun bool) bool {
	if begun && len(c.out.buf)-c.out.frame > 1<<20 {
		c.out.close()
		begun = false
	}
	if !begun {
		c.out.begin(sdk.MsgGet)
		c.out.u32(flags, 0)
	}
	c.out.id(o.id)
	o.asked, o.at = max(o.asked, level), c.out.base+uint64(c.out.frame)
	return true
}

// askAhead asks for the results of the tasks after o's too, if they are being got one
// after the other; mu must be held.
func (c *client) askAhead(o *object, begun bool) bool {
	if o.id.Node() != c.welcomed.Number || o.id.Client() != c.welcomed.Client || o.id.Index() != 1 {
		return begun
	}
	r, n := &c.ahead, o.id.N()
	switch {
	case n < r.next && n+r.window/2 >= r.next || n == r.next:
		r.window = min(max(2*r.window, 4), maxWindow)
	case n < r.next && n+r.window >= r.next:
		return begun // well within what was asked for
	default:
		r.window, r.next = 1, n+1
		return begun
	}
	if begun { // the others are not waited for
		c.out.close()
		begun = false
	}
	r.next = max(r.next, n+1)
	for ; r.next <= min(n+r.window, c.n); r.next++ {
		next := c.objects[wire.NewObjectID(c.welcomed.Number, c.welcomed.Client, r.next, 1)]
		if next != nil && next.state.Load() <= stateReady && next.asked < askedValue {
			begun = c.askFor(next, askedValue, sdk.GetValue, begun)
		}
	}
	return begun
}

// settle says that an object has ended, or is ready, and wakes who waits for it; mu must
// be held.
func (o *object) settle(state uint32) {
	o.state.Store(state)
	left := o.waiters[:0]
	for _, w := range o.waiters {
		if !o.ended(w.values) {
			left = append(left, w)
			continue
		}
		if w.need--; w.need == 0 || w.need > 0 && w.values && state == stateFailed {
			w.need = 0
			close(w.done)
		}
	}
	clear(o.waiters[len(left):])
	o.waiters = left
}

// forget takes a waiter back; mu must be held.
func (o *object) forget(w *waiter) {
	left := o.waiters[:0]
	for _, x := range o.waiters {
		if x != w {
			left = append(left, x)
		}
	}
	clear(o.waiters[len(left):])
	o.waiters = left
}
