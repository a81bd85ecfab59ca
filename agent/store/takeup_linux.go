package store

import (
	"cmp"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/shm/objects"
)

// takeUp builds the tables from what an earlier agent kept. Nothing in it is believed
// without a check: that agent may have been killed at any point.
func (s *Store) takeUp(kept map[string]*os.File) error {
	index := kept[indexName]
	delete(kept, indexName)
	known := index != nil
	var err error
	if known {
		s.index, err = objects.OpenWriter(index)
	} else {
		n := int(min(max(s.cfg.Limit/minObject, minIndex), maxIndex))
		if s.index, err = objects.CreateIndex("launcher-index", n); err == nil {
			err = s.cfg.Keep(indexName, s.index.File())
		}
	}
	if err != nil {
		return errs.Wrap(errs.Unknown, err, "the index of the node's objects")
	}
	if s.shared, err = readOnly(s.index.File()); err != nil {
		return err
	}
	s.takeFiles(kept)
	var entries []objects.Entry
	s.index.Entries(func(e objects.Entry) { entries = append(entries, e) })
	s.takeEntries(entries)
	for _, g := range s.segs {
		if len(g.live) == 0 && g.maker == nil {
			s.release(g)
		}
	}
	s.takeSpilled(entries)
	if known {
		s.cfg.Log.Info("objects taken over from the agent before", "objects", len(s.objs), "segments", len(s.segs), "programs", len(s.clients), "spilled", s.spills)
	}
	return nil
}

// takeFiles takes pins and segments.
func (s *Store) takeFiles(kept map[string]*os.File) {
	names := slices.Sorted(maps.Keys(kept))
	for _, name := range names {
		f := kept[name]
		text, ok := strings.CutPrefix(name, pinsPrefix)
		if !ok {
			continue
		}
		delete(kept, name)
		n, err := strconv.ParseUint(text, 10, 32)
		var w *objects.Watch
		if err == nil {
			w, err = objects.OpenWatch(f)
		}
		if err != nil {
			s.cfg.Log.Warn("pins that an earlier agent kept", "name", name, "error", err)
			s.cfg.Drop(name)
			continue
		}
		s.clients[uint32(n)] = &client{n: uint32(n), pins: w, segs: map[uint32]*segment{}}
	}
	for _, name := range names {
		f := kept[name]
		if f == nil || !strings.HasPrefix(name, segPrefix) {
			continue
		}
		delete(kept, name)
		g, ok := parseSegment(name)
		if ok {
			g.file = f
			ok = s.takeSegment(g)
		}
		if !ok {
			s.cfg.Log.Warn("a segment that an earlier agent kept is none", "name", name)
			f.Close()
			s.cfg.Drop(name)
		}
	}
}

func (s *Store) takeSegment(g *segment) bool {
	st, err := g.file.Stat()
	seals, serr := unix.FcntlInt(g.file.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || serr != nil || seals&unix.F_SEAL_SHRINK == 0 || st.Size() <= 0 || s.segs[g.n] != nil {
		return false
	}
	g.size, g.empty, g.shut = st.Size(), time.Now(), seals&unix.F_SEAL_FUTURE_WRITE != 0
	switch g.owner {
	case ownClient:
		g.maker = s.own
	case copyClient:
		g.maker = s.copies
	default:
		g.maker = s.clients[g.owner]
	}
	if c := g.maker; c != nil {
		if c.arena != nil {
			if _, err := g.bytes(true); err != nil {
				return false
			}
			c.arena.Add(g.n, g.size)
		} else {
			c.job = g.job
		}
		c.segs[g.n] = g
		c.size += g.size
	}
	for n := range s.clients { // which of them read it is not known
		if n != g.owner {
			g.read(n)
		}
	}
	s.segs[g.n] = g
	s.account(g.job, g.size)
	return true
}

// takeEntries makes the objects in memory, and the stretches that were freed.
func (s *Store) takeEntries(entries []objects.Entry) {
	now := time.Now()
	// Those that are sealed before those that were on their way out.
	slices.SortStableFunc(entries, func(a, b objects.Entry) int { return cmp.Compare(a.State, b.State) })
	for _, e := range entries {
		if e.State == objects.Spilled || e.State == objects.Deleted && !e.Unclaimed {
			continue
		}
		g := s.segs[e.Segment]
		sound := g != nil && e.Size > 0 && e.Size <= math.MaxInt64 && e.Offset%objects.Align == 0 && e.Offset <= uint64(g.size) && e.Size <= uint64(g.size)-e.Offset
		if e.State == objects.Deleted {
			u := unclaimed{objects.Extent{Segment: e.Segment, Offset: int64(e.Offset), Length: objects.RoundUp(int64(e.Size))}, e.Slot}
			if sound && g.maker != nil && g.maker.arena == nil {
				g.maker.unclaimed = append(g.maker.unclaimed, u)
			} else {
				s.index.Claim(e.Slot)
			}
			continue
		}
		i := 0
		if sound {
			i, sound = g.place(int64(e.Offset), int64(e.Size))
		}
		if sound && e.ID.IsZero() && e.State != objects.Elsewhere { // it was freed, and may be pinned
			o := &object{state: dying, size: int64(e.Size), slot: e.Slot, pin: e.PinKey(), seg: g, offset: int64(e.Offset), copied: g.owner == copyClient, job: g.job, maker: g.owner, born: now}
			if g.maker != nil && g.maker.arena != nil && !g.maker.arena.Take(o.extent()) {
				s.index.Delete(e.Slot, false)
				continue
			}
			s.index.SetState(e.Slot, objects.Deleting)
			g.live = slices.Insert(g.live, i, o)
			s.live += o.size
			s.dying = append(s.dying, o)
			continue
		}
		if !sound || s.objs[e.ID] != nil || e.State != objects.Sealed && e.State != objects.Deleting {
			s.cfg.Log.Warn("an entry of the index that cannot be", "object", e.ID, "state", e.State, "segment", e.Segment, "offset", e.Offset, "size", e.Size)
			s.index.Delete(e.Slot, false)
			continue
		}
		o := &object{id: e.ID, form: e.Form, size: int64(e.Size), slot: e.Slot, pin: e.PinKey(), seg: g, offset: int64(e.Offset),
			copied: g.owner == copyClient, job: g.job, maker: g.owner, born: now, used: e.LastUse}
		o.first = o.extent()
		if g.maker != nil && g.maker.arena != nil && !g.maker.arena.Take(o.first) {
			s.index.Delete(e.Slot, false)
			continue
		}
		if e.State == objects.Deleting { // it was to be spilled
			s.index.SetState(e.Slot, objects.Sealed)
		}
		s.tick = max(s.tick, e.LastUse)
		g.live = slices.Insert(g.live, i, o)
		s.objs[o.id] = o
		s.live += o.size
	}
	// A program may not be told of a stretch where an object is.
	for _, c := range s.clients {
		c.unclaimed = slices.DeleteFunc(c.unclaimed, func(u unclaimed) bool {
			if _, free := s.segs[u.Segment].place(u.Offset, u.Length); free {
				return false
			}
			s.index.Claim(u.slot)
			return true
		})
	}
}

// takeSpilled finds the files of spilled objects; all others in the directory are
// removed.
func (s *Store) takeSpilled(entries []objects.Entry) {
	files := map[string]bool{}
	for _, e := range entries {
		if e.State != objects.Spilled {
			continue
		}
		size := int64(e.Size)
		if s.objs[e.ID] != nil || size <= 0 {
			s.index.Delete(e.Slot, false)
			continue
		}
		path := s.path(e.ID, e.LastUse)
		o := &object{id: e.ID, state: spilled, form: e.Form, size: size, slot: e.Slot, born: time.Now(),
			path: path, number: e.LastUse, first: objects.Extent{Segment: e.Segment, Offset: int64(e.Offset), Length: objects.RoundUp(size)}}
		if h, err := headOf(path); err == nil { // else its Restore will tell
			o.job, o.maker = h.job, h.maker
		}
		files[path] = true
		s.number = max(s.number, e.LastUse)
		s.objs[o.id] = o
		s.spilled += o.size
		s.spills++
	}
	for _, pattern := range []string{"*" + suffix, "*" + part} {
		found, _ := filepath.Glob(filepath.Join(s.cfg.Dir, pattern))
		for _, f := range found {
			if !files[f] {
				_ = os.Remove(f)
			}
		}
	}
}
