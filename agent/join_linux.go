package agent

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"time"

	"launcher/internal/errs"
	"launcher/shm"
	"launcher/wire/secure"
	"launcher/wire/session"
)

const (
	identityName = "identity"
	pendingName  = "pending"
	maxIdentity  = 1 << 20
)

// join makes this node a member of its cluster: with the identity that the supervisor
// keeps, or with the join key, which is good for one use.
func (a *agent) join(ctx context.Context) error {
	if f := a.take(identityName); f != nil {
		defer f.Close()
		b, err := io.ReadAll(io.NewSectionReader(f, 0, maxIdentity))
		if err == nil {
			a.id, err = secure.Import(b)
		}
		if err != nil {
			return errs.Wrap(errs.Unknown, err, "the identity of node %s that its supervisor kept", a.cfg.Node)
		}
		return nil
	}
	key, err := a.joinPair(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, max(joinBound, time.Duration(a.cfg.Grace)))
	defer cancel()
	req := secure.JoinRequest{Key: a.cfg.JoinKey, Node: string(a.cfg.Node), Epoch: uint64(a.cfg.Epoch), Token: a.cfg.Token}
	cfg := session.Config{Cluster: a.cfg.Cluster, Version: a.o.Version, Log: a.log}
	pause := firstPause
	for {
		j, err := session.JoinWith(ctx, headAddrs(a.cfg), a.cfg.CA, cfg, req, key)
		if err == nil {
			a.id = j.Identity
			a.log.Info("joined", "cluster", a.cfg.Cluster, "clock", j.Clock)
			if err := a.keepIdentity(ctx); err != nil {
				return err
			}
			return a.super.DropFD(pendingName)
		}
		if !errs.Retryable(err) || ctx.Err() != nil {
			return err
		}
		a.log.Info("cannot join yet; trying again", "err", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause = min(2*pause, lastPause)
	}
}

// joinPair gives the private key to join with. It is the same at every attempt, also those
// of an agent that was killed: the head takes it for one use of the join key.
func (a *agent) joinPair(ctx context.Context) (*secure.Pending, error) {
	if f := a.take(pendingName); f != nil {
		defer f.Close()
		b, err := io.ReadAll(io.NewSectionReader(f, 0, maxIdentity))
		if err != nil {
			return nil, errs.Wrap(errs.Unavailable, err, "the key that node %s began to join with", a.cfg.Node)
		}
		return secure.ImportPending(b)
	}
	p, err := secure.NewPending()
	if err != nil {
		return nil, err
	}
	b, err := p.Export()
	if err == nil {
		err = a.keepMemory(ctx, pendingName, b)
	}
	return p, err
}

// keepIdentity gives the identity to the supervisor, in memory.
func (a *agent) keepIdentity(ctx context.Context) error {
	b, err := a.id.Export()
	if err != nil {
		return err
	}
	return a.keepMemory(ctx, identityName, b)
}

// keepMemory gives bytes to the supervisor, in memory.
func (a *agent) keepMemory(ctx context.Context, name string, b []byte) error {
	f, err := shm.CreateFile("launcher-" + name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		return errs.Wrap(errs.Exhausted, err, "keeping the %s of node %s", name, a.cfg.Node)
	}
	return a.super.StoreFD(ctx, name, f)
}

// renew keeps the certificate valid, and each new one with the supervisor, until ctx ends.
func (a *agent) renew(ctx context.Context) {
	life := time.Duration(a.cfg.CertLife)
	if life <= 0 {
		life = secure.DefaultLife
	}
	a.wg.Go(func() {
		a.id.Keep(ctx, session.Renewer(func() []string { return headAddrs(a.cfg) }, a.sessionConfig()), a.log)
	})
	kept, _ := a.id.Export()
	look := time.NewTicker(max(life/16, 100*time.Millisecond))
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		if b, err := a.id.Export(); err == nil && !bytes.Equal(b, kept) {
			if err := a.keepIdentity(ctx); err != nil {
				a.log.Warn("the new certificate is not kept over a restart", "err", err)
				continue
			}
			kept = b
		}
	}
}
