package store

import (
	"os"
	"slices"
	"time"

	"launcher/internal/errs"
	"launcher/shm/objects"
)

// Numbers of the agent's own two: no program has them.
const (
	ownClient  uint32 = 0
	copyClient uint32 = 1<<32 - 1
)

// client is a producer: a program, or the agent itself.
type client struct {
	n     uint32
	job   string
	who   string         // for errors; "" = its number
	here  bool           // connected, as far as is known
	pins  *objects.Watch // nil: the agent's
	arena *objects.Arena // nil: the program has its own
	segs  map[uint32]*segment
	size  int64 // of segs, those being made included

	unclaimed []unclaimed // freed, and the program does not know it
	want      int64       // bytes in one piece that it waits for; 0 = it does not wait
	turn      uint64      // when it began to wait
	waiters   int         // Creates that wait, for the agent's
	making    bool        // a segment is being made for it
	ready     *segment    // made, not granted
	failed    error       // it could not be made
	tight     time.Time   // the kernel had no room for it, though the limit has: not again before
}

// unclaimed is a freed extent and the entry of the index that remembers it.
type unclaimed struct {
	objects.Extent
	slot uint32
}

// Attach begins a program's use of the store, or goes on with it after a restart of the
// agent. The descriptors stay the store's; the index is read-only.
func (s *Store) Attach(n uint32) (index, pins *os.File, err error) {
	if n == ownClient || n == copyClient {
		return nil, nil, errs.New(errs.Invalid, "client %d of the object store is the agent itself", n)
	}
	s.start()
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clients[n]
	if c == nil {
		w, err := objects.CreatePins("launcher-pins")
		if err != nil {
			return nil, nil, err
		}
		if err := s.cfg.Keep(pinsName(n), w.File()); err != nil {
			_ = w.Close()
			return nil, nil, errs.Wrap(errs.Unknown, err, "the pins of client %d", n)
		}
		c = &client{n: n, pins: w, segs: map[uint32]*segment{}}
		s.clients[n] = c
	}
	c.here = true
	for _, g := range s.parting { // it may have been away when it was asked
		if g.readers[n] {
			s.news.add(DropSegment{Client: n, Segment: g.n})
		}
	}
	return s.shared, c.pins.File(), nil
}

// Name says what a program is called in errors.
func (s *Store) Name(n uint32, who string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.clients[n]; c != nil {
		c.who = who
	}
}

// Away says that a program's connection broke; it may come back and attach again. It is
// asked for nothing meanwhile.
func (s *Store) Away(n uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.clients[n]; c != nil {
		c.here = false
	}
}

// Clients gives the programs that are attached: after a restart, those that may come back.
func (s *Store) Clients() []uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]uint32, 0, len(s.clients))
	for n := range s.clients {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// Detach ends it: the program is dead. Its pins are void, what it had not sealed is gone;
// its objects stay.
func (s *Store) Detach(n uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clients[n]
	if c == nil {
		return
	}
	delete(s.clients, n)
	_ = c.pins.Close()
	s.cfg.Drop(pinsName(n))
	if c.ready != nil {
		c.ready = nil
	}
	for _, u := range c.unclaimed {
		s.index.Claim(u.slot)
	}
	c.unclaimed = nil
	for _, g := range s.segs {
		delete(g.readers, n)
	}
	for _, g := range s.parting {
		s.part(g, n)
	}
	for _, g := range c.segs {
		g.maker = nil
		if len(g.live) == 0 {
			s.release(g)
		}
	}
	kick(s.reap)
	kick(s.tend)
}

// claim takes all freed extents of a client, joined where they touch. mu must be held.
func (s *Store) claim(c *client, only func(objects.Extent) bool) []objects.Extent {
	var out []objects.Extent
	c.unclaimed = slices.DeleteFunc(c.unclaimed, func(u unclaimed) bool {
		if only != nil && !only(u.Extent) {
			return false
		}
		s.index.Claim(u.slot)
		out = append(out, u.Extent)
		return true
	})
	slices.SortFunc(out, func(a, b objects.Extent) int {
		if a.Segment != b.Segment {
			return int(int64(a.Segment) - int64(b.Segment))
		}
		return int(min(max(a.Offset-b.Offset, -1), 1))
	})
	joined := out[:0]
	for _, e := range out {
		if n := len(joined); n > 0 && joined[n-1].Segment == e.Segment && joined[n-1].Offset+joined[n-1].Length == e.Offset {
			joined[n-1].Length += e.Length
			continue
		}
		joined = append(joined, e)
	}
	return joined
}
