package store

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/shm/objects"
)

const (
	pageSize   = 4096
	minSegment = 2 << 20
	maxSegment = 64 << 20
	// alone is from which size on a value gets a segment of its own, which goes when it goes.
	alone = 32 << 20
)

// segment is a memory file, and who fills it.
type segment struct {
	n     uint32
	file  *os.File
	size  int64
	owner uint32    // client that filled it, also when it is gone
	maker *client   // nil: it is gone, or has unmapped it
	job   string    // whose quota it counts against
	mem   []byte    // mapped here when it is first read
	live  []*object // by offset
	shut  bool      // the seal against later writers is on
	empty time.Time // since when nothing is in it
	// readers were given the descriptor. The memory is there for as long as one has it mapped.
	readers map[uint32]bool
	asked   time.Time // when its maker, or its readers, were asked to unmap it; zero = they were not
}

const (
	indexName  = "objects/index"
	pinsPrefix = "objects/pins/"
	segPrefix  = "objects/segment/"
)

func pinsName(client uint32) string { return pinsPrefix + strconv.FormatUint(uint64(client), 10) }

// name carries what a later agent has to know of the segment.
func (g *segment) name() string { return fmt.Sprintf("%s%d/%d/%s", segPrefix, g.n, g.owner, g.job) }

func parseSegment(name string) (g *segment, ok bool) {
	f := strings.SplitN(strings.TrimPrefix(name, segPrefix), "/", 3)
	if !strings.HasPrefix(name, segPrefix) || len(f) != 3 {
		return nil, false
	}
	n, err1 := strconv.ParseUint(f[0], 10, 32)
	owner, err2 := strconv.ParseUint(f[1], 10, 32)
	g = &segment{n: uint32(n), owner: uint32(owner), job: f[2]}
	return g, err1 == nil && err2 == nil && n > 0 && g.name() == name
}

// bytes maps the segment. mu must be held.
func (g *segment) bytes(writable bool) ([]byte, error) {
	if g.mem != nil {
		return g.mem, nil
	}
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	mem, err := unix.Mmap(int(g.file.Fd()), 0, int(g.size), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, errs.Wrap(errs.Exhausted, err, "mapping segment %d of %d bytes", g.n, g.size)
	}
	g.mem = mem
	return mem, nil
}

func (g *segment) close() {
	if g.mem != nil {
		_ = unix.Munmap(g.mem)
		g.mem = nil
	}
	_ = g.file.Close()
}

// place finds where an object at [offset, offset+size) belongs in live; ok is false when
// it overlaps another one.
func (g *segment) place(offset, size int64) (i int, ok bool) {
	i, found := slices.BinarySearchFunc(g.live, offset, func(o *object, at int64) int { return cmp.Compare(o.offset, at) })
	if found || i > 0 && g.live[i-1].offset+objects.RoundUp(g.live[i-1].size) > offset {
		return i, false
	}
	return i, i == len(g.live) || g.live[i].offset >= offset+objects.RoundUp(size)
}

// remove takes an object out of live.
func (g *segment) remove(o *object) {
	if i, ok := slices.BinarySearchFunc(g.live, o.offset, func(o *object, at int64) int { return cmp.Compare(o.offset, at) }); ok {
		g.live = slices.Delete(g.live, i, i+1)
	}
	if len(g.live) == 0 {
		g.empty = time.Now()
		g.asked = time.Time{}
	}
}

// release ends an empty segment. mu must be held.
func (s *Store) release(g *segment) {
	delete(s.segs, g.n)
	if c := g.maker; c != nil {
		delete(c.segs, g.n)
		c.size -= g.size
		if c.ready == g {
			c.ready = nil
		}
	}
	g.close()
	if len(g.readers) == 0 {
		s.gone(g)
		return
	}
	s.parting[g.n], g.asked = g, time.Now()
	for n := range g.readers {
		s.news.add(DropSegment{Client: n, Segment: g.n})
	}
}

// part notes that a reader has unmapped a released segment. mu must be held.
func (s *Store) part(g *segment, reader uint32) {
	if delete(g.readers, reader); len(g.readers) == 0 {
		delete(s.parting, g.n)
		s.gone(g)
	}
}

// gone: the memory of a segment is free. mu must be held.
func (s *Store) gone(g *segment) {
	s.cfg.Drop(g.name())
	s.account(g.job, -g.size)
	for _, c := range s.waiting() {
		if !c.tight.IsZero() {
			c.tight = time.Now()
		}
	}
	s.serveAll()
}

func (s *Store) account(job string, n int64) {
	s.used += n
	if s.jobs[job] += n; s.jobs[job] == 0 {
		delete(s.jobs, job)
	}
}

func (g *segment) read(client uint32) {
	if g.readers == nil {
		g.readers = map[uint32]bool{}
	}
	g.readers[client] = true
}

// OpenSegment gives a client a read-only descriptor, which is the caller's, and the size.
// When the segment goes, DropSegment asks the client to unmap it; until Dropped says that
// it has, the memory counts as used.
func (s *Store) OpenSegment(client, n uint32) (*os.File, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, size, err := s.segment(n)
	if g, c := s.segs[n], s.clients[client]; err == nil && c != nil && g.maker != c {
		g.read(client)
	}
	return f, size, err
}

func (s *Store) segment(n uint32) (*os.File, int64, error) {
	g := s.segs[n]
	if g == nil {
		return nil, 0, errs.New(errs.NotFound, "there is no segment %d of objects here", n)
	}
	f, err := readOnly(g.file)
	return f, g.size, err
}

// readOnly opens a memory file again, so that the one who gets it cannot map it for
// writing.
func readOnly(f *os.File) (*os.File, error) {
	ro, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return nil, errs.Wrap(errs.Exhausted, err, "opening %s for reading", f.Name())
	}
	return ro, nil
}

// Dropped says that a client has unmapped a segment, its own or one that it read.
func (s *Store) Dropped(client, n uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.parting[n]; g != nil {
		s.part(g, client)
		return nil
	}
	g, c := s.segs[n], s.clients[client]
	if g != nil && g.readers[client] {
		delete(g.readers, client)
		return nil
	}
	if g == nil {
		return nil // said again, after a restart
	}
	if c == nil || g.maker != c {
		return errs.New(errs.NotFound, "client %d has no segment %d", client, n)
	}
	s.claim(c, func(e objects.Extent) bool { return e.Segment == n })
	if len(g.live) == 0 {
		s.release(g)
		return nil
	}
	// What is in it stays; it only gets nothing new.
	g.maker = nil
	delete(c.segs, n)
	c.size -= g.size
	return nil
}
