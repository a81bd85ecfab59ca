package collectives

import (
	"unsafe"

	"launcher/collectives/plan"
	"launcher/collectives/reduce"
)

// Operations of a group on several nodes. The ranks of each node combine into a result
// slot, hand it to the agent (bin), and copy what comes back when the agent is done
// with it (its step). Which rounds there are, and which node each belongs to, comes
// from plan.Rounds, the same everywhere. The agent handles rounds in order, several at
// a time.

// lag is how many rounds the ranks run ahead of what the agents have done: with the one
// that is being combined, lag+1 are in flight. At most slots-2, for B(k) reuses the
// slot of C(k-slots), and what it waits for, A(k), comes after C(k-2-lag).
const lag = slots - 2

// hand gives the next round to the agent.
func (c *Comm) hand() {
	c.bin++
	c.m.post(&c.m.controls[c.me].bin, c.bin)
}

// agent waits until the agent has done as many rounds.
func (c *Comm) agent(rounds uint64) error {
	return c.wait(&c.m.controls[c.m.n].step, rounds, c.m.n)
}

// remoteSmall is any operation on a vector that fits the small slots: the first rank
// combines for its node, and the agents give each other all of it (see Exchange in
// ring.go).
func (c *Comm) remoteSmall(call plan.Call, out, in unsafe.Pointer) error {
	c.fillSmall(call, in)
	if err := c.arrive(call, 0, 0); err != nil {
		return err
	}
	p, k := c.seq&1, c.bin
	slot := c.m.result(k)
	switch first := int(c.m.h.first); {
	case c.me != 0:
	case call.Code.Reduces():
		node := call
		node.Op = partial(call.Op)
		c.sumSmall(node, slot, 0, call.Count)
	case call.Code == plan.AllGather:
		for i := range c.m.n {
			from, size := c.part(call, first+i)
			move(slot, from, c.m.small(i, p), 0, size)
		}
	case call.Code == plan.Broadcast:
		if i := call.Root - first; i >= 0 && i < c.m.n {
			move(slot, 0, c.m.small(i, p), 0, call.Bytes())
		}
	}
	c.hand()
	if err := c.agent(k + 1); err != nil {
		return err
	}
	switch call.Code {
	case plan.AllReduce, plan.AllGather:
		move(out, 0, slot, 0, call.Bytes())
	case plan.Broadcast:
		if c.rank != call.Root {
			move(out, 0, slot, 0, call.Bytes())
		}
	case plan.Reduce:
		if c.rank == call.Root {
			move(out, 0, slot, 0, call.Bytes())
		}
	case plan.ReduceScatter:
		from, size := c.part(call, c.rank)
		move(out, 0, slot, from, size)
	}
	return nil
}

// partial is what a node's ranks do for an operation that the agents finish.
func partial(op reduce.Op) reduce.Op {
	if op == reduce.Mean {
		return reduce.Sum
	}
	return op
}

// remote is any operation of a group on several nodes.
func (c *Comm) remote(call plan.Call, out, in unsafe.Pointer) error {
	if call.Bytes() <= int(c.m.h.small) {
		return c.remoteSmall(call, out, in)
	}
	size := call.Type.Size()
	rounds := plan.Rounds(call, c.m.nodes, int(c.m.h.round)/size)
	off := uint64(0)
	if call.Code.Reduces() {
		off = c.offset(in, call.Bytes())
	}
	first := c.bin
	stage := func(i int) {
		if call.Code.Reduces() && off == 0 {
			c.stage(first+uint64(i), in, rounds[i].From, rounds[i].To, size)
		}
	}
	stage(0)
	if err := c.arrive(call, off, 0); err != nil {
		return err
	}
	base := c.step
	for i := 0; i < len(rounds)+lag; i++ {
		if i+1 < len(rounds) { // A
			stage(i + 1)
			c.post()
		}
		if i < len(rounds) { // B
			if err := c.all(base + uint64(i)); err != nil {
				return err
			}
			c.give(call, rounds[i], first+uint64(i), in)
			c.hand()
		}
		if k := i - lag; k >= 0 { // C
			if err := c.agent(first + uint64(k) + 1); err != nil {
				return err
			}
			c.take(call, rounds[k], first+uint64(k), out)
		}
	}
	return nil
}

// give writes this rank's contribution to round k into its result slot.
func (c *Comm) give(call plan.Call, r plan.Round, k uint64, in unsafe.Pointer) {
	size, slot := call.Type.Size(), c.m.result(k)
	switch {
	case call.Code.Reduces():
		a, b := plan.Share(r.To-r.From, c.m.n, c.me, size)
		if a == b {
			return
		}
		ins := c.ins[:0]
		for j := range c.m.n {
			ins = append(ins, c.source(j, k, in, (r.From+a)*size, r.From*size))
		}
		c.worker.Do(call.Type, partial(call.Op), c.world, append(c.outs[:0], unsafe.Add(slot, a*size)), ins, b-a)
	case call.Code == plan.AllGather:
		from, to := plan.Part(call.Count, c.world, c.rank)
		a, b := plan.Meet(r.From, r.To, from, to)
		move(slot, (a-r.From)*size, in, (a-from)*size, (b-a)*size)
	case c.rank == call.Root:
		move(slot, 0, in, r.From*size, (r.To-r.From)*size)
	}
}

// take copies what this rank gets of round k out of its result slot.
func (c *Comm) take(call plan.Call, r plan.Round, k uint64, out unsafe.Pointer) {
	size, slot := call.Type.Size(), c.m.result(k)
	a, b, at := r.From, r.To, 0 // elements a to b of the vector go to out from element at on
	switch call.Code {
	case plan.ReduceScatter:
		from, to := plan.Part(call.Count, c.world, c.rank)
		a, b = plan.Meet(r.From, r.To, from, to)
		at = a - from
	case plan.Reduce, plan.Broadcast:
		if (c.rank == call.Root) != (call.Code == plan.Reduce) {
			return
		}
		at = a
	default:
		at = a
	}
	move(out, at*size, slot, (a-r.From)*size, (b-a)*size)
}
