package ssh

import (
	"context"
	"net"

	"launcher/backends"
	"launcher/backends/records"
	"launcher/backends/ssh/host"
	"launcher/internal/errs"
)

// headAt is a host that has the head of a cluster.
type headAt struct {
	site site
	ref  host.HeadRef
}

// headHost reaches the host of a cluster's head.
func (b *Backend) headHost(ctx context.Context, h backends.HeadAt) (*host.Client, headAt, error) {
	r := h.Request
	s, err := b.siteOf(r)
	if err != nil {
		return nil, headAt{}, err
	}
	at := headAt{s, b.headRef(h)}
	b.mu.Lock()
	b.heads[r.Cluster] = at
	b.mu.Unlock()
	c, err := b.link(s, r.Binary).get(ctx, true)
	return c, at, err
}

// StartHead has the head of a cluster run on a host.
func (b *Backend) StartHead(ctx context.Context, h backends.HeadAt) (down bool, err error) {
	c, at, err := b.headHost(ctx, h)
	if err != nil {
		return false, err
	}
	state, err := c.StartHead(ctx, at.ref, h.Config, h.Dir, h.Copy)
	if err != nil {
		return false, errs.Wrap(errs.Unknown, err, "%s", at.site.Name)
	}
	return state == host.HeadDown, nil
}

// JoinHead connects to the socket of a head on a host.
func (b *Backend) JoinHead(ctx context.Context, h backends.HeadAt) (net.Conn, error) {
	c, at, err := b.headHost(ctx, h)
	if err != nil {
		return nil, err
	}
	conn, err := c.JoinHead(ctx, at.ref, false)
	if err != nil {
		return nil, errs.Wrap(errs.Unknown, err, "%s", at.site.Name)
	}
	return conn, nil
}

// SeenHead asks a host that need not have the head.
func (b *Backend) SeenHead(ctx context.Context, h backends.HeadAt) (seen backends.HeadSeen, err error) {
	s, err := b.siteOf(h.Request)
	if err != nil {
		return seen, err
	}
	c, err := b.link(s, h.Request.Binary).get(ctx, true)
	if err == nil {
		seen, err = c.SeenHead(ctx, b.headRef(h), h.Config)
	}
	if err != nil {
		return seen, errs.Wrap(errs.Unknown, err, "%s", s.Name)
	}
	return seen, nil
}

// EndGhost ends a head that was replaced, where it was.
func (b *Backend) EndGhost(ctx context.Context, h backends.HeadAt) error {
	s, err := b.siteOf(h.Request)
	if err != nil {
		return err
	}
	c, err := b.link(s, h.Request.Binary).get(ctx, false)
	if err == nil {
		err = c.EndGhost(ctx, b.headRef(h), h.Config)
	}
	if err != nil {
		return errs.Wrap(errs.Unknown, err, "%s", s.Name)
	}
	return nil
}

func (b *Backend) headRef(h backends.HeadAt) host.HeadRef {
	return host.HeadRef{ID: records.ClusterID(h.Request.Join.CA), Cluster: h.Request.Cluster}
}

// EndHead brings the record of a cluster that is down here.
func (b *Backend) EndHead(ctx context.Context, h backends.HeadAt) error {
	c, at, err := b.headHost(ctx, h)
	if err == nil {
		err = c.FetchHead(ctx, at.ref, h.Dir)
	}
	if err == nil {
		err = c.DropHead(ctx, at.ref)
	}
	if err != nil {
		return errs.Wrap(errs.Unknown, err, "the record of cluster %s", h.Request.Cluster)
	}
	b.mu.Lock()
	delete(b.heads, h.Request.Cluster)
	b.mu.Unlock()
	return nil
}
