// Package plan says who does what part of a collective: pure arithmetic on counts and
// ranks that every participant computes for itself and that must come out the same
// everywhere. No memory, no waiting, no I/O.
package plan

import (
	"fmt"

	"launcher/collectives/reduce"
)

// Code is a collective operation. The values are part of the shared-memory protocol.
type Code uint8

const (
	Barrier Code = iota + 1
	AllReduce
	ReduceScatter
	AllGather
	Broadcast
	Reduce
	endCode
)

var codeNames = [endCode]string{"", "barrier", "all-reduce", "reduce-scatter", "all-gather", "broadcast", "reduce"}

// String is the name used in messages.
func (c Code) String() string {
	if c > 0 && c < endCode {
		return codeNames[c]
	}
	return fmt.Sprintf("operation %d", uint8(c))
}

// Reduces reports whether the operation combines values.
func (c Code) Reduces() bool { return c == AllReduce || c == ReduceScatter || c == Reduce }

// Rooted reports whether one rank is special.
func (c Code) Rooted() bool { return c == Broadcast || c == Reduce }

// Limits of what a signature can say.
const (
	MaxWorld = 1 << 15
	MaxCount = 1 << 38
)

// Call is one collective operation as a rank asks for it. Count is in elements: the
// whole vector, for reduce-scatter and all-gather that of all ranks together.
type Call struct {
	Code  Code
	Type  reduce.Type
	Op    reduce.Op
	Root  int
	Count int
}

// Signature packs a call without loss: code 4 bits, type 4, operation 3, root 15, count
// 38, from the high bits down. Ranks compare signatures to find that they disagree. It
// is never zero.
func (c Call) Signature() uint64 {
	return uint64(c.Code)<<60 | uint64(c.Type)<<56 | uint64(c.Op)<<53 | uint64(c.Root)<<38 | uint64(c.Count)
}

// FromSignature unpacks a signature, which may come from a faulty process: the result
// may hold values that are no code, type or operation.
func FromSignature(s uint64) Call {
	return Call{
		Code:  Code(s >> 60),
		Type:  reduce.Type(s >> 56 & 15),
		Op:    reduce.Op(s >> 53 & 7),
		Root:  int(s >> 38 & (MaxWorld - 1)),
		Count: int(s & (MaxCount - 1)),
	}
}

// Valid reports whether a call makes sense in a group of world ranks.
func (c Call) Valid(world int) bool {
	if c.Code == Barrier {
		return c == Call{Code: Barrier}
	}
	if c.Code == 0 || c.Code >= endCode || c.Type.Size() == 0 || c.Count < 0 || c.Count >= MaxCount {
		return false
	}
	if c.Code.Reduces() != (c.Op != 0) || c.Op != 0 && reduce.Check(c.Type, c.Op) != nil {
		return false
	}
	return c.Root >= 0 && c.Root < world && (c.Code.Rooted() || c.Root == 0)
}

// Bytes is the size of the whole vector.
func (c Call) Bytes() int { return c.Count * c.Type.Size() }

// String is the call in words, for messages about calls that do not match.
func (c Call) String() string {
	s := c.Code.String()
	if c.Code == Barrier {
		return s
	}
	if c.Op != 0 {
		s += " (" + c.Op.String() + ")"
	}
	s += fmt.Sprintf(" of %d x %s", c.Count, c.Type)
	if c.Code.Rooted() {
		s += fmt.Sprintf(" with root %d", c.Root)
	}
	return s
}

// Part is the i-th of n near-equal parts of count: the first count%n parts have one
// element more. Rank i owns part i of a scattered or gathered vector.
func Part(count, n, i int) (from, to int) {
	q, r := count/n, count%n
	from = i*q + min(i, r)
	to = from + q
	if i < r {
		to++
	}
	return from, to
}

// Share is Part on whole cache lines where that is possible, so that neighbours do not
// write to one line: of a stretch of count elements of size bytes, the i-th of n.
func Share(count, n, i, size int) (from, to int) {
	line := 64 / size
	from, to = Part((count+line-1)/line, n, i)
	return min(from*line, count), min(to*line, count)
}

// Meet is the intersection of [a0, a1) and [b0, b1); empty ones have from == to.
func Meet(a0, a1, b0, b1 int) (from, to int) {
	from, to = max(a0, b0), min(a1, b1)
	return from, max(from, to)
}
