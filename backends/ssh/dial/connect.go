package dial

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"launcher/internal/errs"
)

// connect makes one connection. A handshake that the host drops (its sshd has as many
// callers as it takes, MaxStartups) is tried again, later each time and never in step
// with others.
func (d *Dialer) connect(ctx context.Context, s *settings) (link, error) {
	pause := 100 * time.Millisecond
	for try := 1; ; try++ {
		n, err := d.attempt(ctx, s)
		if err == nil || ReasonOf(err) != Dropped || try > d.o.Retries {
			return n, err
		}
		d.o.Log.Debug("dropped during the handshake", "host", s.alias, "try", try, "error", err)
		if wait(ctx, nil, pause/2+rand.N(pause)) != nil {
			return nil, err
		}
		pause = min(2*pause, 3*time.Second)
	}
}

func (d *Dialer) attempt(ctx context.Context, s *settings) (link, error) {
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-ctx.Done():
		return nil, errs.Wrap(errs.Unknown, context.Cause(ctx), "connecting to %s", s.alias)
	}
	raw, err := d.wire(ctx, s)
	if err != nil {
		return nil, err
	}
	return d.handshake(ctx, s, raw)
}

// wire connects to the port of the host.
func (d *Dialer) wire(ctx context.Context, s *settings) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var n net.Dialer
	addr := net.JoinHostPort(s.host, strconv.Itoa(s.port))
	c, err := n.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, wireError(s, addr, err)
	}
	return c, nil
}

func wireError(s *settings, addr string, err error) error {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		f := fail(Unresolved, s.alias, nil, "%s: the name %s is not known", s.alias, s.host)
		if dns.Temporary() || dns.IsTimeout { // whoever knows names is away: a later try may do
			f.Err.Kind = errs.Unavailable
		}
		return f.Hint("check the name, or give HostName in ssh_config")
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fail(Refused, s.alias, nil, "%s: nothing listens on %s", s.alias, addr).Hint("is sshd running there, and is the port right?")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return fail(Silent, s.alias, nil, "%s: %s does not answer", s.alias, addr).Hint("is the host up, and may this machine reach it, perhaps through a jump host?")
	case errors.Is(err, context.Canceled):
		return errs.Wrap(errs.Cancelled, err, "connecting to %s", s.alias)
	}
	return fail(Unreachable, s.alias, err, "%s: %s cannot be reached", s.alias, addr)
}

// clock bounds the steps of a handshake: what the host says or a person answers starts it
// anew, and it stands still while a person is asked.
type clock struct {
	mu   sync.Mutex
	t    *time.Timer
	d    time.Duration
	rang bool
}

func newClock(d time.Duration, ring func()) *clock {
	c := &clock{d: d}
	c.t = time.AfterFunc(d, func() {
		c.mu.Lock()
		c.rang = true
		c.mu.Unlock()
		ring()
	})
	return c
}

func (c *clock) stop()    { c.t.Stop() }
func (c *clock) restart() { c.t.Reset(c.d) }
func (c *clock) late() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rang
}

// handshake makes an SSH connection out of a plain one.
func (d *Dialer) handshake(ctx context.Context, s *settings, raw net.Conn) (link, error) {
	known, err := s.known()
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	conn := &watched{Conn: raw}
	conn.heard.Store(time.Now().UnixNano())
	bound := newClock(s.timeout, func() { _ = raw.Close() })
	defer bound.stop()
	defer context.AfterFunc(ctx, func() { _ = raw.Close() })()
	a := d.newAuth(ctx, s, bound)
	defer a.close()
	judged := error(nil)
	cfg := &ssh.ClientConfig{
		User: s.user, Auth: a.methods(), HostKeyAlgorithms: known.algorithms(),
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			bound.stop()
			defer bound.restart()
			judged = d.judge(ctx, s, known, key)
			a.met = true
			return judged
		},
		BannerCallback: func(string) error { bound.restart(); return nil },
	}
	cc, chans, reqs, err := ssh.NewClientConn(conn, net.JoinHostPort(s.host, strconv.Itoa(s.port)), cfg)
	if err == nil {
		return newGoLink(s, ssh.NewClient(cc, chans, reqs), conn, d.o.KeepAlive, d.o.KeepAliveCount), nil
	}
	_ = raw.Close()
	switch {
	case ctx.Err() != nil:
		return nil, errs.Wrap(errs.Unknown, context.Cause(ctx), "connecting to %s", s.alias)
	case judged != nil:
		return nil, judged
	case bound.late() && !a.met:
		return nil, fail(Silent, s.alias, nil, "%s: it takes the connection and says nothing for %s", s.alias, s.timeout).
			Hint("is it an sshd that listens on port %d?", s.port)
	case bound.late():
		return nil, fail(Silent, s.alias, nil, "%s: it fell silent while we logged in", s.alias)
	}
	return nil, a.failure(known, err)
}

// dropped are the ends of a connection that an sshd with too many callers makes.
func dropped(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
