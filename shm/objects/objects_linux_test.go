package objects

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/shm"
	"launcher/wire"
)

func newWriter(t testing.TB, n int) *Writer {
	t.Helper()
	w, err := CreateIndex("test-index", n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func dup(t testing.TB, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

func reader(t testing.TB, w *Writer) *Index {
	t.Helper()
	x, err := OpenIndex(dup(t, w.File()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

func newPins(t testing.TB) (*Watch, *Pins) {
	t.Helper()
	w, err := CreatePins("test-pins")
	if err != nil {
		t.Fatal(err)
	}
	p, err := OpenPins(dup(t, w.File()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(); w.Close() })
	return w, p
}

func id(n int) wire.ObjectID { return wire.NewObjectID(1, 2, uint64(n), wire.PutIndex) }

// The index against a map, through inserts, deletes and a restart of the writer.
func TestIndexIsAMap(t *testing.T) {
	w := newWriter(t, 512)
	x := reader(t, w)
	r := rand.New(rand.NewPCG(1, 2))
	model := map[int]Entry{}
	pending := []uint32{}
	for step := range 60_000 {
		n := r.IntN(600)
		e, in := model[n]
		switch {
		case !in && len(model)+len(pending) < 700:
			e, err := w.Insert(Entry{ID: id(n), State: Sealed, Segment: uint32(r.IntN(5)), Offset: uint64(step), Size: uint64(n), Form: uint32(step % 4)})
			if err != nil {
				t.Fatalf("step %d, %d entries: %v", step, len(model), err)
			}
			model[n] = e
		case in && r.IntN(3) == 0:
			w.Delete(e.Slot, true)
			pending = append(pending, e.Slot)
			delete(model, n)
		case in && r.IntN(3) == 0:
			w.SetState(e.Slot, Deleting)
			w.Delete(e.Slot, false)
			delete(model, n)
		case len(pending) > 50:
			for _, s := range pending {
				w.Claim(s)
			}
			pending = pending[:0]
		}
		for range 3 {
			n := r.IntN(600)
			e, in := model[n]
			got, ok := x.Find(id(n))
			if ok != in || ok && got != e {
				t.Fatalf("step %d: object %d is %+v (%v), want %+v (%v)", step, n, got, ok, e, in)
			}
		}
	}
	again, err := OpenWriter(dup(t, w.File()))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.used != w.used {
		t.Errorf("a later writer counts %d entries in use, the first one %d", again.used, w.used)
	}
	found, unclaimed := 0, 0
	again.Entries(func(e Entry) {
		if e.State == Sealed {
			found++
		} else if e.Unclaimed {
			unclaimed++
		}
	})
	if found != len(model) || unclaimed != len(pending) {
		t.Errorf("a later writer finds %d objects and %d stretches, want %d and %d", found, unclaimed, len(model), len(pending))
	}
}

func TestIndexFull(t *testing.T) {
	w := newWriter(t, 1)
	n := 0
	for ; ; n++ {
		if _, err := w.Insert(Entry{ID: id(n), State: Sealed}); err != nil {
			if !errs.Is(err, errs.Exhausted) || len(errs.HintsOf(err)) == 0 {
				t.Errorf("a full index: %v", err)
			}
			break
		}
	}
	if n < 700 || n > 1000 {
		t.Errorf("%d objects fit 1024 entries", n)
	}
	for i := range n {
		e, ok := w.Find(id(i))
		if !ok {
			t.Fatalf("object %d of %d is not there", i, n)
		}
		w.Delete(e.Slot, false)
	}
	if w.used > 0 {
		w.Entries(func(e Entry) {
			if e.State != Deleted {
				t.Errorf("after all was deleted: %+v", e)
			}
		})
	}
}

// An agent that was killed while it wrote an entry leaves an odd version.
func TestIndexHalfWritten(t *testing.T) {
	w := newWriter(t, 100)
	x := reader(t, w)
	e, err := w.Insert(Entry{ID: id(1), State: Sealed})
	if err != nil {
		t.Fatal(err)
	}
	w.begin(e.Slot)
	if _, ok := x.Find(id(1)); ok {
		t.Error("found an entry that is being written")
	}
	again, err := OpenWriter(dup(t, w.File()))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, ok := x.Find(id(1)); !ok {
		t.Error("the entry is not there after the restart")
	}
}

func TestPins(t *testing.T) {
	w := newWriter(t, 100)
	x := reader(t, w)
	watch, pins := newPins(t)
	held := func() (n int) { watch.Scan(func(PinKey) { n++ }); return n }
	if _, _, ok, err := pins.Get(x, id(1)); ok || err != nil {
		t.Errorf("pinned what is not there: %v", err)
	}
	e, _ := w.Insert(Entry{ID: id(1), State: Sealed, Segment: 3, Offset: 64, Size: 100})
	got, pin, ok, err := pins.Get(x, id(1))
	if !ok || err != nil || got != e || held() != 1 {
		t.Fatalf("pinned %+v, %v, %v, %d held; want %+v", got, ok, err, held(), e)
	}
	watch.Scan(func(k PinKey) {
		if k != e.PinKey() {
			t.Errorf("the pin is %x, want %x", k, e.PinKey())
		}
	})
	w.SetState(e.Slot, Deleting)
	if _, _, ok, _ := pins.Get(x, id(1)); ok || held() != 1 {
		t.Error("pinned what is being deleted, or left a pin behind")
	}
	pins.Release(pin)
	w.Delete(e.Slot, false)
	if e2, _ := w.Insert(Entry{ID: id(1), State: Sealed}); e2.Slot != e.Slot || e2.PinKey() == e.PinKey() {
		t.Errorf("the next object in slot %d has the pin %x, as the one before", e2.Slot, e2.PinKey())
	}
	for range PinWords {
		if _, _, ok, err := pins.Get(x, id(1)); !ok || err != nil {
			t.Fatal(err)
		}
	}
	if _, _, _, err := pins.Get(x, id(1)); !errs.Is(err, errs.Exhausted) {
		t.Errorf("one pin too many: %v", err)
	}
	if held() != PinWords {
		t.Errorf("%d pins are seen, want %d", held(), PinWords)
	}
}

// The arena against a table of who has which unit.
func TestArena(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var a Arena
	const units = 4096
	owner := map[uint32][]int{}
	add := func(seg uint32) {
		a.Add(seg, units*Align)
		owner[seg] = make([]int, units)
	}
	add(1)
	add(2)
	live := map[int]Extent{}
	free := int64(2 * units * Align)
	for step := 1; step < 50_000; step++ {
		if r.IntN(2) == 0 {
			size := int64(1 + r.IntN(200*Align))
			e, _, ok := a.Alloc(size)
			if !ok {
				continue
			}
			if e.Length != RoundUp(size) || e.Offset%Align != 0 {
				t.Fatalf("step %d: %d bytes got %+v", step, size, e)
			}
			for u := e.Offset / Align; u < (e.Offset+e.Length)/Align; u++ {
				if owner[e.Segment][u] != 0 {
					t.Fatalf("step %d: %+v is given out twice", step, e)
				}
				owner[e.Segment][u] = step
			}
			live[step] = e
			free -= e.Length
			continue
		}
		for k, e := range live {
			if err := a.Free(e); err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
			if err := a.Free(e); !errs.Is(err, errs.Corrupt) {
				t.Fatalf("step %d: given back twice: %v", step, err)
			}
			for u := e.Offset / Align; u < (e.Offset+e.Length)/Align; u++ {
				owner[e.Segment][u] = 0
			}
			delete(live, k)
			free += e.Length
			break
		}
		if a.Left() != free {
			t.Fatalf("step %d: %d bytes are left, want %d", step, a.Left(), free)
		}
	}
	used := false
	for _, e := range live {
		used = used || e.Segment == 1
	}
	if a.Drop(1) == used {
		t.Errorf("a segment is dropped: %v; it is in use: %v", !used, used)
	}
	var b Arena // the same, made again from what is in use
	b.Add(1, units*Align)
	b.Add(2, units*Align)
	for _, e := range live {
		if !b.Take(e) || b.Take(e) {
			t.Fatalf("%+v cannot be taken once", e)
		}
	}
	if b.Left() != free {
		t.Errorf("made again it has %d bytes left, want %d", b.Left(), free)
	}
	for _, e := range live {
		if err := b.Free(e); err != nil {
			t.Fatal(err)
		}
	}
	if !b.Drop(1) || !b.Drop(2) || b.Drop(3) {
		t.Error("empty segments cannot be dropped, or others can")
	}
	for _, e := range []Extent{{1, 0, 64}, {9, 0, 64}, {2, -64, 64}, {2, 0, 1 << 60}, {2, 1 << 62, 1 << 62}, {2, 3, 64}, {2, 0, 0}} {
		if a.Free(e) == nil && e.Segment != 1 || b.Free(e) == nil {
			t.Errorf("%+v was taken back", e)
		}
	}
}

func TestCopy(t *testing.T) {
	src := make([]byte, splitSize+12345)
	for i := range src {
		src[i] = byte(i ^ i>>8 ^ i>>16)
	}
	for _, n := range []int{0, 1, 4095, populateSize + 1, piece*2 + 77, len(src)} {
		for _, fresh := range []bool{true, false} {
			dst := make([]byte, n+5)
			Copy(dst[3:], src[:n], fresh)
			if !bytes.Equal(dst[3:3+n], src[:n]) || dst[0] != 0 || dst[n+4] != 0 {
				t.Errorf("%d bytes (fresh %v) are not the same", n, fresh)
			}
		}
	}
}

// Whatever the index says, a reader gets an object within its segment or none.
func FuzzIndex(f *testing.F) {
	w := newWriter(f, 1)
	for n := range 3 {
		_, _ = w.Insert(Entry{ID: id(n), State: Sealed, Segment: 1, Offset: 64, Size: 100})
	}
	good := make([]byte, headerSize+8*entrySize)
	_, _ = w.File().ReadAt(good, 0)
	binary.LittleEndian.PutUint32(good[8:], 8)
	f.Add(good, 1)
	f.Add(good[:headerSize], 1)
	hostile := append([]byte(nil), good...)
	for i := headerSize; i < len(hostile); i += entrySize {
		copy(hostile[i:], []byte{0, 0, 0, 0, 2, 0, 0, 0})
		one := id(1)
		copy(hostile[i+8:], one[:])
		copy(hostile[i+32:], bytes.Repeat([]byte{255}, 16))
	}
	f.Add(hostile, 1)
	_, pins := newPins(f)
	mem := make([]byte, 4096)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if len(b) == 0 {
			return
		}
		file, err := shm.CreateSized("fuzz", int64(len(b)), false)
		if err != nil {
			t.Skip(err)
		}
		if _, err := file.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		x, err := OpenIndex(file)
		if err != nil {
			file.Close()
			return
		}
		defer x.Close()
		e, pin, ok, err := pins.Get(x, id(n))
		if !ok || err != nil {
			return
		}
		if got, err := e.Of(mem); err == nil && uint64(len(got)) != e.Size {
			t.Errorf("an object of %d bytes gave %d", e.Size, len(got))
		}
		pins.Release(pin)
	})
}

func BenchmarkGet(b *testing.B) {
	for _, n := range []int{1, 1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newWriter(b, n)
			x := reader(b, w)
			_, pins := newPins(b)
			for i := range n {
				if _, err := w.Insert(Entry{ID: id(i), State: Sealed}); err != nil {
					b.Fatal(err)
				}
			}
			i := 0
			for b.Loop() {
				_, pin, ok, err := pins.Get(x, id(i))
				if !ok || err != nil {
					b.Fatal("not found")
				}
				pins.Release(pin)
				if i += 7919; i >= n {
					i %= n
				}
			}
		})
	}
}

func BenchmarkCopy(b *testing.B) {
	for _, n := range []int{1 << 20, 8 << 20, 100 << 20} {
		b.Run(fmt.Sprintf("%dMiB", n>>20), func(b *testing.B) {
			src, dst := make([]byte, n), make([]byte, n)
			Copy(dst, src, true)
			one := time.Duration(1 << 62)
			for range 5 {
				start := time.Now()
				copy(dst, src)
				one = min(one, time.Since(start))
			}
			b.SetBytes(int64(n))
			best := time.Duration(1 << 62)
			for b.Loop() {
				start := time.Now()
				Copy(dst, src, false)
				best = min(best, time.Since(start))
			}
			b.ReportMetric(float64(one)/float64(best), "x-memcpy")
		})
	}
}
