package session

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/wire/secure"
)

// Handler serves one session. Its context ends with the session, and the session when it
// returns.
type Handler func(context.Context, *Session)

// Serve accepts sessions over TLS until ctx ends or the listener is closed. It closes the
// listener and all sessions and waits for every handler before it returns; the error is
// nil when ctx ended.
func Serve(ctx context.Context, ln net.Listener, cfg Config, handle Handler) error {
	cfg = cfg.withDefaults()
	if cfg.Identity == nil {
		return errs.New(errs.Internal, "Serve without an identity")
	}
	return serve(ctx, ln, cfg, handle, tlsGreeter(cfg))
}

func tlsGreeter(cfg Config) greeter {
	tc := cfg.Identity.ServerTLS()
	return func(ctx context.Context, conn net.Conn) (*Session, error) {
		c := tls.Server(conn, tc)
		if err := c.HandshakeContext(ctx); err != nil {
			if errors.Is(err, io.EOF) {
				return nil, errProbe
			}
			return nil, errs.Wrap(errs.Corrupt, err, "no TLS handshake")
		}
		return greetTLS(ctx, c, cfg)
	}
}

// ServeRelayed serves one connection that something else brought here, as Serve does those of
// a listener. It returns when the session has ended.
func ServeRelayed(ctx context.Context, conn net.Conn, cfg Config, handle Handler) error {
	cfg = cfg.withDefaults()
	s, err := handshake(ctx, conn, cfg, tlsGreeter(cfg))
	if err != nil {
		return err
	}
	run(ctx, s, handle)
	return nil
}

// ServeUnix accepts sessions of the same user on a unix socket, as Serve.
func ServeUnix(ctx context.Context, ln net.Listener, cfg Config, handle Handler) error {
	cfg = cfg.withDefaults()
	return serve(ctx, ln, cfg, handle, func(ctx context.Context, conn net.Conn) (*Session, error) {
		return greetUnix(ctx, conn, cfg)
	})
}

// ServeConn serves one connection of a unix socket on which several protocols are spoken;
// conn gives the bytes from the magic on (see Sniff). It returns when the session has ended.
func ServeConn(ctx context.Context, conn net.Conn, cfg Config, handle Handler) error {
	cfg = cfg.withDefaults()
	s, err := handshake(ctx, conn, cfg, func(ctx context.Context, conn net.Conn) (*Session, error) {
		return greetUnix(ctx, conn, cfg)
	})
	if err != nil {
		return err
	}
	run(ctx, s, handle)
	return nil
}

type greeter func(ctx context.Context, conn net.Conn) (*Session, error)

func serve(ctx context.Context, ln net.Listener, cfg Config, handle Handler, greet greeter) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer ln.Close()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	door := door{log: cfg.Log}
	defer door.clear()
	pause := 5 * time.Millisecond
	for {
		conn, err := ln.Accept()
		if err != nil {
			switch {
			case ctx.Err() != nil:
				return nil
			case errors.Is(err, net.ErrClosed):
				return errs.Wrap(errs.Unavailable, err, "the listener was closed")
			}
			// Out of descriptors or memory: others may give some back.
			cfg.Log.Error("cannot accept a connection", "addr", ln.Addr().String(), "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		leave := door.enter(conn)
		wg.Go(func() {
			s, err := handshake(ctx, conn, cfg, greet)
			leave()
			if err != nil {
				if ctx.Err() == nil && !errors.Is(err, errServed) && !errors.Is(err, errProbe) {
					door.refused(conn, err)
				}
				return
			}
			run(ctx, s, handle)
		})
	}
}

var (
	errServed = errors.New("served")                // the connection was for something that is done
	errProbe  = errors.New("closed without a word") // somebody looked whether anything listens
)

// handshake makes a session of conn within its bound, or closes it.
func handshake(ctx context.Context, conn net.Conn, cfg Config, greet greeter) (*Session, error) {
	hctx, cancel := context.WithTimeout(ctx, cfg.Handshake)
	defer cancel()
	free := bound(hctx, conn)
	s, err := greet(hctx, conn)
	free()
	if err != nil {
		conn.Close()
		if hctx.Err() != nil && ctx.Err() == nil {
			err = errs.Wrap(errs.Timeout, err, "no handshake within %s", cfg.Handshake)
		}
		return nil, err
	}
	return s, nil
}

func run(ctx context.Context, s *Session, handle Handler) {
	stop := context.AfterFunc(ctx, func() {
		s.CloseWith(errs.New(errs.Unavailable, "the other side is going away"))
	})
	defer stop()
	defer s.Close()
	handle(s.ctx, s)
}

// greetTLS checks the certificate of a client and serves what it came for.
func greetTLS(ctx context.Context, c *tls.Conn, cfg Config) (*Session, error) {
	var who secure.Subject
	h, err := greetServe(c, cfg, func(h hello) (err error) {
		if who, err = cfg.Identity.CheckPeer(c.ConnectionState()); err != nil {
			return err
		}
		switch h.Body.Purpose {
		case purposeJoin:
			if cfg.Joiner == nil || cfg.Authority == nil {
				return errs.New(errs.Invalid, "only the head lets nodes join; this is the %s", cfg.Role)
			}
			return nil
		case purposeRenew:
			if cfg.Authority == nil {
				return errs.New(errs.Invalid, "only the head renews certificates; this is the %s", cfg.Role)
			}
		case purposeSession:
		default:
			return errs.New(errs.Version, "this version does not know connections of purpose %d", h.Body.Purpose)
		}
		if who.Role == secure.RoleNone {
			return errs.New(errs.Permission, "no certificate of cluster %s was shown", cfg.Cluster)
		}
		if cfg.Allow != nil {
			p := h.peer(c)
			p.Role, p.Name = who.Role, who.Name
			return cfg.Allow(p)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	switch h.Body.Purpose {
	case purposeJoin:
		return nil, serveJoin(c, cfg)
	case purposeRenew:
		return nil, serveRenew(c, cfg, h.peer(c), who)
	}
	p := h.peer(c)
	p.Role, p.Name = who.Role, who.Name
	return newSession(ctx, c, p, cfg, false), nil
}

// greetUnix lets in only the user we run as. root is no exception: it could read
// everything anyway, but what it starts by mistake should not mix with the user's.
func greetUnix(ctx context.Context, conn net.Conn, cfg Config) (*Session, error) {
	uid, pid, err := PeerCred(conn)
	if err != nil {
		return nil, err
	}
	if me := os.Getuid(); uid != me {
		err := errs.New(errs.Permission, "user %d is refused: this socket belongs to a cluster of user %d", uid, me)
		a := cfg.hello(purposeSession)
		a.Body.Refused = errs.ToWire(err)
		refuse(conn, a)
		return nil, err
	}
	h, err := greetServe(conn, cfg, func(h hello) error {
		if h.Body.Purpose != purposeSession {
			return errs.New(errs.Invalid, "certificates are not for unix sockets")
		}
		if cfg.Allow != nil {
			return cfg.Allow(h.peer(conn))
		}
		return nil
	})
	if errors.Is(err, io.EOF) {
		return nil, errProbe
	}
	if err != nil {
		return nil, err
	}
	p := h.peer(conn)
	p.Unix, p.Addr = true, ""
	if pid > 0 {
		p.PID = pid
	}
	return newSession(ctx, conn, p, cfg, false), nil
}
