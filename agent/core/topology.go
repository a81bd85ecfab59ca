package core

import (
	"cmp"
	"slices"

	"launcher/wire"
)

// topology chooses GPUs that lie well to each other. It is the same for a node and for the
// bundles on it; nil = nothing is known, and the first ones are as good as any.
type topology struct {
	wire.Topology
	index  map[string]int // of a GPU's UUID
	node   map[int]int32  // NUMA node of a core
	chosen map[choice][]int
}

// choice is a question that was answered before: of these free ones, k more beside those.
type choice struct {
	free, beside uint64
	k            int
}

const (
	// exactGPUs is up to how many free GPUs all sets are looked at.
	exactGPUs = 8
	// maxChosen bounds the answers that are kept.
	maxChosen = 4096
)

func newTopology(t wire.Topology) *topology {
	if !t.Known() {
		return nil
	}
	x := &topology{Topology: t, index: map[string]int{}, node: map[int]int32{}, chosen: map[choice][]int{}}
	for i, g := range t.GPUs {
		x.index[g.UUID] = i
	}
	for _, n := range t.NUMA {
		for _, c := range n.CPUs {
			x.node[c] = n.ID
		}
	}
	return x
}

// link is what joins two GPUs.
func (t *topology) link(a, b int) wire.Link {
	if l := t.GPUs[a].Links; b < len(l) {
		return l[b]
	}
	return wire.LinkUnknown
}

// rating is how good a set of GPUs is: by its worst link, then by all of them, then by how
// few NUMA nodes it lies on.
type rating struct {
	worst, sum wire.Link
	nodes      int
}

func (r rating) compare(o rating) int {
	return cmp.Or(cmp.Compare(r.worst, o.worst), cmp.Compare(r.sum, o.sum), cmp.Compare(o.nodes, r.nodes))
}

func (t *topology) rate(set []int) (r rating) {
	for i, a := range set {
		fresh := true
		for j, b := range set[:i] {
			l := min(t.link(a, b), t.link(b, a))
			if i == 1 && j == 0 || l < r.worst {
				r.worst = l
			}
			r.sum += l
			fresh = fresh && t.GPUs[a].NUMA != t.GPUs[b].NUMA
		}
		if fresh {
			r.nodes++
		}
	}
	return r
}

// choose picks k of the free GPUs (ascending), so that they lie well to each other and to
// those that the same work has already. Of equal sets it takes the one that leaves the best
// fours and pairs to those who come later, and then the first.
func (t *topology) choose(free []int, k int, beside []int) []int {
	if k <= 0 || k >= len(free) {
		return slices.Clone(free[:max(0, min(k, len(free)))])
	}
	key, kept := choice{k: k}, len(t.GPUs) <= 64
	if kept {
		key.free, key.beside = maskOf(free), maskOf(beside)
		if got, ok := t.chosen[key]; ok {
			return slices.Clone(got)
		}
	}
	var best []int
	if len(free) <= exactGPUs {
		best = t.exact(free, k, beside)
	} else {
		best = t.greedy(free, k, beside)
	}
	if kept {
		if len(t.chosen) >= maxChosen {
			clear(t.chosen)
		}
		t.chosen[key] = slices.Clone(best)
	}
	return best
}

func maskOf(set []int) (m uint64) {
	for _, i := range set {
		m |= 1 << i
	}
	return m
}

// exact looks at all sets.
func (t *topology) exact(free []int, k int, beside []int) (best []int) {
	var bestOwn rating
	var bestRest []rating
	for set := range subsets(free, k) {
		own := t.rate(append(slices.Clone(set), beside...))
		if best != nil && own.compare(bestOwn) < 0 {
			continue
		}
		rest := t.remainder(free, set)
		if best == nil || own.compare(bestOwn) > 0 || slices.CompareFunc(rest, bestRest, rating.compare) > 0 {
			best, bestOwn, bestRest = slices.Clone(set), own, rest
		}
	}
	return best
}

// remainder rates the best four and the best pair of what a set leaves.
func (t *topology) remainder(free, set []int) (out []rating) {
	var rest []int
	for _, i := range free {
		if !slices.Contains(set, i) {
			rest = append(rest, i)
		}
	}
	for _, m := range []int{4, 2} {
		var best rating
		found := false
		for s := range subsets(rest, m) {
			if r := t.rate(s); !found || r.compare(best) > 0 {
				best, found = r, true
			}
		}
		if found {
			out = append(out, best)
		}
	}
	return out
}

// subsets gives all sets of k of the given ones, the first ones first. The slice is the
// same each time.
func subsets(of []int, k int) func(yield func([]int) bool) {
	return func(yield func([]int) bool) {
		set := make([]int, 0, k)
		var from func(i int) bool
		from = func(i int) bool {
			if len(set) == k {
				return yield(set)
			}
			for ; i <= len(of)-(k-len(set)); i++ {
				set = append(set, of[i])
				if !from(i + 1) {
					return false
				}
				set = set[:len(set)-1]
			}
			return true
		}
		from(0)
	}
}

// greedy grows a set from each free GPU by the one that lies best to what it has.
func (t *topology) greedy(free []int, k int, beside []int) (best []int) {
	var bestOwn rating
	for _, seed := range free {
		set := t.grow(free, seed, k, beside)
		if own := t.rate(append(slices.Clone(set), beside...)); best == nil || own.compare(bestOwn) > 0 {
			best, bestOwn = set, own
		}
	}
	slices.Sort(best)
	return best
}

func (t *topology) grow(free []int, seed, k int, beside []int) []int {
	// near is how a candidate lies to what the set has so far.
	near := make([]rating, len(free))
	for i := range near {
		near[i].worst = 1 << 30
	}
	add := func(x int) {
		for i, c := range free {
			l := min(t.link(c, x), t.link(x, c))
			near[i].worst, near[i].sum = min(near[i].worst, l), near[i].sum+l
			if t.GPUs[c].NUMA != t.GPUs[x].NUMA {
				near[i].nodes++
			}
		}
	}
	for _, x := range beside {
		add(x)
	}
	add(seed)
	set := []int{seed}
	for len(set) < k {
		best := -1
		for i, c := range free {
			if !slices.Contains(set, c) && (best < 0 || near[i].compare(near[best]) > 0) {
				best = i
			}
		}
		set = append(set, free[best])
		add(free[best])
	}
	return set
}

// nearCores narrows the free cores to those that fit the work: on the NUMA nodes of its
// GPUs, as far as they go; without GPUs, on the one node with the fewest that are enough,
// rather one whose GPUs are all taken (freeGPUs: nodes that have free ones).
func (t *topology) nearCores(free []int, n int, gpus []Share, freeGPUs func() map[int32]bool) []int {
	if t == nil || len(t.NUMA) < 2 {
		return free
	}
	want := map[int32]bool{}
	for _, g := range gpus {
		if i, ok := t.index[g.UUID]; ok && t.GPUs[i].NUMA >= 0 {
			want[t.GPUs[i].NUMA] = true
		}
	}
	by := map[int32][]int{}
	var near, far []int
	for _, c := range free {
		id, known := t.node[c]
		if known && want[id] {
			near = append(near, c)
		} else {
			far = append(far, c)
		}
		if known {
			by[id] = append(by[id], c)
		}
	}
	switch {
	case len(near) >= n:
		return near
	case len(near) > 0:
		out := append(near, far[:min(len(far), n-len(near))]...)
		slices.Sort(out)
		return out
	}
	best, found, avoid := int32(0), false, freeGPUs()
	for _, node := range t.NUMA {
		id := node.ID
		if len(by[id]) < n {
			continue
		}
		if !found || avoid[best] && !avoid[id] || avoid[best] == avoid[id] && len(by[id]) < len(by[best]) {
			best, found = id, true
		}
	}
	if found {
		return by[best]
	}
	return free
}
