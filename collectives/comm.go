package collectives

import (
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"launcher/collectives/plan"
	"launcher/collectives/reduce"
	"launcher/internal/errs"
)

// Comm is a rank's membership in a group. Its operations are for one goroutine at a
// time; Close, Rank and Size may be called from any.
type Comm struct {
	m     *memory
	me    int // among this node's ranks
	rank  int
	world int
	spin  bool

	step uint64 // posts so far
	seq  uint64 // number of the current operation
	bin  uint64 // rounds handed to the agent so far

	busy   atomic.Bool
	mu     sync.Mutex // held by what may be called beside an operation
	closed bool       // guarded by mu for them

	worker reduce.Worker
	ins    []unsafe.Pointer // scratch of the operations, one per local rank
	outs   []unsafe.Pointer
	arena  arena
}

// Attach makes the caller the given rank of the group whose memory f is (from a
// JoinAnswer). It takes f over.
func Attach(f *os.File, rank int) (*Comm, error) {
	m, err := open(f)
	if err != nil {
		return nil, err
	}
	c, err := newComm(m, rank)
	if err != nil {
		m.seg.Close()
	}
	return c, err
}

// Single gives a group of one, for programs that run outside any job.
func Single() (*Comm, error) {
	m, err := alone()
	if err != nil {
		return nil, err
	}
	return newComm(m, 0)
}

func newComm(m *memory, rank int) (*Comm, error) {
	h := m.h
	me := rank - int(h.first)
	if me < 0 || me >= m.n {
		return nil, errs.New(errs.Invalid, "rank %d is not on this node, which has ranks %d to %d", rank, h.first, int(h.first)+m.n-1)
	}
	ctl := m.controls[me]
	pid := uint32(os.Getpid())
	if old := atomic.LoadUint32(&ctl.pid); old != 0 && old != pid && alive(old) {
		return nil, errs.New(errs.Exists, "rank %d has joined its group already, as process %d", rank, old).
			Hint("only one process of a rank can use collectives; its sub-processes cannot")
	}
	atomic.StoreUint32(&ctl.pid, pid)
	atomic.StoreUint32(&ctl.left, 0)
	c := &Comm{m: m, me: me, rank: rank, world: int(h.world), spin: h.spin == 1, step: atomic.LoadUint64(&ctl.step),
		seq: ctl.seq, bin: atomic.LoadUint64(&ctl.bin), ins: make([]unsafe.Pointer, 0, m.n), outs: make([]unsafe.Pointer, 0, m.n)}
	if m.seg != nil {
		c.arena = arena{file: m.seg.File(), at: h.arena + uint64(me)*h.arenaSize, size: h.arenaSize}
		populate(m.base, int(min(h.arena, 64<<20)))
	}
	return c, nil
}

// Rank is this process's number in the group.
func (c *Comm) Rank() int { return c.rank }

// SetTimeout sets how long a rank may stay away from an operation that others wait in
// before the group ends with a Timeout that names it; DefaultTimeout at first. It holds
// for all ranks of the node: give all ranks of the group the same.
func (c *Comm) SetTimeout(d time.Duration) {
	atomic.StoreUint64(&c.m.h.timeout, uint64(max(d, time.Nanosecond)))
}

// Size is the number of ranks.
func (c *Comm) Size() int { return c.world }

// Err is why the group ended; nil while it has not, and after Close.
func (c *Comm) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	return c.m.ended()
}

// Abort ends the group for all ranks, for example because this one cannot go on.
func (c *Comm) Abort(cause string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.m.end(c.me, kindLost, c.rank, cause)
	}
}

// Close leaves the group. Others that still wait for this rank get PeerLost. No
// operation may be running; slices that Empty gave must not be used any more.
func (c *Comm) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	ctl := c.m.controls[c.me]
	ctl.seq = c.seq
	atomic.StoreUint32(&ctl.pid, 0)
	atomic.StoreUint32(&ctl.left, 1)
	c.m.wake(&ctl.step)
	c.m.wake(&ctl.bin)
	if c.m.seg == nil {
		return nil
	}
	return c.m.seg.Close()
}

// AllReduce replaces buf on every rank by op over the bufs of all ranks. All must have
// the same length.
func AllReduce[T Element](c *Comm, buf []T, op Op) error {
	return c.allReduce(plan.Call{Code: plan.AllReduce, Type: typeOf[T](), Op: op, Count: len(buf)}, pointer(buf))
}

// ReduceScatter combines the ins of all ranks, which must have the same length, and
// gives rank i the i-th of near-equal parts (Part) in out.
func ReduceScatter[T Element](c *Comm, out, in []T, op Op) error {
	from, to := Part(len(in), c.world, c.rank)
	if len(out) != to-from {
		return errs.New(errs.Invalid, "reduce-scatter of %d elements: out has %d elements, rank %d's part has %d", len(in), len(out), c.rank, to-from)
	}
	return c.reduceScatter(plan.Call{Code: plan.ReduceScatter, Type: typeOf[T](), Op: op, Count: len(in)}, pointer(out), pointer(in))
}

// AllGather puts the ins of all ranks one after the other into every rank's out. in is
// rank i's part (Part) of out, and may be that stretch of out itself.
func AllGather[T Element](c *Comm, out, in []T) error {
	from, to := Part(len(out), c.world, c.rank)
	if len(in) != to-from {
		return errs.New(errs.Invalid, "all-gather of %d elements: in has %d elements, rank %d's part has %d", len(out), len(in), c.rank, to-from)
	}
	return c.allGather(plan.Call{Code: plan.AllGather, Type: typeOf[T](), Count: len(out)}, pointer(out), pointer(in))
}

// Broadcast copies root's buf to all ranks.
func Broadcast[T Element](c *Comm, buf []T, root int) error {
	return c.broadcast(plan.Call{Code: plan.Broadcast, Type: typeOf[T](), Root: root, Count: len(buf)}, pointer(buf))
}

// Reduce replaces buf on root by op over the bufs of all ranks; on the other ranks buf
// is only read.
func Reduce[T Element](c *Comm, buf []T, op Op, root int) error {
	return c.reduceTo(plan.Call{Code: plan.Reduce, Type: typeOf[T](), Op: op, Root: root, Count: len(buf)}, pointer(buf))
}

// Barrier returns when all ranks have called it.
func (c *Comm) Barrier() error { return c.barrier() }

// Part is the stretch of a vector of count elements that belongs to rank i of n in
// ReduceScatter and AllGather: near-equal parts, the first count%n one longer.
func Part(count, n, i int) (from, to int) { return plan.Part(count, n, i) }

// Empty gives a slice of n elements in the group's shared memory. Operations on such
// buffers copy nothing: the ranks of the node combine them where they are. The contents
// are zero at first use of the memory and undefined later. Free gives it back.
func Empty[T Element](c *Comm, n int) ([]T, error) {
	if n < 0 || n > math.MaxInt/8 {
		return nil, errs.New(errs.Invalid, "a buffer of %d elements", n)
	}
	if n == 0 || c.m.seg == nil { // nothing, or a group of one
		return make([]T, n), nil
	}
	size := n * typeOf[T]().Size()
	off, err := c.arena.take(size)
	if err != nil {
		return nil, err
	}
	page := off &^ (pageSize - 1)
	populate(c.m.at(page), size+int(off-page))
	return unsafe.Slice((*T)(c.m.at(off)), n), nil
}

// Free gives a slice of Empty back. It must be the whole slice, and no operation may be
// using it.
func Free[T Element](c *Comm, buf []T) {
	if cap(buf) > 0 && c.m.seg != nil {
		c.arena.give(c.offset(pointer(buf[:1]), 1))
	}
}

func pointer[T any](s []T) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(s)) }

// offset is where p lies in the arenas of this node, 0 when it does not with all its n
// bytes.
func (c *Comm) offset(p unsafe.Pointer, n int) uint64 {
	off := uint64(uintptr(p) - uintptr(c.m.base))
	if off < c.m.h.arena || off >= c.m.h.size || uint64(n) > c.m.h.size-off {
		return 0
	}
	return off
}
