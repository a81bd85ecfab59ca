package session

import (
	"log/slog"
	"net"
	"sync"

	"launcher/internal/errs"
)

const (
	maxGreeting = 512  // connections that have not finished their handshake
	maxRefused  = 1024 // addresses remembered as logged
)

// door bounds what strangers cost: so many connections in their handshake, the oldest
// of which makes room for a new one (an honest handshake takes milliseconds, so the
// oldest is the slowest attacker), and one line in the log per address.
type door struct {
	log     *slog.Logger
	mu      sync.Mutex
	waiting []net.Conn          // oldest first; guarded by mu
	logged  map[string]struct{} // guarded by mu
}

// enter counts conn as in its handshake until the function it gives is called.
func (d *door) enter(conn net.Conn) (leave func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.waiting) >= maxGreeting {
		d.waiting[0].Close()
		d.waiting = d.waiting[1:]
	}
	d.waiting = append(d.waiting, conn)
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		for i, c := range d.waiting {
			if c == conn {
				d.waiting = append(d.waiting[:i:i], d.waiting[i+1:]...)
				return
			}
		}
	}
}

func (d *door) clear() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.waiting {
		c.Close()
	}
	d.waiting = nil
}

// refused logs the first failure of each address.
func (d *door) refused(conn net.Conn, err error) {
	from := "unix"
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		from = a.IP.String()
	}
	d.mu.Lock()
	_, known := d.logged[from]
	if !known {
		if d.logged == nil || len(d.logged) >= maxRefused {
			d.logged = map[string]struct{}{}
		}
		d.logged[from] = struct{}{}
	}
	d.mu.Unlock()
	if !known {
		d.log.Warn("connection refused; later ones from this address are not logged", "from", from, "kind", errs.KindOf(err).String(), "err", err)
	}
}
