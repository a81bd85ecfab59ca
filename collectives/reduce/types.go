// Package reduce combines vectors element by element: the arithmetic of the
// collectives. It knows nothing of processes or memory layout.
//
// Every element is combined in the order of the inputs, ((in0 op in1) op in2) ..., by
// whichever kernel runs (AVX-512, AVX2 or plain Go), so that the same inputs give the
// same bits on every machine. Half types are widened to float32, combined there over
// all inputs, and rounded once to nearest even. Integers wrap. For min and max a NaN
// in any input gives NaN.
package reduce

import (
	"launcher/internal/errs"
)

// Type is an element type. The values are part of the shared-memory protocol.
type Type uint8

const (
	Float64 Type = iota + 1
	Float32
	Float16
	BFloat16
	Int32
	Int64
	endType
)

var typeNames = [endType]string{"", "float64", "float32", "float16", "bfloat16", "int32", "int64"}
var typeSizes = [endType]uint8{0, 8, 4, 2, 2, 4, 8}

// Types are all element types.
var Types = []Type{Float64, Float32, Float16, BFloat16, Int32, Int64}

// Size is the bytes of one element; 0 for a value that is no type.
func (t Type) Size() int {
	if t < endType {
		return int(typeSizes[t])
	}
	return 0
}

// String is the name that numpy uses, where it has the type.
func (t Type) String() string {
	if t > 0 && t < endType {
		return typeNames[t]
	}
	return "unknown type"
}

// Float reports whether t is one of the floating types.
func (t Type) Float() bool { return t >= Float64 && t <= BFloat16 }

// Op combines two elements. The values are part of the shared-memory protocol.
type Op uint8

const (
	Sum Op = iota + 1
	Min
	Max
	Product
	Mean // the sum divided by the number of ranks; floating types only
	endOp
)

var opNames = [endOp]string{"", "sum", "min", "max", "product", "mean"}

// Ops are all operations.
var Ops = []Op{Sum, Min, Max, Product, Mean}

// String is the name of the operation as it is written in Python.
func (o Op) String() string {
	if o > 0 && o < endOp {
		return opNames[o]
	}
	return "unknown operation"
}

// ParseOp reads the name of an operation.
func ParseOp(s string) (Op, error) {
	for _, o := range Ops {
		if s == o.String() {
			return o, nil
		}
	}
	return 0, errs.New(errs.Invalid, "%q is not an operation", s).Hint("the operations are sum, min, max, product and mean")
}

// ParseType reads the name of a type.
func ParseType(s string) (Type, error) {
	for _, t := range Types {
		if s == t.String() {
			return t, nil
		}
	}
	return 0, errs.New(errs.Invalid, "%q is not an element type", s).
		Hint("the types are float64, float32, float16, bfloat16, int32 and int64")
}

// Check says whether op is defined for t.
func Check(t Type, op Op) error {
	switch {
	case t.Size() == 0:
		return errs.New(errs.Invalid, "element type %d is not known", t)
	case op == 0 || op >= endOp:
		return errs.New(errs.Invalid, "operation %d is not known", op)
	case op == Mean && !t.Float():
		return errs.New(errs.Invalid, "the mean of %s is not defined", t).Hint("reduce with sum and divide as you need it rounded, or use a floating type")
	}
	return nil
}
