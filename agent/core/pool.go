package core

import (
	"slices"

	"launcher/wire"
)

// pool is the node's resources and what is free of them. Amounts decide about
// admission; GPUs are also placed on devices, since halves of two GPUs are not a whole
// one. Cores are placed where that is possible: binding is a help, never a reason to
// wait.
type pool struct {
	total wire.Resources
	free  wire.Resources
	cores []core
	bind  bool // cores are handed out one by one; false when there are more than exist
	gpus  []gpu
	// others is what other users keep busy of the cores, avoid on which they were seen.
	others int64
	avoid  []int
	topo   *topology
	// claims are of the node's own pool: what bundles have is claimed already.
	claims Claims

	bundles map[wire.BundleID]*bundle
}

type core struct {
	id   int
	used int64 // in wire.Unit-ths
}

type gpu struct {
	uuid string
	info wire.GPU
	used int64
	busy bool // others use it; not offered
	gone bool // no longer there, but a process still has it
}

func newPool(total wire.Resources, gpus []wire.GPU, cpus []int, topo *topology) *pool {
	p := &pool{topo: topo, bind: total.CPU <= int64(len(cpus))*wire.Unit, bundles: map[wire.BundleID]*bundle{}}
	for _, id := range slices.Sorted(slices.Values(cpus)) {
		p.cores = append(p.cores, core{id: id})
	}
	p.set(total, gpus)
	return p
}

// set changes what there is, keeping what is in use.
func (p *pool) set(total wire.Resources, gpus []wire.GPU) {
	used := p.total.Add(p.free, -1)
	p.total = total
	p.free = total.Add(used, -1)
	p.bind = total.CPU <= int64(len(p.cores))*wire.Unit
	old := p.gpus
	p.gpus = nil
	for _, g := range gpus {
		n := gpu{uuid: g.UUID, info: g, busy: g.Busy}
		if i := slices.IndexFunc(old, func(o gpu) bool { return o.uuid == g.UUID }); i >= 0 {
			n.used = old[i].used
			old[i].used = 0
		}
		p.gpus = append(p.gpus, n)
	}
	for _, o := range old {
		if o.used > 0 {
			o.gone = true
			p.gpus = append(p.gpus, o)
		}
	}
}

// available is what can be handed out now: what is free, less GPUs and cores that others
// use. What runs is not taken anything for them.
func (p *pool) available() wire.Resources {
	r := p.free
	r.CPU = min(r.CPU, max(0, r.CPU-p.others))
	room := int64(0)
	for _, g := range p.gpus {
		if !g.busy && !g.gone {
			room += wire.Unit - g.used
		}
	}
	r.GPU = min(r.GPU, room) // a spec may offer fewer than there are
	return r
}

// whole are the GPUs that nothing has any of, by index.
func (p *pool) whole() (free []int) {
	for i := range p.gpus {
		if g := &p.gpus[i]; g.used == 0 && !g.busy && !g.gone {
			free = append(free, i)
		}
	}
	return free
}

// could reports whether a rank of this shape fits when the node is empty.
func (p *pool) could(need wire.Resources) bool { return p.total.Fits(need) }

// take finds room for n ranks, all or none, and takes it. A GPU that others on the machine
// turn out to have is left out, and it is tried again without.
func (p *pool) take(need wire.Resources, n int) ([]Slot, bool) {
	for p.available().Times(need, n) >= n {
		slots, ok := p.place(need, n)
		if !ok || p.claimed(slots) {
			return slots, ok
		}
		for _, s := range slots {
			p.give(need, s)
		}
	}
	return nil, false
}

// claimed claims the GPUs of slots; one that cannot be had is busy from now on.
func (p *pool) claimed(slots []Slot) bool {
	if p.claims == nil {
		return true
	}
	all := true
	for _, s := range slots {
		for _, x := range s.GPUs {
			if !p.claims.Claim(x.UUID) {
				if i := p.gpuOf(x.UUID); i >= 0 {
					p.gpus[i].busy, p.gpus[i].info.Busy, p.gpus[i].info.By = true, true, "another cluster on the machine"
				}
				all = false
			}
		}
	}
	return all
}

func (p *pool) gpuOf(uuid string) int {
	return slices.IndexFunc(p.gpus, func(g gpu) bool { return g.uuid == uuid })
}

// place books n ranks. Whole GPUs are chosen for all of them together, and then divided.
func (p *pool) place(need wire.Resources, n int) ([]Slot, bool) {
	slots := make([]Slot, 0, n)
	each := int(need.GPU / wire.Unit)
	var set []int
	if each > 0 {
		if set = p.choose(p.whole(), n*each, nil); len(set) < n*each {
			return nil, false
		}
	}
	had := slices.Clone(set) // what the ranks have, to choose others beside
	for range n {
		own := p.choose(set, each, nil)
		set = slices.DeleteFunc(set, func(i int) bool { return slices.Contains(own, i) })
		s := Slot{}
		for _, i := range own {
			s.GPUs = append(s.GPUs, p.share(i, wire.Unit))
		}
		if part := need.GPU % wire.Unit; part > 0 {
			i := p.sharedGPU(part, had)
			if i < 0 {
				for _, s := range slots {
					p.give(need, s)
				}
				return nil, false
			}
			if p.gpus[i].used == 0 {
				had = append(had, i)
			}
			s.GPUs = append(s.GPUs, p.share(i, part))
		}
		s.CPUs = p.pickCores(need.CPU, s.GPUs)
		p.use(need, s, 1)
		slots = append(slots, s)
	}
	return slots, true
}

func (p *pool) share(i int, units int64) Share {
	s := Share{UUID: p.gpus[i].uuid, Units: units}
	if v := p.gpus[i].info.Visible(); v != s.UUID && v != "" {
		s.Visible = v
	}
	return s
}

// choose picks k of the GPUs, by index and in order, that lie well to each other and to
// those beside them; fewer when there are not so many.
func (p *pool) choose(of []int, k int, beside []int) []int {
	at := make([]int, len(p.gpus)) // in the topology
	known := p.topo != nil && k < len(of)
	for i := range p.gpus {
		x, ok := 0, false
		if known {
			x, ok = p.topo.index[p.gpus[i].uuid]
		}
		at[i] = x
		known = known && (ok || !slices.Contains(of, i) && !slices.Contains(beside, i))
	}
	if !known {
		return slices.Clone(of[:min(max(k, 0), len(of))])
	}
	to := func(list []int) (out []int) {
		for _, i := range list {
			out = append(out, at[i])
		}
		slices.Sort(out)
		return out
	}
	picked := p.topo.choose(to(of), k, to(beside))
	var out []int
	for _, i := range of {
		if slices.Contains(picked, at[i]) {
			out = append(out, i)
		}
	}
	return out
}

// sharedGPU picks the fullest device with enough room for a part of one, so that whole
// ones stay whole; else a new one beside those that the work has. What a rank has whole
// is not booked yet, and is none; -1 = there is no room.
func (p *pool) sharedGPU(units int64, had []int) int {
	best := -1
	for i := range p.gpus {
		g := &p.gpus[i]
		if g.used > 0 && !g.busy && !g.gone && g.used+units <= wire.Unit && (best < 0 || g.used > p.gpus[best].used) {
			best = i
		}
	}
	if best >= 0 {
		return best
	}
	free := slices.DeleteFunc(p.whole(), func(i int) bool { return slices.Contains(had, i) })
	if one := p.choose(free, 1, had); len(one) > 0 {
		return one[0]
	}
	return -1
}

// use books a slot (k = 1) or gives it back (k = -1).
func (p *pool) use(need wire.Resources, s Slot, k int64) {
	if b := p.bundles[s.Bundle]; b != nil {
		s.Bundle = wire.BundleID{}
		b.room.use(need, s, k)
		p.bundleOver(b.ID)
		return
	}
	p.free = p.free.Add(need, -k)
	if n := int64(len(s.CPUs)); n > 0 {
		left := need.CPU // a fraction lies on the last core
		for _, id := range s.CPUs {
			part := min(left, wire.Unit)
			left -= part
			if i := slices.IndexFunc(p.cores, func(c core) bool { return c.id == id }); i >= 0 {
				p.cores[i].used += k * part
			}
		}
	}
	for _, g := range s.GPUs {
		i := p.gpuOf(g.UUID)
		switch {
		case i >= 0:
			p.gpus[i].used += k * g.Units
		case k > 0: // taken by an earlier life of the agent, not there any more
			p.gpus = append(p.gpus, gpu{uuid: g.UUID, used: g.Units, gone: true})
			continue
		default:
			continue
		}
		if p.gpus[i].used > 0 {
			continue
		}
		if p.claims != nil {
			p.claims.Drop(g.UUID)
		}
		if p.gpus[i].gone {
			p.gpus = slices.Delete(p.gpus, i, i+1)
		}
	}
}

// had books what was taken before the agent was restarted.
func (p *pool) had(need wire.Resources, s Slot) {
	p.use(need, s, 1)
	p.of(s).claimed([]Slot{s})
}

func (p *pool) give(need wire.Resources, s Slot) { p.use(need, s, -1) }

// pickCores chooses cores for a rank that wants at least one: the longest run of free
// neighbours first, so that siblings and caches are shared by one rank; a fraction on
// top lies on one more core. They are near the rank's GPUs, or out of the way of others'.
// nil = not bound.
func (p *pool) pickCores(units int64, gpus []Share) []int {
	if !p.bind || units < wire.Unit {
		return nil
	}
	n := int((units + wire.Unit - 1) / wire.Unit)
	var free []int
	for _, c := range p.cores {
		if c.used == 0 {
			free = append(free, c.id)
		}
	}
	if len(free) < n {
		return nil
	}
	if calm := slices.DeleteFunc(slices.Clone(free), func(id int) bool { return slices.Contains(p.avoid, id) }); len(calm) >= n {
		free = calm
	}
	free = p.topo.nearCores(free, n, gpus, p.nodesOfFree)
	// The smallest run of neighbours that is long enough, else simply the first cores.
	best, bestLen := -1, 0
	for i := 0; i < len(free); {
		k := i + 1
		for k < len(free) && free[k] == free[k-1]+1 {
			k++
		}
		if l := k - i; l >= n && (best < 0 || l < bestLen) {
			best, bestLen = i, l
		}
		i = k
	}
	best = max(best, 0)
	return slices.Clone(free[best : best+n])
}

// nodesOfFree are the NUMA nodes that have free GPUs.
func (p *pool) nodesOfFree() map[int32]bool {
	nodes := map[int32]bool{}
	for _, i := range p.whole() {
		if x, ok := p.topo.index[p.gpus[i].uuid]; ok {
			nodes[p.topo.GPUs[x].NUMA] = true
		}
	}
	return nodes
}

// gpuList is the GPUs as others should see them.
func (p *pool) gpuList() []wire.GPU {
	var out []wire.GPU
	for _, g := range p.gpus {
		if !g.gone {
			out = append(out, g.info)
		}
	}
	return out
}
