package launcher

import (
	"encoding/binary"
	"math"
	"strings"
	"unicode/utf8"

	"launcher/internal/errs"
)

// Python programs keep their values as pickles, which are programs for a small machine. A
// pickle of plain data only builds that: here it is read as such, and anything that names
// code of Python's is refused by that name.

const (
	pickleDepth = 256
	// pickleSpread is how many bytes a value may have beyond those of its pickle, in which
	// what is there many times is written once.
	pickleSpread = 64 << 20
)

// plainOf gives the plain data of a Python value as msgpack.
func plainOf(value []byte) ([]byte, error) {
	if len(value) < 8 {
		return nil, errShortPickle
	}
	n, buffers := binary.LittleEndian.Uint32(value), binary.LittleEndian.Uint32(value[4:])
	at := 8 + 16*uint64(buffers)
	if at+uint64(n) > uint64(len(value)) {
		return nil, errShortPickle
	}
	m := unpickler{b: value[at : at+uint64(n)]}
	v, err := m.run()
	if err != nil {
		return nil, err
	}
	return v.appendTo(nil, len(value)+pickleSpread, 0)
}

var errShortPickle = errs.New(errs.Corrupt, "a Python value that ends too early")

// node is one value: packed, or a list or dict of others.
type node struct {
	packed []byte
	text   string  // of a str
	items  []*node // of a dict: key, value, ...
	kind   byte    // 0 packed, 'l', 'd', '(' a mark
}

func (v *node) appendTo(b []byte, most, depth int) (_ []byte, err error) {
	switch {
	case depth > pickleDepth:
		return nil, errs.New(errs.Invalid, "the value is a Python object that is more than %d deep, or that contains itself", pickleDepth)
	case len(b)+len(v.packed)+len(v.items) > most:
		return nil, errs.New(errs.Invalid, "the value is a Python object that has the same list or dict so many times that it is over %d MiB larger as plain data", pickleSpread>>20)
	case v.kind == 'l':
		b = appendArray(b, len(v.items))
	case v.kind == 'd':
		b = appendMap(b, len(v.items)/2)
	default:
		return append(b, v.packed...), nil
	}
	for _, x := range v.items {
		if b, err = x.appendTo(b, most, depth+1); err != nil {
			return nil, err
		}
	}
	return b, nil
}

type unpickler struct {
	b     []byte
	stack []*node
	memo  []*node
}

func (m *unpickler) take(n uint64) ([]byte, error) {
	if n > uint64(len(m.b)) {
		return nil, errShortPickle
	}
	b := m.b[:n]
	m.b = m.b[n:]
	return b, nil
}

// number takes a little-endian one of so many bytes.
func (m *unpickler) number(bytes uint64) (uint64, error) {
	b, err := m.take(bytes)
	var x [8]byte
	copy(x[:], b)
	return binary.LittleEndian.Uint64(x[:]), err
}

func (m *unpickler) push(packed []byte) { m.stack = append(m.stack, &node{packed: packed}) }

// pop takes so many off the stack.
func (m *unpickler) pop(n int) ([]*node, error) {
	if n > len(m.stack) {
		return nil, errShortPickle
	}
	at := len(m.stack) - n
	out := append([]*node(nil), m.stack[at:]...)
	m.stack = m.stack[:at]
	return out, nil
}

// marked takes what is above the last mark off the stack.
func (m *unpickler) marked() ([]*node, error) {
	for i := len(m.stack) - 1; i >= 0; i-- {
		if m.stack[i].kind == '(' {
			out, err := m.pop(len(m.stack) - i)
			return out[1:], err
		}
	}
	return nil, errShortPickle
}

func (m *unpickler) top(kind byte) (*node, error) {
	if len(m.stack) == 0 || m.stack[len(m.stack)-1].kind != kind {
		return nil, errShortPickle
	}
	return m.stack[len(m.stack)-1], nil
}

func (m *unpickler) run() (*node, error) {
	for {
		op, err := m.number(1)
		if err != nil {
			return nil, err
		}
		if op == '.' {
			all, err := m.pop(1)
			if err != nil || all[0].kind == '(' {
				return nil, errShortPickle
			}
			return all[0], nil
		}
		if err := m.step(byte(op)); err != nil {
			return nil, err
		}
	}
}

// widths are how many bytes say how long the text or bytes behind an opcode are.
var widths = map[byte]uint64{0x8c: 1, 'X': 4, 0x8d: 8, 'C': 1, 'B': 4, 0x8e: 8, 0x96: 8}

func (m *unpickler) step(op byte) (err error) {
	if w, ok := widths[op]; ok {
		n, err := m.number(w)
		if err != nil {
			return err
		}
		b, err := m.take(n)
		if err != nil {
			return err
		}
		return m.text(op, b)
	}
	var n uint64
	var items []*node
	var v *node
	switch op {
	case 0x80: // PROTO
		_, err = m.take(1)
	case 0x95: // FRAME
		_, err = m.take(8)
	case 'N':
		m.push([]byte{0xc0})
	case 0x88:
		m.push(appendBool(nil, true))
	case 0x89:
		m.push(appendBool(nil, false))
	case 'J': // BININT
		n, err = m.number(4)
		m.push(appendInt(nil, int64(int32(n))))
	case 'K':
		n, err = m.number(1)
		m.push(appendInt(nil, int64(n)))
	case 'M':
		n, err = m.number(2)
		m.push(appendInt(nil, int64(n)))
	case 0x8a: // LONG1
		err = m.long()
	case 0x8b:
		return errs.New(errs.Invalid, "the value has a Python int of more than 64 bits in it")
	case 'G': // BINFLOAT, big-endian as in msgpack
		var b []byte
		b, err = m.take(8)
		m.push(append([]byte{0xcb}, b...))
	case ']', ')':
		m.stack = append(m.stack, &node{kind: 'l'})
	case '}':
		m.stack = append(m.stack, &node{kind: 'd'})
	case '(':
		m.stack = append(m.stack, &node{kind: '('})
	case 'a', 'e', 's', 'u':
		switch op {
		case 'a':
			items, err = m.pop(1)
		case 's':
			items, err = m.pop(2)
		default:
			items, err = m.marked()
		}
		if err != nil {
			return err
		}
		kind := map[byte]byte{'a': 'l', 'e': 'l', 's': 'd', 'u': 'd'}[op]
		if v, err = m.top(kind); err != nil {
			return err
		}
		if kind == 'd' && len(items)%2 != 0 {
			return errShortPickle
		}
		v.items = append(v.items, items...)
	case 0x85, 0x86, 0x87, 't': // tuples are arrays to others
		if op == 't' {
			items, err = m.marked()
		} else {
			items, err = m.pop(int(op - 0x84))
		}
		m.stack = append(m.stack, &node{kind: 'l', items: items})
	case 0x94: // MEMOIZE
		if len(m.stack) == 0 {
			return errShortPickle
		}
		m.memo = append(m.memo, m.stack[len(m.stack)-1])
	case 'h', 'j': // BINGET, LONG_BINGET
		n, err = m.number(map[byte]uint64{'h': 1, 'j': 4}[op])
		if err == nil && n >= uint64(len(m.memo)) {
			return errShortPickle
		}
		if err == nil {
			m.stack = append(m.stack, m.memo[n])
		}
	case 0x93: // STACK_GLOBAL
		if items, err = m.pop(2); err != nil {
			return err
		}
		return foreign(items[0].text, items[1].text)
	case 0x8f, 0x91:
		return notPlain("set")
	case 0x97: // NEXT_BUFFER
		return notPlain("buffer")
	default:
		return notPlain("pickle of the program's own")
	}
	return err
}

func (m *unpickler) long() error {
	n, err := m.number(1)
	if err != nil {
		return err
	}
	b, err := m.take(n)
	if err != nil {
		return err
	}
	if n == 9 && b[8] == 0 { // of 64 bits without a sign
		m.push(append([]byte{0xcf}, binary.BigEndian.AppendUint64(nil, binary.LittleEndian.Uint64(b))...))
		return nil
	}
	if n > 8 {
		return errs.New(errs.Invalid, "the value has a Python int of more than 64 bits in it")
	}
	var x [8]byte
	if n > 0 && b[n-1]&0x80 != 0 {
		binary.LittleEndian.PutUint64(x[:], math.MaxUint64)
	}
	copy(x[:], b)
	m.push(appendInt(nil, int64(binary.LittleEndian.Uint64(x[:]))))
	return nil
}

func (m *unpickler) text(op byte, b []byte) error {
	if op == 'C' || op == 'B' || op == 0x8e || op == 0x96 {
		m.push(appendBin(nil, b))
		return nil
	}
	if !utf8.Valid(b) {
		return errs.New(errs.Invalid, "the value has a Python str in it that is no UTF-8")
	}
	m.stack = append(m.stack, &node{packed: appendString(nil, string(b)), text: string(b)})
	return nil
}

// foreign is the error about a name of Python's.
func foreign(module, name string) error {
	top, _, _ := strings.Cut(module, ".")
	switch {
	case top == "numpy" && (name == "_frombuffer" || name == "_reconstruct"):
		return notPlain("numpy.ndarray")
	case top == "numpy" && name == "scalar":
		return notPlain("scalar of numpy")
	case top == "launcher" && name == "load_ref":
		return notPlain("ObjectRef inside a value")
	case top == "copyreg" || top == "cloudpickle":
		return notPlain("class instance of the program's own")
	}
	return notPlain(strings.TrimPrefix(module+"."+name, "builtins."))
}

func notPlain(what string) error {
	return errs.New(errs.Invalid, "the value is, or has in it, a Python %s, which is no plain data", what).
		Hint("have the Python side put or return None, bool, int, float, str, bytes, and lists, tuples and dicts of these (an array as array.tolist() or array.tobytes()), or call the Python function by name")
}
