package detect

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"launcher/shm/cgroup"
	"launcher/wire"
)

// layout is what the driver tells of where GPUs sit, by their index.
type layout struct {
	links map[[2]int]wire.Link
	numa  map[int]int32
}

// layoutSource gives the layout of a machine's GPUs; empty without error when the driver
// cannot tell.
type layoutSource func(ctx context.Context) (layout, error)

// Topology tells how GPUs, as GPUs has found them, lie to each other and to the machine's
// cores. What cannot be learnt is left out; the error says why the driver told nothing.
func Topology(ctx context.Context, root string, env []string, gpus []wire.GPU) (t wire.Topology, err error) {
	t.NUMA = numaNodes(root)
	var l layout
	if len(gpus) > 1 {
		var why []error
		for _, src := range layouts(env) {
			got, err := src(ctx)
			if err != nil {
				why = append(why, err)
			} else if len(got.links) > 0 {
				l, why = got, nil
				break
			}
		}
		err = errors.Join(why...)
	}
	t.GPUs = places(root, gpus, l)
	if len(t.NUMA) == 0 && len(l.links) == 0 {
		t.GPUs = nil
	}
	return t, err
}

// places puts together what the kernel and the driver tell. Where both know a GPU's NUMA
// node the kernel is right: it also numbers the cores.
func places(root string, gpus []wire.GPU, l layout) (out []wire.GPUPlace) {
	for _, g := range gpus {
		p := wire.GPUPlace{UUID: g.UUID, NUMA: -1}
		if g.Declared {
			out = append(out, p)
			continue
		}
		if n, ok := l.numa[int(g.Index)]; ok {
			p.NUMA = n
		}
		if g.Bus != "" {
			if n, err := strconv.Atoi(strings.TrimSpace(read(root, "/sys/bus/pci/devices/"+g.Bus+"/numa_node"))); err == nil && n >= 0 {
				p.NUMA = int32(n)
			}
		}
		for _, o := range gpus {
			link := l.links[[2]int{int(g.Index), int(o.Index)}]
			switch {
			case o.Declared || len(l.links) == 0 || o.UUID == g.UUID:
				link = wire.LinkUnknown
			case o.Index == g.Index: // slices of one GPU
				link = wire.LinkPIX
			}
			p.Links = append(p.Links, link)
		}
		out = append(out, p)
	}
	return out
}

// numaNodes are the NUMA nodes with cores; nil when there are not two of them.
func numaNodes(root string) (out []wire.NUMANode) {
	dirs, err := os.ReadDir(filepath.Join(root, "/sys/devices/system/node"))
	if err != nil {
		return nil
	}
	for _, d := range dirs {
		num, ok := strings.CutPrefix(d.Name(), "node")
		id, err := strconv.ParseUint(num, 10, 31)
		if !ok || err != nil {
			continue
		}
		cpus, err := cgroup.ParseList(read(root, "/sys/devices/system/node/"+d.Name()+"/cpulist"))
		if err == nil && len(cpus) > 0 { // some have memory only
			out = append(out, wire.NUMANode{ID: int32(id), CPUs: cpus})
		}
	}
	if len(out) < 2 {
		return nil
	}
	slices.SortFunc(out, func(a, b wire.NUMANode) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// smiLayout gives the source that asks `nvidia-smi topo -m`.
func smiLayout(env []string) layoutSource {
	return func(ctx context.Context) (layout, error) {
		path, err := lookIn(env, "nvidia-smi")
		if err != nil {
			return layout{}, nil
		}
		out, err := callSMI(ctx, path, env, "topo", "-m")
		if err != nil {
			return layout{}, err
		}
		return parseTopo(out), nil
	}
}

// parseTopo reads the matrix of `nvidia-smi topo -m`: a line of column names (GPUs, then
// network cards, then affinities), then a line for each device. Versions differ in how they
// pad and underline it and in the last columns. What cannot be read is left out.
func parseTopo(out string) layout {
	l := layout{links: map[[2]int]wire.Link{}, numa: map[int]int32{}}
	var columns []string
	for line := range strings.Lines(out) {
		line = plain(line)
		f := strings.Fields(line)
		if len(f) > 0 && strings.HasPrefix(f[0], "Legend") {
			break
		}
		row, ok := 0, false
		if len(f) > 1 {
			row, ok = gpuNumber(f[0])
		}
		if !ok {
			continue
		}
		if columns == nil {
			i := slices.Index(f, "CPU") // CPU Affinity
			if i < 0 {
				i = len(f)
			}
			columns = f[:i]
			continue
		}
		cells := f[1:]
		if strings.Contains(line, "\t") { // a last column may be blank
			if cells = strings.Split(line, "\t")[1:]; cells[0] == "" {
				continue
			}
		}
		if len(cells) < len(columns) {
			continue
		}
		for i, name := range columns {
			if col, ok := gpuNumber(name); ok && col != row {
				if link := wire.ParseLink(strings.TrimSpace(cells[i])); link != wire.LinkUnknown {
					l.links[[2]int{row, col}] = link
				}
			}
		}
		if rest := cells[len(columns):]; len(rest) > 1 { // CPU Affinity, NUMA Affinity, GPU NUMA ID
			if n, err := strconv.ParseUint(strings.TrimSpace(rest[1]), 10, 16); err == nil {
				l.numa[row] = int32(n)
			}
		}
	}
	return l
}

// gpuNumber reads GPU3.
func gpuNumber(s string) (int, bool) {
	num, ok := strings.CutPrefix(s, "GPU")
	n, err := strconv.ParseUint(num, 10, 12)
	return int(n), ok && err == nil
}

// plain is a line without the escapes that some versions underline the header with, also
// where nobody looks.
func plain(line string) string {
	for {
		before, after, ok := strings.Cut(line, "\x1b[")
		if !ok {
			return line
		}
		_, after, _ = strings.Cut(after, "m")
		line = before + after
	}
}

// busID is a PCI address as the kernel writes it, of the driver's 00000000:07:00.0.
func busID(s string) string {
	s = strings.ToLower(s)
	domain, rest, ok := strings.Cut(s, ":")
	for len(domain) > 4 && domain[0] == '0' {
		domain = domain[1:]
	}
	if !ok || strings.Trim(domain+rest, "0123456789abcdef:.") != "" || strings.Contains(rest, "..") {
		return ""
	}
	return domain + ":" + rest
}
