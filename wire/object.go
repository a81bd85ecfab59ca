package wire

import (
	"encoding/binary"
	"encoding/hex"

	"launcher/internal/errs"
)

// PutIndex is the index of objects that were put, and ItemIndexMax that of the last
// return value or item of a stream.
const (
	PutIndex     = 1<<indexBits - 1
	ItemIndexMax = PutIndex - 1
	indexBits    = 20
)

// ObjectID names an object or a task (docs/tasks.md, section 1): the life of the owner's
// node, the client of that node which submitted or put it, its count there, and which of
// the task's objects it is.
type ObjectID [16]byte

// NewObjectID makes an id; n counts from 1, index 0 is the task itself.
func NewObjectID(node, client uint32, n uint64, index uint32) (id ObjectID) {
	binary.LittleEndian.PutUint32(id[:], node)
	binary.LittleEndian.PutUint32(id[4:], client)
	binary.LittleEndian.PutUint64(id[8:], n<<indexBits|uint64(index)&PutIndex)
	return id
}

// Node is the number of the owner's node (Welcome.Number).
func (id ObjectID) Node() uint32 { return binary.LittleEndian.Uint32(id[:]) }

// Client is the owner's number for the program that submitted or put it.
func (id ObjectID) Client() uint32 { return binary.LittleEndian.Uint32(id[4:]) }

// N counts the client's tasks and put objects.
func (id ObjectID) N() uint64 { return binary.LittleEndian.Uint64(id[8:]) >> indexBits }

// Index is 0 for a task, i+1 for its return value or item i, PutIndex for a put object.
func (id ObjectID) Index() uint32 { return uint32(binary.LittleEndian.Uint64(id[8:]) & PutIndex) }

// Put reports whether the object was put, so that no task can make it again.
func (id ObjectID) Put() bool { return id.Index() == PutIndex }

// Task is the task that made the object.
func (id ObjectID) Task() ObjectID { return id.With(0) }

// With is the id of another object of the same task.
func (id ObjectID) With(index uint32) ObjectID {
	low := binary.LittleEndian.Uint64(id[8:])&^PutIndex | uint64(index)&PutIndex
	binary.LittleEndian.PutUint64(id[8:], low)
	return id
}

// IsZero reports whether there is no id.
func (id ObjectID) IsZero() bool { return id == ObjectID{} }

// String is the id in hexadecimal.
func (id ObjectID) String() string { return hex.EncodeToString(id[:]) }

// ParseObjectID reads what String gives.
func ParseObjectID(s string) (id ObjectID, err error) {
	if len(s) == 2*len(id) {
		if _, err = hex.Decode(id[:], []byte(s)); err == nil {
			return id, nil
		}
	}
	return ObjectID{}, errs.New(errs.Invalid, "%q is not an object", s).Hint("an object's id has 32 hexadecimal digits")
}

// Bytes is the id as it stands in frames.
func (id ObjectID) Bytes() []byte { return id[:] }
