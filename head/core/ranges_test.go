package core

import (
	"math/rand/v2"
	"testing"

	"launcher/wire"
)

// TestRangeMapAgainstAnArray compares random edits with a plain array.
func TestRangeMapAgainstAnArray(t *testing.T) {
	const size = 200
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var m rangeMap[int]
		var plain [size]int // 0 = no value
		for range 60 {
			a, b := uint32(rng.IntN(size+1)), uint32(rng.IntN(size+1))
			r := wire.Range{From: min(a, b), To: max(a, b)}
			v := rng.IntN(4)
			if v == 0 {
				m.clear(r)
			} else {
				m.set(r, v)
			}
			for i := r.From; i < r.To; i++ {
				plain[i] = v
			}
			check(t, &m, plain[:], rng)
		}
	}
}

func check(t *testing.T, m *rangeMap[int], plain []int, rng *rand.Rand) {
	t.Helper()
	n := 0
	for i, v := range plain {
		got, ok := m.get(uint32(i))
		if ok != (v != 0) || got != v {
			t.Fatalf("at %d: %d %v, want %d; %v", i, got, ok, v, m.Spans)
		}
		if ok {
			n++
		}
	}
	if n != m.len() {
		t.Fatalf("len %d, want %d", m.len(), n)
	}
	for k, s := range m.Spans {
		if s.From >= s.To || k > 0 && (m.Spans[k-1].To > s.From || m.Spans[k-1].To == s.From && m.Spans[k-1].Val == s.Val) {
			t.Fatalf("spans are not in normal form: %v", m.Spans)
		}
	}
	a, b := uint32(rng.IntN(len(plain)+1)), uint32(rng.IntN(len(plain)+1))
	r := wire.Range{From: min(a, b), To: max(a, b)}
	seen := make([]bool, len(plain))
	for in, v := range m.within(r) {
		for i := in.From; i < in.To; i++ {
			if plain[i] != v || i < r.From || i >= r.To {
				t.Fatalf("within %v gives %v at %d", r, v, i)
			}
			seen[i] = true
		}
	}
	for g := range m.gaps(r) {
		for i := g.From; i < g.To; i++ {
			if plain[i] != 0 || seen[i] {
				t.Fatalf("gaps of %v give %d", r, i)
			}
			seen[i] = true
		}
	}
	for i := r.From; i < r.To; i++ {
		if !seen[i] {
			t.Fatalf("%d of %v is neither within nor a gap", i, r)
		}
	}
}

func TestTakeFromTheFront(t *testing.T) {
	var s rangeSet
	s.add(wire.Range{From: 2, To: 5})
	s.add(wire.Range{From: 7, To: 20})
	got := s.take(5)
	if len(got) != 2 || got[0] != (wire.Range{From: 2, To: 5}) || got[1] != (wire.Range{From: 7, To: 9}) || s.len() != 11 {
		t.Errorf("took %v, %d left", got, s.len())
	}
	if s.take(100); s.len() != 0 || len(s.Spans) != 0 {
		t.Errorf("left: %v", s.list())
	}
}

func TestNodesInTheirOrder(t *testing.T) {
	if compareIDs("local-2", "local-10") >= 0 || compareIDs("a-9", "b-1") >= 0 || compareIDs("x", "x") != 0 {
		t.Error("nodes are not ordered by pool and number")
	}
}
