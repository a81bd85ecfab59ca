package core

import (
	"slices"
	"strconv"

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
	busy bool // another user's; not offered
	gone bool // no longer there, but a process still has it
}

func newPool(total wire.Resources, gpus []wire.GPU, cpus []int) *pool {
	p := &pool{bind: total.CPU <= int64(len(cpus))*wire.Unit, bundles: map[wire.BundleID]*bundle{}}
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
	// A spec may promise GPUs that detection does not find; they are known by number.
	for i := len(gpus); i < int(total.GPU/wire.Unit); i++ {
		gpus = append(slices.Clip(gpus), wire.GPU{UUID: strconv.Itoa(i)})
	}
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

// available is what can be handed out now: what is free, less GPUs that others use.
func (p *pool) available() wire.Resources {
	r := p.free
	for _, g := range p.gpus {
		if g.busy && !g.gone {
			r.GPU -= wire.Unit - g.used
		}
	}
	r.GPU = max(r.GPU, 0)
	return r
}

// could reports whether a rank of this shape fits when the node is empty.
func (p *pool) could(need wire.Resources) bool { return p.total.Fits(need) }

// take finds room for n ranks, all or none, and takes it.
func (p *pool) take(need wire.Resources, n int) ([]Slot, bool) {
	if p.available().Times(need, n) < n {
		return nil, false
	}
	slots := make([]Slot, 0, n)
	for range n {
		gpus, ok := p.takeGPUs(need.GPU)
		if !ok {
			for _, s := range slots {
				p.give(need, s)
			}
			return nil, false
		}
		s := Slot{CPUs: p.pickCores(need.CPU), GPUs: gpus}
		p.use(need, s, 1)
		slots = append(slots, s)
	}
	return slots, true
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
		if i := slices.IndexFunc(p.gpus, func(x gpu) bool { return x.uuid == g.UUID }); i >= 0 {
			p.gpus[i].used += k * g.Units
			if p.gpus[i].gone && p.gpus[i].used == 0 {
				p.gpus = slices.Delete(p.gpus, i, i+1)
			}
		} else if k > 0 { // taken by an earlier life of the agent, not there any more
			p.gpus = append(p.gpus, gpu{uuid: g.UUID, used: g.Units, gone: true})
		}
	}
}

func (p *pool) give(need wire.Resources, s Slot) { p.use(need, s, -1) }

// takeGPUs picks whole devices, and for a fraction the fullest device with enough room,
// so that whole ones stay whole. It books nothing.
func (p *pool) takeGPUs(units int64) ([]Share, bool) {
	var out []Share
	for i := range p.gpus {
		if g := &p.gpus[i]; units >= wire.Unit && g.used == 0 && !g.busy && !g.gone {
			out = append(out, Share{UUID: g.uuid, Units: wire.Unit})
			units -= wire.Unit
		}
	}
	if units >= wire.Unit {
		return nil, false
	}
	if units > 0 {
		best := -1
		for i := range p.gpus {
			g := &p.gpus[i]
			taken := slices.ContainsFunc(out, func(s Share) bool { return s.UUID == g.uuid })
			if !taken && !g.busy && !g.gone && g.used+units <= wire.Unit && (best < 0 || g.used > p.gpus[best].used) {
				best = i
			}
		}
		if best < 0 {
			return nil, false
		}
		out = append(out, Share{UUID: p.gpus[best].uuid, Units: units})
	}
	return out, true
}

// pickCores chooses cores for a rank that wants at least one: the longest run of free
// neighbours first, so that siblings and caches are shared by one rank; a fraction on
// top lies on one more core. nil = not bound.
func (p *pool) pickCores(units int64) []int {
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
