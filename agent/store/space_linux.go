package store

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"time"

	"launcher/internal/errs"
	"launcher/shm"
	"launcher/shm/objects"
	"launcher/wire"
)

// patient is from which size on it is quicker to wait for what is being freed than to
// take new memory.
const patient = 128 << 20

// Grant is room for a producer: a new segment, or stretches of its own that are free again.
type Grant struct {
	Segment uint32 // 0 = Extents
	Size    int64
	File    *os.File // stays the store's
	Extents []objects.Extent
}

// Space gives a program room. It may be less than it needs in one piece: then it asks
// again. wait: there is none now, SpaceFreed will come. An error of kind Exhausted says
// that there never will be so much, or that memory could not be had.
func (s *Store) Space(client uint32, job string, need int64) (g Grant, wait bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clients[client]
	if c == nil {
		return g, false, errs.New(errs.Invalid, "client %d is not attached to the object store", client)
	}
	if need <= 0 {
		return g, false, errs.New(errs.Invalid, "client %d asks for %d bytes", client, need)
	}
	if len(c.segs) == 0 && !c.making {
		c.job = job
	}
	switch {
	case c.failed != nil:
		err, c.failed = c.failed, nil
		return g, false, err
	case c.ready != nil:
		g = Grant{Segment: c.ready.n, Size: c.ready.size, File: c.ready.file}
		c.ready.empty = time.Now()
		c.ready, c.want = nil, 0
		return g, false, nil
	case len(c.unclaimed) > 0:
		c.want = 0
		return Grant{Extents: s.claim(c, nil)}, false, nil
	}
	if err := s.never(c.job, need); err != nil {
		return g, false, err
	}
	s.wait(c, need)
	return g, true, nil
}

// never says why so much cannot be had at any time.
func (s *Store) never(job string, need int64) error {
	if need > s.cfg.Limit {
		return errs.New(errs.Exhausted, "a value of %s does not fit the node's object memory of %s", wire.Bytes(need), wire.Bytes(s.cfg.Limit)).
			Hint("split it, or raise [objects] memory in the cluster's spec")
	}
	if job != "" && need > s.cfg.JobLimit {
		return errs.New(errs.Exhausted, "a value of %s is more than the %s of object memory that one job may have on a node", wire.Bytes(need), wire.Bytes(s.cfg.JobLimit)).
			Hint("split it")
	}
	return nil
}

// Full ends a client's waiting and gives the error for a Space that has waited long
// enough. Others of that client that still wait call Space again.
func (s *Store) Full(client uint32, need int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	job := ""
	if c := s.clients[client]; c != nil {
		job, c.want = c.job, 0
	}
	return s.full(need, job)
}

func (s *Store) full(need int64, job string) error {
	e := errs.New(errs.Exhausted, "no room for %s: the node's objects take %s of %s (%s in use%s), those of the job %s; %s are on disk",
		wire.Bytes(need), wire.Bytes(s.used), wire.Bytes(s.cfg.Limit), wire.Bytes(s.live), s.whoHolds(), wire.Bytes(s.jobs[job]), wire.Bytes(s.spilled))
	if s.spillErr != nil {
		e.Err = s.spillErr
		return e.Hint("make room on the disk of %s, or set [objects] spill to another directory", s.cfg.Dir)
	}
	return e.Hint("let go of views (arrays that get gave) and values that are not needed any more, or raise [objects] memory in the cluster's spec; `launcher objects` lists what there is")
}

// whoHolds says which programs keep memory from being used: by views of objects, or by
// not having unmapped what is gone. mu must be held.
func (s *Store) whoHolds() string {
	size := map[objects.PinKey]int64{}
	for _, g := range s.segs {
		for _, o := range g.live {
			size[o.pin] = o.size
		}
	}
	views, mapped := map[uint32]int64{}, map[uint32]int64{}
	for n, c := range s.clients {
		seen := map[objects.PinKey]bool{}
		c.pins.Scan(func(k objects.PinKey) {
			if !seen[k] && size[k] > 0 {
				seen[k] = true
				views[n] += size[k]
			}
		})
	}
	for _, g := range s.parting {
		for n := range g.readers {
			mapped[n] += g.size
		}
	}
	return s.most("; views: ", views) + s.most("; gone, but still mapped: ", mapped)
}

// most lists the programs with the most bytes. mu must be held.
func (s *Store) most(what string, by map[uint32]int64) string {
	ns := slices.SortedFunc(maps.Keys(by), func(a, b uint32) int { return cmp.Or(cmp.Compare(by[b], by[a]), cmp.Compare(a, b)) })
	out := ""
	for i, n := range ns {
		if i == 4 {
			return out + fmt.Sprintf(" and %d others", len(ns)-i)
		}
		who := "client " + strconv.FormatUint(uint64(n), 10)
		if c := s.clients[n]; c != nil && c.who != "" {
			who = c.who
		}
		if out += ", "; i == 0 {
			out = what
		}
		out += wire.Bytes(by[n]) + " by " + who
	}
	return out
}

// wait puts a client in the line of those who need room. mu must be held.
func (s *Store) wait(c *client, need int64) {
	if c.want == 0 {
		s.turn++
		c.turn = s.turn
	}
	c.want = max(c.want, need)
	s.serve(c)
}

// serveAll tries those who wait, in their order. mu must be held.
func (s *Store) serveAll() {
	s.broadcast()
	for _, c := range s.waiting() {
		s.serve(c)
	}
}

func (s *Store) waiting() []*client {
	var out []*client
	for _, c := range s.clients {
		if c.want > 0 && !c.making {
			out = append(out, c)
		}
	}
	for _, c := range []*client{s.own, s.copies} {
		if c.want > 0 && !c.making {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b *client) int { return cmp.Compare(a.turn, b.turn) })
	return out
}

// serve helps a client that waits, now or as soon as there is room. mu must be held.
func (s *Store) serve(c *client) {
	if !s.try(c) {
		kick(s.tend)
	}
}

// try has a segment made for a client that waits; false: there is no room for it. mu must
// be held.
func (s *Store) try(c *client) bool {
	switch {
	case c.want == 0 || c.making || c.ready != nil || len(c.unclaimed) > 0 || s.ctx.Err() != nil:
		return true
	case c.want >= patient && s.soon(c):
		return true
	}
	if time.Now().Before(c.tight) {
		return false
	}
	need := pages(c.want)
	size := segmentSize(c, need)
	if !s.allows(c.job, size) {
		if size = need; !s.allows(c.job, size) {
			return false
		}
	}
	c.making = true
	s.reserve(c, size)
	s.wg.Go(func() { s.make(c, need, size) })
	return true
}

// soon reports whether a stretch of c's that is long enough is about to be free.
func (s *Store) soon(c *client) bool {
	for _, list := range [][]*object{s.dying, s.reaping} {
		for _, o := range list {
			if o.seg != nil && o.seg.maker == c && o.size >= c.want {
				return true
			}
		}
	}
	return false
}

func pages(n int64) int64 { return (n + pageSize - 1) &^ (pageSize - 1) }

// segmentSize grows with what a producer has, so that a small program takes little and a
// large one asks seldom.
func segmentSize(c *client, need int64) int64 {
	if need >= alone {
		return need
	}
	size := min(max(c.size, minSegment), maxSegment)
	if size <= need {
		return need
	}
	if each := objects.RoundUp(need); size < 8*each {
		size = pages(size / each * each)
	}
	return pages(size)
}

func (s *Store) allows(job string, size int64) bool {
	return s.used+size <= s.cfg.Limit && (job == "" || s.jobs[job]+size <= s.cfg.JobLimit)
}

func (s *Store) reserve(c *client, size int64) {
	c.size += size
	s.coming += size
	s.account(c.job, size)
}

// make takes memory for a segment, in the background: the kernel clears it, which takes
// as long as to fill it.
func (s *Store) make(c *client, need, size int64) {
	s.mu.Lock()
	others := s.coming - size
	s.mu.Unlock()
	room := s.cfg.Room() - margin - others
	asked := size
	if size > room && need <= room {
		size = need
	}
	var f *os.File
	err := error(nil)
	tight := size > room
	if !tight {
		f, err = shm.CreateSized("launcher-objects", size, true)
	}
	s.mu.Lock()
	s.reserve(c, size-asked)
	s.coming -= size
	g := &segment{file: f, size: size, owner: c.n, maker: c, job: c.job, empty: time.Now()}
	if f != nil {
		g.n = s.index.NextSegment()
		s.mu.Unlock()
		err = s.cfg.Keep(g.name(), f)
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	c.making = false
	gone := c.pins != nil && s.clients[c.n] != c
	if err == nil && f != nil && !gone && c.arena != nil {
		_, err = g.bytes(true)
	}
	if err != nil || tight || gone {
		c.size -= size
		s.account(c.job, -size)
		if f != nil {
			g.close()
			s.cfg.Drop(g.name())
		}
		switch {
		case gone:
			s.serveAll()
		case tight:
			c.tight = time.Now().Add(waitEvery)
			kick(s.tend)
		default:
			c.failed, c.want = err, 0
			s.tell(c)
		}
		return
	}
	c.tight = time.Time{}
	s.segs[g.n], c.segs[g.n] = g, g
	c.want = 0
	if c.arena != nil {
		c.arena.Add(g.n, g.size)
	} else {
		c.ready = g
	}
	s.tell(c)
}

// tell wakes a client that waits. mu must be held.
func (s *Store) tell(c *client) {
	if c.arena != nil {
		s.broadcast()
		return
	}
	s.news.add(SpaceFreed{c.n})
}
