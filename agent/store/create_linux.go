package store

import (
	"context"
	"time"

	"launcher/internal/errs"
	"launcher/shm/objects"
	"launcher/wire"
)

// Creation is an object that the agent itself is writing.
type Creation struct {
	s      *Store
	id     wire.ObjectID
	form   byte
	c      *client
	extent objects.Extent
	size   int64
	mem    []byte
	doomed bool // freed meanwhile; guarded by the store's mu
	over   bool // guarded by the store's mu
}

// Create makes room for an object in the agent's own memory, and waits for it until ctx
// ends. copied: it is from another node and can be had from there again. An error of kind
// Exists says that it is here, or on its way.
func (s *Store) Create(ctx context.Context, id wire.ObjectID, form byte, size int64, copied bool) (*Creation, error) {
	if size <= 0 {
		return nil, errs.New(errs.Invalid, "object %s of %d bytes", id, size)
	}
	s.start()
	m := &Creation{s: s, id: id, form: form, size: size, c: s.own}
	if copied {
		m.c = s.copies
	}
	s.mu.Lock()
	if s.objs[id] != nil || s.making[id] != nil {
		s.mu.Unlock()
		return nil, errs.New(errs.Exists, "object %s is here already", id)
	}
	s.making[id] = m
	s.mu.Unlock()
	var err error
	if m.extent, m.mem, err = s.room(ctx, m.c, size); err != nil {
		s.mu.Lock()
		delete(s.making, id)
		s.mu.Unlock()
		return nil, err
	}
	return m, nil
}

// room takes memory of the agent's own.
func (s *Store) room(ctx context.Context, c *client, size int64) (e objects.Extent, mem []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.never(c.job, size); err != nil {
		return e, nil, err
	}
	for {
		if e, _, ok := c.arena.Alloc(size); ok {
			g := s.segs[e.Segment]
			end := e.Offset + size
			return e, g.mem[e.Offset:end:end], nil
		}
		if err, c.failed = c.failed, nil; err != nil {
			return e, nil, err
		}
		s.wait(c, size)
		changed := s.changed
		c.waiters++
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		case <-s.ctx.Done():
		}
		s.mu.Lock()
		c.waiters--
		if ctx.Err() == nil && s.ctx.Err() == nil {
			continue
		}
		if c.waiters == 0 {
			c.want = 0
		}
		switch {
		case s.ctx.Err() != nil:
			return e, nil, errs.New(errs.Cancelled, "the agent ends")
		case ctx.Err() == context.DeadlineExceeded:
			return e, nil, s.full(size, c.job)
		}
		return e, nil, context.Cause(ctx)
	}
}

// Bytes is the object's memory, to be filled.
func (m *Creation) Bytes() []byte { return m.mem }

// Seal makes it an object.
func (m *Creation) Seal() error {
	s := m.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.over {
		return errs.New(errs.Invalid, "object %s was sealed or given up before", m.id)
	}
	m.end()
	if m.doomed {
		_ = m.c.arena.Free(m.extent)
		return errs.New(errs.NotFound, "object %s is not referred to any more", m.id)
	}
	g := s.segs[m.extent.Segment]
	i, _ := g.place(m.extent.Offset, m.size)
	o := &object{id: m.id, form: uint32(m.form), size: m.size, seg: g, offset: m.extent.Offset, first: m.extent, copied: m.c == s.copies, maker: m.c.n, born: time.Now()}
	if err := s.insert(o, i); err != nil {
		_ = m.c.arena.Free(m.extent)
		return err
	}
	return nil
}

// Abort gives it up; after Seal it does nothing.
func (m *Creation) Abort() {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if !m.over {
		m.end()
		_ = m.c.arena.Free(m.extent)
		m.s.serveAll()
	}
}

func (m *Creation) end() {
	m.over = true
	delete(m.s.making, m.id)
	m.s.segs[m.extent.Segment].empty = time.Now()
}
