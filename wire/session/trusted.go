package session

import (
	"context"
	"io"
	"net"
	"sync"
	"time"
)

// DialTrusted makes a session over a connection whose other end is known to be who it
// should be: a process that we started, an ssh channel. There is no TLS; on an error conn
// is closed.
func DialTrusted(ctx context.Context, conn net.Conn, cfg Config, who string) (*Session, error) {
	cfg = cfg.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, cfg.Handshake)
	defer cancel()
	free := bound(ctx, conn)
	h, err := greetDial(conn, cfg, purposeSession, who)
	free()
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, dialErr(err, who)
	}
	p := h.peer(conn)
	p.Addr = who
	return newSession(ctx, conn, p, cfg, true), nil
}

// ServeTrusted is the other end of DialTrusted. It returns when the session has ended.
func ServeTrusted(ctx context.Context, conn net.Conn, cfg Config, handle Handler) error {
	cfg = cfg.withDefaults()
	s, err := handshake(ctx, conn, cfg, func(ctx context.Context, conn net.Conn) (*Session, error) {
		h, err := greetServe(conn, cfg, func(hello) error { return nil })
		if err != nil {
			return nil, err
		}
		return newSession(ctx, conn, h.peer(conn), cfg, false), nil
	})
	if err != nil {
		return err
	}
	run(ctx, s, handle)
	return nil
}

// Piped makes a connection of a pair of pipes, for DialTrusted and ServeTrusted. Pipes
// have no deadlines: one that passes closes the connection, which is what a session makes
// of it anyway.
func Piped(r io.ReadCloser, w io.WriteCloser) net.Conn { return &piped{r: r, w: w} }

type piped struct {
	r io.ReadCloser
	w io.WriteCloser

	mu          sync.Mutex
	read, write *time.Timer // guarded by mu
	once        sync.Once
	err         error
}

func (p *piped) Read(b []byte) (int, error) { return p.r.Read(b) }

func (p *piped) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	p.set(&p.write, time.Time{}) // it was for this write
	return n, err
}

func (p *piped) Close() error {
	p.once.Do(func() {
		p.err = p.w.Close()
		if err := p.r.Close(); p.err == nil {
			p.err = err
		}
	})
	return p.err
}

func (p *piped) set(t **time.Timer, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if *t != nil {
		(*t).Stop()
		*t = nil
	}
	if !at.IsZero() {
		*t = time.AfterFunc(time.Until(at), func() { p.Close() })
	}
}

func (p *piped) SetDeadline(t time.Time) error {
	p.set(&p.read, t)
	p.set(&p.write, t)
	return nil
}

func (p *piped) SetReadDeadline(t time.Time) error  { p.set(&p.read, t); return nil }
func (p *piped) SetWriteDeadline(t time.Time) error { p.set(&p.write, t); return nil }
func (p *piped) LocalAddr() net.Addr                { return pipeAddr{} }
func (p *piped) RemoteAddr() net.Addr               { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
