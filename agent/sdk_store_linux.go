package agent

import (
	"context"
	"time"

	"launcher/agent/store"
	"launcher/agent/transfer"
	"launcher/internal/errs"
	"launcher/wire"
)

// bringBound is how long room for an object from another node is waited for.
const bringBound = 60 * time.Second

// objectStore is the node's objects for the transfer between nodes.
type objectStore struct{ s *sdkServer }

// stored is an object of the store that is being sent.
type stored struct {
	view    []byte
	form    byte
	release func()
}

func (o *stored) Meta() transfer.Meta {
	return transfer.Meta{Size: int64(len(o.view)), Form: uint32(o.form)}
}
func (o *stored) Bytes() []byte { return o.view }
func (o *stored) Close()        { o.release() }

// Open gives an object that is in memory; one on disk is brought back first.
func (x objectStore) Open(id transfer.ID) (transfer.Object, error) {
	for range 3 { // it may be spilled again at once when memory is short
		view, form, release, err := x.s.store.Read(id)
		if err == nil {
			return &stored{view, form, release}, nil
		}
		if !errs.Is(err, errs.Unavailable) {
			return nil, err
		}
		if err := x.s.bringBack(id); err != nil {
			return nil, err
		}
	}
	return nil, errs.New(errs.Exhausted, "object %s does not stay in memory", id)
}

// Create makes room for one that comes.
func (x objectStore) Create(ctx context.Context, id transfer.ID, m transfer.Meta) (transfer.Writer, error) {
	ctx, cancel := context.WithTimeout(ctx, bringBound)
	defer cancel()
	return x.s.store.Create(ctx, id, byte(m.Form), m.Size, true)
}

// bringBack has the store restore an object, and waits for it.
func (s *sdkServer) bringBack(id wire.ObjectID) error {
	ch := make(chan error, 1)
	s.backMu.Lock()
	first := len(s.backs[id]) == 0
	s.backs[id] = append(s.backs[id], ch)
	s.backMu.Unlock()
	if first {
		s.store.Restore(id)
	}
	select {
	case err := <-ch:
		return err
	case <-s.ctx.Done():
		return errs.New(errs.Cancelled, "the agent ends")
	}
}

// isBack tells whoever waits for an object from the disk.
func (s *sdkServer) isBack(e store.Event) {
	var id wire.ObjectID
	var err error
	switch e := e.(type) {
	case store.Restored:
		id, err = e.ID, e.Err
	case store.Lost:
		id, err = e.ID, errs.Wrap(errs.NotFound, e.Err, "object %s", e.ID)
	default:
		return
	}
	s.backMu.Lock()
	chs := s.backs[id]
	delete(s.backs, id)
	s.backMu.Unlock()
	for _, ch := range chs {
		ch <- err
	}
}
