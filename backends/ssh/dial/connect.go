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
		if f, ok := errors.AsType[*Failure](err); !ok || f.Reason != Dropped || f.Host != s.alias || try > d.o.Retries {
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
	if s.t.Transport == "system" {
		select {
		case d.slots <- struct{}{}:
			defer func() { <-d.slots }()
		case <-ctx.Done():
			return nil, errs.Wrap(errs.Unknown, context.Cause(ctx), "connecting to %s", s.alias)
		}
		return d.system(ctx, s)
	}
	jump, err := d.via(ctx, s)
	if err != nil {
		return nil, err
	}
	n, err := d.through(ctx, s, jump)
	if jump != nil {
		if err != nil {
			_ = jump.Close()
		} else {
			go func() {
				<-n.done()
				_ = jump.Close()
			}()
		}
	}
	return n, err
}

// through connects, once the jump host is there and there is a place among those who do.
func (d *Dialer) through(ctx context.Context, s *settings, jump *Conn) (link, error) {
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-ctx.Done():
		return nil, errs.Wrap(errs.Unknown, context.Cause(ctx), "connecting to %s", s.alias)
	}
	raw, err := d.wire(ctx, s, jump)
	if err != nil {
		return nil, err
	}
	return d.handshake(ctx, s, raw)
}

// clock bounds the steps of a handshake: what the host says or a person answers starts it
// anew, and it stands still while anybody waits for a person, or a key is opened.
type clock struct {
	mu     sync.Mutex
	t      *time.Timer
	d      time.Duration
	paused int
	rang   bool
}

func newClock(d time.Duration, ring func()) *clock {
	c := &clock{d: d}
	c.t = time.AfterFunc(d, func() {
		c.mu.Lock()
		rings := c.paused == 0
		c.rang = rings
		c.mu.Unlock()
		if rings {
			ring()
		}
	})
	return c
}

func (c *clock) stop() { c.t.Stop() }

// pause holds it until resume is called; there may be pauses within pauses.
func (c *clock) pause() (resume func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused++
	c.t.Stop()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.paused--; c.paused == 0 {
			c.t.Reset(c.d)
		}
	}
}

func (c *clock) restart() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused == 0 {
		c.t.Reset(c.d)
	}
}

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
		User: s.user, Auth: a.methods(), AuthCallback: a.note, HostKeyAlgorithms: known.algorithms(),
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			defer bound.pause()()
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
	if p, ok := raw.(*piped); ok && !a.met && ctx.Err() == nil {
		if why := oneLine(p.errs.String()); why != "" {
			return nil, fail(Unreachable, s.alias, nil, "%s: its ProxyCommand failed: %s", s.alias, printable(why))
		}
	}
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
