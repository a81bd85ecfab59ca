package reduce

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"
)

// edges are bit patterns that break careless kernels, widened or cut to each type:
// zeros of both signs, infinities, quiet and signalling NaN, subnormals, extremes.
var edges = []uint64{
	0, 1 << 63, 1 << 31, 0x7ff0000000000000, 0xfff0000000000000, 0x7ff8000000000001, 0x7ff0000000000001, 1, 0x7fefffffffffffff,
	0x7f800000, 0xff800000, 0x7fc00001, 0x7f800001, 0x7f7fffff, 0x00800000, 0x007fffff, 0x80007c00, 0xfc007e01, 0x7bff0400, 0x03ff0001,
	0x7f807f81ff80, math.MaxUint64, 0x7fffffffffffffff, 0x8000000000000000, 0x3f803f80,
}

// vectors makes n inputs of bytes each, mixing plain numbers with edges.
func vectors(r *rand.Rand, t Type, n, elems int, sharp bool) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		b := make([]byte, elems*t.Size())
		for e := range elems {
			p := b[e*t.Size():]
			switch {
			case sharp && r.IntN(4) == 0:
				put(p, t, edges[r.IntN(len(edges))])
			case sharp && r.IntN(4) == 0:
				put(p, t, r.Uint64())
			default:
				putNumber(p, t, r.NormFloat64()*8)
			}
		}
		out[i] = b
	}
	return out
}

func put(p []byte, t Type, v uint64) {
	switch t.Size() {
	case 8:
		binary.LittleEndian.PutUint64(p, v)
	case 4:
		binary.LittleEndian.PutUint32(p, uint32(v))
	case 2:
		binary.LittleEndian.PutUint16(p, uint16(v))
	}
}

func putNumber(p []byte, t Type, f float64) {
	switch t {
	case Float64:
		put(p, t, math.Float64bits(f))
	case Float32:
		put(p, t, uint64(math.Float32bits(float32(f))))
	case Float16:
		put(p, t, uint64(F32ToF16(float32(f))))
	case BFloat16:
		put(p, t, uint64(F32ToBF16(float32(f))))
	default:
		put(p, t, uint64(int64(f*1e6)))
	}
}

func pointers(v [][]byte) []unsafe.Pointer {
	p := make([]unsafe.Pointer, len(v))
	for i := range v {
		p[i] = unsafe.Pointer(unsafe.SliceData(v[i]))
	}
	return p
}

func clone(v [][]byte) [][]byte {
	out := make([][]byte, len(v))
	for i := range v {
		out[i] = append(make([]byte, 0, len(v[i])+1), v[i]...)
	}
	return out
}

// sameOrNaN compares results; which payload a NaN carries is not defined.
func sameOrNaN(t Type, a, b []byte) error {
	if bytes.Equal(a, b) {
		return nil
	}
	for i := 0; i < len(a); i += t.Size() {
		x, y := a[i:i+t.Size()], b[i:i+t.Size()]
		if !bytes.Equal(x, y) && !(isNaN(t, x) && isNaN(t, y)) {
			return fmt.Errorf("element %d: %x, want %x", i/t.Size(), x, y)
		}
	}
	return nil
}

func isNaN(t Type, b []byte) bool {
	switch t {
	case Float64:
		return math.IsNaN(math.Float64frombits(binary.LittleEndian.Uint64(b)))
	case Float32:
		f := math.Float32frombits(binary.LittleEndian.Uint32(b))
		return f != f
	case Float16:
		f := F16ToF32(binary.LittleEndian.Uint16(b))
		return f != f
	case BFloat16:
		f := BF16ToF32(binary.LittleEndian.Uint16(b))
		return f != f
	}
	return false
}

// TestKernels holds every kernel that this processor can run to the plain one: all
// types and operations, lengths around the vector sizes, one to several outputs, in
// place and not, on numbers (bit for bit) and on edges.
func TestKernels(t *testing.T) {
	sets := choices()
	t.Logf("kernels here: %d sets, chosen %s", len(sets), Kernels())
	var none kernel
	var w Worker
	for name, set := range sets {
		for _, typ := range Types {
			for _, op := range Ops {
				if Check(typ, op) != nil {
					continue
				}
				r := rand.New(rand.NewPCG(uint64(typ), uint64(op)))
				for _, n := range []int{1, 2, 3, 4, 5, 8, 17} {
					for _, elems := range []int{1, 7, 15, 16, 31, 33, 64, 65, 127, 300, 1025} {
						for _, outs := range []int{1, 2, n} {
							for _, sharp := range []bool{false, true} {
								in := vectors(r, typ, n, elems, sharp)
								want := [][]byte{make([]byte, elems*typ.Size())}
								w.do(&none, typ, op, n, pointers(want), pointers(in), elems)
								got := in // in place
								if outs != n {
									got = make([][]byte, outs)
									for i := range got {
										got[i] = make([]byte, elems*typ.Size())
									}
								}
								w.do(&set[typ][op], typ, op, n, pointers(got[:outs]), pointers(in), elems)
								for i := range outs {
									err := sameOrNaN(typ, got[i], want[0])
									if !sharp && !bytes.Equal(got[i], want[0]) && err == nil {
										err = fmt.Errorf("NaN out of numbers, or NaN of another sign")
									}
									if err != nil {
										t.Fatalf("%s %s %s, %d inputs of %d, output %d of %d, sharp %v: %v", name, typ, op, n, elems, i, outs, sharp, err)
									}
								}
							}
						}
					}
				}
			}
		}
	}
}

// TestPlainInPlace: outputs that are inputs give the same as others, past the stage.
func TestPlainInPlace(t *testing.T) {
	var none kernel
	var w Worker
	for _, typ := range Types {
		in := vectors(rand.New(rand.NewPCG(1, 2)), typ, 3, 3*stage+5, false)
		want := [][]byte{make([]byte, len(in[0]))}
		w.do(&none, typ, Sum, 3, pointers(want), pointers(in), 3*stage+5)
		w.do(&none, typ, Sum, 3, pointers(in), pointers(in), 3*stage+5)
		for i := range in {
			if !bytes.Equal(in[i], want[0]) {
				t.Errorf("%s: output %d in place differs", typ, i)
			}
		}
	}
}

// TestHalf goes through every half value, and rounds around every one.
func TestHalf(t *testing.T) {
	for i := range 1 << 16 {
		h := uint16(i)
		f := F16ToF32(h)
		if f == f && F32ToF16(f) != h {
			t.Fatalf("half %04x widens to %g and comes back as %04x", h, f, F32ToF16(f))
		}
		if h&0x7fff < 0x7bff { // finite with a finite neighbour
			next := F16ToF32(h + 1)
			mid := (f + next) / 2 // exact in float32
			even := h + h&1
			if got := F32ToF16(mid); got != even {
				t.Fatalf("between %04x and its neighbour: %04x, want the even %04x", h, got, even)
			}
			if got := F32ToF16(math.Nextafter32(mid, f)); got != h {
				t.Fatalf("just nearer to %04x rounds to %04x", h, got)
			}
			if got := F32ToF16(math.Nextafter32(mid, next)); got != h+1 {
				t.Fatalf("just nearer to %04x rounds to %04x", h+1, got)
			}
		}
		if b := BF16ToF32(h); b == b && F32ToBF16(b) != h {
			t.Fatalf("bfloat16 %04x comes back as %04x", h, F32ToBF16(b))
		}
	}
	for f, want := range map[float32]uint16{65519: 0x7bff, 65520: 0x7c00, -1e9: 0xfc00, 1e-9: 0, 1: 0x3c00, 5.9604645e-08: 1} {
		if got := F32ToF16(f); got != want {
			t.Errorf("%g: %04x, want %04x", f, got, want)
		}
	}
	inf := float32(math.Inf(1))
	for f, want := range map[float32]uint16{math.MaxFloat32: 0x7f80, inf: 0x7f80, 1.00390625: 0x3f80, 1.01171875: 0x3f82, -inf: 0xff80} {
		if got := F32ToBF16(f); got != want {
			t.Errorf("bfloat16 of %g: %04x, want %04x", f, got, want)
		}
	}
	for _, h := range []uint16{F32ToF16(float32(math.NaN())), F32ToBF16(math.Float32frombits(0x7fffffff))} {
		if f := BF16ToF32(h); f == f && h&0x7c00 != 0x7c00 {
			t.Errorf("NaN became %04x", h)
		}
	}
}

// TestRoundOnce: 1 + 255 times 2^-9 is exact in float32 and far off when every sum is
// rounded to bfloat16.
func TestRoundOnce(t *testing.T) {
	in := make([][]byte, 256)
	for i := range in {
		in[i] = make([]byte, 2*33)
		for e := range 33 {
			v := float32(1)
			if i > 0 {
				v = 1.0 / 512
			}
			put(in[i][2*e:], BFloat16, uint64(F32ToBF16(v)))
		}
	}
	out := [][]byte{make([]byte, 2*33)}
	var w Worker
	w.Do(BFloat16, Sum, 1, pointers(out), pointers(in), 33)
	for e := range 33 {
		if got := BF16ToF32(binary.LittleEndian.Uint16(out[0][2*e:])); got != 1.5 {
			t.Fatalf("element %d: %g, want 1.5 (1.498 rounded once)", e, got)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, typ := range Types {
		for _, op := range Ops {
			if err := Check(typ, op); (err != nil) != (op == Mean && !typ.Float()) {
				t.Errorf("%s %s: %v", typ, op, err)
			}
		}
		if back, err := ParseType(typ.String()); back != typ || err != nil {
			t.Errorf("%s: %v", typ, err)
		}
	}
	if Check(0, Sum) == nil || Check(endType, Sum) == nil || Check(Int32, 0) == nil || Check(Int32, endOp) == nil {
		t.Error("values that are no type or no operation pass")
	}
	if _, err := ParseOp("average"); err == nil {
		t.Error("average parses")
	}
}

func TestNoAllocations(t *testing.T) {
	in := vectors(rand.New(rand.NewPCG(1, 2)), Float32, 2, 1000, false)
	p := pointers(in)
	var w Worker
	if n := testing.AllocsPerRun(100, func() { w.Do(Float32, Sum, 2, p, p, 1000) }); n != 0 {
		t.Errorf("%v allocations a call", n)
	}
}

func BenchmarkDo(b *testing.B) {
	for _, typ := range Types {
		for _, kb := range []int{64, 1024} {
			for _, n := range []int{2, 4} {
				b.Run(fmt.Sprintf("%s/%dKB/n%d", typ, kb, n), func(b *testing.B) {
					in := vectors(rand.New(rand.NewPCG(1, 2)), typ, n, kb<<10/typ.Size(), false)
					p := pointers(in)
					b.SetBytes(int64(kb << 10))
					var w Worker
					for b.Loop() {
						w.Do(typ, Sum, n, p[:1], p, kb<<10/typ.Size())
					}
				})
			}
		}
	}
}
