package host

import (
	"context"
	"net"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

// Client is the broker's end of a connection to a host.
type Client struct {
	s    *session.Session
	name string
}

// Router connects to what a node of the host wants to reach and cannot by itself.
type Router func(ctx context.Context, cluster, to string) (net.Conn, error)

// Dial greets the host at the other end of conn. Route may be nil: then nodes of the host
// get no way over this connection.
func Dial(ctx context.Context, conn net.Conn, name string, r Router) (*Client, error) {
	s, err := session.DialTrusted(ctx, conn, session.Config{Name: "broker"}, name)
	if err != nil {
		return nil, err
	}
	c := &Client{s: s, name: name}
	go c.serve(r) // ends with the session
	return c, nil
}

// Done is closed when the connection has ended; Err says why.
func (c *Client) Done() <-chan struct{} { return c.s.Done() }

// Err is why the connection ended.
func (c *Client) Err() error { return c.s.Err() }

// Close ends the connection; nodes run on.
func (c *Client) Close() error { return c.s.Close() }

// serve takes streams that the host opens.
func (c *Client) serve(r Router) {
	for {
		kind, st, err := c.s.Accept(c.s.Context())
		if err != nil {
			return
		}
		if kind != kindRoute || r == nil {
			_ = st.CloseWith(errs.New(errs.Invalid, "the broker takes no stream of kind %d", kind))
			continue
		}
		go func() {
			if err := serveRoute(c.s.Context(), st, r); err != nil {
				_ = st.CloseWith(err)
			}
		}()
	}
}

func serveRoute(ctx context.Context, st *session.Stream, r Router) error {
	var m route
	if err := read(st, msgRoute, &m); err != nil {
		return err
	}
	conn, err := r(ctx, m.Cluster, m.To)
	if err != nil {
		return err
	}
	join(ctx, st, conn)
	return nil
}

func call[T any](ctx context.Context, c *Client, typ uint16, req any) (answer T, err error) {
	st, err := c.s.Open(ctx, kindCall)
	if err != nil {
		return answer, c.lost(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = st.CloseWith(context.Cause(ctx)) })
	defer stop()
	defer st.Close()
	if err := st.WriteMsg(typ, req); err != nil {
		return answer, c.lost(err)
	}
	if err := read(st, msgAnswer, &answer); err != nil {
		if ctx.Err() != nil {
			return answer, errs.Wrap(errs.Unknown, context.Cause(ctx), "host %s", c.name)
		}
		return answer, c.lost(err)
	}
	return answer, nil
}

// lost tells an answer of the host from the end of the connection.
func (c *Client) lost(err error) error {
	if cause := c.s.Err(); cause != nil {
		return &ConnError{errs.Wrap(errs.Unavailable, cause, "the connection to %s broke", c.name)}
	}
	return err
}

// ConnError is a call whose fate is not known: the connection broke under it.
type ConnError struct{ err error }

func (e *ConnError) Error() string { return e.err.Error() }

// Unwrap gives the cause.
func (e *ConnError) Unwrap() error { return e.err }

// read reads one message of a type.
func read(st *session.Stream, want uint16, v any) error {
	typ, body, err := st.ReadMsg()
	if err != nil {
		return err
	}
	switch typ {
	case wire.MsgError:
		var w errs.Wire
		if err := wire.Unmarshal(body, &w); err != nil {
			return err
		}
		return w.FromWire()
	case want:
		return wire.Unmarshal(body, v)
	}
	return errs.New(errs.Corrupt, "a message of type %d, wanted %d", typ, want)
}

// Facts asks what the host is.
func (c *Client) Facts(ctx context.Context) (Facts, error) {
	return call[Facts](ctx, c, msgFacts, struct{}{})
}

// Submit starts nodes; the handles of the answer are the host's own.
func (c *Client) Submit(ctx context.Context, id string, r backends.Request) ([]backends.Alloc, error) {
	r.Home, r.Binary = "", ""
	return call[[]backends.Alloc](ctx, c, msgSubmit, submit{id, r})
}

// Find looks submissions up.
func (c *Client) Find(ctx context.Context, id, cluster string, tokens []string) (map[string][]backends.Alloc, error) {
	return call[map[string][]backends.Alloc](ctx, c, msgFind, find{id, cluster, tokens})
}

// Status asks about allocations.
func (c *Client) Status(ctx context.Context, id string, hs [][]byte) ([]Status, error) {
	st, err := call[[]Status](ctx, c, msgStatus, handles{id, hs})
	if err == nil && len(st) != len(hs) {
		err = errs.New(errs.Corrupt, "host %s answered %d of %d questions", c.name, len(st), len(hs))
	}
	return st, err
}

// Cancel ends allocations.
func (c *Client) Cancel(ctx context.Context, id string, hs [][]byte) error {
	_, err := call[struct{}](ctx, c, msgCancel, handles{id, hs})
	return err
}

// Forget removes what the host keeps of allocations that have ended.
func (c *Client) Forget(ctx context.Context, id string, hs [][]byte) error {
	_, err := call[struct{}](ctx, c, msgForget, handles{id, hs})
	return err
}

// Watch calls ended with the index of each allocation whose state should be asked, until
// ctx ends (nil) or the connection does. While it lasts, the nodes may use routes.
func (c *Client) Watch(ctx context.Context, id string, hs [][]byte, ended func(int) bool) error {
	st, err := c.s.Open(ctx, kindWatch)
	if err != nil {
		return c.lost(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = st.Close() })
	defer stop()
	defer st.Close()
	if err := st.WriteMsg(msgWatch, handles{id, hs}); err != nil {
		return c.lost(err)
	}
	for {
		var m changed
		if err := read(st, msgChanged, &m); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return c.lost(err)
		}
		if m.Index >= 0 && m.Index < len(hs) && !ended(m.Index) {
			return nil
		}
	}
}
