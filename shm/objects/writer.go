package objects

import (
	"encoding/binary"
	"os"
	"sync/atomic"
	"unsafe"

	"launcher/internal/errs"
	"launcher/shm"
	"launcher/wire"
)

// Writer is the agent's side of the index. One goroutine at a time.
type Writer struct {
	t    table
	file *os.File
	used int // entries that are not empty
}

// CreateIndex makes an index for about n objects; it takes memory as it is used.
func CreateIndex(name string, n int) (*Writer, error) {
	capacity := uint32(1 << 10)
	for int(capacity) < 2*n && capacity < MaxCapacity {
		capacity *= 2
	}
	f, err := shm.CreateSized(name, headerSize+entrySize*int64(capacity), false)
	if err != nil {
		return nil, err
	}
	var h [12]byte
	for i, v := range []uint32{magic, version, capacity} {
		binary.LittleEndian.PutUint32(h[4*i:], v)
	}
	if _, err := f.WriteAt(h[:], 0); err != nil {
		f.Close()
		return nil, errs.Wrap(errs.Exhausted, err, "the index of the node's objects")
	}
	return OpenWriter(f)
}

// OpenWriter takes an index up that an earlier agent made. What that one was writing when
// it died is finished: the state is written last, so all else is there with it.
func OpenWriter(f *os.File) (*Writer, error) {
	t, err := openTable(f, true)
	if err != nil {
		f.Close()
		return nil, err
	}
	w := &Writer{t: t, file: f}
	for from, to := range used(f, headerSize+entrySize*(int(t.mask)+1)) {
		for slot := max(from-headerSize, 0) / entrySize; slot < (to-headerSize)/entrySize; slot++ {
			s := uint32(slot)
			if v := atomic.LoadUint32(t.half(s, 0)); v&1 != 0 {
				atomic.StoreUint32(t.half(s, 0), v+1)
			}
			if State(atomic.LoadUint32(t.half(s, 1))) != Empty {
				w.used++
			}
		}
	}
	return w, nil
}

// NextSegment gives the number of a new segment. The index counts them, for a number is
// not used again by a later agent either: readers may have the old segment mapped.
func (w *Writer) NextSegment() uint32 {
	return atomic.AddUint32((*uint32)(unsafe.Pointer(&w.t.seg.Bytes()[segmentsAt])), 1)
}

// File is the index's descriptor; it stays owned by the Writer.
func (w *Writer) File() *os.File { return w.file }

// Close unmaps it.
func (w *Writer) Close() error { return w.t.seg.Close() }

// Entries calls yield with every entry that is not empty.
func (w *Writer) Entries(yield func(Entry)) {
	for from, to := range used(w.file, headerSize+entrySize*(int(w.t.mask)+1)) {
		for slot := max(from-headerSize, 0) / entrySize; slot < (to-headerSize)/entrySize; slot++ {
			var e Entry
			w.t.load(uint32(slot), &e)
			if e.State != Empty {
				yield(e)
			}
		}
	}
}

// Insert puts an object in that is not there, in the given state, and gives its entry:
// slot and generation are new.
func (w *Writer) Insert(e Entry) (Entry, error) {
	slot := w.t.start(e.ID)
	for range w.t.mask + 1 {
		switch s := State(atomic.LoadUint32(w.t.half(slot, 1))); {
		case s == Empty:
			// A quarter stays empty, or readers would probe for long.
			if w.used > int(w.t.mask)/4*3 {
				return e, errs.New(errs.Exhausted, "the node has %d objects, that is what its index holds", w.used).
					Hint("release references that are not needed any more, or put many small values into one")
			}
			w.used++
		case s == Deleted && atomic.LoadUint64(w.t.word(slot, 7)) == 0:
		default:
			slot = (slot + 1) & w.t.mask
			continue
		}
		e.Slot = slot
		w.Write(&e)
		return e, nil
	}
	return e, errs.New(errs.Exhausted, "the index of the node's objects is full")
}

// Write replaces the entry of e.Slot by e, which is the same object; it gets the next
// generation.
func (w *Writer) Write(e *Entry) {
	e.Generation = atomic.LoadUint32(w.t.half(e.Slot, 7)) + 1
	v := w.begin(e.Slot)
	atomic.StoreUint64(w.t.word(e.Slot, 1), binary.LittleEndian.Uint64(e.ID[:]))
	atomic.StoreUint64(w.t.word(e.Slot, 2), binary.LittleEndian.Uint64(e.ID[8:]))
	atomic.StoreUint64(w.t.word(e.Slot, 3), uint64(e.Segment)|uint64(e.Generation)<<32)
	atomic.StoreUint64(w.t.word(e.Slot, 4), e.Offset)
	atomic.StoreUint64(w.t.word(e.Slot, 5), e.Size)
	atomic.StoreUint64(w.t.word(e.Slot, 6), uint64(e.Form)|uint64(e.LastUse)<<32)
	atomic.StoreUint32(w.t.half(e.Slot, 1), uint32(e.State))
	atomic.StoreUint32(w.t.half(e.Slot, 0), v)
}

// begin makes an entry's version odd and gives the one that ends the change.
func (w *Writer) begin(slot uint32) uint32 {
	v := atomic.LoadUint32(w.t.half(slot, 0)) | 1
	atomic.StoreUint32(w.t.half(slot, 0), v)
	return v + 1
}

// SetState changes the state only; the generation stays.
func (w *Writer) SetState(slot uint32, s State) {
	v := w.begin(slot)
	atomic.StoreUint32(w.t.half(slot, 1), uint32(s))
	atomic.StoreUint32(w.t.half(slot, 0), v)
}

// Void marks an entry Deleting and takes its id away: the object is gone for all but those
// who have it pinned, and another one may have the id.
func (w *Writer) Void(slot uint32) {
	v := w.begin(slot)
	atomic.StoreUint64(w.t.word(slot, 1), 0)
	atomic.StoreUint64(w.t.word(slot, 2), 0)
	atomic.StoreUint32(w.t.half(slot, 1), uint32(Deleting))
	atomic.StoreUint32(w.t.half(slot, 0), v)
}

// Touch notes the last use, for a later agent.
func (w *Writer) Touch(slot, tick uint32) { atomic.StoreUint32(w.t.half(slot, 13), tick) }

// Delete takes an object out. unclaimed: its place is one that the producer is yet to be
// told of; the entry keeps it until Claim, so that a later agent knows it too.
func (w *Writer) Delete(slot uint32, unclaimed bool) {
	if unclaimed {
		atomic.StoreUint64(w.t.word(slot, 7), 1)
	}
	w.SetState(slot, Deleted)
	if !unclaimed {
		w.sweep(slot)
	}
}

// Claim ends what Delete began with unclaimed.
func (w *Writer) Claim(slot uint32) {
	atomic.StoreUint64(w.t.word(slot, 7), 0)
	w.sweep(slot)
}

// sweep makes deleted entries empty that no probe needs: those before an empty one.
func (w *Writer) sweep(slot uint32) {
	next := (slot + 1) & w.t.mask
	for State(atomic.LoadUint32(w.t.half(next, 1))) == Empty &&
		State(atomic.LoadUint32(w.t.half(slot, 1))) == Deleted && atomic.LoadUint64(w.t.word(slot, 7)) == 0 {
		w.SetState(slot, Empty)
		w.used--
		next, slot = slot, (slot-1)&w.t.mask
	}
}

// Find looks an object up.
func (w *Writer) Find(id wire.ObjectID) (e Entry, ok bool) {
	ok = w.t.find(id, &e)
	return e, ok
}
