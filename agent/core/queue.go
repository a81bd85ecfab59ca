package core

import (
	"slices"

	"launcher/wire"
)

// queue is the waiting tries of a job, oldest first. A plain array is a range however
// long it is, so a million queued tasks are one element.
type queue struct {
	segs []seg
	head int // segs[:head] is used up
	n    uint32
}

// seg is a range of first attempts, or one item.
type seg struct {
	r    wire.Range
	item *wire.Item
}

func (s *seg) len() uint32 {
	if s.item != nil {
		return 1
	}
	return s.r.To - s.r.From
}

func (s *seg) at(i uint32) wire.Item {
	if s.item != nil {
		return *s.item
	}
	return wire.Item{Index: s.r.From + i, Attempt: 1}
}

// has finds an attempt in s.
func (s *seg) has(index uint32, a wire.Attempt) (uint32, bool) {
	if s.item != nil {
		return 0, s.item.Index == index && s.item.Attempt == a
	}
	return index - s.r.From, a == 1 && index >= s.r.From && index < s.r.To
}

func (q *queue) push(s seg) {
	if k := s.len(); k > 0 {
		if n := len(q.segs); n > q.head && s.item == nil && q.segs[n-1].item == nil && q.segs[n-1].r.To == s.r.From {
			q.segs[n-1].r.To = s.r.To
		} else {
			q.segs = append(q.segs, s)
		}
		q.n += k
	}
}

func (q *queue) front() (wire.Item, bool) {
	if q.n == 0 {
		return wire.Item{}, false
	}
	return q.segs[q.head].at(0), true
}

// pop drops the first try.
func (q *queue) pop() {
	s := &q.segs[q.head]
	q.n--
	if s.len() > 1 {
		s.r.From++
		return
	}
	q.segs[q.head] = seg{}
	q.head++
	if q.head > 64 && q.head*2 > len(q.segs) {
		q.segs = slices.Delete(q.segs, 0, q.head)
		q.head = 0
	}
}

// cut drops the newest n tries and gives them, newest first.
func (q *queue) cut(n uint32, visit func(wire.Item)) {
	for n > 0 && q.n > 0 {
		s := &q.segs[len(q.segs)-1]
		visit(s.at(s.len() - 1))
		q.n--
		n--
		if s.len() > 1 {
			s.r.To--
		} else {
			q.segs = q.segs[:len(q.segs)-1]
		}
	}
}

// each visits all tries, oldest first.
func (q *queue) each(visit func(wire.Item)) {
	for i := q.head; i < len(q.segs); i++ {
		for k := range q.segs[i].len() {
			visit(q.segs[i].at(k))
		}
	}
}

// find gives a queued attempt.
func (q *queue) find(index uint32, a wire.Attempt) (wire.Item, bool) {
	for i := q.head; i < len(q.segs); i++ {
		if k, ok := q.segs[i].has(index, a); ok {
			return q.segs[i].at(k), true
		}
	}
	return wire.Item{}, false
}

// remove takes one attempt out.
func (q *queue) remove(index uint32, a wire.Attempt) bool {
	for i := q.head; i < len(q.segs); i++ {
		s := q.segs[i]
		k, ok := s.has(index, a)
		if !ok {
			continue
		}
		if i == q.head && k == 0 {
			q.pop()
			return true
		}
		var parts []seg
		if s.item == nil {
			for _, r := range []wire.Range{{From: s.r.From, To: index}, {From: index + 1, To: s.r.To}} {
				if r.To > r.From {
					parts = append(parts, seg{r: r})
				}
			}
		}
		q.segs = slices.Replace(q.segs, i, i+1, parts...)
		q.n--
		return true
	}
	return false
}

// clear empties the queue.
func (q *queue) clear() { *q = queue{} }

// record gives the queue as Assign records do. Ranges and items that alternate need
// several.
func (q *queue) records(job wire.JobID) []Record {
	var out []Record
	var cur RecAssign
	flush := func() {
		if len(cur.Ranges)+len(cur.Items) > 0 {
			cur.Job = job
			out = append(out, cur)
			cur = RecAssign{}
		}
	}
	for i := q.head; i < len(q.segs); i++ {
		if s := q.segs[i]; s.item != nil {
			cur.Items = append(cur.Items, *s.item)
		} else {
			if len(cur.Items) > 0 {
				flush() // within one record ranges come first
			}
			cur.Ranges = append(cur.Ranges, s.r)
		}
	}
	flush()
	return out
}
