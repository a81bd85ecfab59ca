package objects

import (
	"encoding/binary"
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"launcher/internal/errs"
	"launcher/shm"
	"launcher/wire"
)

const (
	magic      = 0x3149584c // "LXI1"
	version    = 1
	headerSize = 4096
	segmentsAt = 12 // in the header: how many segments there have been
	entrySize  = 64
	// MaxCapacity bounds the entries of an index: slot + 1 has to fit a pin.
	MaxCapacity = 1 << 24
	// spins is how often an entry that is being written is read again before it is
	// taken for one that nobody finishes: the agent died over it.
	spins = 1000
)

// State of an entry.
type State uint32

const (
	Empty     State = iota // nothing was ever here: a probe ends
	Deleted                // a probe goes on
	Sealed                 // complete, in memory
	Deleting               // pins that are there hold, new ones do not
	Spilled                // in a file: ask the agent
	Elsewhere              // on other nodes: ask the agent
	numStates
)

var stateNames = [numStates]string{"empty", "deleted", "memory", "deleting", "spilled", "elsewhere"}

func (s State) String() string {
	if s < numStates {
		return stateNames[s]
	}
	return "invalid"
}

// Entry is what the index says of an object. Whoever read it from memory that others
// write uses Of, which checks the bounds.
type Entry struct {
	ID         wire.ObjectID
	Slot       uint32
	State      State
	Segment    uint32
	Generation uint32
	Offset     uint64
	Size       uint64
	Form       uint32
	LastUse    uint32
	Unclaimed  bool // Deleted: the producer has not been told yet that the place is free
}

// Of is the object's bytes within its segment, mapped at mem.
func (e *Entry) Of(mem []byte) ([]byte, error) {
	if n := uint64(len(mem)); e.Offset > n || e.Size > n-e.Offset {
		return nil, errs.New(errs.Corrupt, "object %s lies at %d, %d bytes long, in segment %d of %d bytes", e.ID, e.Offset, e.Size, e.Segment, len(mem))
	}
	end := e.Offset + e.Size
	return mem[e.Offset:end:end], nil
}

// table is the mapped memory of an index.
type table struct {
	seg  *shm.Segment
	base unsafe.Pointer // of entry 0
	mask uint32
}

func openTable(f *os.File, writable bool) (table, error) {
	seg, err := shm.Open(f, writable)
	if err != nil {
		return table{}, err
	}
	b := seg.Bytes()
	bad := ""
	var capacity uint32
	if len(b) < headerSize {
		bad = "is too short"
	} else {
		capacity = binary.LittleEndian.Uint32(b[8:])
		switch {
		case binary.LittleEndian.Uint32(b) != magic:
			bad = "is none"
		case binary.LittleEndian.Uint32(b[4:]) != version:
			bad = "is of another version"
		case capacity == 0 || capacity&(capacity-1) != 0 || capacity > MaxCapacity || int(capacity)*entrySize > len(b)-headerSize:
			bad = "says a wrong capacity"
		}
	}
	if bad != "" {
		seg.Close()
		return table{}, errs.New(errs.Corrupt, "the index of the node's objects %s", bad)
	}
	return table{seg: seg, base: unsafe.Pointer(&b[headerSize]), mask: capacity - 1}, nil
}

// word is the i-th 8 bytes of an entry.
func (t *table) word(slot uint32, i int) *uint64 {
	return (*uint64)(unsafe.Add(t.base, int(slot&t.mask)*entrySize+8*i))
}

// half is the i-th 4 bytes of an entry.
func (t *table) half(slot uint32, i int) *uint32 {
	return (*uint32)(unsafe.Add(t.base, int(slot&t.mask)*entrySize+4*i))
}

// start is where the probe for an id begins.
func (t *table) start(id wire.ObjectID) uint32 {
	h := binary.LittleEndian.Uint64(id[:]) ^ binary.LittleEndian.Uint64(id[8:])*0x9E3779B97F4A7C15
	h ^= h >> 32
	return uint32(h) & t.mask
}

// read gives an entry as it was at one moment; false: nobody finishes writing it.
func (t *table) read(slot uint32, e *Entry) bool {
	for i := 0; i < spins; i++ {
		v := atomic.LoadUint32(t.half(slot, 0))
		if v&1 == 0 {
			t.load(slot, e)
			if atomic.LoadUint32(t.half(slot, 0)) == v {
				return true
			}
		}
		if i > 10 {
			runtime.Gosched()
		}
	}
	return false
}

// load reads an entry that may be changing.
func (t *table) load(slot uint32, e *Entry) {
	w0 := atomic.LoadUint64(t.word(slot, 0))
	e.Slot = slot
	e.State = State(w0 >> 32)
	binary.LittleEndian.PutUint64(e.ID[:], atomic.LoadUint64(t.word(slot, 1)))
	binary.LittleEndian.PutUint64(e.ID[8:], atomic.LoadUint64(t.word(slot, 2)))
	w3 := atomic.LoadUint64(t.word(slot, 3))
	e.Segment, e.Generation = uint32(w3), uint32(w3>>32)
	e.Offset = atomic.LoadUint64(t.word(slot, 4))
	e.Size = atomic.LoadUint64(t.word(slot, 5))
	w6 := atomic.LoadUint64(t.word(slot, 6))
	e.Form, e.LastUse = uint32(w6), uint32(w6>>32)
	e.Unclaimed = atomic.LoadUint64(t.word(slot, 7)) != 0
}

// find looks an id up. An entry that is not empty or deleted is found whatever its state.
func (t *table) find(id wire.ObjectID, e *Entry) bool {
	slot := t.start(id)
	for range t.mask + 1 {
		if !t.read(slot, e) || e.State == Empty {
			return false
		}
		if e.ID == id && e.State != Deleted && e.State < numStates {
			return true
		}
		slot = (slot + 1) & t.mask
	}
	return false
}

// Index is the readers' side. Its methods may be called by any goroutine.
type Index struct{ t table }

// OpenIndex maps the index that came by descriptor, which it takes over on success.
func OpenIndex(f *os.File) (*Index, error) {
	t, err := openTable(f, false)
	if err != nil {
		return nil, err
	}
	return &Index{t}, nil
}

// Find looks an object up. What it gives may be past already: only a pin makes it last.
func (x *Index) Find(id wire.ObjectID) (e Entry, ok bool) {
	ok = x.t.find(id, &e)
	return e, ok
}

// Close unmaps it. Nobody may be reading.
func (x *Index) Close() error { return x.t.seg.Close() }
