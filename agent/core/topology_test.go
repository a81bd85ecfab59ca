package core

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"launcher/wire"
)

// The matrices are those of agent/detect/testdata/topo.
const (
	dgx1 = `X NV1 NV1 NV2 NV2 SYS SYS SYS 0
NV1 X NV2 NV1 SYS NV2 SYS SYS 0
NV1 NV2 X NV2 SYS SYS NV1 SYS 0
NV2 NV1 NV2 X SYS SYS SYS NV1 0
NV2 SYS SYS SYS X NV1 NV1 NV2 1
SYS NV2 SYS SYS NV1 X NV2 NV1 1
SYS SYS NV1 SYS NV1 NV2 X NV2 1
SYS SYS SYS NV1 NV2 NV1 NV2 X 1`
	rtx5 = `X SYS SYS SYS SYS 1
SYS X PHB NODE NODE 0
SYS PHB X NODE NODE 0
SYS NODE NODE X PHB 0
SYS NODE NODE PHB X 0`
)

// even is a matrix with the same link everywhere.
func even(link string, nodes ...int) string {
	var rows []string
	for i, n := range nodes {
		row := slices.Repeat([]string{link}, len(nodes))
		row[i] = "X"
		rows = append(rows, strings.Join(row, " ")+" "+fmt.Sprint(n))
	}
	return strings.Join(rows, "\n")
}

// laid is a topology of a matrix whose last column is the NUMA node, with as many cores on
// each node.
func laid(matrix string, cores int) (top wire.Topology, gpus []wire.GPU) {
	numa := map[int32]bool{}
	for i, row := range strings.Split(matrix, "\n") {
		f := strings.Fields(row)
		p := wire.GPUPlace{UUID: fmt.Sprint("GPU-", i)}
		fmt.Sscan(f[len(f)-1], &p.NUMA)
		for _, s := range f[:len(f)-1] {
			p.Links = append(p.Links, wire.ParseLink(s))
		}
		numa[p.NUMA] = true
		top.GPUs = append(top.GPUs, p)
		gpus = append(gpus, wire.GPU{UUID: p.UUID, Name: "V100", Index: int32(i)})
	}
	for id := range int32(8) {
		if numa[id] && len(numa) > 1 {
			n := wire.NUMANode{ID: id}
			for i := range cores {
				n.CPUs = append(n.CPUs, len(top.NUMA)*cores+i)
			}
			top.NUMA = append(top.NUMA, n)
		}
	}
	return top, gpus
}

// machine is a core of a node of such a machine.
func machine(t *testing.T, matrix string, cores int, claims Claims) (*Core, func(Event) Output) {
	t.Helper()
	top, gpus := laid(matrix, cores)
	n := max(1, len(top.NUMA)) * cores
	var ids []int
	for i := range n {
		ids = append(ids, i)
	}
	c := New(Config{Hello: wire.Hello{Node: "n", Total: wire.Resources{CPU: int64(n) * wire.Unit, GPU: int64(len(gpus)) * wire.Unit, Memory: 1 << 40}, GPUs: gpus, Topology: top},
		CPUs: ids, Claims: claims}, NewState())
	now := int64(0)
	step := func(ev Event) Output {
		now += second
		return c.Step(now, ev)
	}
	step(HeadUp{})
	step(FromHead{wire.Welcome{HeadEpoch: 1}})
	return c, step
}

func gpuNeed(units int64) wire.Resources { return wire.Resources{CPU: wire.Unit, GPU: units} }

func names(s Slot) string {
	var out []string
	for _, g := range s.GPUs {
		out = append(out, strings.TrimPrefix(g.UUID, "GPU-"))
	}
	return strings.Join(out, " ")
}

// TestChoice: what is taken one after the other of an empty node.
func TestChoice(t *testing.T) {
	cases := []struct {
		name, matrix string
		take         []int64 // tenths of a GPU
		want         string
	}{
		{"quads of a DGX-1", dgx1, []int64{40, 40}, "0 1 2 3, 4 5 6 7"},
		{"pairs of a DGX-1 are double links, and leave the other quad whole", dgx1, []int64{20, 20, 40}, "0 3, 1 2, 4 5 6 7"},
		{"one GPU leaves a quad whole", dgx1, []int64{10, 40, 10, 20}, "0, 4 5 6 7, 1, 2 3"},
		{"three of a DGX-1", dgx1, []int64{30}, "0 2 3"},
		{"all of a DGX-1", dgx1, []int64{80}, "0 1 2 3 4 5 6 7"},
		{"NVSwitch: all links are alike, memory is not", even("NV12", 3, 3, 1, 1, 7, 7, 5, 5), []int64{20, 20, 40}, "0 1, 2 3, 4 5 6 7"},
		{"a GPU alone does not divide pairs of others", even("NV12", 3, 3, 1, 1, 7, 7, 5, 5), []int64{10, 20, 10}, "0, 2 3, 1"},
		{"PCIe: pairs under a host bridge", rtx5, []int64{20, 20}, "1 2, 3 4"},
		{"PCIe: one is the one that lies off", rtx5, []int64{10, 40}, "0, 1 2 3 4"},
		{"without peers, one NUMA node", even("SYS", 0, 0, 1, 1, 1, 1, 0, 0), []int64{40, 40}, "0 1 6 7, 2 3 4 5"},
		{"fractions share the fullest", dgx1, []int64{5, 5, 3, 5, 2, 40}, "0, 0, 1, 1, 1, 4 5 6 7"},
		{"more than are looked at one by one", even("NV6", 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1), []int64{20, 60, 80}, "0 1, 2 3 4 5 6 7, 8 9 10 11 12 13 14 15"},
	}
	for _, tc := range cases {
		c, _ := machine(t, tc.matrix, 8, nil)
		var got []string
		for _, u := range tc.take {
			s, ok := c.TakeRoom(c.now, gpuNeed(u*wire.Unit/10))
			if !ok {
				t.Fatalf("%s: no room for %d tenths", tc.name, u)
			}
			got = append(got, names(s))
		}
		if g := strings.Join(got, ", "); g != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, g, tc.want)
		}
	}
}

// TestUnknownTopology: a node that tells nothing gives GPUs in their order, as does one
// that has a GPU of which nothing is known.
func TestUnknownTopology(t *testing.T) {
	top, gpus := laid(dgx1, 4)
	top.GPUs = top.GPUs[:7]
	for _, top := range []wire.Topology{{}, top} {
		p := newPool(wire.Resources{CPU: 8 * wire.Unit, GPU: 8 * wire.Unit}, gpus, nil, newTopology(top))
		for _, want := range []string{"0 1", "2 3"} {
			if s, ok := p.take(gpuNeed(2*wire.Unit), 1); !ok || names(s[0]) != want {
				t.Errorf("%v, want %s", s, want)
			}
		}
	}
}

// TestGangIsChosenAsASet: the ranks of a gang on a node share the best set, divided well;
// so does a bundle, and what is in it.
func TestGangIsChosenAsASet(t *testing.T) {
	c, step := machine(t, dgx1, 8, nil)
	if s, ok := c.TakeRoom(c.now, gpuNeed(wire.Unit)); !ok || names(s) != "0" {
		t.Fatal(s)
	}
	step(FromHead{wire.Job{Job: 1, Spec: wire.JobSpec{Kind: wire.KindTrain, Resources: gpuNeed(2 * wire.Unit), Ranks: 2}}})
	out := step(FromHead{wire.Reserve{Gang: wire.Try{Task: wire.Task{Job: 1}, Attempt: 1}, Count: 2, Until: c.now + 100*second}})
	var slots []Slot
	for _, r := range out.Records {
		if r, ok := r.(RecReserve); ok {
			slots = r.Slots
		}
	}
	if len(slots) != 2 || names(slots[0]) != "4 7" || names(slots[1]) != "5 6" {
		t.Fatalf("%v", slots)
	}
	p := newPool(wire.Resources{GPU: 8 * wire.Unit}, c.cfg.Hello.GPUs, nil, c.pool.topo)
	half, ok := p.take(wire.Resources{GPU: wire.Unit / 2}, 4)
	if !ok || names(half[0]) != "0" || names(half[1]) != "0" || names(half[2]) != "3" || names(half[3]) != "3" {
		t.Errorf("four halves: %v", half)
	}
	p = newPool(wire.Resources{GPU: 8 * wire.Unit}, c.cfg.Hello.GPUs, nil, c.pool.topo)
	more, ok := p.take(wire.Resources{GPU: wire.Unit * 3 / 2}, 2)
	if !ok || len(more[0].GPUs) != 2 || len(more[1].GPUs) != 2 || more[0].GPUs[1].UUID != more[1].GPUs[1].UUID || more[0].GPUs[0].UUID == more[1].GPUs[0].UUID {
		t.Errorf("one and a half, twice: %v", more)
	}

	c, step = machine(t, dgx1, 8, nil)
	if a := answer[wire.BundleNews](step(reserve(group1, true, 0, gpuNeed(2*wire.Unit), wire.Resources{CPU: 4 * wire.Unit, GPU: 4 * wire.Unit}))); len(a) != 1 || !a[0].OK {
		t.Fatalf("%+v", a)
	}
	for i, want := range map[int32]string{0: "0 3", 1: "4 7"} {
		if s, ok := c.TakeGroup(in(group1, i), gpuNeed(2*wire.Unit)); !ok || names(s) != want {
			t.Errorf("bundle %d: %s, %v", i, names(s), ok)
		}
	}
}

// TestNearCores: work with GPUs is bound to cores of their NUMA nodes, work without to
// those of one node, away from free GPUs.
func TestNearCores(t *testing.T) {
	c, _ := machine(t, dgx1, 4, nil) // cores 0-3 and 4-7
	take := func(cpu, gpu int64) Slot {
		t.Helper()
		s, ok := c.TakeRoom(c.now, wire.Resources{CPU: cpu * wire.Unit, GPU: gpu * wire.Unit})
		if !ok {
			t.Fatalf("no room for %d cores, %d GPUs", cpu, gpu)
		}
		return s
	}
	one := take(1, 4)
	if fmt.Sprint(one.CPUs) != "[0]" {
		t.Errorf("four GPUs of node 0: %v", one.CPUs)
	}
	cpu := take(3, 0)
	if fmt.Sprint(cpu.CPUs) != "[1 2 3]" { // node 0 has no free GPUs any more
		t.Errorf("three cores: %v", cpu.CPUs)
	}
	c.GiveRoom(cpus(3), cpu)
	c.GiveRoom(wire.Resources{CPU: wire.Unit, GPU: 4 * wire.Unit}, one)

	if s := take(3, 0); fmt.Sprint(s.CPUs) != "[0 1 2]" {
		t.Errorf("three cores: %v", s.CPUs)
	}
	if s := take(2, 0); fmt.Sprint(s.CPUs) != "[4 5]" {
		t.Errorf("two cores of one node: %v", s.CPUs)
	}
	if s := take(2, 8); fmt.Sprint(s.CPUs) != "[6 7]" {
		t.Errorf("two cores for all GPUs: %v", s.CPUs)
	}

	c, _ = machine(t, dgx1, 4, nil)
	take(4, 4) // node 0
	if s := take(1, 1); s.CPUs[0] < 4 || names(s) < "4" {
		t.Errorf("a core and a GPU of node 1: %v", s)
	}
	c, _ = machine(t, dgx1, 4, nil)
	if s := take(6, 4); fmt.Sprint(s.CPUs) != "[0 1 2 3 4 5]" {
		t.Errorf("more cores than the node of its GPUs has: %v", s.CPUs)
	}
	if s := take(2, 4); fmt.Sprint(s.CPUs) != "[6 7]" {
		t.Errorf("the rest: %v", s.CPUs)
	}
}

// TestExactIsBest: of every free set of a DGX-1 no set is better than what is chosen, and
// what is greedy is never better.
func TestExactIsBest(t *testing.T) {
	top, _ := laid(dgx1, 4)
	topo := newTopology(top)
	for mask := range 1 << 8 {
		var free []int
		for i := range 8 {
			if mask>>i&1 == 1 {
				free = append(free, i)
			}
		}
		for k := 1; k < len(free); k++ {
			got := topo.choose(free, k, nil)
			own := topo.rate(got)
			if len(got) != k || !slices.IsSorted(got) || slices.ContainsFunc(got, func(i int) bool { return !slices.Contains(free, i) }) {
				t.Fatalf("%v of %v: %v", k, free, got)
			}
			for s := range subsets(free, k) {
				if r := topo.rate(s); r.compare(own) > 0 {
					t.Fatalf("%d of %v: %v (%+v), but %v is %+v", k, free, got, own, s, r)
				}
			}
			if r := topo.rate(topo.greedy(free, k, nil)); r.compare(own) > 0 {
				t.Fatalf("%d of %v: greedy is better", k, free)
			}
			if again := topo.choose(free, k, nil); !slices.Equal(got, again) {
				t.Fatalf("%d of %v: %v, then %v", k, free, got, again)
			}
		}
	}
}

// others is a machine on which other clusters have GPUs.
type others struct {
	theirs, ours map[string]bool
	claims       int
}

func (o *others) Claim(uuid string) bool {
	o.claims++
	if o.theirs[uuid] {
		return false
	}
	o.ours[uuid] = true
	return true
}

func (o *others) Drop(uuid string) { delete(o.ours, uuid) }

// TestClaims: a GPU is locked while any of it is used, one that another cluster has locked
// is left out and told, and is used when it is free again.
func TestClaims(t *testing.T) {
	o := &others{theirs: map[string]bool{"GPU-1": true, "GPU-2": true}, ours: map[string]bool{}}
	c, step := machine(t, even("PHB", 0, 0, 0), 8, o)
	half := gpuNeed(wire.Unit / 2)
	a, ok := c.TakeRoom(c.now, half)
	b, ok2 := c.TakeRoom(c.now, half)
	if !ok || !ok2 || names(a) != "0" || names(b) != "0" || !o.ours["GPU-0"] {
		t.Fatalf("%v %v, locked %v", a, b, o.ours)
	}
	if s, ok := c.TakeRoom(c.now, half); ok {
		t.Fatalf("took %v, which others have", s)
	}
	beats := answer[wire.Beat](step(Tick{}))
	if len(beats) != 1 || !beats[0].GPUs[1].Busy || !beats[0].GPUs[2].Busy || beats[0].Free.GPU != 0 {
		t.Fatalf("told %+v", beats)
	}
	if n := o.claims; n > 0 {
		c.TakeRoom(c.now, half)
		if o.claims != n {
			t.Error("what is known to be others' is asked for again")
		}
	}
	c.GiveRoom(half, a)
	if !o.ours["GPU-0"] {
		t.Error("unlocked while it is used")
	}
	c.GiveRoom(half, b)
	if len(o.ours) != 0 {
		t.Errorf("%v are locked and not used", o.ours)
	}
	delete(o.theirs, "GPU-2")
	step(ResourcesChanged{Total: c.pool.total, GPUs: []wire.GPU{{UUID: "GPU-0"}, {UUID: "GPU-1", Busy: true}, {UUID: "GPU-2"}}})
	if s, ok := c.TakeRoom(c.now, gpuNeed(2*wire.Unit)); !ok || names(s) != "0 2" {
		t.Errorf("took %v", s)
	}
}

// TestClaimsOfAGang: all or nothing, and nothing stays locked.
func TestClaimsOfAGang(t *testing.T) {
	o := &others{theirs: map[string]bool{"GPU-6": true}, ours: map[string]bool{}}
	c, _ := machine(t, dgx1, 8, o)
	if s, ok := c.pool.take(gpuNeed(2*wire.Unit), 4); ok || len(o.ours) != 0 {
		t.Fatalf("%v, locked %v", s, o.ours)
	}
	s, ok := c.pool.take(gpuNeed(wire.Unit), 7)
	if !ok || len(o.ours) != 7 || len(s) != 7 {
		t.Fatalf("%v, locked %v", s, o.ours)
	}
}

// TestRestartKeepsClaims: what was taken before is locked by the next agent, too.
func TestRestartKeepsClaims(t *testing.T) {
	o := &others{ours: map[string]bool{}}
	c, step := machine(t, dgx1, 8, nil)
	step(FromHead{wire.Job{Job: 1, Spec: wire.JobSpec{Resources: gpuNeed(wire.Unit), Ranks: 1}}})
	if n := spawns(step(FromHead{wire.Assign{Job: 1, Ranges: []wire.Range{{From: 0, To: 1}}}})); n != 1 {
		t.Fatalf("%d started", n)
	}
	step(reserve(group1, true, 0, gpuNeed(2*wire.Unit)))
	cfg := c.cfg
	cfg.Claims = o
	again := New(cfg, c.s)
	again.KeepRoom(gpuNeed(wire.Unit), Slot{GPUs: []Share{{UUID: "GPU-7", Units: wire.Unit}}})
	if len(o.ours) != 4 || !o.ours["GPU-7"] || !o.ours["GPU-0"] {
		t.Errorf("locked are %v", o.ours)
	}
}

// TestDeclaredAreVisibleByNumber: programs cannot ask CUDA for a UUID that the driver does
// not know.
func TestDeclaredAreVisibleByNumber(t *testing.T) {
	p := newPool(wire.Resources{GPU: 2 * wire.Unit}, []wire.GPU{{UUID: "GPU-a", Index: 1, Declared: true}, {UUID: "GPU-b", Index: 3}}, nil, nil)
	s, ok := p.take(gpuNeed(2*wire.Unit).Add(cpus(1), -1), 1)
	if !ok || s[0].GPUs[0].Device() != "1" || s[0].GPUs[1].Device() != "GPU-b" || s[0].GPUs[0].UUID != "GPU-a" {
		t.Errorf("%+v, %v", s, ok)
	}
}

// TestPoolWalk takes and gives at random: nothing is given twice, all comes back, and what
// is locked is what is used.
func TestPoolWalk(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		o := &others{theirs: map[string]bool{}, ours: map[string]bool{}}
		top, gpus := laid([]string{dgx1, rtx5, even("NV6", 0, 0, 0, 0, 0, 1, 1, 1, 1, 1)}[seed%3], 4)
		total := wire.Resources{CPU: 8 * wire.Unit, GPU: int64(len(gpus)) * wire.Unit}
		p := newPool(total, gpus, []int{0, 1, 2, 3, 4, 5, 6, 7}, newTopology(top))
		p.claims = o
		type had struct {
			need wire.Resources
			s    Slot
		}
		var all []had
		for range 100 {
			if rnd.IntN(3) == 0 && len(all) > 0 {
				i := rnd.IntN(len(all))
				p.give(all[i].need, all[i].s)
				all = slices.Delete(all, i, i+1)
			} else {
				need := wire.Resources{CPU: int64(rnd.IntN(4)) * wire.Unit / 2, GPU: []int64{0, 2500, 5000, 10000, 20000, 15000, 40000}[rnd.IntN(7)]}
				n := 1 + rnd.IntN(3)
				if slots, ok := p.take(need, n); ok {
					for _, s := range slots {
						all = append(all, had{need, s})
					}
				}
			}
			used, cores, in := map[string]int64{}, map[int]int64{}, wire.Resources{}
			for _, h := range all {
				in = in.Add(h.need, 1)
				got := int64(0)
				for _, g := range h.s.GPUs {
					used[g.UUID] += g.Units
					got += g.Units
				}
				if got != h.need.GPU {
					t.Fatalf("seed %d: %s has %v", seed, h.need, h.s)
				}
				left := h.need.CPU
				for _, id := range h.s.CPUs {
					cores[id] += min(left, wire.Unit)
					left -= min(left, wire.Unit)
				}
			}
			for id, n := range used {
				if n > wire.Unit || !o.ours[id] {
					t.Fatalf("seed %d: %s is used by %d, locked %v", seed, id, n, o.ours)
				}
			}
			for id, n := range cores {
				if n > wire.Unit {
					t.Fatalf("seed %d: core %d is used by %d", seed, id, n)
				}
			}
			if len(used) != len(o.ours) || !p.free.Add(in, 1).Equal(total) {
				t.Fatalf("seed %d: used %v, locked %v, free %s beside %s", seed, used, o.ours, p.free, in)
			}
		}
	}
}

func FuzzChoose(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 200, 100}, uint16(0xffff), uint8(3))
	f.Fuzz(func(t *testing.T, links []byte, mask uint16, k uint8) {
		var top wire.Topology
		for i := range 16 {
			p := wire.GPUPlace{UUID: fmt.Sprint(i), NUMA: int32(i % 3)}
			for j := range 16 {
				if x := i*j + i + j; x < len(links) {
					p.Links = append(p.Links, wire.Link(links[x])*10)
				}
			}
			top.GPUs = append(top.GPUs, p)
		}
		var free []int
		for i := range 16 {
			if mask>>i&1 == 1 {
				free = append(free, i)
			}
		}
		topo := newTopology(top)
		got := topo.choose(free, int(k), nil)
		if len(got) != min(int(k), len(free)) || len(slices.Compact(slices.Clone(got))) != len(got) || !slices.IsSorted(got) {
			t.Fatalf("%d of %v: %v", k, free, got)
		}
	})
}

func BenchmarkChoose(b *testing.B) {
	top, _ := laid(dgx1, 4)
	topo := newTopology(top)
	free := []int{0, 1, 2, 3, 4, 5, 6, 7}
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			topo.exact(free, 2, nil)
		}
	})
	b.Run("known", func(b *testing.B) {
		for b.Loop() {
			topo.choose(free, 2, nil)
		}
	})
}

// TestOthersCores: cores that others keep busy are not given out, those on which they were
// seen last of all, and nothing that runs is taken anything.
func TestOthersCores(t *testing.T) {
	c, step := machine(t, dgx1, 8, nil)
	total := c.pool.total
	two := wire.Resources{CPU: 2 * wire.Unit}
	a, ok := c.TakeRoom(c.now, wire.Resources{CPU: total.CPU - 2*wire.Unit})
	if !ok {
		t.Fatal("an empty node has no room")
	}
	changed := func(others int64, cores ...int) {
		step(ResourcesChanged{Total: total, GPUs: c.pool.gpuList(), Others: others * wire.Unit, Cores: cores})
	}
	changed(4)
	if free := c.pool.available(); free.CPU != 0 || c.pool.total.CPU != total.CPU {
		t.Errorf("free are %s", free)
	}
	if _, ok := c.TakeRoom(c.now, wire.Resources{}); !ok {
		t.Error("what needs no core waits for one")
	}
	if _, ok := c.TakeRoom(c.now, two); ok {
		t.Error("others' cores were given out")
	}
	changed(0)
	if _, ok := c.TakeRoom(c.now, two); !ok {
		t.Error("the cores are not back")
	}
	c.GiveRoom(wire.Resources{CPU: total.CPU - 2*wire.Unit}, a)
	changed(1, a.CPUs[0], a.CPUs[1])
	if s, ok := c.TakeRoom(c.now, two); !ok || slices.Contains(s.CPUs, a.CPUs[0]) || slices.Contains(s.CPUs, a.CPUs[1]) {
		t.Errorf("bound to %v, others are on %v", s.CPUs, a.CPUs[:2])
	}
}
