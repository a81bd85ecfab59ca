package reduce

import "golang.org/x/sys/cpu"

// The kernels of kernels_*_amd64.s. Each takes whole vectors from a.off on and gives
// where it stopped, less than a vector before a.end.

//go:noescape
func sumF64x512(a *args) uintptr

//go:noescape
func minF64x512(a *args) uintptr

//go:noescape
func maxF64x512(a *args) uintptr

//go:noescape
func mulF64x512(a *args) uintptr

//go:noescape
func avgF64x512(a *args) uintptr

//go:noescape
func sumF32x512(a *args) uintptr

//go:noescape
func minF32x512(a *args) uintptr

//go:noescape
func maxF32x512(a *args) uintptr

//go:noescape
func mulF32x512(a *args) uintptr

//go:noescape
func avgF32x512(a *args) uintptr

//go:noescape
func sumF16x512(a *args) uintptr

//go:noescape
func minF16x512(a *args) uintptr

//go:noescape
func maxF16x512(a *args) uintptr

//go:noescape
func mulF16x512(a *args) uintptr

//go:noescape
func avgF16x512(a *args) uintptr

//go:noescape
func sumB16x512(a *args) uintptr

//go:noescape
func minB16x512(a *args) uintptr

//go:noescape
func maxB16x512(a *args) uintptr

//go:noescape
func mulB16x512(a *args) uintptr

//go:noescape
func avgB16x512(a *args) uintptr

//go:noescape
func sumI32x512(a *args) uintptr

//go:noescape
func minI32x512(a *args) uintptr

//go:noescape
func maxI32x512(a *args) uintptr

//go:noescape
func mulI32x512(a *args) uintptr

//go:noescape
func sumI64x512(a *args) uintptr

//go:noescape
func minI64x512(a *args) uintptr

//go:noescape
func maxI64x512(a *args) uintptr

//go:noescape
func mulI64x512(a *args) uintptr

//go:noescape
func sumF64x256(a *args) uintptr

//go:noescape
func minF64x256(a *args) uintptr

//go:noescape
func maxF64x256(a *args) uintptr

//go:noescape
func mulF64x256(a *args) uintptr

//go:noescape
func avgF64x256(a *args) uintptr

//go:noescape
func sumF32x256(a *args) uintptr

//go:noescape
func minF32x256(a *args) uintptr

//go:noescape
func maxF32x256(a *args) uintptr

//go:noescape
func mulF32x256(a *args) uintptr

//go:noescape
func avgF32x256(a *args) uintptr

//go:noescape
func sumF16x256(a *args) uintptr

//go:noescape
func minF16x256(a *args) uintptr

//go:noescape
func maxF16x256(a *args) uintptr

//go:noescape
func mulF16x256(a *args) uintptr

//go:noescape
func avgF16x256(a *args) uintptr

//go:noescape
func sumB16x256(a *args) uintptr

//go:noescape
func minB16x256(a *args) uintptr

//go:noescape
func maxB16x256(a *args) uintptr

//go:noescape
func mulB16x256(a *args) uintptr

//go:noescape
func avgB16x256(a *args) uintptr

//go:noescape
func sumI32x256(a *args) uintptr

//go:noescape
func minI32x256(a *args) uintptr

//go:noescape
func maxI32x256(a *args) uintptr

//go:noescape
func mulI32x256(a *args) uintptr

//go:noescape
func sumI64x256(a *args) uintptr

//go:noescape
func minI64x256(a *args) uintptr

//go:noescape
func maxI64x256(a *args) uintptr

func avx512() (t [endType][endOp]kernel) {
	t[Float64] = [endOp]kernel{Sum: sumF64x512, Min: minF64x512, Max: maxF64x512, Product: mulF64x512, Mean: avgF64x512}
	t[Float32] = [endOp]kernel{Sum: sumF32x512, Min: minF32x512, Max: maxF32x512, Product: mulF32x512, Mean: avgF32x512}
	t[Float16] = [endOp]kernel{Sum: sumF16x512, Min: minF16x512, Max: maxF16x512, Product: mulF16x512, Mean: avgF16x512}
	t[BFloat16] = [endOp]kernel{Sum: sumB16x512, Min: minB16x512, Max: maxB16x512, Product: mulB16x512, Mean: avgB16x512}
	t[Int32] = [endOp]kernel{Sum: sumI32x512, Min: minI32x512, Max: maxI32x512, Product: mulI32x512}
	t[Int64] = [endOp]kernel{Sum: sumI64x512, Min: minI64x512, Max: maxI64x512, Product: mulI64x512}
	return t
}

func avx2() (t [endType][endOp]kernel) {
	t[Float64] = [endOp]kernel{Sum: sumF64x256, Min: minF64x256, Max: maxF64x256, Product: mulF64x256, Mean: avgF64x256}
	t[Float32] = [endOp]kernel{Sum: sumF32x256, Min: minF32x256, Max: maxF32x256, Product: mulF32x256, Mean: avgF32x256}
	t[Float16] = [endOp]kernel{Sum: sumF16x256, Min: minF16x256, Max: maxF16x256, Product: mulF16x256, Mean: avgF16x256}
	t[BFloat16] = [endOp]kernel{Sum: sumB16x256, Min: minB16x256, Max: maxB16x256, Product: mulB16x256, Mean: avgB16x256}
	t[Int32] = [endOp]kernel{Sum: sumI32x256, Min: minI32x256, Max: maxI32x256, Product: mulI32x256}
	t[Int64] = [endOp]kernel{Sum: sumI64x256, Min: minI64x256, Max: maxI64x256}
	return t
}

// choices are the sets of kernels that this processor can run, by name.
func choices() map[string][endType][endOp]kernel {
	m := map[string][endType][endOp]kernel{}
	if cpu.X86.HasAVX2 && cpu.X86.HasF16C {
		m["avx2"] = avx2()
	}
	if cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512VL {
		m["avx512"] = avx512()
	}
	return m
}

func choose() (t [endType][endOp]kernel, name string) {
	m := choices()
	for _, name := range []string{"avx512", "avx2"} {
		if t, ok := m[name]; ok {
			return t, name
		}
	}
	return t, "go"
}
