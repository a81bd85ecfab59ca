package objects

import (
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"launcher/internal/errs"
	"launcher/shm"
	"launcher/wire"
)

// PinWords is how many objects a program can have in use at the same time.
const PinWords = 1 << 16

// Pin is a program's hold on one object: the number of its word.
type Pin uint32

// Pins is a client's side of its pins file. Its methods may be called by any goroutine.
type Pins struct {
	seg   *shm.Segment
	words []uint64

	mu    sync.Mutex
	fresh uint32   // words from here on were never used; guarded by mu
	free  []uint32 // used before, and free; guarded by mu
}

func wordsOf(seg *shm.Segment) []uint64 {
	b := seg.Bytes()
	if len(b) < 8 {
		return nil
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(&b[0])), len(b)/8)
}

// OpenPins maps a client's pins, which it takes over on success.
func OpenPins(f *os.File) (*Pins, error) {
	seg, err := shm.Open(f, true)
	if err != nil {
		return nil, err
	}
	return &Pins{seg: seg, words: wordsOf(seg)}, nil
}

// Close unmaps it. No pin may be in use.
func (p *Pins) Close() error { return p.seg.Close() }

// Get finds an object in memory and pins it. With ok the bytes stay where the entry says
// until Release; without, the agent has to be asked. An error says that too many are
// pinned.
func (p *Pins) Get(x *Index, id wire.ObjectID) (e Entry, pin Pin, ok bool, err error) {
	if !x.t.find(id, &e) || e.State != Sealed {
		return e, 0, false, nil
	}
	if pin, err = p.take(); err != nil {
		return e, 0, false, err
	}
	// The store is sequentially consistent: whoever marks the entry after the read below
	// sees the word.
	atomic.StoreUint64(&p.words[pin], pinOf(&e))
	var again Entry
	if x.t.read(e.Slot, &again) && again.State == Sealed && again.Generation == e.Generation && again.ID == id {
		return again, pin, true, nil
	}
	p.Release(pin)
	return e, 0, false, nil
}

func pinOf(e *Entry) uint64 { return uint64(e.Generation)<<32 | uint64(e.Slot+1) }

func (p *Pins) take() (Pin, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		w := p.free[n-1]
		p.free = p.free[:n-1]
		return Pin(w), nil
	}
	if int(p.fresh) == len(p.words) {
		return 0, errs.New(errs.Exhausted, "this program has %d objects in use at the same time, that is the limit", len(p.words)).
			Hint("release values that are not needed any more, or copy what is needed of them")
	}
	p.fresh++
	return Pin(p.fresh - 1), nil
}

// Release ends a hold; once per Get.
func (p *Pins) Release(pin Pin) {
	atomic.StoreUint64(&p.words[pin], 0)
	p.mu.Lock()
	p.free = append(p.free, uint32(pin))
	p.mu.Unlock()
}

// PinKey is what a pin of an entry looks like.
type PinKey uint64

// PinKey gives the word that a client holds this entry with.
func (e *Entry) PinKey() PinKey { return PinKey(pinOf(e)) }

// Watch is the agent's side of a client's pins file.
type Watch struct {
	file  *os.File
	seg   *shm.Segment
	words []uint64
}

// CreatePins makes a client's pins file; it takes memory as it is used.
func CreatePins(name string) (*Watch, error) {
	f, err := shm.CreateSized(name, PinWords*8, false)
	if err != nil {
		return nil, err
	}
	return OpenWatch(f)
}

// OpenWatch takes a pins file up that an earlier agent made.
func OpenWatch(f *os.File) (*Watch, error) {
	seg, err := shm.Open(f, false)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Watch{file: f, seg: seg, words: wordsOf(seg)}, nil
}

// File is the descriptor for the client; it stays owned by the Watch.
func (w *Watch) File() *os.File { return w.file }

// Close unmaps it.
func (w *Watch) Close() error { return w.seg.Close() }

// Scan calls yield with every pin that is held.
func (w *Watch) Scan(yield func(PinKey)) {
	for from, to := range used(w.file, len(w.words)*8) {
		for i := from / 8; i < to/8; i++ {
			if k := atomic.LoadUint64(&w.words[i]); k != 0 {
				yield(PinKey(k))
			}
		}
	}
}
