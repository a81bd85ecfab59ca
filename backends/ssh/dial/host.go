package dial

import (
	"context"
	"errors"
	"sync"
	"time"
)

// maxLegs bounds the connections to one host; only hosts that take few sessions on each
// see more than one.
const maxLegs = 4

// host is what the Conns to one host share: a connection, and more of them where the host
// takes fewer sessions on each (MaxSessions) than are wanted.
type host struct {
	d   *Dialer
	key string // in d.hosts
	s   *settings

	mu   sync.Mutex
	legs []*leg
	refs int           // Conns that have not been closed
	more bool          // a leg is being dialled
	wake chan struct{} // closed and made anew when a session has ended or a leg has come or gone

	once sync.Once
	done chan struct{}
	err  error // written before done is closed
}

// leg is one connection and the sessions on it.
type leg struct {
	link
	open  int
	limit int // the most sessions it takes, learned when it refused one; 0 = not known
}

func newHost(d *Dialer, key string, s *settings, first link) *host {
	h := &host{d: d, key: key, s: s, legs: []*leg{{link: first}}, wake: make(chan struct{}), done: make(chan struct{})}
	go func() {
		<-first.done()
		h.end(first.err())
	}()
	return h
}

// end closes everything; the first reason holds.
func (h *host) end(err error) {
	h.once.Do(func() {
		h.d.forget(h)
		h.err = err
		close(h.done)
		h.mu.Lock()
		legs := h.legs
		h.mu.Unlock()
		for _, l := range legs {
			l.close()
		}
	})
}

// first is the connection that was made first and lives as long as the host.
func (h *host) first() link {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.legs[0].link
}

// over says whether it has ended.
func (h *host) over() bool {
	select {
	case <-h.done:
		return true
	default:
		return false
	}
}

// release is one Conn less.
func (h *host) release() {
	if h.d.release(h) {
		h.end(errClosed(h.s.alias))
	}
}

func errClosed(name string) error {
	return fail(LinkDead, name, nil, "%s: the connection was closed", name)
}

// changed wakes those who wait for room; mu must be held.
func (h *host) changed() {
	close(h.wake)
	h.wake = make(chan struct{})
}

// start starts a command on the first connection that has room, makes another one where
// none has, and waits for a session to end where there are enough.
func (h *host) start(ctx context.Context, what string, subsystem bool) (*process, error) {
	for empty := 0; ; {
		l, err := h.room(ctx)
		if err != nil {
			return nil, err
		}
		p, err := l.start(ctx, what, subsystem)
		if err == nil {
			wait := p.wait
			p.wait = sync.OnceValues(func() (Exit, error) {
				defer h.leave(l)
				return wait()
			})
			return p, nil
		}
		left := h.leave(l)
		if !errors.Is(err, errNoRoom) {
			return nil, err
		}
		h.mu.Lock()
		if left > 0 {
			l.limit = left
		}
		h.mu.Unlock()
		if left == 0 {
			// It refuses the only one. The one before may not be over yet on its side;
			// if that is not it, it takes none at all.
			if empty++; empty > 5 {
				return nil, fail(NoSessions, h.s.alias, nil, "%s: it lets %s in but starts no session", h.s.alias, h.s.user).
					Hint("its sshd_config may say MaxSessions 0, or allow this key forwarding only")
			}
			if err := wait(ctx, h.done, time.Duration(empty)*20*time.Millisecond); err != nil {
				return nil, err
			}
		}
	}
}

// leave ends a session's place and says how many are left on its connection.
func (h *host) leave(l *leg) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	l.open--
	h.changed()
	return l.open
}

// room gives a connection that has room for one more session, which is counted.
func (h *host) room(ctx context.Context) (*leg, error) {
	for {
		select {
		case <-h.done:
			return nil, h.err
		default:
		}
		h.mu.Lock()
		for _, l := range h.legs {
			if l.limit == 0 || l.open < l.limit {
				l.open++
				h.mu.Unlock()
				return l, nil
			}
		}
		wake := h.wake
		if !h.more && len(h.legs) < maxLegs {
			h.more = true
			go h.widen()
		}
		h.mu.Unlock()
		select {
		case <-wake:
		case <-h.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// widen makes one more connection. That it cannot be had only means that the others must
// do; it is tried again when the next session has ended.
func (h *host) widen() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-h.done:
			cancel()
		case <-stop:
		}
	}()
	n, err := h.d.connect(ctx, h.s)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.more = false
	if err != nil {
		h.d.o.Log.Warn("one more connection for one more session", "host", h.s.alias, "error", err)
		return
	}
	l := &leg{link: n}
	h.legs = append(h.legs, l)
	h.changed()
	go func() { // it goes alone, the first one takes the host with it
		<-n.done()
		h.mu.Lock()
		defer h.mu.Unlock()
		for i, x := range h.legs {
			if x == l {
				h.legs = append(h.legs[:i:i], h.legs[i+1:]...)
			}
		}
		h.changed()
	}()
	select {
	case <-h.done: // it ended meanwhile
		go n.close()
	default:
	}
}
