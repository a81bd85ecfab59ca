package store

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/shm"
	"launcher/shm/objects"
	"launcher/wire"
)

// Seal makes an object of what a program has written in a segment of its own. An error
// of kind Exists says that the object is there already, in another place: what was
// written is void, and comes back with a later Grant. The same once more is no error.
func (s *Store) Seal(client uint32, id wire.ObjectID, form byte, seg uint32, off, size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, c := s.segs[seg], s.clients[client]
	if g == nil || c == nil || g.maker != c || c.ready == g {
		return errs.New(errs.Invalid, "object %s is said to be in segment %d, which is none of client %d", id, seg, client)
	}
	if id.IsZero() || off < 0 || off%objects.Align != 0 || size <= 0 || size > g.size || off > g.size-size {
		return errs.New(errs.Invalid, "object %s is said to be at %d, %d bytes long, in segment %d of %d bytes", id, off, size, seg, g.size)
	}
	if !g.shut {
		// The program does it once it has mapped the segment; a kernel that cannot is
		// no reason to refuse the object.
		_ = shm.Seal(g.file, unix.F_SEAL_FUTURE_WRITE)
		g.shut = true
	}
	i, free := g.place(off, size)
	e := objects.Extent{Segment: seg, Offset: off, Length: objects.RoundUp(size)}
	free = free && !slices.ContainsFunc(c.unclaimed, func(u unclaimed) bool {
		return u.Segment == seg && u.Offset < off+e.Length && off < u.Offset+u.Length
	})
	if o := s.objs[id]; o != nil || s.making[id] != nil {
		if o != nil && o.first == e || !free {
			return nil
		}
		if err := s.unclaim(c, e, id); err != nil {
			return err
		}
		return errs.New(errs.Exists, "object %s is there already", id)
	}
	if !free {
		return errs.New(errs.Invalid, "object %s is said to be at %d, %d bytes long, in segment %d, where another one is", id, off, size, seg)
	}
	o := &object{id: id, form: uint32(form), size: size, seg: g, offset: off, first: e, job: c.job, maker: client, born: time.Now()}
	return s.insert(o, i)
}

// insert puts an object that lies in its segment into the index, at place i of the
// segment's list. mu must be held.
func (s *Store) insert(o *object, i int) error {
	s.tick++
	e, err := s.index.Insert(objects.Entry{ID: o.id, State: objects.Sealed, Segment: o.seg.n, Offset: uint64(o.offset), Size: uint64(o.size),
		Form: o.form, LastUse: s.tick})
	if err != nil {
		return err
	}
	o.slot, o.pin, o.used, o.state = e.Slot, e.PinKey(), s.tick, sealed
	o.seg.live = slices.Insert(o.seg.live, i, o)
	o.seg.asked = time.Time{}
	s.objs[o.id] = o
	s.live += o.size
	if s.live > s.high() {
		kick(s.tend)
	}
	return nil
}

// unclaim notes a stretch that is free and that its producer takes for used. mu must be
// held.
func (s *Store) unclaim(c *client, e objects.Extent, id wire.ObjectID) error {
	x, err := s.index.Insert(objects.Entry{ID: id, State: objects.Deleting, Segment: e.Segment, Offset: uint64(e.Offset), Size: uint64(e.Length)})
	if err != nil {
		return err
	}
	s.index.Delete(x.Slot, true)
	s.giveBack(c, unclaimed{e, x.Slot})
	return nil
}

// giveBack has a free stretch ready for its producer's next Grant. mu must be held.
func (s *Store) giveBack(c *client, u unclaimed) {
	c.unclaimed = append(c.unclaimed, u)
	if c.want > 0 && len(c.unclaimed) == 1 {
		s.tell(c)
	}
}

// vacate ends an object's stay in memory: nobody has it pinned. mu must be held.
func (s *Store) vacate(o *object) {
	g, e := o.seg, o.extent()
	g.remove(o)
	o.seg = nil
	s.live -= o.size
	switch c := g.maker; {
	case c == nil:
		s.index.Delete(o.slot, false)
		if len(g.live) == 0 {
			s.release(g)
		}
	case c.arena != nil:
		s.index.Delete(o.slot, false)
		if err := c.arena.Free(e); err != nil {
			s.cfg.Log.Error("the store's own memory", "error", err)
		}
	default:
		s.index.Delete(o.slot, true)
		s.giveBack(c, unclaimed{e, o.slot})
	}
}

// Own has a copy from another node treated as what was made here: it is spilled, not
// dropped, when memory is short.
func (s *Store) Own(id wire.ObjectID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.objs[id]; o != nil {
		o.copied = false
		o.wanted = true // or it would leave without a file
	}
}

// Free lets go of objects that nobody refers to any more: at once for those who do not
// have them pinned yet, and of their memory when nobody has. Unknown ones are ignored.
func (s *Store) Free(ids []wire.ObjectID) {
	s.start()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if m := s.making[id]; m != nil {
			m.doomed = true
		}
		o := s.objs[id]
		if o == nil {
			continue
		}
		switch o.state {
		case sealed:
			s.kill(o)
		case leaving, restoring:
			o.doomed = true
		case spilled:
			s.index.Delete(o.slot, false)
			s.forget(o)
		}
	}
	kick(s.reap)
}

// kill marks an object's entry and hands it to the reaper. The id may be used again at
// once. mu must be held.
func (s *Store) kill(o *object) {
	o.state = dying
	s.index.Void(o.slot)
	delete(s.objs, o.id)
	s.dying = append(s.dying, o)
}

// forget removes a spilled object. mu must be held.
func (s *Store) forget(o *object) {
	delete(s.objs, o.id)
	s.unfile(o)
}

// Read gives an object's bytes, which stay until release is called, once. An error of
// kind NotFound says that it is not here, of kind Unavailable that it has to be restored.
func (s *Store) Read(id wire.ObjectID) (view []byte, form byte, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objs[id]
	switch {
	case o == nil || o.doomed:
		return nil, 0, nil, errs.New(errs.NotFound, "object %s is not on this node", id)
	case o.seg == nil:
		return nil, 0, nil, errs.New(errs.Unavailable, "object %s is on disk", id)
	}
	mem, err := o.seg.bytes(false)
	if err != nil {
		return nil, 0, nil, err
	}
	s.use(o)
	o.wanted = true
	o.views++
	end := o.offset + o.size
	return mem[o.offset:end:end], byte(o.form), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.unview(o)
	}, nil
}

// unview ends one of the agent's own looks at an object. mu must be held.
func (s *Store) unview(o *object) {
	if o.views--; o.views == 0 && o.state == dying {
		kick(s.reap)
	}
}
