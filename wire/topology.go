package wire

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Topology is how a node's GPUs and cores lie to each other, as far as it is known; empty
// when nothing is.
type Topology struct {
	NUMA []NUMANode // those with cores, by number; empty unless there are two at least
	GPUs []GPUPlace // in the order of the node's GPUs
}

// NUMANode is cores with memory of their own.
type NUMANode struct {
	ID   int32
	CPUs []int
}

// GPUPlace is where a GPU sits.
type GPUPlace struct {
	UUID  string
	NUMA  int32  // -1 = unknown
	Links []Link // to each GPU of the Topology, in its order; empty = unknown
}

// Link is what joins two GPUs. More is better, and sums compare: it is about ten times
// what nvidia-smi's order of PCIe paths says, and a hundred for each NVLink.
type Link int32

// The links that nvidia-smi tells apart. LinkNV is one NVLink; n of them are n*LinkNV.
const (
	LinkUnknown Link = 0
	LinkSYS     Link = 10 // over the interconnect between NUMA nodes
	LinkNODE    Link = 20 // between PCIe host bridges of a NUMA node
	LinkPHB     Link = 30 // over a PCIe host bridge
	LinkPXB     Link = 40 // over several PCIe bridges
	LinkPIX     Link = 50 // over one PCIe bridge at most, or on one board
	LinkNV      Link = 100
)

// maxNVLinks bounds what is believed of a pair.
const maxNVLinks = 1000

var linkNames = map[string]Link{"SYS": LinkSYS, "SOC": LinkSYS, "NODE": LinkNODE, "PHB": LinkPHB, "PXB": LinkPXB, "PIX": LinkPIX, "PSB": LinkPIX}

// ParseLink reads nvidia-smi's name of a link, also the older ones; LinkUnknown when it is
// none.
func ParseLink(s string) Link {
	if n, ok := strings.CutPrefix(s, "NV"); ok {
		if k, err := strconv.Atoi(n); err == nil && k > 0 && k <= maxNVLinks {
			return Link(k) * LinkNV
		}
		return LinkUnknown
	}
	return linkNames[s]
}

// String is nvidia-smi's name.
func (l Link) String() string {
	if l >= LinkNV {
		return "NV" + strconv.Itoa(int(l/LinkNV))
	}
	for _, s := range []string{"SYS", "NODE", "PHB", "PXB", "PIX"} {
		if linkNames[s] == l {
			return s
		}
	}
	return "?"
}

// Known reports whether anything is.
func (t Topology) Known() bool { return len(t.NUMA) > 0 || len(t.GPUs) > 0 }

// String is the topology in short, for example "NV2 NV1 SYS, 2 NUMA nodes": the links
// between GPUs, best first.
func (t Topology) String() string {
	var links []Link
	for i, g := range t.GPUs {
		for j, l := range g.Links {
			if i != j && l != LinkUnknown {
				links = append(links, l)
			}
		}
	}
	slices.SortFunc(links, func(a, b Link) int { return cmp.Compare(b, a) })
	var parts []string
	for _, l := range slices.Compact(links) {
		parts = append(parts, l.String())
	}
	s := strings.Join(parts, " ")
	if n := len(t.NUMA); n > 0 {
		if s != "" {
			s += ", "
		}
		s += strconv.Itoa(n) + " NUMA nodes"
	}
	return s
}
