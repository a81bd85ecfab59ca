package collectives

import (
	"math"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"launcher/collectives/plan"
	"launcher/internal/errs"
	"launcher/shm"
	"launcher/wire"
)

// The group's memory, in order (docs/collectives.md is normative):
//
//	header       one page: what the group is, where things are, the state word
//	records      why the group ended, one per participant
//	sleepers     one word per participant: it may be in a futex wait
//	controls     one block per participant: how far it is
//	small        per rank 2 x small bytes: vectors that fit are combined from here
//	staging      per slot and rank one round: parts of private buffers for the others
//	results      per slot one round: what was combined, or goes to or came from other nodes
//	arena        per rank: buffers made by Empty
//
// Participants are the ranks of this node in order and then the agent.
const (
	magic      = 0x314c4f43434e4c01 // "\x01LNCCOL1"
	version    = 1
	pageSize   = 4096
	ctlSize    = 256
	recordSize = 256
	recordText = recordSize - 12
	slots      = 4
	maxSmall   = 8 << 10
	arenaAlign = 64
)

// header is the first page. Fields but state and timeout never change after creation.
type header struct {
	magic     uint64 // 0
	version   uint32 // 8
	local     uint32 // 12: ranks of this node
	world     uint32 // 16
	first     uint32 // 20: the first of them
	nodes     uint32 // 24
	node      uint32 // 28: this one
	spin      uint32 // 32: 1 when every local rank has a core to itself
	small     uint32 // 36: bytes up to which vectors go through the small slots
	slots     uint32 // 40
	round     uint32 // 44: bytes of a round
	timeout   uint64 // 48: nanoseconds; a rank may set it
	records   uint64 // 56: offsets from the start of the memory
	sleepers  uint64 // 64
	controls  uint64 // 72
	smallAt   uint64 // 80
	staging   uint64 // 88
	results   uint64 // 96
	arena     uint64 // 104
	arenaSize uint64 // 112: bytes per rank
	size      uint64 // 120: of everything
	firsts    uint64 // 128: offset of nodes+1 u32: the first rank of each node, then world
	job       uint32 // 136
	index     uint32 // 140
	attempt   uint32 // 144
	_         [44]byte
	state     uint32 // 192: 0 active; p+1: ended, participant p's record says why
}

// control is how far a participant is. Its owner writes it, the others read.
type control struct {
	step uint64    // 0: posts so far; the futex word is its low half
	sig  [2]uint64 // 8: signature of the current operation, by the parity of its number
	in   [2]uint64 // 24: offset of its input in the memory, 0 = private
	out  [2]uint64 // 40: the same of its output
	left uint32    // 56: 1 when it has left the group
	pid  uint32    // 60: of the rank's process, 0 = not joined
	_    [64]byte
	bin  uint64 // 128: rounds handed to the agent; the futex word is its low half
	seq  uint64 // 136: operations done, written on leaving
	_    [112]byte
}

// record is why a participant ended the group.
type record struct {
	kind   uint32
	rank   int32
	length uint32
	text   [recordText]byte
}

// memory is a group's memory mapped here.
type memory struct {
	seg      *shm.Segment
	base     unsafe.Pointer
	h        *header
	n        int // local ranks
	nodes    plan.Nodes
	controls []*control // n ranks, then the agent
	sleepers []uint32
	records  []*record
}

// shape is what decides a layout.
type shape struct {
	group   wire.Try
	nodes   plan.Nodes
	node    int
	spin    bool
	timeout time.Duration
	arena   int64 // bytes per rank
	round   int   // bytes; 0 = by the numbers of ranks and nodes
}

func align(n, to uint64) uint64 { return (n + to - 1) / to * to }

// layout computes the header of a group.
func (s shape) layout() header {
	n := uint64(s.nodes[s.node+1] - s.nodes[s.node])
	h := header{
		magic: magic, version: version, local: uint32(n), world: uint32(s.nodes.World()), first: uint32(s.nodes[s.node]),
		nodes: uint32(s.nodes.Len()), node: uint32(s.node), slots: slots, timeout: uint64(s.timeout),
		job: uint32(s.group.Job), index: s.group.Index, attempt: uint32(s.group.Attempt),
	}
	if s.spin {
		h.spin = 1
	}
	// Everybody reads everybody's small slot, so with many ranks small means less.
	most := 1
	for i := range s.nodes.Len() {
		most = max(most, s.nodes[i+1]-s.nodes[i])
	}
	h.small = uint32(max(256, min(maxSmall, (128<<10)/most)/256*256))
	h.round = uint32(s.roundSize(most))
	h.firsts = 256
	at := align(h.firsts+4*uint64(h.nodes+1), pageSize)
	place := func(size uint64, to uint64) uint64 {
		p := align(at, to)
		at = p + size
		return p
	}
	h.records = place((n+1)*recordSize, pageSize)
	h.sleepers = place((n+1)*4, 128)
	h.controls = place((n+1)*ctlSize, pageSize)
	h.smallAt = place(n*2*uint64(h.small), pageSize)
	h.staging = place(slots*n*uint64(h.round), pageSize)
	h.results = place(slots*uint64(h.round), pageSize)
	h.arenaSize = align(uint64(s.arena), 2<<20)
	h.arena = place(n*h.arenaSize, 2<<20)
	h.size = at
	return h
}

// roundSize: within a node a round and all its staging should stay in the caches, and
// each rank's share be 64 KiB or more so that waiting is rare beside work. Between nodes a
// round is cut into one piece per node, which should be large enough for the network.
// All nodes must come to the same size.
func (s shape) roundSize(most int) int {
	if s.round > 0 {
		return s.round
	}
	if s.nodes.World() == 1 {
		return 64 // never used
	}
	if nodes := s.nodes.Len(); nodes > 1 {
		return min(max(256<<10*nodes, 1<<20), 4<<20)
	}
	return min(max(64<<10*most, 256<<10), 512<<10, max(128<<10, 16<<20/most/4096*4096))
}

// check says whether h can be trusted to find things in size bytes.
func (h *header) check(size uint64) error {
	bad := func(what string) error {
		return errs.New(errs.Corrupt, "the group's shared memory: %s", what).
			Hint("the agent and this program may be of different versions of launcher")
	}
	switch {
	case h.magic != magic:
		return bad("it does not start with the magic number")
	case h.version != version:
		return errs.New(errs.Version, "the group's shared memory has layout %d, this program knows %d", h.version, version).
			Hint("use the SDK that the cluster's agents bring (it is first in PYTHONPATH), or build with their version")
	case h.size != size || size < pageSize:
		return bad("its size is wrong")
	case h.local == 0 || h.world == 0 || h.world > plan.MaxWorld || h.first > h.world || h.local > h.world-h.first:
		return bad("its ranks are wrong")
	case h.nodes == 0 || h.nodes > h.world || h.node >= h.nodes:
		return bad("its nodes are wrong")
	case h.small == 0 || h.small%64 != 0 || h.round == 0 || h.round%64 != 0 || h.slots != slots:
		return bad("its slots are wrong")
	}
	n := uint64(h.local)
	for _, a := range []struct{ at, size, align uint64 }{
		{h.firsts, 4 * uint64(h.nodes+1), 4}, {h.records, (n + 1) * recordSize, 4}, {h.sleepers, (n + 1) * 4, 4},
		{h.controls, (n + 1) * ctlSize, 64}, {h.smallAt, n * 2 * uint64(h.small), 64},
		{h.staging, slots * n * uint64(h.round), 64}, {h.results, slots * uint64(h.round), 64}} {
		if a.at < 256 || a.at%a.align != 0 || a.at > size || a.size > size-a.at {
			return bad("an area is outside it")
		}
	}
	if h.arena > size || h.arena%arenaAlign != 0 || h.arenaSize > math.MaxUint64/n || n*h.arenaSize > size-h.arena {
		return bad("the arena is outside it")
	}
	return nil
}

// create makes and maps a group's memory. What every operation needs is reserved now;
// the arena when Empty takes of it.
func create(s shape) (*memory, error) {
	h := s.layout()
	if h.size > math.MaxInt64/2 {
		return nil, errs.New(errs.Invalid, "a group memory of %d bytes", h.size)
	}
	if room := shm.Room(); int64(h.arena) > room {
		return nil, errs.New(errs.Exhausted, "the shared memory of a group of %d ranks needs %s, %s are left on this node",
			h.local, wire.Bytes(int64(h.arena)), wire.Bytes(room)).Hint("use fewer ranks per node, or give the node more memory")
	}
	f, err := shm.CreateFile("launcher-group-" + s.group.String())
	if err != nil {
		return nil, err
	}
	if err := sizeFile(f, int64(h.arena), int64(h.size)); err != nil {
		f.Close()
		return nil, errs.Wrap(errs.Exhausted, err, "the shared memory of a group of %d ranks", h.local)
	}
	seg, err := shm.Open(f, true)
	if err != nil {
		f.Close()
		return nil, err
	}
	*(*header)(unsafe.Pointer(unsafe.SliceData(seg.Bytes()))) = h
	firsts := unsafe.Slice((*uint32)(unsafe.Pointer(&seg.Bytes()[h.firsts])), h.nodes+1)
	for i, v := range s.nodes {
		firsts[i] = uint32(v)
	}
	return view(seg.Bytes(), seg)
}

// alone makes the memory of a group of one on the heap, without an arena: nobody else
// is to see it, and it works where there is no shared memory.
func alone() (*memory, error) {
	s := shape{nodes: plan.Nodes{0, 1}, spin: true, timeout: DefaultTimeout}
	h := s.layout()
	h.arena, h.arenaSize = h.arena-h.arena%pageSize, 0
	h.size = h.arena
	words := make([]uint64, h.size/8)
	b := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), h.size)
	*(*header)(unsafe.Pointer(&b[0])) = h
	*(*uint32)(unsafe.Pointer(&b[h.firsts+4])) = 1
	return view(b, nil)
}

// open maps the memory behind f, which it takes over.
func open(f *os.File) (*memory, error) {
	seg, err := shm.Open(f, true)
	if err != nil {
		f.Close()
		return nil, err
	}
	m, err := view(seg.Bytes(), seg)
	if err != nil {
		seg.Close()
	}
	return m, err
}

func view(b []byte, seg *shm.Segment) (*memory, error) {
	if len(b) < pageSize {
		return nil, errs.New(errs.Corrupt, "the group's shared memory has %d bytes", len(b))
	}
	m := &memory{seg: seg, base: unsafe.Pointer(unsafe.SliceData(b))}
	m.h = (*header)(m.base)
	if err := m.h.check(uint64(len(b))); err != nil {
		return nil, err
	}
	m.n = int(m.h.local)
	for _, v := range unsafe.Slice((*uint32)(m.at(m.h.firsts)), m.h.nodes+1) {
		m.nodes = append(m.nodes, int(v))
	}
	for i := range m.nodes.Len() {
		if m.nodes[i] >= m.nodes[i+1] {
			return nil, errs.New(errs.Corrupt, "the group's shared memory: node %d has no rank", i)
		}
	}
	if m.nodes[0] != 0 || m.nodes.World() != int(m.h.world) || m.nodes[m.h.node] != int(m.h.first) || m.nodes[m.h.node+1] != int(m.h.first)+m.n {
		return nil, errs.New(errs.Corrupt, "the group's shared memory: its table of nodes is wrong")
	}
	for i := range m.n + 1 {
		m.controls = append(m.controls, (*control)(m.at(m.h.controls+uint64(i)*ctlSize)))
		m.records = append(m.records, (*record)(m.at(m.h.records+uint64(i)*recordSize)))
	}
	m.sleepers = unsafe.Slice((*uint32)(m.at(m.h.sleepers)), m.n+1)
	return m, nil
}

func (m *memory) at(off uint64) unsafe.Pointer { return unsafe.Add(m.base, off) }

// small is rank i's slot for operations of the given parity.
func (m *memory) small(i int, parity uint64) unsafe.Pointer {
	return m.at(m.h.smallAt + (uint64(i)*2+parity)*uint64(m.h.small))
}

// staged is rank i's copy of its input in round k.
func (m *memory) staged(k uint64, i int) unsafe.Pointer {
	return m.at(m.h.staging + ((k%slots)*uint64(m.n)+uint64(i))*uint64(m.h.round))
}

// result is the slot of round k.
func (m *memory) result(k uint64) unsafe.Pointer {
	return m.at(m.h.results + (k%slots)*uint64(m.h.round))
}

func low(p *uint64) *uint32 { return (*uint32)(unsafe.Pointer(p)) }

// wake wakes everybody who may wait for the word.
func (m *memory) wake(word *uint64) {
	for i := range m.sleepers {
		if atomic.LoadUint32(&m.sleepers[i]) != 0 {
			shm.FutexWake(low(word), math.MaxInt32)
			return
		}
	}
}

// post publishes all that this participant wrote before. The store is a full barrier on
// amd64 and ordered with the loads of sleepers on every architecture (sync/atomic is
// sequentially consistent): either the waiter's futex sees the new value, or wake sees
// the waiter.
func (m *memory) post(word *uint64, v uint64) {
	atomic.StoreUint64(word, v)
	m.wake(word)
}

// end ends the group, unless it has ended already, and wakes everybody. p is the
// participant whose record it uses.
func (m *memory) end(p int, kind uint32, rank int, cause string) {
	if atomic.LoadUint32(&m.h.state) == 0 {
		r := m.records[p]
		r.kind, r.rank = kind, int32(rank)
		r.length = uint32(copy(r.text[:], cause))
		atomic.CompareAndSwapUint32(&m.h.state, 0, uint32(p)+1)
	}
	m.rouse()
}

// rouse wakes everybody who sleeps on any word, to look at the state again.
func (m *memory) rouse() {
	shm.FutexWake(&m.h.state, math.MaxInt32)
	for _, c := range m.controls {
		shm.FutexWake(low(&c.step), math.MaxInt32)
		shm.FutexWake(low(&c.bin), math.MaxInt32)
	}
}

// ended gives the error that the group ended with, nil while it is active.
func (m *memory) ended() error {
	s := atomic.LoadUint32(&m.h.state)
	if s == 0 {
		return nil
	}
	kind, rank, cause := m.why(s)
	return groupError(kind, rank, cause, m.timeout())
}

func (m *memory) why(state uint32) (kind uint32, rank int, cause string) {
	if int(state) > len(m.records) {
		return kindLost, -1, "the group's shared memory is damaged"
	}
	r := m.records[state-1]
	return r.kind, int(r.rank), string(r.text[:min(r.length, recordText)])
}

// timeout is how long a rank may stay away from an operation that others wait in.
func (m *memory) timeout() time.Duration { return time.Duration(atomic.LoadUint64(&m.h.timeout)) }
