package host

import (
	"context"
	"io"
	"net"

	"launcher/backends"
	"launcher/wire"
	"launcher/wire/session"
)

// HeadRef names a cluster's head on a host.
type HeadRef struct {
	ID, Cluster string
}

// headStream asks one thing about a head.
func (c *Client) headStream(ctx context.Context, typ uint16, m headAsk) (*session.Stream, error) {
	st, err := c.s.Open(ctx, kindHead)
	if err != nil {
		return nil, c.lost(err)
	}
	if err := st.WriteMsg(typ, m); err != nil {
		_ = st.Close()
		return nil, c.lost(err)
	}
	return st, nil
}

// StartHead has the head of a cluster run on the host; its state comes from dir where
// there is none yet. The answer is what was found there.
func (c *Client) StartHead(ctx context.Context, h HeadRef, cfg wire.HeadConfig, dir string, copied bool) (string, error) {
	st, err := c.headStream(ctx, msgHeadStart, headAsk{ID: h.ID, Cluster: h.Cluster, Config: cfg, Copy: copied})
	if err != nil {
		return "", err
	}
	defer st.Close()
	defer context.AfterFunc(ctx, func() { _ = st.CloseWith(context.Cause(ctx)) })()
	var is headIs
	if err := read(st, msgAnswer, &is); err != nil {
		return "", c.lost(err)
	}
	if is.State == HeadNone {
		var without []string
		if copied { // it goes on with what the host has of it
			without = append(without, journalDir)
		}
		if err := Pack(dir, st, without...); err != nil {
			var why struct{}
			if herr := read(st, msgAnswer, &why); herr != nil { // the host says it better
				err = herr
			}
			return "", c.lost(err)
		}
	}
	_ = st.CloseWrite()
	var done struct{}
	if err := read(st, msgAnswer, &done); err != nil {
		return "", c.lost(err)
	}
	return is.State, nil
}

// JoinHead connects to the head.
func (c *Client) JoinHead(ctx context.Context, h HeadRef, tls bool) (net.Conn, error) {
	st, err := c.headStream(ctx, msgHeadJoin, headAsk{ID: h.ID, Cluster: h.Cluster, TLS: tls})
	if err != nil {
		return nil, err
	}
	free := context.AfterFunc(ctx, func() { _ = st.CloseWith(context.Cause(ctx)) })
	var done struct{}
	err = read(st, msgAnswer, &done)
	if !free() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = st.Close()
		return nil, c.lost(err)
	}
	return st, nil
}

// FetchHead copies the record of a cluster that is down into dir.
func (c *Client) FetchHead(ctx context.Context, h HeadRef, dir string) error {
	st, err := c.headStream(ctx, msgHeadFetch, headAsk{ID: h.ID, Cluster: h.Cluster})
	if err != nil {
		return err
	}
	defer st.Close()
	defer context.AfterFunc(ctx, func() { _ = st.CloseWith(context.Cause(ctx)) })()
	var done struct{}
	if err := read(st, msgAnswer, &done); err != nil {
		return c.lost(err)
	}
	if err := Unpack(dir, st); err != nil {
		return c.lost(err)
	}
	_, err = io.Copy(io.Discard, st)
	return err
}

// SeenHead says what the host knows of a head that is elsewhere.
func (c *Client) SeenHead(ctx context.Context, h HeadRef, cfg wire.HeadConfig) (seen backends.HeadSeen, err error) {
	err = c.askHead(ctx, msgHeadSeen, h, cfg, &seen)
	return seen, err
}

// EndGhost ends a head that was replaced by one of cfg's term.
func (c *Client) EndGhost(ctx context.Context, h HeadRef, cfg wire.HeadConfig) error {
	var done struct{}
	return c.askHead(ctx, msgHeadGhost, h, cfg, &done)
}

// DropHead removes what the host has of a head whose cluster is down.
func (c *Client) DropHead(ctx context.Context, h HeadRef) error {
	var done struct{}
	return c.askHead(ctx, msgHeadDrop, h, wire.HeadConfig{}, &done)
}

// askHead is a question with one answer.
func (c *Client) askHead(ctx context.Context, typ uint16, h HeadRef, cfg wire.HeadConfig, answer any) error {
	st, err := c.headStream(ctx, typ, headAsk{ID: h.ID, Cluster: h.Cluster, Config: cfg})
	if err != nil {
		return err
	}
	defer st.Close()
	defer context.AfterFunc(ctx, func() { _ = st.CloseWith(context.Cause(ctx)) })()
	if err := read(st, msgAnswer, answer); err != nil {
		return c.lost(err)
	}
	return nil
}

var _ net.Conn = (*session.Stream)(nil)
