package core

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"launcher/wire"
)

// yard is a head with nodes that keep bundles, or refuse them, when they are asked to look
// at their post.
type yard struct {
	t     *testing.T
	c     *Core
	now   int64
	nodes map[wire.NodeID]*keeper
	news  map[wire.GroupID]wire.GroupNews // the newest
	never []wire.Infeasible
	offer []wire.LeaseOffer
	over  map[wire.NodeID][]string // jobs that a node was told are over
	log   []Record
	takes map[wire.NodeID][]wire.ObjectID // actors that a node was given
	peers map[wire.NodeID]wire.Peer       // the newest that a node was told
}

type keeper struct {
	epoch wire.Epoch
	total wire.Resources
	used  wire.Resources // besides bundles
	kept  map[wire.BundleID]kept
	post  []wire.BundleOrder
	hold  wire.Hold
	last  wire.Resources // of used: never comes free
}

type kept struct {
	need   wire.Resources
	commit bool
}

func cpus(n float64) wire.Resources { return wire.Resources{CPU: int64(n * wire.Unit)} }

func newYard(t *testing.T, cpu ...float64) *yard {
	y := &yard{t: t, now: 1_000_000 * second, nodes: map[wire.NodeID]*keeper{}, news: map[wire.GroupID]wire.GroupNews{}, over: map[wire.NodeID][]string{}, takes: map[wire.NodeID][]wire.ObjectID{}, peers: map[wire.NodeID]wire.Peer{}}
	y.c = New(Config{Cluster: "yard", Nonce: "n", Machines: testMachines, Pools: []wire.Pool{{Name: "p", Min: len(cpu), Max: len(cpu)}}}, NewDurable(testMachines))
	y.step(Start{})
	for i, n := range cpu {
		y.up(i, 1, n, map[string]string{"zone": fmt.Sprint(i % 2)})
	}
	return y
}

func nodeOf(i int) wire.NodeID { return wire.NodeID(fmt.Sprintf("p-%d", i)) }

func (y *yard) up(i int, epoch wire.Epoch, n float64, labels map[string]string) {
	k := y.nodes[nodeOf(i)]
	if k == nil {
		k = &keeper{}
		y.nodes[nodeOf(i)] = k
	}
	if k.epoch != epoch || k.kept == nil {
		*k = keeper{epoch: epoch, total: cpus(n), kept: map[wire.BundleID]kept{}}
	}
	y.step(AgentUp{Node: nodeOf(i), Epoch: epoch, Hello: wire.Hello{Node: nodeOf(i), Epoch: epoch, Total: k.total, Labels: labels, Bundles: k.list(), Programs: programsOf(i)}})
	y.beat(i)
}

// programsOf: the driver of all groups' job is on the first node.
func programsOf(i int) (p wire.Programs) {
	if i == 0 {
		p.Jobs = []string{"d1"}
	}
	return p
}

func (k *keeper) list() []wire.BundleID {
	return slices.SortedFunc(maps.Keys(k.kept), func(a, b wire.BundleID) int { return cmp.Compare(a.Index, b.Index) })
}

func (k *keeper) free() wire.Resources {
	r := k.total.Add(k.used, -1)
	for _, b := range k.kept {
		r = r.Add(b.need, -1)
	}
	return r
}

func (y *yard) beat(i int) {
	k := y.nodes[nodeOf(i)]
	lasting := k.last
	for _, b := range k.kept {
		lasting = lasting.Add(b.need, 1)
	}
	y.say(i, wire.Beat{Free: k.free(), Tasks: k.total.Add(k.free(), -1), Lasting: lasting})
}

func (y *yard) say(i int, m any) {
	y.step(AgentMsg{Node: nodeOf(i), Epoch: y.nodes[nodeOf(i)].epoch, Msg: m})
}

func (y *yard) step(ev Event) {
	out := y.c.Step(y.now, ev)
	y.log = append(y.log, out.Records...)
	for _, e := range out.Effects {
		s, ok := e.(SendAgent)
		if !ok || y.nodes[s.Node] == nil {
			continue
		}
		switch m := s.Msg.(type) {
		case wire.BundleOrder:
			y.nodes[s.Node].post = append(y.nodes[s.Node].post, m)
		case wire.GroupNews:
			y.news[m.ID] = m
		case wire.Infeasible:
			y.never = append(y.never, m)
		case wire.LeaseOffer:
			y.offer = append(y.offer, m)
		case wire.ActorTake:
			y.takes[s.Node] = append(y.takes[s.Node], m.Actor)
		case wire.Peer:
			y.peers[s.Node] = m
		case wire.Hold:
			y.nodes[s.Node].hold = m
		case wire.JobsOver:
			y.over[s.Node] = append(append(y.over[s.Node], m.Jobs...), m.Held...)
		}
	}
	if err := y.c.Check(); err != nil {
		y.t.Fatal(err)
	}
}

// look has a node do the first thing that it was told; false = there is none.
func (y *yard) look(i int) bool {
	k := y.nodes[nodeOf(i)]
	if len(k.post) == 0 {
		return false
	}
	m := k.post[0]
	k.post = k.post[1:]
	id := func(b wire.Bundle) wire.BundleID { return wire.BundleID{Group: m.Group, Index: b.Index} }
	switch m.What {
	case wire.BundleReserve:
		need := wire.Resources{}
		for _, b := range m.Bundles {
			need = need.Add(b.Need, 1)
		}
		ok := k.free().Fits(need)
		for _, b := range m.Bundles {
			if ok {
				k.kept[id(b)] = kept{b.Need, m.Commit}
			}
		}
		y.say(i, wire.BundleNews{Group: m.Group, Round: m.Round, OK: ok, Why: "it is full"})
	case wire.BundleCommit:
		for _, b := range m.Bundles {
			if x, ok := k.kept[id(b)]; ok {
				k.kept[id(b)] = kept{x.need, true}
			}
		}
	case wire.BundleDrop:
		for _, b := range m.Bundles {
			delete(k.kept, id(b))
		}
	}
	return true
}

// rest lets time pass until nobody has anything to do.
func (y *yard) rest() {
	for range 40 {
		y.now += 60 * millisecond
		y.step(Tick{})
		for i := range 4 {
			for y.nodes[nodeOf(i)] != nil && y.look(i) {
				y.beat(i)
			}
		}
	}
}

func gid(owner uint32, n uint64) wire.GroupID { return wire.NewObjectID(owner, 1, n, 0) }

func (y *yard) number(i int) uint32 { return y.c.d.st.Nodes[nodeOf(i)].Number }

func (y *yard) group(n uint64, strategy wire.GroupStrategy, bundles ...float64) wire.GroupID {
	s := wire.GroupSpec{ID: gid(y.number(0), n), Strategy: strategy, Job: "d1", Owner: y.number(0)}
	for _, b := range bundles {
		s.Bundles = append(s.Bundles, cpus(b))
	}
	y.say(0, wire.GroupTell{Made: []wire.GroupTold{{Spec: s}}})
	return s.ID
}

// on says where a group is: the numbers of nodes, "-" for nowhere.
func (y *yard) on(id wire.GroupID) string {
	var out []string
	for _, n := range y.news[id].Nodes {
		if n == "" {
			n = "-"
		}
		out = append(out, strings.TrimPrefix(string(n), "p-"))
	}
	return strings.Join(out, "")
}

func TestGroupStrategies(t *testing.T) {
	for _, x := range []struct {
		name     string
		nodes    []float64
		strategy wire.GroupStrategy
		bundles  []float64
		want     string // "" = it waits
	}{
		{"pack prefers the node with least to spare", []float64{8, 4, 4}, wire.GroupPack, []float64{2, 2}, "11"},
		{"pack goes over nodes", []float64{2, 2}, wire.GroupPack, []float64{1, 1, 1}, "001"},
		{"pack places the large one first", []float64{3, 3}, wire.GroupPack, []float64{1, 1, 1, 3}, "1110"},
		{"strict pack waits", []float64{2, 2}, wire.GroupStrictPack, []float64{1, 1, 1}, ""},
		{"strict pack", []float64{2, 3}, wire.GroupStrictPack, []float64{1, 1, 1}, "111"},
		{"spread", []float64{4, 4, 4}, wire.GroupSpread, []float64{1, 1, 1}, "012"},
		{"spread doubles up", []float64{4, 4}, wire.GroupSpread, []float64{1, 1, 1, 1}, "0101"},
		{"strict spread", []float64{4, 4}, wire.GroupStrictSpread, []float64{1, 4}, "01"},
		{"strict spread moves the first along", []float64{4, 2}, wire.GroupStrictSpread, []float64{2, 2}, "10"},
		{"strict spread waits", []float64{4, 4}, wire.GroupStrictSpread, []float64{1, 1, 1}, ""},
		{"too large", []float64{4, 4}, wire.GroupSpread, []float64{1, 5}, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			y := newYard(t, x.nodes...)
			id := y.group(1, x.strategy, x.bundles...)
			y.rest()
			if got := y.news[id]; x.want == "" {
				if got.State != wire.GroupPending || got.Why == "" || len(y.c.whyGroups("d1")) != 1 {
					t.Fatalf("%+v, why %q", got, y.c.whyGroups("d1"))
				}
			} else if got.State != wire.GroupCreated || y.on(id) != x.want {
				t.Fatalf("%s on %s, wanted on %s", got.State, y.on(id), x.want)
			}
			y.allOrNothing()
			y.say(0, wire.GroupTell{Over: []wire.GroupID{id}})
			y.rest()
			for n, k := range y.nodes {
				if len(k.kept) != 0 {
					t.Fatalf("%s keeps %v of a group that was removed", n, k.kept)
				}
			}
		})
	}
}

// allOrNothing looks whether nodes keep what the head thinks, and no part of a group alone.
func (y *yard) allOrNothing() {
	y.t.Helper()
	has := map[wire.GroupID]int{}
	for _, k := range y.nodes {
		for id, b := range k.kept {
			if has[id.Group]++; !b.commit {
				y.t.Fatalf("%v is reserved and not committed", id)
			}
		}
		if k.free().Negative() {
			y.t.Fatalf("free are %s", k.free())
		}
	}
	for id, g := range y.c.groups.all {
		if n := has[id]; n != 0 && n != len(g.at) || n == 0 && g.state == wire.GroupCreated {
			y.t.Fatalf("%s has %d of its %d bundles and is %s", id, n, len(g.at), g.state)
		}
		delete(has, id)
	}
	if len(has) > 0 {
		y.t.Fatalf("bundles of groups that are not there: %v", has)
	}
}

func TestGroupLabels(t *testing.T) {
	y := newYard(t, 4, 4)
	zone := func(z string) map[string]wire.LabelTest {
		return map[string]wire.LabelTest{"zone": {Op: "in", Values: []string{z}}}
	}
	s := wire.GroupSpec{ID: gid(y.number(0), 1), Bundles: []wire.Resources{cpus(1), cpus(1), cpus(1)}, Labels: []map[string]wire.LabelTest{zone("1"), zone("0"), nil}, Job: "d1", Owner: y.number(0)}
	y.say(0, wire.GroupTell{Made: []wire.GroupTold{{Spec: s}}})
	y.rest()
	if on := y.on(s.ID); on[:2] != "10" {
		t.Fatalf("on %s", on)
	}
}

// TestGroupsContend: many groups want the same nodes, of which others take room in the
// meantime. Each is there whole or not at all, and all have their turn.
func TestGroupsContend(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		y := newYard(t, 4, 4, 4)
		var live []wire.GroupID
		made := uint64(0)
		for range 400 {
			switch i := rnd.IntN(3); rnd.IntN(8) {
			case 0, 1:
				if made++; len(live) < 12 {
					var b []float64
					for range 1 + rnd.IntN(3) {
						b = append(b, float64(1+rnd.IntN(3)))
					}
					live = append(live, y.group(made, wire.GroupStrategy(rnd.IntN(4)), b...))
				}
			case 2:
				if len(live) > 0 {
					k := rnd.IntN(len(live))
					y.say(0, wire.GroupTell{Over: live[k : k+1]})
					live = slices.Delete(live, k, k+1)
				}
			case 3: // tasks come and go, of which the head hears late
				k := y.nodes[nodeOf(i)]
				if k.used.Nothing() && k.free().Fits(cpus(2)) {
					k.used = cpus(2)
				} else {
					k.used = wire.Resources{}
				}
			case 4:
				y.beat(i)
			case 5:
				y.now += int64(rnd.IntN(200)) * millisecond
				y.step(Tick{})
			default:
				y.look(i)
			}
		}
		for i := range y.nodes {
			y.nodes[i].used = wire.Resources{}
		}
		for len(live) > 0 { // one after the other goes; the rest have their turn
			for i := range len(y.nodes) {
				y.beat(i)
			}
			y.rest()
			y.allOrNothing()
			k := slices.IndexFunc(live, func(id wire.GroupID) bool {
				return y.news[id].State == wire.GroupCreated
			})
			if k < 0 {
				for _, id := range live {
					if g := y.c.groups.all[id]; g.spec.Strategy == wire.GroupStrictPack && g.sum([]int{0}).CPU > 0 {
						k = slices.Index(live, id) // it may never fit
					}
				}
				if k < 0 {
					t.Fatalf("seed %d: none of %d groups got room: %s", seed, len(live), y.c.whyGroups("d1"))
				}
			}
			y.say(0, wire.GroupTell{Over: live[k : k+1]})
			live = slices.Delete(live, k, k+1)
		}
	}
}

// TestGroupLosesNode: what was on a node that is gone is placed again, the rest stays.
func TestGroupLosesNode(t *testing.T) {
	y := newYard(t, 4, 2, 2)
	id := y.group(1, wire.GroupStrictSpread, 2, 2)
	y.rest()
	lost := y.news[id].Nodes[1]
	i := int(lost[2] - '0')
	if i == 0 {
		lost = y.news[id].Nodes[0]
		i = int(lost[2] - '0')
	}
	delete(y.nodes, lost)
	y.step(AgentDown{Node: lost, Epoch: 1, Proof: true, Cause: "its power is gone"})
	if n := y.news[id]; n.State != wire.GroupMoving || !slices.Contains(n.Nodes, "") || n.Nodes[0] == n.Nodes[1] {
		t.Fatalf("%+v", n)
	}
	y.nodes[lost] = &keeper{}
	y.rest()
	delete(y.nodes, lost)
	if n := y.news[id]; n.State != wire.GroupCreated || slices.Contains(n.Nodes, lost) || n.Nodes[0] == n.Nodes[1] {
		t.Fatalf("%+v", n)
	}
	y.allOrNothing()
}

// TestGroupTwoPhases: a node that does not answer, or loses its connection, leaves nothing
// behind on the others.
func TestGroupTwoPhases(t *testing.T) {
	y := newYard(t, 2, 2)
	id := y.group(1, wire.GroupStrictSpread, 2, 2)
	y.now += 20 * millisecond
	y.step(Tick{})
	if !y.look(0) || y.news[id].State != wire.GroupPending {
		t.Fatal("a group is there with half of its bundles")
	}
	if k := y.nodes["p-0"]; len(k.kept) != 1 || k.kept[wire.BundleID{Group: id}].commit && k.kept[wire.BundleID{Group: id, Index: 1}].commit {
		t.Fatalf("kept: %v", k.kept)
	}
	y.nodes["p-1"].post = nil
	y.step(AgentDown{Node: "p-1", Epoch: 1})
	for y.look(0) {
	}
	if k := y.nodes["p-0"]; len(k.kept) != 0 {
		t.Fatalf("a node keeps %v for nothing", k.kept)
	}
	y.up(1, 1, 2, nil)
	y.beat(0)
	y.rest()
	if y.news[id].State != wire.GroupCreated {
		t.Fatalf("%+v", y.news[id])
	}
	y.allOrNothing()
}

// TestGroupTold: a new head learns of groups from their owners, and of bundles from nodes;
// those of nobody go after a while.
func TestGroupTold(t *testing.T) {
	y := newYard(t, 4, 4)
	a, b := gid(y.number(0), 1), gid(y.number(0), 2)
	keep := func(i int, id wire.GroupID) {
		y.nodes[nodeOf(i)].kept[wire.BundleID{Group: id}] = kept{cpus(1), true}
		y.step(AgentUp{Node: nodeOf(i), Epoch: 1, Hello: wire.Hello{Node: nodeOf(i), Epoch: 1, Total: cpus(4), Bundles: []wire.BundleID{{Group: id}}, Programs: programsOf(i)}})
	}
	keep(0, a)
	keep(1, b)
	y.say(0, wire.GroupTell{Made: []wire.GroupTold{{Spec: wire.GroupSpec{ID: a, Name: "a", Bundles: []wire.Resources{cpus(1)}, Job: "d1", Owner: y.number(0)}, Nodes: []wire.NodeID{"p-0"}}}})
	y.rest()
	if g := y.c.groups.all[a]; g == nil || g.state != wire.GroupCreated {
		t.Fatalf("%+v", g)
	}
	c := wire.GroupSpec{ID: gid(y.number(0), 3), Name: "a", Bundles: []wire.Resources{cpus(1)}, Job: "d1", Owner: y.number(0)}
	y.say(0, wire.GroupTell{Made: []wire.GroupTold{{Spec: c}}})
	if y.news[c.ID].State != wire.GroupConflict {
		t.Fatal("two groups have one name")
	}
	for y.now < 1_000_000*second+orphanFor+5*second {
		y.rest()
		for i := range 2 {
			y.beat(i)
		}
	}
	if len(y.nodes["p-0"].kept) != 1 || len(y.nodes["p-1"].kept) != 0 {
		t.Fatalf("kept: %v and %v", y.nodes["p-0"].kept, y.nodes["p-1"].kept)
	}
	// A node that was told to keep a bundle and says that it does not is asked again.
	clear(y.nodes["p-0"].kept)
	y.up(0, 1, 4, nil)
	if y.news[a].State != wire.GroupMoving {
		t.Fatalf("%+v", y.news[a])
	}
	y.rest()
	y.allOrNothing()
}

// TestGroupDemand: tasks of a group are leased slots where its bundles are, and fail when it
// is removed or can never run them.
func TestGroupDemand(t *testing.T) {
	y := newYard(t, 0, 4, 4)
	id := y.group(1, wire.GroupSpread, 2, 2)
	y.rest()
	shape := func(bundle int32, cpu float64) wire.Shape {
		return wire.Shape{Resources: cpus(cpu), Strategy: wire.Strategy{Kind: wire.StrategyGroup, Group: id, Bundle: bundle}}
	}
	y.say(0, wire.Demand{Shapes: []wire.Demanded{{ID: 1, Shape: shape(0, 1), Waiting: 5}}})
	y.rest()
	if len(y.offer) != 1 || y.offer[0].Slots != 2 {
		t.Fatalf("offers: %+v", y.offer)
	}
	y.say(0, wire.Demand{Shapes: []wire.Demanded{{ID: 2, Shape: shape(2, 1), Waiting: 1}, {ID: 3, Shape: shape(-1, 3), Waiting: 1}}})
	if len(y.never) != 2 {
		t.Fatalf("%+v", y.never)
	}
	y.say(0, wire.Demand{Shapes: []wire.Demanded{{ID: 4, Shape: shape(1, 1), Waiting: 1}}})
	y.say(0, wire.GroupTell{Over: []wire.GroupID{id}})
	if n := len(y.never); n != 3 || y.never[2].Code != "group_removed" || y.never[2].Shape != 4 {
		t.Fatalf("%+v", y.never)
	}
}
