package collectives

import (
	"unsafe"

	"launcher/collectives/plan"
	"launcher/internal/errs"
)

// enter begins an operation on this rank only: nothing is published before the call is
// known to make sense.
func (c *Comm) enter(call plan.Call) error {
	if !c.busy.CompareAndSwap(false, true) {
		return errs.New(errs.Invalid, "rank %d: two goroutines use one group at the same time", c.rank).
			Hint("the ranks must agree on the order of operations; use a lock, or one goroutine")
	}
	err := c.refuse(call)
	if err != nil {
		c.busy.Store(false)
	}
	return err
}

func (c *Comm) refuse(call plan.Call) error {
	switch {
	case c.closed:
		return errs.New(errs.Invalid, "rank %d has left its group", c.rank)
	case !call.Valid(c.world):
		return errs.New(errs.Invalid, "%s in a group of %d ranks is not possible", call, c.world).
			Hint("the mean is defined for floating types, roots are ranks of the group, and a vector has less than %d elements", plan.MaxCount)
	}
	return c.m.ended()
}

func (c *Comm) exit() { c.busy.Store(false) }

func (c *Comm) barrier() error {
	call := plan.Call{Code: plan.Barrier}
	if err := c.enter(call); err != nil {
		return err
	}
	defer c.exit()
	switch {
	case c.m.nodes.Len() > 1:
		return c.remoteSmall(call, nil, nil)
	default:
		return c.arrive(call, 0, 0)
	}
}

func (c *Comm) allReduce(call plan.Call, buf unsafe.Pointer) error {
	if err := c.enter(call); err != nil {
		return err
	}
	defer c.exit()
	bytes := call.Bytes()
	switch {
	case c.world == 1:
		return nil
	case c.m.nodes.Len() > 1:
		return c.remote(call, buf, buf)
	case bytes <= int(c.m.h.small):
		return c.small(call, buf, buf)
	}
	off := c.offset(buf, bytes)
	return c.combine(call, buf, off)
}

func (c *Comm) reduceTo(call plan.Call, buf unsafe.Pointer) error {
	if err := c.enter(call); err != nil {
		return err
	}
	defer c.exit()
	switch bytes := call.Bytes(); {
	case c.world == 1:
		return nil
	case c.m.nodes.Len() > 1:
		return c.remote(call, buf, buf)
	case bytes <= int(c.m.h.small):
		return c.small(call, buf, buf)
	default:
		return c.combine(call, buf, c.offset(buf, bytes))
	}
}

func (c *Comm) reduceScatter(call plan.Call, out, in unsafe.Pointer) error {
	if err := c.enter(call); err != nil {
		return err
	}
	defer c.exit()
	switch bytes := call.Bytes(); {
	case c.world == 1:
		move(out, 0, in, 0, bytes)
		return nil
	case c.m.nodes.Len() > 1:
		return c.remote(call, out, in)
	case bytes <= int(c.m.h.small):
		return c.small(call, out, in)
	default:
		return c.scatter(call, out, in, c.offset(in, bytes))
	}
}

func (c *Comm) allGather(call plan.Call, out, in unsafe.Pointer) error {
	if err := c.enter(call); err != nil {
		return err
	}
	defer c.exit()
	switch bytes := call.Bytes(); {
	case c.world == 1:
		move(out, 0, in, 0, bytes)
		return nil
	case c.m.nodes.Len() > 1:
		return c.remote(call, out, in)
	case bytes <= int(c.m.h.small):
		return c.small(call, out, in)
	default:
		return c.gather(call, out, in)
	}
}

func (c *Comm) broadcast(call plan.Call, buf unsafe.Pointer) error {
	if err := c.enter(call); err != nil {
		return err
	}
	defer c.exit()
	switch bytes := call.Bytes(); {
	case c.world == 1:
		return nil
	case c.m.nodes.Len() > 1:
		return c.remote(call, buf, buf)
	case bytes <= int(c.m.h.small):
		return c.small(call, buf, buf)
	default:
		return c.spread(call, buf, c.offset(buf, bytes))
	}
}

// part is rank i's stretch of the call's vector, in bytes.
func (c *Comm) part(call plan.Call, rank int) (from, size int) {
	a, b := plan.Part(call.Count, c.world, rank)
	return a * call.Type.Size(), (b - a) * call.Type.Size()
}

// small is any operation on a vector that fits the small slots: every rank writes its
// slot and one flag, and takes what it needs from all slots. The slots alternate by the
// operation's number: who writes its slot for operation k+2 has seen everybody in k+1,
// done with k.
func (c *Comm) small(call plan.Call, out, in unsafe.Pointer) error {
	c.fillSmall(call, in)
	if err := c.arrive(call, 0, 0); err != nil {
		return err
	}
	p, bytes := c.seq&1, call.Bytes()
	switch call.Code {
	case plan.AllReduce:
		c.sumSmall(call, out, 0, call.Count)
	case plan.Reduce:
		if c.rank == call.Root {
			c.sumSmall(call, out, 0, call.Count)
		}
	case plan.ReduceScatter:
		a, b := plan.Part(call.Count, c.world, c.rank)
		c.sumSmall(call, out, a, b-a)
	case plan.AllGather:
		for i := range c.world {
			if from, size := c.part(call, i); i == c.rank {
				move(out, from, in, 0, size)
			} else {
				move(out, from, c.m.small(i, p), 0, size)
			}
		}
	case plan.Broadcast:
		if c.rank != call.Root {
			move(out, 0, c.m.small(call.Root, p), 0, bytes)
		}
	}
	return nil
}

// fillSmall writes this rank's small slot for the next operation, if it gives anything.
func (c *Comm) fillSmall(call plan.Call, in unsafe.Pointer) {
	bytes := call.Bytes()
	switch {
	case call.Code == plan.AllGather:
		_, bytes = c.part(call, c.rank)
	case call.Code == plan.Broadcast && c.rank != call.Root, call.Code == plan.Barrier:
		return
	}
	move(c.m.small(c.me, (c.seq+1)&1), 0, in, 0, bytes)
}

// sumSmall combines n elements from the small slots of all local ranks.
func (c *Comm) sumSmall(call plan.Call, out unsafe.Pointer, from, n int) {
	if n == 0 {
		return
	}
	ins := c.ins[:0]
	for i := range c.m.n {
		ins = append(ins, unsafe.Add(c.m.small(i, c.seq&1), from*call.Type.Size()))
	}
	c.worker.Do(call.Type, call.Op, c.world, append(c.outs[:0], out), ins, n)
}

// source is where the input of local rank i for bytes [at, ...) of the vector is, in
// round k which starts at byte start: its own buffer, its buffer in the arena, or what
// it staged.
func (c *Comm) source(i int, k uint64, own unsafe.Pointer, at, start int) unsafe.Pointer {
	if i == c.me {
		return unsafe.Add(own, at)
	}
	if off := c.m.controls[i].in[c.seq&1]; off != 0 {
		return c.m.at(off + uint64(at))
	}
	return unsafe.Add(c.m.staged(k, i), at-start)
}

// arenas reports whether all local ranks gave a buffer in the arena.
func (c *Comm) arenas() bool {
	for _, ctl := range c.m.controls[:c.m.n] {
		if ctl.in[c.seq&1] == 0 {
			return false
		}
	}
	return true
}

// combine is all-reduce and reduce within a node, past the small size. off is the
// buffer's place in the memory, 0 for a private one.
//
// With all buffers in the arena every rank combines its share of the vector from all
// buffers and writes it to all (or the root's): two flags, nothing copied. Otherwise
// the vector goes through in rounds of three steps: (A) each rank stages those parts of
// its buffer that others combine, (B) each combines its share into the round's result
// slot, (C) each copies the others' shares out. A of the next round and C of the one
// before are done between, so that ranks seldom wait. Why slots can be reused: A(k)
// is published after C(k-3), and B(k) starts when all have published A(k).
func (c *Comm) combine(call plan.Call, buf unsafe.Pointer, off uint64) error {
	size, n := call.Type.Size(), c.m.n
	limit := int(c.m.h.round) / size
	rounds := (call.Count + limit - 1) / limit
	all := call.Code == plan.AllReduce
	slot := c.firstSlot()
	stage := func(k int) {
		if off == 0 {
			c.stage(slot+uint64(k), buf, k*limit, min((k+1)*limit, call.Count), size)
		}
	}
	stage(0)
	if err := c.arrive(call, off, off); err != nil {
		return err
	}
	if c.arenas() {
		return c.inPlace(call)
	}
	base := c.step
	for i := 0; i <= rounds; i++ {
		if i+1 < rounds {
			stage(i + 1)
			c.post()
		}
		if i < rounds {
			if err := c.all(base + uint64(max(2*i-1, 0))); err != nil {
				return err
			}
			start, end := i*limit, min((i+1)*limit, call.Count)
			if a, b := plan.Share(end-start, n, c.me, size); a < b {
				ins := c.ins[:0]
				for j := range n {
					ins = append(ins, c.source(j, slot+uint64(i), buf, (start+a)*size, start*size))
				}
				outs := append(c.outs[:0], unsafe.Add(c.m.result(slot+uint64(i)), a*size))
				if all || c.rank == call.Root {
					outs = append(outs, ins[c.me])
				}
				c.worker.Do(call.Type, call.Op, c.world, outs, ins, b-a)
			}
			c.post()
		}
		if k := i - 1; k >= 0 {
			// B(k) was published after A(k+1), which the last round does not have.
			if err := c.all(base + uint64(min(2*k+2, 2*rounds-1))); err != nil {
				return err
			}
			if all || c.rank == call.Root {
				start, end := k*limit, min((k+1)*limit, call.Count)
				c.collect(slot+uint64(k), unsafe.Add(buf, start*size), 0, end-start, size)
			}
		}
	}
	return nil
}

// firstSlot is the slot of the first round of the next operation: the one after that of
// the operation before. All are free then; but lines that another core wrote or read a
// moment ago are in its first cache, from where they come at half the speed.
func (c *Comm) firstSlot() uint64 { return c.seq + 1 }

// stage copies those parts of elements [start, end) that other local ranks combine.
func (c *Comm) stage(k uint64, buf unsafe.Pointer, start, end, size int) {
	to := c.m.staged(k, c.me)
	a, b := plan.Share(end-start, c.m.n, c.me, size)
	move(to, 0, buf, start*size, a*size)
	move(to, b*size, buf, (start+b)*size, (end-start-b)*size)
}

// collect copies elements [from, to) of a round's result, but for this rank's share, to
// the buffer where the round starts.
func (c *Comm) collect(k uint64, buf unsafe.Pointer, from, to, size int) {
	r := c.m.result(k)
	a, b := plan.Share(to, c.m.n, c.me, size)
	move(buf, from*size, r, from*size, (a-from)*size)
	move(buf, b*size, r, b*size, (to-b)*size)
}

// inPlace combines buffers that are all in the arena.
func (c *Comm) inPlace(call plan.Call) error {
	size, p := call.Type.Size(), c.seq&1
	a, b := plan.Share(call.Count, c.m.n, c.me, size)
	ins, outs := c.ins[:0], c.outs[:0]
	for i, ctl := range c.m.controls[:c.m.n] {
		ins = append(ins, c.m.at(ctl.in[p]+uint64(a*size)))
		if call.Code == plan.AllReduce || i == call.Root {
			outs = append(outs, ins[i])
		}
	}
	c.worker.Do(call.Type, call.Op, c.world, outs, ins, b-a)
	c.post()
	return c.all(c.step)
}

// scatter is reduce-scatter within a node. Round k is chunk k of every rank's part.
func (c *Comm) scatter(call plan.Call, out, in unsafe.Pointer, off uint64) error {
	size, n := call.Type.Size(), c.m.n
	chunk := int(c.m.h.round) / n / 64 * 64 / size
	most, _ := plan.Part(call.Count, n, 1)
	rounds := (most + chunk - 1) / chunk
	bounds := func(rank, k int) (from, to int) {
		a, b := plan.Part(call.Count, n, rank)
		return plan.Meet(a, b, a+k*chunk, a+(k+1)*chunk)
	}
	slot := c.firstSlot()
	stage := func(k int) {
		for j := range n {
			if a, b := bounds(j, k); off == 0 && j != c.me {
				move(c.m.staged(slot+uint64(k), c.me), j*chunk*size, in, a*size, (b-a)*size)
			}
		}
	}
	stage(0)
	if err := c.arrive(call, off, 0); err != nil {
		return err
	}
	own, _ := plan.Part(call.Count, n, c.me)
	combine := func(k, a, b int) {
		if a == b {
			return
		}
		ins := c.ins[:0]
		for j := range n {
			// What j staged for this rank starts chunk me of its slot.
			ins = append(ins, c.source(j, slot+uint64(k), in, a*size, (a-c.me*chunk)*size))
		}
		c.worker.Do(call.Type, call.Op, c.world, append(c.outs[:0], unsafe.Add(out, (a-own)*size)), ins, b-a)
	}
	if c.arenas() {
		a, b := plan.Part(call.Count, n, c.me)
		combine(0, a, b)
		c.post()
		return c.all(c.step)
	}
	base := c.step
	for i := range rounds {
		if i+1 < rounds {
			stage(i + 1)
			c.post()
		}
		if err := c.all(base + uint64(max(2*i-1, 0))); err != nil {
			return err
		}
		a, b := bounds(c.me, i)
		combine(i, a, b)
		c.post()
	}
	return c.all(c.step)
}

// gather is all-gather within a node: every rank copies the others' parts. Round k is
// chunk k of every part.
func (c *Comm) gather(call plan.Call, out, in unsafe.Pointer) error {
	n := c.m.n
	from, mine := c.part(call, c.rank)
	move(out, from, in, 0, mine)
	off := c.offset(in, mine)
	if off == 0 && mine > 0 {
		off = c.offset(unsafe.Add(out, from), mine)
	}
	chunk := int(c.m.h.round)
	_, most := c.part(call, 0)
	rounds := (most + chunk - 1) / chunk
	slot := c.firstSlot()
	stage := func(k int) {
		if a := k * chunk; off == 0 && a < mine {
			move(c.m.staged(slot+uint64(k), c.me), 0, in, a, min(chunk, mine-a))
		}
	}
	stage(0)
	if err := c.arrive(call, off, 0); err != nil {
		return err
	}
	if c.arenas() {
		rounds, chunk = 1, most
	}
	base := c.step
	for i := range rounds {
		if i+1 < rounds {
			stage(i + 1)
			c.post()
		}
		if err := c.all(base + uint64(i)); err != nil {
			return err
		}
		for j := 1; j < n; j++ {
			// Each starts with its neighbour, so that not all read from one.
			r := (c.me + j) % n
			at, size := c.part(call, r)
			a, b := plan.Meet(0, size, i*chunk, (i+1)*chunk)
			if a == b {
				continue
			}
			src := c.m.staged(slot+uint64(i), r)
			if o := c.m.controls[r].in[c.seq&1]; o != 0 {
				src = c.m.at(o + uint64(a))
			}
			move(out, at+a, src, 0, b-a)
		}
	}
	c.post()
	return c.all(c.step)
}

// spread is broadcast within a node.
func (c *Comm) spread(call plan.Call, buf unsafe.Pointer, off uint64) error {
	bytes, chunk, root := call.Bytes(), int(c.m.h.round), call.Root-int(c.m.h.first)
	rounds := (bytes + chunk - 1) / chunk
	slot := c.firstSlot()
	stage := func(k int) {
		move(c.m.staged(slot+uint64(k), root), 0, buf, k*chunk, min(chunk, bytes-k*chunk))
	}
	if c.me == root && off == 0 {
		stage(0)
	}
	if err := c.arrive(call, off, off); err != nil {
		return err
	}
	src := c.m.controls[root].in[c.seq&1]
	if src != 0 {
		if c.me != root {
			move(buf, 0, c.m.at(src), 0, bytes)
		}
		c.post()
		if c.me == root {
			return c.all(c.step)
		}
		return nil
	}
	base := c.step
	if c.me == root {
		for k := 1; k < rounds; k++ {
			if k >= slots { // the others have copied round k-slots
				if err := c.others(base + uint64(k-slots+1)); err != nil {
					return err
				}
			}
			stage(k)
			c.post()
		}
		if err := c.others(base + uint64(rounds)); err != nil {
			return err
		}
		c.post()
		return nil
	}
	for k := range rounds {
		if err := c.wait(&c.m.controls[root].step, base+uint64(k), root); err != nil {
			return err
		}
		move(buf, k*chunk, c.m.staged(slot+uint64(k), root), 0, min(chunk, bytes-k*chunk))
		c.post()
	}
	return nil
}

// others waits until all local ranks but this one have made as many steps.
func (c *Comm) others(step uint64) error {
	for i, ctl := range c.m.controls[:c.m.n] {
		if i != c.me {
			if err := c.wait(&ctl.step, step, i); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyChunk bounds one copy: a copy cannot be preempted, and the garbage collector of
// the program waits for it.
const copyChunk = 1 << 20

// move copies n bytes from one offset of a buffer to another's; the same place is fine.
// With nothing to copy the offsets may lie outside, so pointers are made only after.
func move(to unsafe.Pointer, toOff int, from unsafe.Pointer, fromOff, n int) {
	if n <= 0 {
		return
	}
	to, from = unsafe.Add(to, toOff), unsafe.Add(from, fromOff)
	if to == from {
		return
	}
	for {
		k := min(n, copyChunk)
		copy(unsafe.Slice((*byte)(to), k), unsafe.Slice((*byte)(from), k))
		if n -= k; n == 0 {
			return
		}
		to, from = unsafe.Add(to, k), unsafe.Add(from, k)
	}
}
