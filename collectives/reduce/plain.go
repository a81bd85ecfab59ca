package reduce

import (
	"math"
	"unsafe"
)

// plain is the portable kernel: the definition that all others are tested against, and
// what finishes the last few elements after them.
func plain(t Type, op Op, a *args, outs, ins []unsafe.Pointer) {
	switch t {
	case Float64:
		plainFloat(op, a, outs, ins, a.div)
	case Float32:
		plainFloat(op, a, outs, ins, a.divf)
	case Int32:
		plainInt[int32](op, a, outs, ins)
	case Int64:
		plainInt[int64](op, a, outs, ins)
	case Float16:
		plainHalf(op, a, outs, ins, F16ToF32, F32ToF16)
	case BFloat16:
		plainHalf(op, a, outs, ins, BF16ToF32, F32ToBF16)
	}
}

func view[T any](p unsafe.Pointer, a *args) []T {
	var z T
	size := unsafe.Sizeof(z)
	return unsafe.Slice((*T)(unsafe.Add(p, a.off)), (a.end-a.off)/size)
}

// stage is how many elements plain kernels accumulate at a time, on the stack, so that
// an output that is also an input is written only after all inputs were read.
const stage = 512

func plainFloat[T float32 | float64](op Op, a *args, outs, ins []unsafe.Pointer, div T) {
	var buf [stage]T
	first := view[T](ins[0], a)
	for at := 0; at < len(first); at += stage {
		acc := buf[:min(stage, len(first)-at)]
		copy(acc, first[at:])
		for _, p := range ins[1:] {
			x := view[T](p, a)[at : at+len(acc)]
			combineFloat(op, acc, x)
		}
		if op == Mean {
			for i := range acc {
				acc[i] /= div
			}
		}
		for _, p := range outs {
			copy(view[T](p, a)[at:], acc)
		}
	}
}

func combineFloat[T float32 | float64](op Op, acc, x []T) {
	x = x[:len(acc)]
	switch op {
	case Sum, Mean:
		for i, v := range x {
			acc[i] += v
		}
	case Product:
		for i, v := range x {
			acc[i] *= v
		}
	case Min:
		for i, v := range x {
			// Not min(): that orders the zeros, which no vector instruction does.
			if !(acc[i] < v || acc[i] != acc[i]) {
				acc[i] = v
			}
		}
	case Max:
		for i, v := range x {
			if !(acc[i] > v || acc[i] != acc[i]) {
				acc[i] = v
			}
		}
	}
}

func plainInt[T int32 | int64](op Op, a *args, outs, ins []unsafe.Pointer) {
	var buf [stage]T
	first := view[T](ins[0], a)
	for at := 0; at < len(first); at += stage {
		acc := buf[:min(stage, len(first)-at)]
		copy(acc, first[at:])
		for _, p := range ins[1:] {
			x := view[T](p, a)[at : at+len(acc)]
			switch op {
			case Sum:
				for i, v := range x {
					acc[i] += v
				}
			case Product:
				for i, v := range x {
					acc[i] *= v
				}
			case Min:
				for i, v := range x {
					acc[i] = min(acc[i], v)
				}
			case Max:
				for i, v := range x {
					acc[i] = max(acc[i], v)
				}
			}
		}
		for _, p := range outs {
			copy(view[T](p, a)[at:], acc)
		}
	}
}

func plainHalf(op Op, a *args, outs, ins []unsafe.Pointer, widen func(uint16) float32, round func(float32) uint16) {
	var buf, wide [stage]float32
	var out [stage]uint16
	first := view[uint16](ins[0], a)
	for at := 0; at < len(first); at += stage {
		n := min(stage, len(first)-at)
		acc, w := buf[:n], wide[:n]
		for i, v := range first[at : at+n] {
			acc[i] = widen(v)
		}
		for _, p := range ins[1:] {
			for i, v := range view[uint16](p, a)[at : at+n] {
				w[i] = widen(v)
			}
			combineFloat(op, acc, w)
		}
		for i, v := range acc {
			if op == Mean {
				v /= a.divf
			}
			out[i] = round(v)
		}
		for _, p := range outs {
			copy(view[uint16](p, a)[at:], out[:n])
		}
	}
}

// F16ToF32 widens an IEEE half; exact.
func F16ToF32(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	exp := uint32(h>>10) & 0x1f
	man := uint32(h & 0x3ff)
	switch {
	case exp == 0x1f: // infinity; a NaN becomes quiet, as the processor makes it
		if man != 0 {
			man |= 0x200
		}
		return math.Float32frombits(sign | 0x7f800000 | man<<13)
	case exp != 0:
		return math.Float32frombits(sign | (exp+112)<<23 | man<<13)
	}
	// Zero and subnormals: man * 2^-24.
	f := float32(man) * (1.0 / (1 << 24))
	return math.Float32frombits(math.Float32bits(f) | sign)
}

// F32ToF16 rounds to the nearest half, ties to even; too large gives infinity, a NaN
// stays a quiet NaN.
func F32ToF16(f float32) uint16 {
	b := math.Float32bits(f)
	sign := uint16(b>>16) & 0x8000
	b &= 0x7fffffff
	switch {
	case b > 0x7f800000:
		return sign | 0x7e00 | uint16(b>>13)&0x3ff
	case b >= 0x477ff000: // 65520 and above round to infinity
		return sign | 0x7c00
	case b >= 0x38800000: // normal
		b += 0xfff + (b>>13)&1 - 112<<23
		return sign | uint16(b>>13)
	case b < 0x33000000: // below half of the smallest subnormal
		return sign
	}
	exp := b >> 23 // 102..112
	man := b&0x7fffff | 0x800000
	shift := 126 - exp // the result counts units of 2^-24
	half := uint32(1) << (shift - 1)
	q := man >> shift
	rest := man & (half<<1 - 1)
	if rest > half || rest == half && q&1 == 1 {
		q++
	}
	return sign | uint16(q)
}

// BF16ToF32 widens a bfloat16; exact.
func BF16ToF32(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// F32ToBF16 rounds to the nearest bfloat16, ties to even; a NaN stays a quiet NaN.
func F32ToBF16(f float32) uint16 {
	b := math.Float32bits(f)
	if f != f {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + (b>>16)&1) >> 16)
}
