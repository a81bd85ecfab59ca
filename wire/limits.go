package wire

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Limits bound what one job may use of a cluster at a time: by the name of a resource (cpu,
// gpu, memory, or one of the user's own) the amount, as in Resources. What is not named is
// not bound.
type Limits map[string]int64

// Terms are what a program's tasks are subject to all together.
type Terms struct {
	Priority int
	Limits   Limits
}

// Amount is what r has of a resource.
func (r Resources) Amount(name string) int64 {
	switch name {
	case "cpu":
		return r.CPU
	case "gpu":
		return r.GPU
	case "memory":
		return r.Memory
	}
	return r.Custom[name]
}

// Times is how many of need a job that uses so much may have beside that, at most limit.
func (l Limits) Times(use, need Resources, limit int) int {
	for name, most := range l {
		if want := need.Amount(name); want > 0 {
			limit = int(min(int64(limit), max(0, most-use.Amount(name))/want))
		}
	}
	return limit
}

// Reached names what keeps a job that uses so much from need more, for example "8 cpu";
// "" = nothing does.
func (l Limits) Reached(use, need Resources) string {
	for _, name := range slices.Sorted(maps.Keys(l)) {
		if want := need.Amount(name); want > 0 && use.Amount(name)+want > l[name] {
			return amount(name, l[name])
		}
	}
	return ""
}

func amount(name string, v int64) string {
	if name == "memory" {
		return Bytes(v) + " memory"
	}
	return units(v) + " " + name
}

// String is for example "8 cpu, 1 gpu".
func (l Limits) String() string {
	var s []string
	for _, name := range slices.Sorted(maps.Keys(l)) {
		s = append(s, amount(name, l[name]))
	}
	return strings.Join(s, ", ")
}

// JobName is what people call the job of a key (Shape.Owner): keys of programs that no job
// started are no numbers.
func JobName(key string) string {
	if _, err := strconv.Atoi(key); err != nil {
		return "program " + key
	}
	return "job " + key
}
