package launcher

import (
	"context"
	"runtime"
	"sync"

	"launcher/wire/sdk"
)

// stream is a caller's end of a task that yields.
type stream struct {
	c    *client
	task taskID
	err  error

	mu   sync.Mutex // guards what follows: one reader at a time
	took uint32     // items taken
	over bool
	next []*handle // asked for already, in order
}

// lookAhead is how many items are asked for before they are taken.
const lookAhead = 8

// take waits for the next item and decodes it into p. It reports whether there was one.
func (s *stream) take(ctx context.Context, p any) (more bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || s.over {
		return false, s.err
	}
	s.c.mu.Lock()
	for len(s.next) < lookAhead {
		s.next = append(s.next, s.c.add(s.task.With(s.took+uint32(len(s.next))+1)))
	}
	s.c.want(s.next[1:], nil, false)
	s.c.mu.Unlock()
	h := s.next[0]
	o, err := ready(ctx, h)
	if err != nil && err == ctx.Err() {
		return false, err // the item is still to come
	}
	if err == nil && o.value.end {
		s.close()
		return false, nil
	}
	if err == nil {
		err = get(ctx, h, p)
	}
	s.took++
	s.next = s.next[1:]
	h.release()
	if err != nil {
		s.err = err
		s.close()
	}
	return err == nil, err
}

// close lets go of the stream, and of what was asked for; mu must be held.
func (s *stream) close() {
	s.over = true
	for _, h := range s.next {
		h.release()
	}
	s.next = nil
	s.c.mu.Lock()
	s.c.out.ids(sdk.MsgRelease, s.task)
	s.c.nudge()
	s.c.mu.Unlock()
}

// leave is for a stream that nobody reads any more.
func (s *stream) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && !s.over {
		s.close()
	}
}

// cancel ends the task.
func (s *stream) cancel() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || s.over {
		return
	}
	s.c.cancel(s.task, sdk.CancelRecursive)
	s.err = ErrCancelled
	s.close()
}

// cancelTask ends the task that makes an object.
func cancelTask(h *handle, flags uint32) {
	if h != nil && h.o.c != nil && !h.o.id.Put() {
		h.o.c.cancel(h.o.id.Task(), flags)
	}
}

func (c *client) cancel(task taskID, flags uint32) {
	c.mu.Lock()
	c.out.begin(sdk.MsgCancel)
	c.out.u32(flags, 0)
	c.out.id(task)
	c.out.close()
	c.mu.Unlock()
	c.flush()
}

// yield hands over an item of a stream, and waits while too many were not taken.
func (w *worker) yield(ctx context.Context, t *order, index uint32, v any, plain plainNumbers) error {
	c := w.c
	e, err := encodeValue(v, plain)
	if err != nil {
		return err
	}
	out, err := c.output(ctx, e, sdk.InlineMax)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.out.yield(t, index, out)
	full := c.nudge()
	c.mu.Unlock()
	runtime.KeepAlive(e)
	if full {
		c.flush()
	}
	for t.pressure > 0 {
		c.mu.Lock()
		waits := index+1-t.taken >= t.pressure
		c.mu.Unlock()
		if !waits {
			break
		}
		c.flush()
		select {
		case <-t.more:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return context.Cause(ctx)
}
