package session

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
	"launcher/wire/secure"
)

// stagger is how long one address is tried before the next is tried beside it.
const stagger = 250 * time.Millisecond

// Dial connects to the process with role want that listens at one of addrs, best first;
// the first that answers and is who it should be is taken.
func Dial(ctx context.Context, addrs []string, cfg Config, want secure.Role) (*Session, error) {
	cfg = cfg.withDefaults()
	if cfg.Identity == nil {
		return nil, errs.New(errs.Internal, "Dial without an identity")
	}
	tc := cfg.Identity.ClientTLS(want)
	return dialFirst(ctx, addrs, cfg, func(ctx context.Context, addr string) (*Session, error) {
		conn, h, err := dialTLS(ctx, addr, cfg, tc, purposeSession, want)
		if err != nil {
			return nil, err
		}
		if err := cfg.expects(h, addr); err != nil {
			conn.Close()
			return nil, err
		}
		p := h.peer(conn)
		return newSession(ctx, conn, p, cfg, true), nil
	})
}

// ReachBound is how long Reach tries each address.
const ReachBound = 3 * time.Second

// Reach connects to one of addrs and no more; it says why it cannot, "" = it can.
func Reach(ctx context.Context, addrs []string) string {
	cfg := Config{Handshake: ReachBound}.withDefaults()
	conn, err := dialFirst(ctx, addrs, cfg, func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := connect(ctx, addr)
		if err != nil {
			return nil, dialErr(err, addr)
		}
		return conn, nil
	})
	if err != nil {
		return errs.Line(err)
	}
	_ = conn.Close()
	return ""
}

// expects refuses another peer than the one that is wanted.
func (c *Config) expects(h hello, where string) error {
	if c.PeerName == "" || h.Body.Name == c.PeerName {
		return nil
	}
	return errs.New(errs.Fenced, "at %s is %s, not %s", where, h.Body.Name, c.PeerName)
}

// DialConn makes a session over a connection that something else set up (an ssh channel,
// a relay): TLS, handshake and all.
func DialConn(ctx context.Context, conn net.Conn, cfg Config, want secure.Role) (*Session, error) {
	cfg = cfg.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, cfg.Handshake)
	defer cancel()
	c, h, err := clientTLS(ctx, conn, cfg, cfg.Identity.ClientTLS(want), purposeSession, want.String())
	if err == nil {
		err = cfg.expects(h, "the other end")
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return newSession(ctx, c, h.peer(c), cfg, true), nil
}

// DialUnix connects to a process of the same user at a socket. A path that was too long
// for a socket is found where package sockpath put it.
func DialUnix(ctx context.Context, path string, cfg Config) (*Session, error) {
	cfg = cfg.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, cfg.Handshake)
	defer cancel()
	conn, err := sockpath.Dial(ctx, path)
	if err != nil {
		return nil, dialErr(err, path)
	}
	defer bound(ctx, conn)()
	uid, pid, err := PeerCred(conn)
	if err == nil && uid != os.Getuid() {
		err = errs.New(errs.Permission, "the socket %s is served by user %d, not by you (%d)", path, uid, os.Getuid())
	}
	var h hello
	if err == nil {
		h, err = greetDial(conn, cfg, purposeSession, path)
	}
	if err != nil {
		conn.Close()
		return nil, dialErr(err, path)
	}
	p := h.peer(conn)
	p.Unix, p.Addr = true, path
	if pid > 0 {
		p.PID = pid
	}
	return newSession(ctx, conn, p, cfg, true), nil
}

// dialFirst tries addrs one beside the other, each a little after the one before.
func dialFirst[T any](ctx context.Context, addrs []string, cfg Config, dial func(context.Context, string) (T, error)) (T, error) {
	var none T
	if len(addrs) == 0 {
		return none, errs.New(errs.Invalid, "no address to connect to")
	}
	type result struct {
		v   T
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	results := make(chan result)
	next := time.NewTimer(0)
	defer next.Stop()
	started, running := 0, 0
	var failed []error
	for {
		select {
		case <-next.C:
			addr := addrs[started]
			started, running = started+1, running+1
			wg.Go(func() {
				tctx, cancel := context.WithTimeout(ctx, cfg.Handshake)
				defer cancel()
				v, err := dial(tctx, addr)
				select {
				case results <- result{v, err}:
				case <-ctx.Done():
					// Another address was taken; results has no reader any more.
					if c, ok := any(v).(interface{ Close() error }); ok && err == nil {
						c.Close()
					}
				}
			})
			if started < len(addrs) {
				next.Reset(stagger)
			}
		case r := <-results:
			if r.err == nil {
				return r.v, nil
			}
			running--
			failed = append(failed, r.err)
			if started < len(addrs) {
				next.Reset(0)
			} else if running == 0 {
				return none, worst(failed)
			}
		case <-ctx.Done():
			if len(failed) > 0 {
				return none, worst(failed)
			}
			return none, errs.Wrap(errs.Unknown, context.Cause(ctx), "connecting to %s", strings.Join(addrs, ", "))
		}
	}
}

// worst picks the failure that says most: one from a process that answered before one
// from the network.
func worst(failed []error) error {
	for _, e := range failed {
		if k := errs.KindOf(e); k == errs.Version || k == errs.Permission || k == errs.Fenced {
			return e
		}
	}
	return failed[0]
}

func dialTLS(ctx context.Context, addr string, cfg Config, tc *tls.Config, purpose uint8, want secure.Role) (net.Conn, hello, error) {
	conn, err := connect(ctx, addr)
	for err != nil && purpose == purposeJoin && strings.HasPrefix(addr, routePrefix) && ctx.Err() == nil {
		// A node that was just started may be faster than the process that opens the socket.
		select {
		case <-time.After(routePause):
			conn, err = connect(ctx, addr)
		case <-ctx.Done():
		}
	}
	if err != nil {
		return nil, hello{}, dialErr(err, addr)
	}
	c, h, err := clientTLS(ctx, conn, cfg, tc, purpose, "the "+want.String()+" at "+addr)
	if err != nil {
		conn.Close()
		return nil, h, err
	}
	return c, h, nil
}

// RouteAddr is an address that means: by way of the process that holds the connection to
// this node's host, over the socket (wire.RouteSocket) at path, to the head.
func RouteAddr(path string) string { return routePrefix + path }

const (
	routePrefix = "route:"
	routePause  = 50 * time.Millisecond
)

func connect(ctx context.Context, addr string) (net.Conn, error) {
	path, ok := strings.CutPrefix(addr, routePrefix)
	if !ok {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
	conn, err := sockpath.Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	if uid, _, err := PeerCred(conn); err != nil || uid != os.Getuid() {
		conn.Close()
		return nil, errs.New(errs.Permission, "the socket %s is served by user %d, not by you (%d)", path, uid, os.Getuid())
	}
	if _, err := conn.Write([]byte(wire.RouteHead + "\n")); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// clientTLS does the dialler's handshakes on conn, which the caller closes on error.
func clientTLS(ctx context.Context, conn net.Conn, cfg Config, tc *tls.Config, purpose uint8, who string) (net.Conn, hello, error) {
	defer bound(ctx, conn)()
	c := tls.Client(conn, tc)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, hello{}, dialErr(err, who)
	}
	h, err := greetDial(c, cfg, purpose, who)
	if err != nil {
		return nil, h, dialErr(err, who)
	}
	// What the certificate says counts, not what the hello says.
	s, err := secure.PeerSubject(c.ConnectionState())
	if err != nil {
		return nil, h, err
	}
	h.Body.Role, h.Body.Name = uint8(s.Role), s.Name
	return c, h, nil
}

// bound makes conn's reads and writes end with ctx; the function it gives takes that back.
func bound(ctx context.Context, conn net.Conn) func() {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if stop() {
			return
		}
		conn.SetDeadline(time.Time{})
	}
}

// dialErr classifies what goes wrong between two processes that want to talk.
func dialErr(err error, who string) error {
	if e, ok := errors.AsType[*errs.Error](err); ok {
		return errs.Wrap(e.Kind, err, "connecting to %s", who)
	}
	kind := errs.Unavailable
	switch {
	case errors.Is(err, context.Canceled):
		kind = errs.Cancelled
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return errs.Wrap(errs.Timeout, err, "no answer from %s", who)
	case errors.Is(err, syscall.ECONNREFUSED):
		return errs.Wrap(kind, err, "nothing listens at %s", who)
	case errors.Is(err, os.ErrNotExist):
		kind = errs.NotFound
	case errors.Is(err, os.ErrPermission):
		kind = errs.Permission
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		kind = errs.Timeout
	}
	if re, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return errs.New(errs.Corrupt, "%s does not speak TLS (%s): something else listens there", who, re.Msg)
	}
	return errs.Wrap(kind, err, "connecting to %s", who)
}
