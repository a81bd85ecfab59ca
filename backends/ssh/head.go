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
	at := headAt{s, host.HeadRef{ID: records.ClusterID(r.Join.CA), Cluster: r.Cluster}}
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
	state, err := c.StartHead(ctx, at.ref, h.Config, h.Dir)
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
