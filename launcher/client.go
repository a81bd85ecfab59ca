package main

import (
	"context"
	"errors"
	"io"
	"time"

	"launcher/broker"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// callBound is how long one question to the head may take.
const callBound = 30 * time.Second

// client is a connection to a cluster's head, direct or through the agent of the run
// that we are in.
type client struct {
	target target
	s      *session.Session
}

// connect reaches the cluster the command means.
func (a *app) connect(ctx context.Context) (*client, error) {
	t, err := a.pick(false)
	if err == nil {
		err = a.awake(ctx, t)
	}
	if err != nil {
		return nil, err
	}
	return dial(ctx, t)
}

// dial connects to t. A head that moves just now is waited for.
func dial(ctx context.Context, t target) (*client, error) {
	for began := time.Now(); ; {
		c, err := dialOnce(ctx, t)
		if !errs.Is(err, errs.Unavailable) || t.inside || !headMoves(t.dir) || !answers(t.dir) || time.Since(began) > moveAgain {
			return c, err
		}
		select {
		case <-time.After(pauseAfter(began)):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func dialOnce(ctx context.Context, t target) (*client, error) {
	ctx, cancel := context.WithTimeout(ctx, callBound)
	defer cancel()
	if !t.up {
		return nil, downError(t)
	}
	var s *session.Session
	var err error
	if t.inside {
		s, err = session.DialUnix(ctx, t.sock, session.Config{Cluster: t.name, Role: secure.RoleClient, Name: "command"})
	} else {
		s, err = broker.Connect(ctx, t.dir)
	}
	if err != nil {
		if t.inside {
			return nil, errs.Wrap(errs.Unknown, err, "the agent of this run does not answer").Hint("$LAUNCHER_SOCKET is %s; unset it to talk to another cluster", t.sock)
		}
		if k := errs.KindOf(err); k == errs.NotFound || (k == errs.Unavailable && !answers(t.dir)) {
			return nil, downError(t)
		}
		return nil, errs.Wrap(errs.Unknown, err, "cluster %s", t.name)
	}
	return &client{target: t, s: s}, nil
}

func downError(t target) error {
	e := errs.New(errs.NotFound, "cluster %s is not up", t.name)
	if hc, err := readHeadConfig(t.dir); err == nil {
		return e.Hint("`launcher up %s` brings it back", shellJoin(hc.SpecPath))
	}
	return e.Hint("`launcher up SPEC` brings it back")
}

func (c *client) Close() { _ = c.s.Close() }

// open sends one request and leaves its stream open for the answers.
func (c *client) open(ctx context.Context, typ uint16, req any) (*session.Stream, error) {
	st, err := c.s.Open(ctx, wire.StreamRequest)
	if err != nil {
		return nil, away(err)
	}
	if d, ok := ctx.Deadline(); ok {
		_ = st.SetDeadline(d)
	}
	if err := st.WriteMsg(typ, req); err != nil {
		_ = st.Close()
		return nil, away(err)
	}
	return st, nil
}

// answer reads the next answer into resp. io.EOF is the end of the stream.
func answer(st *session.Stream, resp any) error {
	typ, body, err := st.ReadMsg()
	switch {
	case errors.Is(err, io.EOF):
		return io.EOF
	case err != nil:
		return away(err)
	case typ == wire.MsgError:
		var w wire.ErrorFrame
		if err := wire.Unmarshal(body, &w); err != nil {
			return err
		}
		return w.FromWire()
	case typ != wire.MsgOK:
		return errs.New(errs.Corrupt, "the head answered with message %#x, expected %#x", typ, wire.MsgOK)
	}
	return wire.Unmarshal(body, resp)
}

// call asks one question and reads its one answer. A head that moves while it is asked is
// asked again where it is then.
func (c *client) call(ctx context.Context, typ uint16, req, resp any) error {
	ctx, cancel := context.WithTimeout(ctx, callBound)
	defer cancel()
	var failed time.Time
	for {
		err := c.callOnce(ctx, typ, req, resp)
		if !errs.Is(err, errs.Unavailable) || c.target.inside || !headMoves(c.target.dir) {
			return err
		}
		if failed.IsZero() { // that the head is lost shows in its silence, for some seconds
			failed = time.Now()
		}
		if time.Since(failed) > moveAgain {
			return err
		}
		select {
		case <-time.After(pauseAfter(failed)):
		case <-ctx.Done():
			return err
		}
		if again, err2 := dial(ctx, c.target); err2 == nil {
			c.Close()
			c.s = again.s
		}
	}
}

// moveAgain is for how long a question is asked again that a moving head did not answer.
const moveAgain = 5 * time.Second

// headMoves reports that the head of a cluster goes from allocation to allocation.
func headMoves(dir string) bool {
	c, err := readHeadConfig(dir)
	return err == nil && c.Roam != ""
}

func (c *client) callOnce(ctx context.Context, typ uint16, req, resp any) error {
	st, err := c.open(ctx, typ, req)
	if err != nil {
		return err
	}
	defer st.Close()
	err = answer(st, resp)
	if errors.Is(err, io.EOF) {
		return errs.New(errs.Unavailable, "the head closed the connection without an answer")
	}
	return err
}

// away classifies the loss of a connection: worth another try.
func away(err error) error {
	switch errs.KindOf(err) {
	case errs.Unknown:
		return errs.Wrap(errs.Unavailable, err, "the connection to the head was lost")
	case errs.Timeout:
		return errs.Wrap(errs.Timeout, err, "the head did not answer within %s", callBound)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errs.Wrap(errs.Timeout, err, "the head did not answer within %s", callBound)
	}
	return err
}

// request runs one question against the cluster the command means.
func request[T any](ctx context.Context, a *app, typ uint16, req any) (resp T, err error) {
	c, err := a.connect(ctx)
	if err != nil {
		return resp, err
	}
	defer c.Close()
	err = c.call(ctx, typ, req, &resp)
	return resp, err
}
