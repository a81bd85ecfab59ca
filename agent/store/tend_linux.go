package store

import (
	"cmp"
	"slices"
	"time"

	"launcher/shm/objects"
)

const (
	// grace is how long one stays when others wait for room: it may be about to be filled.
	grace = 200 * time.Millisecond
	// askEvery is after how long a segment is asked for again.
	askEvery  = time.Second
	tendEvery = 2 * time.Second
	waitEvery = 100 * time.Millisecond
	// busyFor is for how long an object that was found pinned is no victim.
	busyFor = time.Second
)

// high is from how many bytes of objects on some are spilled before anybody waits.
func (s *Store) high() int64 { return s.cfg.Limit / 5 * 4 }

// tender sees to it that there is room: it takes back what is empty, and spills.
func (s *Store) tender() {
	for {
		var again <-chan time.Time
		s.mu.Lock()
		switch {
		case len(s.waiting()) > 0:
			again = time.After(waitEvery)
		case len(s.segs) > 0 || s.coming > 0:
			again = time.After(tendEvery)
		}
		s.mu.Unlock()
		select {
		case <-s.ctx.Done():
			return
		case <-s.tend:
		case <-again:
		}
		for s.ctx.Err() == nil {
			s.mu.Lock()
			s.reclaim(s.cfg.Warm, 1<<62)
			victims := s.relieve()
			s.mu.Unlock()
			if len(victims) == 0 || s.evict(victims) == 0 {
				break
			}
		}
	}
}

// reclaim takes segments back that have been empty for so long, until there is so much.
// mu must be held.
func (s *Store) reclaim(idle time.Duration, enough int64) {
	now := time.Now()
	for _, g := range s.segs {
		if enough <= 0 {
			return
		}
		c := g.maker
		if c == nil || len(g.live) > 0 || now.Sub(g.empty) < idle {
			continue
		}
		switch {
		case c.arena != nil:
			if c.arena.Drop(g.n) {
				enough -= g.size
				s.release(g)
			}
		case c.ready == g:
			enough -= g.size
			s.release(g)
		case c.here && now.Sub(g.asked) >= askEvery:
			g.asked = now
			enough -= g.size
			s.news.add(DropSegment{c.n, g.n, s.claim(c, func(e objects.Extent) bool { return e.Segment == g.n })})
		}
	}
}

// relieve helps those who wait for room, and gives the objects that have to leave for
// it. mu must be held.
func (s *Store) relieve() []*object {
	for _, c := range s.waiting() {
		if s.try(c) {
			continue
		}
		need := pages(c.want)
		short, job := s.used+need-s.cfg.Limit, ""
		if c.job != "" && s.jobs[c.job]+need-s.cfg.JobLimit > short {
			short, job = s.jobs[c.job]+need-s.cfg.JobLimit, c.job
		}
		if !c.tight.IsZero() {
			short = max(short, need)
		}
		s.reclaim(grace, short)
		s.remind()
		for _, g := range s.segs { // on their way back
			if len(g.live) == 0 && time.Since(g.asked) < askEvery && (job == "" || g.job == job) {
				short -= g.size
			}
		}
		for _, list := range [][]*object{s.dying, s.reaping} {
			for _, o := range list {
				short -= o.size
			}
		}
		if short > 0 {
			return s.victims(short, job)
		}
	}
	if s.live > s.high() {
		return s.victims(s.live-s.high()+s.cfg.Limit/20, "")
	}
	return nil
}

// remind has those looked for who have not unmapped what is gone. mu must be held.
func (s *Store) remind() {
	for _, g := range s.parting {
		if time.Since(g.asked) < askEvery {
			continue
		}
		g.asked = time.Now()
		for n := range g.readers {
			s.news.add(Overdue{n})
		}
	}
}

// victims are objects that nobody has used for long: all of the segments whose newest
// use is oldest, so that whole segments become empty. mu must be held; the objects are
// viewed.
func (s *Store) victims(enough int64, job string) []*object {
	now := time.Now()
	disk := s.spillErr == nil || now.After(s.spillAt)
	can := func(o *object) bool {
		return o.state == sealed && o.views == 0 && now.Sub(o.pinned) > busyFor && (o.copied || disk) && (job == "" || o.seg.job == job)
	}
	type cold struct {
		g    *segment
		used uint32
	}
	var segs []cold
	for _, g := range s.segs {
		k := cold{g: g}
		any := false
		for _, o := range g.live {
			if can(o) {
				any = true
				k.used = max(k.used, o.used)
			}
		}
		if any {
			segs = append(segs, k)
		}
	}
	slices.SortFunc(segs, func(a, b cold) int { return cmp.Compare(a.used, b.used) })
	var out []*object
	for _, k := range segs {
		for _, o := range k.g.live {
			if can(o) {
				if enough <= 0 {
					return out
				}
				o.views++
				out = append(out, o)
				enough -= o.size
			}
		}
	}
	return out
}
