package core

import (
	"iter"
	"slices"

	"launcher/wire"
)

// span is a stretch of indices with one value. Its fields are exported for the encoder.
type span[V comparable] struct {
	From, To uint32
	Val      V
}

// rangeMap maps task indices to values and keeps equal neighbours as one span, so that
// a million tasks with the same fate are one line. The zero value is empty.
type rangeMap[V comparable] struct {
	Spans []span[V] // sorted, disjoint, no two adjacent ones equal
	Count int
}

// find is the first span that ends after i.
func (m *rangeMap[V]) find(i uint32) int {
	// Work goes on near the end far more often than elsewhere.
	if n := len(m.Spans); n > 0 && m.Spans[n-1].To <= i {
		return n
	}
	k, _ := slices.BinarySearchFunc(m.Spans, i, func(s span[V], i uint32) int {
		if s.To <= i {
			return -1
		}
		return 1
	})
	return k
}

// get gives the value at i.
func (m *rangeMap[V]) get(i uint32) (v V, ok bool) {
	if k := m.find(i); k < len(m.Spans) && m.Spans[k].From <= i {
		return m.Spans[k].Val, true
	}
	return v, false
}

func (m *rangeMap[V]) has(i uint32) bool { _, ok := m.get(i); return ok }

// len is the number of indices that have a value.
func (m *rangeMap[V]) len() int { return m.Count }

// set gives every index of r the value v.
func (m *rangeMap[V]) set(r wire.Range, v V) {
	if r.From >= r.To {
		return
	}
	m.edit(r, span[V]{r.From, r.To, v}, true)
}

// clear takes the values of every index of r away.
func (m *rangeMap[V]) clear(r wire.Range) {
	if r.From >= r.To {
		return
	}
	m.edit(r, span[V]{}, false)
}

func (m *rangeMap[V]) edit(r wire.Range, s span[V], put bool) {
	lo := m.find(r.From)
	hi := lo
	var mid [3]span[V]
	out := mid[:0]
	if lo < len(m.Spans) && m.Spans[lo].From < r.From {
		out = append(out, span[V]{m.Spans[lo].From, r.From, m.Spans[lo].Val})
	}
	removed := 0
	var tail span[V]
	hasTail := false
	for hi < len(m.Spans) && m.Spans[hi].From < r.To {
		old := m.Spans[hi]
		removed += int(min(old.To, r.To) - max(old.From, r.From))
		if old.To > r.To {
			tail, hasTail = span[V]{r.To, old.To, old.Val}, true
		}
		hi++
	}
	if put {
		removed -= r.Len()
		out = append(out, s)
	}
	if hasTail {
		out = append(out, tail)
	}
	// Join equal neighbours, those just outside included.
	if lo > 0 && len(out) > 0 && m.Spans[lo-1].To == out[0].From && m.Spans[lo-1].Val == out[0].Val {
		lo--
		out[0].From = m.Spans[lo].From
	}
	if hi < len(m.Spans) && len(out) > 0 {
		if l := &out[len(out)-1]; l.To == m.Spans[hi].From && l.Val == m.Spans[hi].Val {
			l.To = m.Spans[hi].To
			hi++
		}
	}
	k := 0
	for i := range out {
		if k > 0 && out[k-1].To == out[i].From && out[k-1].Val == out[i].Val {
			out[k-1].To = out[i].To
			continue
		}
		out[k] = out[i]
		k++
	}
	out = out[:k]
	m.Count -= removed
	m.Spans = slices.Replace(m.Spans, lo, hi, out...)
}

// all yields the spans in order. The map must not change meanwhile.
func (m *rangeMap[V]) all() iter.Seq2[wire.Range, V] {
	return func(yield func(wire.Range, V) bool) {
		for _, s := range m.Spans {
			if !yield(wire.Range{From: s.From, To: s.To}, s.Val) {
				return
			}
		}
	}
}

// within yields the parts of spans that lie in r.
func (m *rangeMap[V]) within(r wire.Range) iter.Seq2[wire.Range, V] {
	return func(yield func(wire.Range, V) bool) {
		for k := m.find(r.From); k < len(m.Spans) && m.Spans[k].From < r.To; k++ {
			s := m.Spans[k]
			if !yield(wire.Range{From: max(s.From, r.From), To: min(s.To, r.To)}, s.Val) {
				return
			}
		}
	}
}

// gaps yields the parts of r that have no value.
func (m *rangeMap[V]) gaps(r wire.Range) iter.Seq[wire.Range] {
	return func(yield func(wire.Range) bool) {
		from := r.From
		for in := range m.within(r) {
			if from < in.From && !yield(wire.Range{From: from, To: in.From}) {
				return
			}
			from = in.To
		}
		if from < r.To {
			yield(wire.Range{From: from, To: r.To})
		}
	}
}

// rangeSet is a set of task indices.
type rangeSet struct{ rangeMap[struct{}] }

func (s *rangeSet) add(r wire.Range) { s.set(r, struct{}{}) }
func (s *rangeSet) addOne(i uint32)  { s.add(wire.Range{From: i, To: i + 1}) }
func (s *rangeSet) dropOne(i uint32) { s.clear(wire.Range{From: i, To: i + 1}) }
func (s *rangeSet) list() []wire.Range {
	out := make([]wire.Range, 0, len(s.Spans))
	for _, p := range s.Spans {
		out = append(out, wire.Range{From: p.From, To: p.To})
	}
	return out
}

// take removes up to n indices from the front and gives them.
func (s *rangeSet) take(n int) []wire.Range {
	var out []wire.Range
	k := 0
	for k < len(s.Spans) && n > 0 {
		p := &s.Spans[k]
		l := min(int(p.To-p.From), n)
		out = append(out, wire.Range{From: p.From, To: p.From + uint32(l)})
		n -= l
		s.Count -= l
		p.From += uint32(l)
		if p.From < p.To {
			break
		}
		k++
	}
	s.Spans = slices.Delete(s.Spans, 0, k)
	return out
}
