package launcher

import (
	"encoding/binary"
	"math"
	"unsafe"

	"launcher/internal/errs"
)

// The hot part of the encoding by hand: the values that most calls have, without
// reflection. All else goes through general.

// appendMsgpack appends v.
func appendMsgpack(b []byte, v any) ([]byte, []*handle, error) {
	switch v := v.(type) {
	case nil, struct{}:
		return append(b, 0xc0), nil, nil
	case bool:
		return appendBool(b, v), nil, nil
	case int:
		return appendInt(b, int64(v)), nil, nil
	case int64:
		return appendInt(b, v), nil, nil
	case int32:
		return appendInt(b, int64(v)), nil, nil
	case uint64:
		if v > math.MaxInt64 {
			return binary.BigEndian.AppendUint64(append(b, 0xcf), v), nil, nil
		}
		return appendInt(b, int64(v)), nil, nil
	case float64:
		return binary.BigEndian.AppendUint64(append(b, 0xcb), math.Float64bits(v)), nil, nil
	case float32:
		return binary.BigEndian.AppendUint32(append(b, 0xca), math.Float32bits(v)), nil, nil
	case string:
		return appendString(b, v), nil, nil
	case []byte:
		return appendBin(b, v), nil, nil
	}
	return general(b, v)
}

func appendInt(b []byte, v int64) []byte {
	switch {
	case v >= -32 && v < 128:
		return append(b, byte(v))
	case v >= math.MinInt32 && v <= math.MaxInt32:
		return binary.BigEndian.AppendUint32(append(b, 0xd2), uint32(v))
	}
	return binary.BigEndian.AppendUint64(append(b, 0xd3), uint64(v))
}

func appendString(b []byte, s string) []byte {
	switch n := len(s); {
	case n < 32:
		b = append(b, 0xa0|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0xda), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, 0xdb), uint32(n))
	}
	return append(b, s...)
}

func appendBin(b, v []byte) []byte {
	switch n := len(v); {
	case n < 1<<8:
		b = append(b, 0xc4, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0xc5), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, 0xc6), uint32(n))
	}
	return append(b, v...)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 0xc3)
	}
	return append(b, 0xc2)
}

func appendMap(b []byte, n int) []byte {
	if n < 16 {
		return append(b, 0x80|byte(n))
	}
	return binary.BigEndian.AppendUint32(append(b, 0xdf), uint32(n))
}

func appendArray(b []byte, n int) []byte {
	switch {
	case n < 16:
		return append(b, 0x90|byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, 0xdc), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(b, 0xdd), uint32(n))
}

// appendDep appends what stands for the value of a dep.
func appendDep(b []byte, dep int) []byte {
	return binary.LittleEndian.AppendUint32(append(b, 0xd6, extDep), uint32(dep))
}

// cutArray takes the header of an array off b.
func cutArray(b []byte) (n int, rest []byte, ok bool) {
	switch {
	case len(b) >= 1 && b[0]&0xf0 == 0x90:
		return int(b[0] & 0x0f), b[1:], true
	case len(b) >= 3 && b[0] == 0xdc:
		return int(binary.BigEndian.Uint16(b[1:])), b[3:], true
	case len(b) >= 5 && b[0] == 0xdd:
		return int(binary.BigEndian.Uint32(b[1:])), b[5:], true
	}
	return 0, b, false
}

// cutDep takes what stands for a dep off b.
func cutDep(b []byte) (dep int, rest []byte, ok bool) {
	if len(b) < 6 || b[0] != 0xd6 || b[1] != extDep {
		return 0, b, false
	}
	return int(binary.LittleEndian.Uint32(b[2:])), b[6:], true
}

// cutBin takes a bin off b.
func cutBin(b []byte) (v, rest []byte, ok bool) {
	n, h := 0, 0
	switch {
	case len(b) >= 2 && b[0] == 0xc4:
		n, h = int(b[1]), 2
	case len(b) >= 3 && b[0] == 0xc5:
		n, h = int(binary.BigEndian.Uint16(b[1:])), 3
	case len(b) >= 5 && b[0] == 0xc6:
		n, h = int(binary.BigEndian.Uint32(b[1:])), 5
	}
	if h == 0 || n > len(b)-h {
		return nil, b, false
	}
	return b[h : h+n : h+n], b[h+n:], true
}

// cutValue takes one whole value off b, whatever it is.
func cutValue(b []byte) (v, rest []byte, err error) {
	n := 0
	for todo := 1; todo > 0; todo-- {
		size, inside, ok := valueHeader(b[n:])
		if !ok || size > len(b)-n {
			return nil, nil, errs.New(errs.Corrupt, "msgpack that ends within a value")
		}
		n, todo = n+size, todo+inside
	}
	return b[:n:n], b[n:], nil
}

// valueHeader gives how long the value that b begins with is, without the values inside
// it, and how many those are.
func valueHeader(b []byte) (size, inside int, ok bool) {
	if len(b) == 0 {
		return 0, 0, false
	}
	length := func(bytes int) (int, bool) { // the length field after the first byte
		if len(b) < 1+bytes {
			return 0, false
		}
		switch bytes {
		case 1:
			return int(b[1]), true
		case 2:
			return int(binary.BigEndian.Uint16(b[1:])), true
		}
		return int(binary.BigEndian.Uint32(b[1:])), true
	}
	switch c := b[0]; {
	case c < 0x80 || c >= 0xe0: // small integers
		return 1, 0, true
	case c < 0x90:
		return 1, 2 * int(c&0x0f), true
	case c < 0xa0:
		return 1, int(c & 0x0f), true
	case c < 0xc0:
		return 1 + int(c&0x1f), 0, true
	case c <= 0xc3:
		return 1, 0, c != 0xc1
	case c <= 0xc6: // bin
		w := 1 << (c - 0xc4)
		n, ok := length(w)
		return 1 + w + n, 0, ok
	case c <= 0xc9: // ext
		w := 1 << (c - 0xc7)
		n, ok := length(w)
		return 2 + w + n, 0, ok
	case c == 0xca:
		return 5, 0, true
	case c == 0xcb:
		return 9, 0, true
	case c <= 0xcf:
		return 1 + 1<<(c-0xcc), 0, true
	case c <= 0xd3:
		return 1 + 1<<(c-0xd0), 0, true
	case c <= 0xd8:
		return 2 + 1<<(c-0xd4), 0, true
	case c <= 0xdb: // str
		w := 1 << (c - 0xd9)
		n, ok := length(w)
		return 1 + w + n, 0, ok
	case c <= 0xdd:
		w := 2 << (c - 0xdc)
		n, ok := length(w)
		return 1 + w, n, ok
	default:
		w := 2 << (c - 0xde)
		n, ok := length(w)
		return 1 + w, 2 * n, ok
	}
}

// readMsgpack decodes the whole of b into p.
func readMsgpack(c *client, b []byte, p any) error {
	switch p := p.(type) {
	case *struct{}:
		if len(b) == 1 && b[0] == 0xc0 {
			return nil
		}
	case *int:
		if v, ok := readInt(b); ok {
			*p = int(v)
			return nil
		}
	case *int64:
		if v, ok := readInt(b); ok {
			*p = v
			return nil
		}
	case *float64:
		if len(b) == 9 && b[0] == 0xcb {
			*p = math.Float64frombits(binary.BigEndian.Uint64(b[1:]))
			return nil
		}
	case *bool:
		if len(b) == 1 && b[0]&^1 == 0xc2 {
			*p = b[0] == 0xc3
			return nil
		}
	case *string:
		if len(b) > 0 && b[0]&0xe0 == 0xa0 && len(b) == 1+int(b[0]&0x1f) {
			*p = string(b[1:])
			return nil
		}
		if what := compound(b); what != "" { // the codec would take numbers for bytes
			return errs.New(errs.Invalid, "the value is a %s, not a string", what)
		}
	default:
		if v, rest, ok := cutBin(b); ok && len(rest) == 0 {
			if ok, err := setNumbers(p, v, false); ok {
				return err
			}
		}
	}
	return readGeneral(c, b, p)
}

// compound says what a value is that has others in it; "" = it has not.
func compound(b []byte) string {
	switch {
	case len(b) == 0:
	case b[0]&0xf0 == 0x90 || b[0]&^1 == 0xdc:
		return "list"
	case b[0]&0xf0 == 0x80 || b[0]&^1 == 0xde:
		return "map"
	}
	return ""
}

func readInt(b []byte) (int64, bool) {
	switch {
	case len(b) == 1 && (b[0] < 0x80 || b[0] >= 0xe0):
		return int64(int8(b[0])), true
	case len(b) == 5 && b[0] == 0xd2:
		return int64(int32(binary.BigEndian.Uint32(b[1:]))), true
	case len(b) == 9 && b[0] == 0xd3:
		return int64(binary.BigEndian.Uint64(b[1:])), true
	}
	return 0, false
}

type numeric interface {
	int8 | int16 | int32 | int64 | int | uint16 | uint32 | uint64 | uint | float32 | float64
}

// rawNumbers is the memory of a slice of numbers. The wire is little-endian, as are all
// machines that launcher runs on.
func rawNumbers(v any) ([]byte, bool) {
	switch v := v.(type) {
	case []float64:
		return bytesOf(v), true
	case []float32:
		return bytesOf(v), true
	case []int64:
		return bytesOf(v), true
	case []int32:
		return bytesOf(v), true
	case []int16:
		return bytesOf(v), true
	case []int8:
		return bytesOf(v), true
	case []int:
		return bytesOf(v), true
	case []uint64:
		return bytesOf(v), true
	case []uint32:
		return bytesOf(v), true
	case []uint16:
		return bytesOf(v), true
	case []uint:
		return bytesOf(v), true
	}
	return nil, false
}

func bytesOf[N numeric](v []N) []byte {
	if len(v) == 0 {
		return []byte{}
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), len(v)*int(unsafe.Sizeof(v[0])))
}

// setNumbers sets *p, if p points to a slice of numbers, from the memory of one.
func setNumbers(p any, b []byte, alias bool) (bool, error) {
	switch p := p.(type) {
	case *[]float64:
		return true, numbersOf(p, b, alias)
	case *[]float32:
		return true, numbersOf(p, b, alias)
	case *[]int64:
		return true, numbersOf(p, b, alias)
	case *[]int32:
		return true, numbersOf(p, b, alias)
	case *[]int16:
		return true, numbersOf(p, b, alias)
	case *[]int8:
		return true, numbersOf(p, b, alias)
	case *[]int:
		return true, numbersOf(p, b, alias)
	case *[]uint64:
		return true, numbersOf(p, b, alias)
	case *[]uint32:
		return true, numbersOf(p, b, alias)
	case *[]uint16:
		return true, numbersOf(p, b, alias)
	case *[]uint:
		return true, numbersOf(p, b, alias)
	}
	return false, nil
}

func numbersOf[N numeric](p *[]N, b []byte, alias bool) error {
	var zero N
	size := int(unsafe.Sizeof(zero))
	if len(b)%size != 0 {
		return errs.New(errs.Invalid, "%d bytes are no %T", len(b), *p)
	}
	if alias && len(b) > 0 && uintptr(unsafe.Pointer(unsafe.SliceData(b)))%uintptr(size) == 0 {
		*p = unsafe.Slice((*N)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/size)
		return nil
	}
	s := make([]N, len(b)/size)
	copy(bytesOf(s), b)
	*p = s
	return nil
}
