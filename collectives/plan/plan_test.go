package plan

import (
	"testing"

	"launcher/collectives/reduce"
)

// TestParts: parts and shares follow each other, leave nothing out, and differ in length
// by no more than they should.
func TestParts(t *testing.T) {
	for _, count := range []int{0, 1, 2, 7, 16, 63, 64, 65, 1000, 4097} {
		for n := 1; n <= 17; n++ {
			for _, size := range []int{2, 4, 8} {
				at, share := 0, 0
				for i := range n {
					a, b := Part(count, n, i)
					if a != at || b < a || b-a > count/n+1 || b-a < count/n {
						t.Fatalf("part %d of %d in %d: [%d, %d) after %d", i, n, count, a, b, at)
					}
					at = b
					c, d := Share(count, n, i, size)
					if c != share || d < c || c < count && c*size%64 != 0 {
						t.Fatalf("share %d of %d in %d: [%d, %d) after %d", i, n, count, c, d, share)
					}
					share = d
				}
				if at != count || share != count {
					t.Fatalf("%d parts of %d end at %d and %d", n, count, at, share)
				}
			}
		}
	}
}

func TestNodes(t *testing.T) {
	n := Nodes{0, 3, 4, 9}
	want := []int{0, 0, 0, 1, 2, 2, 2, 2, 2}
	for r, w := range want {
		if got := n.Of(r); got != w {
			t.Errorf("rank %d is on node %d, not %d", r, got, w)
		}
	}
	at := 0
	for i := range n.Len() {
		a, b := n.Shard(100, i)
		if a != at || b <= a {
			t.Errorf("shard %d is [%d, %d)", i, a, b)
		}
		at = b
	}
	if at != 100 || n.World() != 9 {
		t.Errorf("shards end at %d of %d ranks", at, n.World())
	}
}

// TestRounds: the rounds of every call cover the vector once, in order, within the
// limit, and belong to the right node.
func TestRounds(t *testing.T) {
	nodes := Nodes{0, 2, 3, 7}
	for _, code := range []Code{Barrier, AllReduce, ReduceScatter, AllGather, Broadcast, Reduce} {
		for _, count := range []int{0, 1, 5, 1000, 1024, 4099} {
			if code == Barrier && count > 0 {
				continue
			}
			c := Call{Code: code, Type: reduce.Float32, Count: count}
			if code.Rooted() {
				c.Root = 3
			}
			rounds := Rounds(c, nodes, 256)
			if len(rounds) == 0 {
				t.Fatalf("%s: no rounds", c)
			}
			at := 0
			for _, r := range rounds {
				if r.From != at || r.To < r.From || r.To-r.From > 256 || r.To == r.From && count > 0 {
					t.Fatalf("%s: round %+v after %d", c, r, at)
				}
				at = r.To
				switch {
				case code.Rooted() && count > 0 && r.Node != 2, code == AllReduce && r.Node != -1:
					t.Errorf("%s: round %+v", c, r)
				case (code == ReduceScatter || code == AllGather) && count > 0:
					if a, b := nodes.Shard(count, r.Node); r.From < a || r.To > b {
						t.Errorf("%s: round %+v is not within its node's [%d, %d)", c, r, a, b)
					}
				}
			}
			if at != count {
				t.Errorf("%s: rounds end at %d", c, at)
			}
		}
	}
}

// TestHops plays the exchange of blocks: afterwards every node has every block.
func TestHops(t *testing.T) {
	for n := 1; n <= 40; n++ {
		have := make([]map[int]bool, n)
		for i := range have {
			have[i] = map[int]bool{i: true}
		}
		for _, hop := range Hops(n) {
			next := make([]map[int]bool, n)
			for i := range next {
				next[i] = map[int]bool{}
				for k := range have[i] {
					next[i][k] = true
				}
			}
			for i := range n {
				for b := range Blocks(n, hop) {
					node := (i - b + n) % n
					if !have[i][node] {
						t.Fatalf("%d nodes, hop %d: node %d has not got block %d to send", n, hop, i, node)
					}
					next[(i+hop)%n][node] = true
				}
			}
			have = next
		}
		for i, h := range have {
			if len(h) != n {
				t.Errorf("of %d nodes, node %d ends with %d blocks", n, i, len(h))
			}
		}
	}
}

func TestSignature(t *testing.T) {
	for _, c := range []Call{
		{Code: Barrier},
		{Code: AllReduce, Type: reduce.BFloat16, Op: reduce.Mean, Count: MaxCount - 1},
		{Code: Reduce, Type: reduce.Int64, Op: reduce.Product, Root: MaxWorld - 1, Count: 1},
		{Code: Broadcast, Type: reduce.Float64, Root: 5, Count: 0},
		{Code: AllGather, Type: reduce.Int32, Count: 99},
	} {
		if got := FromSignature(c.Signature()); got != c || c.Signature() == 0 {
			t.Errorf("%+v comes back as %+v", c, got)
		}
		if !c.Valid(MaxWorld) {
			t.Errorf("%+v is not valid", c)
		}
	}
	for _, c := range []Call{
		{}, {Code: endCode}, {Code: Barrier, Count: 1}, {Code: AllReduce, Type: reduce.Int32, Op: reduce.Mean},
		{Code: AllReduce, Type: reduce.Int32}, {Code: AllGather, Type: reduce.Int32, Op: reduce.Sum}, {Code: AllReduce, Op: reduce.Sum},
		{Code: Broadcast, Type: reduce.Int32, Root: 4}, {Code: Broadcast, Type: reduce.Int32, Root: -1},
		{Code: AllGather, Type: reduce.Int32, Root: 1}, {Code: AllGather, Type: reduce.Int32, Count: -1}, {Code: AllGather, Type: reduce.Int32, Count: MaxCount},
	} {
		if c.Valid(4) {
			t.Errorf("%+v is valid", c)
		}
	}
}

func FuzzSignature(f *testing.F) {
	f.Add(uint64(0), 4)
	f.Add(Call{Code: Reduce, Type: reduce.Float32, Op: reduce.Max, Root: 2, Count: 77}.Signature(), 3)
	f.Fuzz(func(t *testing.T, sig uint64, world int) {
		c := FromSignature(sig)
		_ = c.String()
		if c.Valid(world) {
			if c.Signature() != sig {
				t.Fatalf("%x is valid and comes back as %x", sig, c.Signature())
			}
			if c.Bytes() < 0 || c.Root >= max(world, 1) {
				t.Fatalf("%x is valid: %+v", sig, c)
			}
		}
	})
}
