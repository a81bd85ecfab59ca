//go:build amd64

#include "textflag.h"

// One macro makes all kernels: LD loads or widens a vector, OP folds one more input
// into the accumulator, FIN ends the element (mean), ST stores or narrows. STEP is the
// bytes of one vector in memory. The main loop takes four vectors of every input
// before it stores, which hides the latency of OP; the second loop takes single ones.
//
//	R8 outs, R9 nout, R10 ins, R11 nin, SI offset, DX end, Y0-Y3 accumulators,
//	Y15 divisor, Y4-Y7 scratch, Y12-Y14 constants of the half types

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
	LD(AT(0), Y0) \
	LD(AT(STEP), Y1) \
	LD(AT(2*STEP), Y2) \
	LD(AT(3*STEP), Y3) \
	MOVQ $1, DI \
fourin: \
	CMPQ DI, R11 \
	JGE  fourfin \
	MOVQ (R10)(DI*8), CX \
	OP(AT(0), Y0) \
	OP(AT(STEP), Y1) \
	OP(AT(2*STEP), Y2) \
	OP(AT(3*STEP), Y3) \
	INCQ DI \
	JMP  fourin \
fourfin: \
	FIN(Y0) \
	FIN(Y1) \
	FIN(Y2) \
	FIN(Y3) \
	XORQ DI, DI \
fourout: \
	MOVQ (R8)(DI*8), CX \
	ST(Y0, AT(0)) \
	ST(Y1, AT(STEP)) \
	ST(Y2, AT(2*STEP)) \
	ST(Y3, AT(3*STEP)) \
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
	LD(AT(0), Y0) \
	MOVQ $1, DI \
onein: \
	CMPQ DI, R11 \
	JGE  onefin \
	MOVQ (R10)(DI*8), CX \
	OP(AT(0), Y0) \
	INCQ DI \
	JMP  onein \
onefin: \
	FIN(Y0) \
	XORQ DI, DI \
oneout: \
	MOVQ (R8)(DI*8), CX \
	ST(Y0, AT(0)) \
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
#define NOFIN(Y)
#define MOVE(M, Y) VMOVDQU M, Y
#define STORE(Y, M) VMOVDQU Y, M

// float64
#define ADDPD(M, Y) VADDPD M, Y, Y
#define MULPD(M, Y) VMULPD M, Y, Y
// acc < x ? acc : x, and a NaN in acc stays: VMINPD gives x when either is NaN.
#define MINPD(M, Y) VMINPD M, Y, Y4; VCMPPD $3, Y, Y, Y7; VBLENDVPD Y7, Y, Y4, Y
#define MAXPD(M, Y) VMAXPD M, Y, Y4; VCMPPD $3, Y, Y, Y7; VBLENDVPD Y7, Y, Y4, Y
#define DIVPD(Y) VDIVPD Y15, Y, Y
#define PREPD VBROADCASTSD 48(AX), Y15
KERNEL(·sumF64x256, 32, NOPRE, MOVE, ADDPD, NOFIN, STORE)
KERNEL(·minF64x256, 32, NOPRE, MOVE, MINPD, NOFIN, STORE)
KERNEL(·maxF64x256, 32, NOPRE, MOVE, MAXPD, NOFIN, STORE)
KERNEL(·mulF64x256, 32, NOPRE, MOVE, MULPD, NOFIN, STORE)
KERNEL(·avgF64x256, 32, PREPD, MOVE, ADDPD, DIVPD, STORE)

// float32
#define ADDPS(M, Y) VADDPS M, Y, Y
#define MULPS(M, Y) VMULPS M, Y, Y
#define MINPS(M, Y) VMINPS M, Y, Y4; VCMPPS $3, Y, Y, Y7; VBLENDVPS Y7, Y, Y4, Y
#define MAXPS(M, Y) VMAXPS M, Y, Y4; VCMPPS $3, Y, Y, Y7; VBLENDVPS Y7, Y, Y4, Y
#define DIVPS(Y) VDIVPS Y15, Y, Y
#define PREPS VBROADCASTSS 56(AX), Y15
KERNEL(·sumF32x256, 32, NOPRE, MOVE, ADDPS, NOFIN, STORE)
KERNEL(·minF32x256, 32, NOPRE, MOVE, MINPS, NOFIN, STORE)
KERNEL(·maxF32x256, 32, NOPRE, MOVE, MAXPS, NOFIN, STORE)
KERNEL(·mulF32x256, 32, NOPRE, MOVE, MULPS, NOFIN, STORE)
KERNEL(·avgF32x256, 32, PREPS, MOVE, ADDPS, DIVPS, STORE)

// int32, int64; AVX2 has no 64-bit minimum and no 64-bit product (plain Go does that)
#define ADDD(M, Y) VPADDD M, Y, Y
#define MIND(M, Y) VPMINSD M, Y, Y
#define MAXD(M, Y) VPMAXSD M, Y, Y
#define MULD(M, Y) VPMULLD M, Y, Y
KERNEL(·sumI32x256, 32, NOPRE, MOVE, ADDD, NOFIN, STORE)
KERNEL(·minI32x256, 32, NOPRE, MOVE, MIND, NOFIN, STORE)
KERNEL(·maxI32x256, 32, NOPRE, MOVE, MAXD, NOFIN, STORE)
KERNEL(·mulI32x256, 32, NOPRE, MOVE, MULD, NOFIN, STORE)

#define ADDQ64(M, Y) VPADDQ M, Y, Y
#define MINQ64(M, Y) VMOVDQU M, Y4; VPCMPGTQ Y4, Y, Y7; VBLENDVPD Y7, Y4, Y, Y
#define MAXQ64(M, Y) VMOVDQU M, Y4; VPCMPGTQ Y, Y4, Y7; VBLENDVPD Y7, Y4, Y, Y
KERNEL(·sumI64x256, 32, NOPRE, MOVE, ADDQ64, NOFIN, STORE)
KERNEL(·minI64x256, 32, NOPRE, MOVE, MINQ64, NOFIN, STORE)
KERNEL(·maxI64x256, 32, NOPRE, MOVE, MAXQ64, NOFIN, STORE)

// float16: 8 elements of 2 bytes make one vector of float32.
#define LDH(M, Y) VCVTPH2PS M, Y
#define STH(Y, M) VCVTPS2PH $0, Y, M
#define ADDH(M, Y) VCVTPH2PS M, Y5; VADDPS Y5, Y, Y
#define MULH(M, Y) VCVTPH2PS M, Y5; VMULPS Y5, Y, Y
#define MINH(M, Y) VCVTPH2PS M, Y5; MINPS(Y5, Y)
#define MAXH(M, Y) VCVTPH2PS M, Y5; MAXPS(Y5, Y)
KERNEL(·sumF16x256, 16, NOPRE, LDH, ADDH, NOFIN, STH)
KERNEL(·minF16x256, 16, NOPRE, LDH, MINH, NOFIN, STH)
KERNEL(·maxF16x256, 16, NOPRE, LDH, MAXH, NOFIN, STH)
KERNEL(·mulF16x256, 16, NOPRE, LDH, MULH, NOFIN, STH)
KERNEL(·avgF16x256, 16, PREPS, LDH, ADDH, DIVPS, STH)

// bfloat16: the upper half of a float32. Rounding adds 0x7fff and the lowest kept bit;
// a NaN, which that could carry into infinity, is truncated with its quiet bit set.
#define LDB(M, Y) VPMOVZXWD M, Y; VPSLLD $16, Y, Y
#define STB(Y, M) VPSRLD $16, Y, Y5; VPOR Y14, Y5, Y6; VPAND Y13, Y5, Y5; VPADDD Y12, Y5, Y5; VPADDD Y, Y5, Y5; VPSRLD $16, Y5, Y5; VCMPPS $3, Y, Y, Y7; VBLENDVPS Y7, Y6, Y5, Y5; VPACKUSDW Y5, Y5, Y5; VPERMQ $8, Y5, Y5; VMOVDQU X5, M
#define ADDB(M, Y) LDB(M, Y5); VADDPS Y5, Y, Y
#define MULB(M, Y) LDB(M, Y5); VMULPS Y5, Y, Y
#define MINB(M, Y) LDB(M, Y5); MINPS(Y5, Y)
#define MAXB(M, Y) LDB(M, Y5); MAXPS(Y5, Y)
#define SPREAD(V, X, Y) MOVL V, CX; VMOVD CX, X; VPBROADCASTD X, Y
#define PREB SPREAD($0x7fff, X12, Y12); SPREAD($1, X13, Y13); SPREAD($0x40, X14, Y14)
#define PREBAVG PREB; PREPS
KERNEL(·sumB16x256, 16, PREB, LDB, ADDB, NOFIN, STB)
KERNEL(·minB16x256, 16, PREB, LDB, MINB, NOFIN, STB)
KERNEL(·maxB16x256, 16, PREB, LDB, MAXB, NOFIN, STB)
KERNEL(·mulB16x256, 16, PREB, LDB, MULB, NOFIN, STB)
KERNEL(·avgB16x256, 16, PREBAVG, LDB, ADDB, DIVPS, STB)
