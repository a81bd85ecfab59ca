package launcher

import (
	"context"
	"slices"
	"sync"

	"launcher/internal/errs"
)

// pending are the open calls of one Handle, of which there may be only so many.
type pending struct {
	most int
	mu   sync.Mutex
	open []*handle // of the result of each
}

// send submits a call, if there may be one more.
func (p *pending) send(k *call, out []*handle) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sweep(); len(p.open) >= p.most {
		if err := p.look(k.ctx, k.c); err != nil {
			return err
		}
		if p.sweep(); len(p.open) >= p.most {
			return errs.Wrap(errs.Exhausted, ErrPendingCalls, "%s: %d calls are open", k.f.defaults.name, len(p.open))
		}
	}
	if _, err := k.send(uint32(len(out)), out); err != nil {
		return err
	}
	p.open = append(p.open, k.c.hold(out[0].o.id))
	return nil
}

// sweep lets go of those that are known to have ended.
func (p *pending) sweep() {
	p.open = slices.DeleteFunc(p.open, func(h *handle) bool {
		over := h.o.ended(false)
		if over {
			h.release()
		}
		return over
	})
}

// look asks the agent which have ended: what it knows it says before its answer.
func (p *pending) look(ctx context.Context, c *client) error {
	w := &waiter{need: len(p.open), done: make(chan struct{})}
	c.mu.Lock()
	c.want(p.open, w, false)
	c.mu.Unlock()
	var none any
	err := c.ask(ctx, &none, "sync")
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range p.open {
		h.o.forget(w)
	}
	return err
}
