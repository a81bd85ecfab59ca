//go:build amd64

#include "textflag.h"

// One macro makes all kernels: LD loads or widens a vector, OP folds one more input
// into the accumulator, FIN ends the element (mean), ST stores or narrows. STEP is the
// bytes of one vector in memory. The main loop takes four vectors of every input
// before it stores, which hides the latency of OP; the second loop takes single ones.
//
//	R8 outs, R9 nout, R10 ins, R11 nin, SI offset, DX end, Z0-Z3 accumulators,
//	Z15 divisor, Z4-Z7 scratch, Z16-Z18 constants of the half types

#define AT(o) o(CX)(SI*1)

#define KERNEL(NAME, STEP, PRE, LD, OP, FIN, ST) \
TEXT NAME(SB), NOSPLIT, $0-16 \
	MOVQ a+0(FP), AX \
	MOVQ 0(AX), R8 \
	MOVQ 8(AX), R9 \
	MOVQ 16(AX), R10 \
	MOVQ 24(AX), R11 \
	MOVQ 32(AX), SI \
	MOVQ 40(AX), DX \
	PRE \
four: \
	LEAQ (4*STEP)(SI), BX \
	CMPQ BX, DX \
	JGT  one \
	MOVQ (R10), CX \
	LD(AT(0), Z0) \
	LD(AT(STEP), Z1) \
	LD(AT(2*STEP), Z2) \
	LD(AT(3*STEP), Z3) \
	MOVQ $1, DI \
fourin: \
	CMPQ DI, R11 \
	JGE  fourfin \
	MOVQ (R10)(DI*8), CX \
	OP(AT(0), Z0) \
	OP(AT(STEP), Z1) \
	OP(AT(2*STEP), Z2) \
	OP(AT(3*STEP), Z3) \
	INCQ DI \
	JMP  fourin \
fourfin: \
	FIN(Z0) \
	FIN(Z1) \
	FIN(Z2) \
	FIN(Z3) \
	XORQ DI, DI \
fourout: \
	MOVQ (R8)(DI*8), CX \
	ST(Z0, AT(0)) \
	ST(Z1, AT(STEP)) \
	ST(Z2, AT(2*STEP)) \
	ST(Z3, AT(3*STEP)) \
	INCQ DI \
	CMPQ DI, R9 \
	JLT  fourout \
	MOVQ BX, SI \
	JMP  four \
one: \
	LEAQ STEP(SI), BX \
	CMPQ BX, DX \
	JGT  done \
	MOVQ (R10), CX \
	LD(AT(0), Z0) \
	MOVQ $1, DI \
onein: \
	CMPQ DI, R11 \
	JGE  onefin \
	MOVQ (R10)(DI*8), CX \
	OP(AT(0), Z0) \
	INCQ DI \
	JMP  onein \
onefin: \
	FIN(Z0) \
	XORQ DI, DI \
oneout: \
	MOVQ (R8)(DI*8), CX \
	ST(Z0, AT(0)) \
	INCQ DI \
	CMPQ DI, R9 \
	JLT  oneout \
	MOVQ BX, SI \
	JMP  one \
done: \
	VZEROUPPER \
	MOVQ SI, ret+8(FP) \
	RET

#define NOPRE
#define NOFIN(Z)
#define MOVE(M, Z) VMOVDQU64 M, Z
#define STORE(Z, M) VMOVDQU64 Z, M

// float64
#define ADDPD(M, Z) VADDPD M, Z, Z
#define MULPD(M, Z) VMULPD M, Z, Z
// acc < x ? acc : x, and a NaN in acc stays: VMINPD gives x when either is NaN.
#define MINPD(M, Z) VMINPD M, Z, Z4; VCMPPD $3, Z, Z, K1; VMOVAPD Z, K1, Z4; VMOVAPD Z4, Z
#define MAXPD(M, Z) VMAXPD M, Z, Z4; VCMPPD $3, Z, Z, K1; VMOVAPD Z, K1, Z4; VMOVAPD Z4, Z
#define DIVPD(Z) VDIVPD Z15, Z, Z
#define PREPD VBROADCASTSD 48(AX), Z15
KERNEL(·sumF64x512, 64, NOPRE, MOVE, ADDPD, NOFIN, STORE)
KERNEL(·minF64x512, 64, NOPRE, MOVE, MINPD, NOFIN, STORE)
KERNEL(·maxF64x512, 64, NOPRE, MOVE, MAXPD, NOFIN, STORE)
KERNEL(·mulF64x512, 64, NOPRE, MOVE, MULPD, NOFIN, STORE)
KERNEL(·avgF64x512, 64, PREPD, MOVE, ADDPD, DIVPD, STORE)

// float32
#define ADDPS(M, Z) VADDPS M, Z, Z
#define MULPS(M, Z) VMULPS M, Z, Z
#define MINPS(M, Z) VMINPS M, Z, Z4; VCMPPS $3, Z, Z, K1; VMOVAPS Z, K1, Z4; VMOVAPS Z4, Z
#define MAXPS(M, Z) VMAXPS M, Z, Z4; VCMPPS $3, Z, Z, K1; VMOVAPS Z, K1, Z4; VMOVAPS Z4, Z
#define DIVPS(Z) VDIVPS Z15, Z, Z
#define PREPS VBROADCASTSS 56(AX), Z15
KERNEL(·sumF32x512, 64, NOPRE, MOVE, ADDPS, NOFIN, STORE)
KERNEL(·minF32x512, 64, NOPRE, MOVE, MINPS, NOFIN, STORE)
KERNEL(·maxF32x512, 64, NOPRE, MOVE, MAXPS, NOFIN, STORE)
KERNEL(·mulF32x512, 64, NOPRE, MOVE, MULPS, NOFIN, STORE)
KERNEL(·avgF32x512, 64, PREPS, MOVE, ADDPS, DIVPS, STORE)

// int32, int64
#define ADDD(M, Z) VPADDD M, Z, Z
#define MIND(M, Z) VPMINSD M, Z, Z
#define MAXD(M, Z) VPMAXSD M, Z, Z
#define MULD(M, Z) VPMULLD M, Z, Z
KERNEL(·sumI32x512, 64, NOPRE, MOVE, ADDD, NOFIN, STORE)
KERNEL(·minI32x512, 64, NOPRE, MOVE, MIND, NOFIN, STORE)
KERNEL(·maxI32x512, 64, NOPRE, MOVE, MAXD, NOFIN, STORE)
KERNEL(·mulI32x512, 64, NOPRE, MOVE, MULD, NOFIN, STORE)

#define ADDQ64(M, Z) VPADDQ M, Z, Z
#define MINQ64(M, Z) VPMINSQ M, Z, Z
#define MAXQ64(M, Z) VPMAXSQ M, Z, Z
#define MULQ64(M, Z) VPMULLQ M, Z, Z
KERNEL(·sumI64x512, 64, NOPRE, MOVE, ADDQ64, NOFIN, STORE)
KERNEL(·minI64x512, 64, NOPRE, MOVE, MINQ64, NOFIN, STORE)
KERNEL(·maxI64x512, 64, NOPRE, MOVE, MAXQ64, NOFIN, STORE)
KERNEL(·mulI64x512, 64, NOPRE, MOVE, MULQ64, NOFIN, STORE)

// float16: 16 elements of 2 bytes make one vector of float32.
#define LDH(M, Z) VCVTPH2PS M, Z
#define STH(Z, M) VCVTPS2PH $0, Z, M
#define ADDH(M, Z) VCVTPH2PS M, Z5; VADDPS Z5, Z, Z
#define MULH(M, Z) VCVTPH2PS M, Z5; VMULPS Z5, Z, Z
#define MINH(M, Z) VCVTPH2PS M, Z5; MINPS(Z5, Z)
#define MAXH(M, Z) VCVTPH2PS M, Z5; MAXPS(Z5, Z)
KERNEL(·sumF16x512, 32, NOPRE, LDH, ADDH, NOFIN, STH)
KERNEL(·minF16x512, 32, NOPRE, LDH, MINH, NOFIN, STH)
KERNEL(·maxF16x512, 32, NOPRE, LDH, MAXH, NOFIN, STH)
KERNEL(·mulF16x512, 32, NOPRE, LDH, MULH, NOFIN, STH)
KERNEL(·avgF16x512, 32, PREPS, LDH, ADDH, DIVPS, STH)

// bfloat16: the upper half of a float32. Rounding adds 0x7fff and the lowest kept bit;
// a NaN, which that could carry into infinity, is truncated with its quiet bit set.
#define LDB(M, Z) VPMOVZXWD M, Z; VPSLLD $16, Z, Z
#define STB(Z, M) VPSRLD $16, Z, Z5; VPORD Z18, Z5, Z6; VPANDD Z17, Z5, Z5; VPADDD Z16, Z5, Z5; VPADDD Z, Z5, Z5; VPSRLD $16, Z5, Z5; VCMPPS $3, Z, Z, K1; VMOVDQA32 Z6, K1, Z5; VPMOVDW Z5, M
#define ADDB(M, Z) LDB(M, Z5); VADDPS Z5, Z, Z
#define MULB(M, Z) LDB(M, Z5); VMULPS Z5, Z, Z
#define MINB(M, Z) LDB(M, Z5); MINPS(Z5, Z)
#define MAXB(M, Z) LDB(M, Z5); MAXPS(Z5, Z)
#define PREB MOVL $0x7fff, CX; VPBROADCASTD CX, Z16; MOVL $1, CX; VPBROADCASTD CX, Z17; MOVL $0x40, CX; VPBROADCASTD CX, Z18
#define PREBAVG PREB; PREPS
KERNEL(·sumB16x512, 32, PREB, LDB, ADDB, NOFIN, STB)
KERNEL(·minB16x512, 32, PREB, LDB, MINB, NOFIN, STB)
KERNEL(·maxB16x512, 32, PREB, LDB, MAXB, NOFIN, STB)
KERNEL(·mulB16x512, 32, PREB, LDB, MULB, NOFIN, STB)
KERNEL(·avgB16x512, 32, PREBAVG, LDB, ADDB, DIVPS, STB)
