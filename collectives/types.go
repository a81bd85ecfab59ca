package collectives

import "launcher/collectives/reduce"

// Type is an element type.
type Type = reduce.Type

// The element types.
const (
	TypeFloat64  = reduce.Float64
	TypeFloat32  = reduce.Float32
	TypeFloat16  = reduce.Float16
	TypeBFloat16 = reduce.BFloat16
	TypeInt32    = reduce.Int32
	TypeInt64    = reduce.Int64
)

// Op combines two elements.
type Op = reduce.Op

// The operations. Integers wrap; Mean is for floating types; a NaN in any input of Min
// or Max gives NaN.
const (
	Sum     = reduce.Sum
	Min     = reduce.Min
	Max     = reduce.Max
	Product = reduce.Product
	Mean    = reduce.Mean
)

// Float16 holds the bits of an IEEE half.
type Float16 uint16

// BFloat16 holds the bits of a bfloat16.
type BFloat16 uint16

// Element is what vectors consist of.
type Element interface {
	float64 | float32 | Float16 | BFloat16 | int32 | int64
}

// Float widens h; exact.
func (h Float16) Float() float32 { return reduce.F16ToF32(uint16(h)) }

// Float widens h; exact.
func (h BFloat16) Float() float32 { return reduce.BF16ToF32(uint16(h)) }

// ToFloat16 rounds to nearest even.
func ToFloat16(f float32) Float16 { return Float16(reduce.F32ToF16(f)) }

// ToBFloat16 rounds to nearest even.
func ToBFloat16(f float32) BFloat16 { return BFloat16(reduce.F32ToBF16(f)) }

func typeOf[T Element]() Type {
	var z T
	switch any(z).(type) {
	case float64:
		return TypeFloat64
	case float32:
		return TypeFloat32
	case Float16:
		return TypeFloat16
	case BFloat16:
		return TypeBFloat16
	case int32:
		return TypeInt32
	}
	return TypeInt64
}
