package reduce

import "unsafe"

// block bounds one call of a kernel. Assembly cannot be preempted, and the garbage
// collector waits for it; and a block that fits the first levels of cache lets the
// plain Go kernels make several passes over it for nothing.
const block = 128 << 10

// args is what a kernel gets; assembly knows the offsets.
type args struct {
	outs *unsafe.Pointer // 0
	nout uintptr         // 8
	ins  *unsafe.Pointer // 16
	nin  uintptr         // 24
	off  uintptr         // 32: bytes from each pointer where to start
	end  uintptr         // 40: where to stop
	div  float64         // 48
	divf float32         // 56
	_    uint32
}

// kernel handles [off, end) as far as whole vectors go, and gives where it stopped.
type kernel func(a *args) uintptr

// Worker runs kernels. It is the scratch memory of one caller at a time, so that a call
// allocates nothing; the zero value is ready.
type Worker struct{ a args }

// Do combines ins element by element over n elements of type t and writes the result
// to every one of outs. An output may be one of the inputs, in place; otherwise none
// may overlap. div is the divisor of Mean. The caller has checked (t, op) with Check.
func (w *Worker) Do(t Type, op Op, div int, outs, ins []unsafe.Pointer, n int) {
	w.do(&table[t][op], t, op, div, outs, ins, n)
}

func (w *Worker) do(fast *kernel, t Type, op Op, div int, outs, ins []unsafe.Pointer, n int) {
	if n == 0 || len(outs) == 0 || len(ins) == 0 {
		return
	}
	bytes := uintptr(n) * uintptr(t.Size())
	a := &w.a
	*a = args{outs: &outs[0], nout: uintptr(len(outs)), ins: &ins[0], nin: uintptr(len(ins)), div: float64(div), divf: float32(div)}
	for off := uintptr(0); off < bytes; {
		end := min(off+block, bytes)
		a.off, a.end = off, end
		if *fast != nil {
			a.off = (*fast)(a)
		}
		if a.off < end {
			plain(t, op, a, outs, ins)
		}
		off = end
	}
	a.outs, a.ins = nil, nil
}

// Kernels names the instruction set that Do uses here.
func Kernels() string { return chosen }

// table has the fast kernel of each pair, nil where only plain Go is.
var table, chosen = choose()
