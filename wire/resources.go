package wire

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
)

// Unit is one of a countable resource (a core, a GPU, a license) in ten-thousandths,
// the granularity that Ray uses, so that fractions add up exactly.
const Unit = 10_000

// Resources is an amount of resources: what a node has, or what one rank asks for.
// CPU, GPU and Custom count in Unit-ths; Memory in bytes.
type Resources struct {
	CPU    int64
	GPU    int64
	Memory int64
	Custom map[string]int64
}

// NoGPUs is the GPU amount of a pool whose nodes are to offer none of theirs; 0 there
// stands for what detection finds.
const NoGPUs = -1

// Fits reports whether need can be taken out of r.
func (r Resources) Fits(need Resources) bool {
	if need.CPU > r.CPU || need.GPU > r.GPU || need.Memory > r.Memory {
		return false
	}
	for k, v := range need.Custom {
		if v > r.Custom[k] {
			return false
		}
	}
	return true
}

// Times is how many copies of need fit in r, at most limit. A need of nothing fits
// limit times.
func (r Resources) Times(need Resources, limit int) int {
	n := int64(limit)
	div := func(have, want int64) {
		if want > 0 {
			n = min(n, max(have, 0)/want)
		}
	}
	div(r.CPU, need.CPU)
	div(r.GPU, need.GPU)
	div(r.Memory, need.Memory)
	for k, v := range need.Custom {
		div(r.Custom[k], v)
	}
	return int(n)
}

// Add gives r + k*o; k may be negative.
func (r Resources) Add(o Resources, k int64) Resources {
	r.CPU += k * o.CPU
	r.GPU += k * o.GPU
	r.Memory += k * o.Memory
	if len(o.Custom) > 0 {
		c := maps.Clone(r.Custom)
		if c == nil {
			c = map[string]int64{}
		}
		for name, v := range o.Custom {
			c[name] += k * v
		}
		r.Custom = c
	}
	return r
}

// Equal reports whether r and o are the same amounts.
func (r Resources) Equal(o Resources) bool {
	return r.CPU == o.CPU && r.GPU == o.GPU && r.Memory == o.Memory && maps.Equal(r.Custom, o.Custom)
}

// Nothing reports whether there is nothing in r.
func (r Resources) Nothing() bool { return r.Equal(Resources{}) }

// Negative reports whether any amount is below zero, which no free view may ever be.
func (r Resources) Negative() bool {
	if r.CPU < 0 || r.GPU < 0 || r.Memory < 0 {
		return true
	}
	for _, v := range r.Custom {
		if v < 0 {
			return true
		}
	}
	return false
}

// String is a user's form, for example "cpu=2 gpu=0.5 memory=2GiB".
func (r Resources) String() string {
	s := "cpu=" + units(r.CPU)
	if r.GPU > 0 {
		s += " gpu=" + units(r.GPU)
	}
	if r.Memory != 0 {
		s += " memory=" + Bytes(r.Memory)
	}
	for _, k := range slices.Sorted(maps.Keys(r.Custom)) {
		s += " " + k + "=" + units(r.Custom[k])
	}
	return s
}

func units(v int64) string { return strconv.FormatFloat(float64(v)/Unit, 'f', -1, 64) }

// Bytes renders a size with a binary unit, for example 1.5GiB.
func Bytes(n int64) string {
	f, i := float64(n), 0
	for f >= 1024 && i < 5 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%s%s", strconv.FormatFloat(float64(int64(f*10+0.5))/10, 'f', -1, 64),
		[]string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}[i])
}
