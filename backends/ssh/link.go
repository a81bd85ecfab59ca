package ssh

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"launcher/backends/ssh/host"
	"launcher/internal/errs"
	"launcher/wire"
)

// dialer reaches hosts.
type dialer interface {
	// Split reads [user@]host[:port]; what is not there is zero.
	Split(text string) (host, user string, port int, err error)
	// Open connects to a host and starts a command there. The channel's Close gives the
	// connection up, too.
	Open(ctx context.Context, s site, command string) (channel, error)
	Close() error
}

const (
	firstRest = time.Second
	lastRest  = 30 * time.Second
)

// link is the one connection to a host, made when it is needed and again after it broke.
type link struct {
	b *Backend
	s site

	mu      sync.Mutex
	binary  string        // guarded by mu, as is what follows
	ports   string        // [network] ports of its cluster
	client  *host.Client  // nil: not connected
	making  chan struct{} // closed when the try that is under way is over
	err     error         // of the newest try
	retryAt time.Time     // no new try before, but for the patient
	wait    time.Duration
	over    bool
}

func (b *Backend) link(s site, binary string) *link {
	if binary == "" {
		binary, _ = os.Executable()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.hosts[s]
	if l == nil {
		l = &link{b: b, s: s, binary: binary}
		b.hosts[s] = l
	}
	return l
}

// lendAt says at which ports the host may give the binary to others.
func (l *link) lendAt(ports string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ports = ports
}

// get gives the connection. now tries at once where the last try has failed a moment ago;
// without it that failure is the answer until its rest is over.
func (l *link) get(ctx context.Context, now bool) (*host.Client, error) {
	tried := false
	for {
		if err := ctx.Err(); err != nil {
			return nil, errs.Wrap(errs.Unknown, context.Cause(ctx), "connecting to %s", l.s.Name)
		}
		l.mu.Lock()
		switch {
		case l.over:
			l.mu.Unlock()
			return nil, errs.New(errs.Cancelled, "the broker is closed")
		case l.client != nil && l.client.Err() == nil:
			c := l.client
			l.mu.Unlock()
			return c, nil
		case l.making == nil && (tried || !now && time.Now().Before(l.retryAt)):
			err := l.err
			l.mu.Unlock()
			if err == nil {
				err = errs.New(errs.Unavailable, "the connection to %s broke as soon as it was there", l.s.Name)
			}
			return nil, err
		case l.making == nil:
			l.making = make(chan struct{})
			l.b.wg.Go(l.make)
		}
		making := l.making
		l.mu.Unlock()
		select {
		case <-making:
			tried = true
		case <-ctx.Done():
		}
	}
}

// rest is how long to leave the host alone.
func (l *link) rest() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Until(l.retryAt)
}

// make is one try.
func (l *link) make() {
	c, ch, err := l.connect()
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.making)
	l.making, l.err = nil, err
	if err == nil && l.over {
		l.b.wg.Go(func() { c.Close(); ch.Close() })
		return
	}
	if err != nil {
		l.wait = min(max(2*l.wait, firstRest), lastRest)
		l.retryAt = time.Now().Add(l.wait/2 + rand.N(l.wait/2))
		return
	}
	l.client, l.wait = c, 0
	l.b.wg.Go(func() {
		<-c.Done()
		c.Close()
		ch.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.client == c { // else the next is there already
			l.client = nil
		}
	})
}

func (l *link) connect() (*host.Client, channel, error) {
	l.mu.Lock()
	binary, ports := l.binary, l.ports
	l.mu.Unlock()
	ctx := l.b.ctx
	ch, err := l.b.dial.Open(ctx, l.s, shell)
	if err != nil {
		return nil, nil, err
	}
	p := l.b.provision(l.s, binary)
	defer func() { p.done(true) }() // a host that fails says nothing of others
	conn, at, err := p.run(ctx, ch)
	if err != nil {
		return nil, nil, err
	}
	c, err := host.Dial(ctx, conn, l.s.Name, l.b.route)
	if err != nil {
		ch.Close()
		if text := lastLine(ch.Stderr()); text != "" {
			err = errs.Wrap(errs.Unknown, err, "%s: the host's process says %q", l.s.Name, text)
		}
		return nil, nil, err
	}
	if b, err := p.shelf.get(at.Arch); err == nil && at.Addr.IsValid() {
		from, to := portRange(ports)
		l.b.spread(b.sum).add(&lender{client: c, addr: at.Addr, from: from, to: to})
	}
	return c, ch, nil
}

// portRange reads [network] ports, which the loader has checked; 0 is any port.
func portRange(s string) (from, to int) {
	a, b, two := strings.Cut(s, "-")
	if from, _ = strconv.Atoi(strings.TrimSpace(a)); !two {
		return from, from
	}
	to, _ = strconv.Atoi(strings.TrimSpace(b))
	return from, to
}

// hangUp ends the connection for good.
func (l *link) hangUp() {
	l.mu.Lock()
	l.over = true
	c := l.client
	l.mu.Unlock()
	if c != nil {
		c.Close()
	}
}

// route connects a node that cannot reach others by itself.
func (b *Backend) route(ctx context.Context, cluster, to string) (net.Conn, error) {
	if to != wire.RouteHead || !nameRE.MatchString(cluster) {
		return nil, errs.New(errs.NotFound, "there is no way to %q", to)
	}
	b.mu.Lock()
	at, away := b.heads[cluster]
	b.mu.Unlock()
	if away {
		cl, err := b.link(at.site, "").get(ctx, false)
		if err != nil {
			return nil, err
		}
		return cl.JoinHead(ctx, at.ref, true)
	}
	var c wire.ClusterFile
	data, err := os.ReadFile(filepath.Join(b.home, "clusters", cluster, "cluster.json"))
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "the head's address")
	}
	var d net.Dialer
	for _, a := range c.Addrs {
		var conn net.Conn
		if conn, err = d.DialContext(ctx, "tcp", a); err == nil {
			return conn, nil
		}
	}
	return nil, errs.Wrap(errs.Unavailable, err, "the head of cluster %s", cluster)
}
