package plan

import "sort"

// Nodes is how ranks are spread: node i has ranks Nodes[i] .. Nodes[i+1]-1, and the last
// entry is the number of ranks.
type Nodes []int

// Len is the number of nodes.
func (n Nodes) Len() int { return len(n) - 1 }

// World is the number of ranks.
func (n Nodes) World() int { return n[len(n)-1] }

// Of is the node of a rank.
func (n Nodes) Of(rank int) int { return sort.SearchInts(n, rank+1) - 1 }

// Shard is the stretch of a vector of count elements whose parts belong to node i's
// ranks.
func (n Nodes) Shard(count, i int) (from, to int) {
	from, _ = Part(count, n.World(), n[i])
	_, to = Part(count, n.World(), n[i+1]-1)
	return from, to
}

// Round is a stretch of the vector that the nodes handle at a time: the unit that has a
// slot in shared memory and is in flight between nodes. Node is the node that the
// result goes to or the data comes from; -1 when that is every node.
type Round struct {
	From, To int // elements
	Node     int
}

// Rounds cuts a call of a group of several nodes into rounds of at most limit elements.
// Scatter and gather are cut at the nodes' borders too. Every call has at least one
// round, which may be empty, so that every call meets the other nodes.
func Rounds(c Call, nodes Nodes, limit int) []Round {
	var out []Round
	cut := func(from, to, node int) {
		for ; from < to; from += limit {
			out = append(out, Round{from, min(from+limit, to), node})
		}
	}
	switch c.Code {
	case ReduceScatter, AllGather:
		for i := range nodes.Len() {
			from, to := nodes.Shard(c.Count, i)
			cut(from, to, i)
		}
	case Broadcast, Reduce:
		cut(0, c.Count, nodes.Of(c.Root))
	default:
		cut(0, c.Count, -1)
	}
	if len(out) == 0 {
		out = []Round{{0, 0, -1}}
	}
	return out
}

// Hops are the distances of the all-gather between nodes that small rounds use: in step
// k every node sends to the node Hops[k] after it all blocks it has that the other
// lacks. After the last step every node has every block.
func Hops(nodes int) []int {
	var out []int
	for d := 1; d < nodes; d *= 2 {
		out = append(out, d)
	}
	return out
}

// Blocks says how many blocks travel in the step of distance hop: those of the sender
// and of the nodes before it, in that order.
func Blocks(nodes, hop int) int { return min(hop, nodes-hop) }
