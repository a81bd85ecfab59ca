package objects

import (
	"cmp"
	"math"
	"slices"

	"launcher/internal/errs"
)

// Align is what objects begin at a multiple of.
const Align = 64

// RoundUp is the length that an object takes up.
func RoundUp(n int64) int64 {
	if n > math.MaxInt64-Align {
		return math.MaxInt64 &^ (Align - 1)
	}
	return max(n+Align-1, Align) &^ (Align - 1)
}

// Extent is a stretch of a segment.
type Extent struct {
	Segment uint32
	Offset  int64
	Length  int64
}

// Arena lays objects out in the segments of one producer: the smallest free stretch that
// is long enough, joined again with its neighbours when it comes back. One goroutine at
// a time.
type Arena struct {
	segs []*lot
}

// lot is one segment's share.
type lot struct {
	n       uint32
	size    int64
	free    []run // by offset, no two touch
	left    int64 // sum of free
	touched int64 // what is before has been handed out once
}

type run struct{ from, to int64 }

// Add gives the arena a segment to fill.
func (a *Arena) Add(segment uint32, size int64) {
	size &^= Align - 1
	if size <= 0 || a.lot(segment) != nil {
		return
	}
	a.segs = append(a.segs, &lot{n: segment, size: size, free: []run{{0, size}}, left: size})
}

func (a *Arena) lot(segment uint32) *lot {
	for _, l := range a.segs {
		if l.n == segment {
			return l
		}
	}
	return nil
}

// Alloc takes room for size bytes; Length is that rounded up. fresh: nothing has been
// there before. Without ok there is no such stretch.
func (a *Arena) Alloc(size int64) (e Extent, fresh, ok bool) {
	if size < 0 {
		return e, false, false
	}
	need := RoundUp(size)
	var best *lot
	at, fit := 0, int64(math.MaxInt64)
	for _, l := range a.segs {
		if l.left < need {
			continue
		}
		for i, r := range l.free {
			if n := r.to - r.from; n >= need && n < fit {
				best, at, fit = l, i, n
			}
		}
		if fit == need {
			break
		}
	}
	if best == nil {
		return e, false, false
	}
	r := &best.free[at]
	e = Extent{best.n, r.from, need}
	if r.from += need; r.from == r.to {
		best.free = slices.Delete(best.free, at, at+1)
	}
	best.left -= need
	if end := e.Offset + need; end > best.touched {
		fresh = true
		best.touched = end
	}
	return e, fresh, true
}

// Free takes a stretch back. An error says that it was not in use, or is no stretch of
// this arena: nothing is changed then.
func (a *Arena) Free(e Extent) error {
	l := a.lot(e.Segment)
	n := RoundUp(e.Length)
	if l == nil || e.Offset < 0 || e.Length <= 0 || e.Offset%Align != 0 || n > l.size || e.Offset > l.size-n {
		return errs.New(errs.Corrupt, "bytes %d to %d of segment %d were given back, which is no part of it", e.Offset, e.Offset+e.Length, e.Segment)
	}
	from, to := e.Offset, e.Offset+n
	i, _ := slices.BinarySearchFunc(l.free, from, func(r run, at int64) int { return cmp.Compare(r.from, at) })
	if i < len(l.free) && l.free[i].from < to || i > 0 && l.free[i-1].to > from {
		return errs.New(errs.Corrupt, "bytes %d to %d of segment %d were given back, but are free", from, to, e.Segment)
	}
	before, after := i > 0 && l.free[i-1].to == from, i < len(l.free) && l.free[i].from == to
	switch {
	case before && after:
		l.free[i-1].to = l.free[i].to
		l.free = slices.Delete(l.free, i, i+1)
	case before:
		l.free[i-1].to = to
	case after:
		l.free[i].from = from
	default:
		l.free = slices.Insert(l.free, i, run{from, to})
	}
	l.left += n
	return nil
}

// Take takes a certain stretch, which is in use already: when an arena is made again.
// Without ok a part of it is not free.
func (a *Arena) Take(e Extent) bool {
	l := a.lot(e.Segment)
	if l == nil || e.Offset < 0 || e.Length <= 0 || e.Offset%Align != 0 {
		return false
	}
	from, n := e.Offset, RoundUp(e.Length)
	for i, r := range l.free {
		if r.from > from || r.to-from < n {
			continue
		}
		l.free = slices.Delete(l.free, i, i+1)
		if from+n < r.to {
			l.free = slices.Insert(l.free, i, run{from + n, r.to})
		}
		if r.from < from {
			l.free = slices.Insert(l.free, i, run{r.from, from})
		}
		l.left -= n
		l.touched = max(l.touched, from+n)
		return true
	}
	return false
}

// Drop takes a segment out again; without ok something is allocated in it, or it is none
// of this arena.
func (a *Arena) Drop(segment uint32) bool {
	i := slices.IndexFunc(a.segs, func(l *lot) bool { return l.n == segment })
	if i < 0 || a.segs[i].left < a.segs[i].size {
		return false
	}
	a.segs = slices.Delete(a.segs, i, i+1)
	return true
}

// Left is the sum of the free stretches.
func (a *Arena) Left() (n int64) {
	for _, l := range a.segs {
		n += l.left
	}
	return n
}
