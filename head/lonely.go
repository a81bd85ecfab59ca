package head

import (
	"cmp"
	"context"
	"sync"
	"time"

	"launcher/internal/errs"
)

// defaultGrace is how long a head on a host lives with nobody where the spec does not say.
const defaultGrace = 10 * time.Minute

// guests are the sessions of everybody who speaks to the head.
type guests struct {
	mu      sync.Mutex
	n       int           // guarded by mu, as is what follows
	left    int64         // when the last one went
	changed chan struct{} // closed when n becomes or was 0
}

// come counts one more until gone is called.
func (g *guests) come(now func() int64) (gone func()) {
	g.add(1, now)
	return func() { g.add(-1, now) }
}

func (g *guests) add(k int, now func() int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.n
	if g.n += k; g.n == 0 {
		g.left = now()
	}
	if (g.n == 0) != (was == 0) {
		close(g.changed)
		g.changed = make(chan struct{})
	}
}

// lonely ends a head that is on a host when nobody, no node, no command and no broker, has
// had a session with it for the grace time: nodes that have no head end after that, too. Its
// state stays, and whoever comes starts it again with that.
func (h *head) lonely(ctx context.Context) error {
	grace := cmp.Or(h.config.Grace, int64(defaultGrace))
	timer := h.clock.Timer()
	defer timer.Stop()
	for {
		h.guests.mu.Lock()
		n, end, changed := h.guests.n, h.guests.left+grace, h.guests.changed
		h.guests.mu.Unlock()
		if n == 0 {
			if h.clock.Now() >= end {
				return errs.New(errs.Lost, "no node, command or broker has spoken to the head for %s", time.Duration(grace))
			}
			timer.Reset(end)
		} else {
			timer.Stop()
		}
		select {
		case <-timer.C():
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}
