// Package sdk is the conversation between a program and its node's agent about objects
// and tasks, as docs/tasks.md has it: the types of frames and the layout of the ones that
// come in numbers. Nothing here keeps or copies what it is given.
package sdk

import (
	"encoding/binary"

	"launcher/internal/errs"
	"launcher/wire"
)

// Greeting is what a client says before its first frame.
const Greeting = "LSDK"

// Version of the conversation.
const Version = 1

// Bounds of what is in a frame, so that no sum of things that are allowed makes one that
// is not.
const (
	// InlineMax is the size up to which a value travels in frames; larger ones are shared.
	InlineMax = 16 << 10
	// InlineSum is how much the values of one frame may have inside it together. What a
	// program gives beyond that is shared; what the agent gives is asked for.
	InlineSum = 2 << 20
	// ManyMax is how many arguments that are objects, or results, a task may have.
	ManyMax = 300_000
	// PayloadMax and OptionsMax bound what a Submit and a Shape carry besides.
	PayloadMax = 1 << 20
	OptionsMax = 1 << 20
	// BodyMax is how long the body of a program's frame may be. An agent's own frame about
	// the same may be a little longer.
	BodyMax = wire.MaxFrame - 256
)

// Kinds of clients.
const (
	KindDriver = 1
	KindWorker = 2
)

// Client to agent.
const (
	MsgHello       uint16 = 0x0410
	MsgFunc        uint16 = 0x0411
	MsgShape       uint16 = 0x0412
	MsgSubmit      uint16 = 0x0413
	MsgPut         uint16 = 0x0414
	MsgGet         uint16 = 0x0415
	MsgAwake       uint16 = 0x0416
	MsgRelease     uint16 = 0x0417
	MsgHold        uint16 = 0x0418
	MsgResult      uint16 = 0x0419
	MsgYield       uint16 = 0x041a
	MsgSpace       uint16 = 0x041b
	MsgOpenSegment uint16 = 0x041c
	MsgCancel      uint16 = 0x041d
	MsgHandBack    uint16 = 0x041e
	MsgCall        uint16 = 0x041f
	MsgDropped     uint16 = 0x0420
	MsgKill        uint16 = 0x0421 // docs/actors.md
	MsgUp          uint16 = 0x0422
)

// Agent to client.
const (
	MsgWelcome     uint16 = 0x0440
	MsgObject      uint16 = 0x0441
	MsgExec        uint16 = 0x0442
	MsgGiveFunc    uint16 = 0x0443
	MsgGranted     uint16 = 0x0444
	MsgSegment     uint16 = 0x0445
	MsgAnswer      uint16 = 0x0446
	MsgLog         uint16 = 0x0447
	MsgCancelTask  uint16 = 0x0448
	MsgDropSegment uint16 = 0x0449
	MsgConsumed    uint16 = 0x044a
	MsgExit        uint16 = 0x044b
)

// Values of fields.
const (
	Stream = 0xFFFFFFFF // returns of a stream

	Apart     uint8 = 0 // kinds of values
	Inline    uint8 = 1
	Shared    uint8 = 2
	Failure   uint8 = 3
	End       uint8 = 4
	Elsewhere uint8 = 5

	SubmitLarge uint32 = 1 // flags of Submit and Exec
	SubmitNamed uint32 = 2
	SubmitCall  uint32 = 4 // of an actor

	GetValue  uint32 = 1 // flags of Get
	GetBlocks uint32 = 2

	CancelForce     uint32 = 1
	CancelRecursive uint32 = 2

	KillForGood uint32 = 1 // flag of Kill: it is not restarted

	ReadyOnly uint16 = 1 // frame flags of Object
	Later     uint16 = 2

	ResultOK        uint32 = 0 // status of Result
	ResultFailed    uint32 = 1
	ResultRetry     uint32 = 2
	ResultCancelled uint32 = 3

	GrantedSegment uint32 = 1
	GrantedExtents uint32 = 2
	GrantedFull    uint32 = 3
)

// FuncID names a function by its code, or by its name.
type FuncID [16]byte

// Hello is what a client says first.
type Hello struct {
	Version  int
	Kind     int
	Language string
	PID      int
	Proc     string
	Job      string
	Name     string
	Client   uint32
	Nonce    []byte
	Token    string
	Program  string
	Dir      string
	Path     []string
	Priority *int             // of what a driver submits; nil = it does not say
	Limits   map[string]int64 // that its job is to keep
}

// Welcome answers it.
type Welcome struct {
	Version int
	Number  uint32
	Client  uint32
	Node    wire.NodeID
	Cluster string
	Job     string
	Inline  int
	Nonce   []byte
	CPUs    int64
}

// Error is an error value (kind 3).
type Error struct {
	Code      string
	Message   string
	Traceback string
	Cause     any // pickled exception, registered names of a Go error, or nil
	Task      string
	Node      string
	PID       int
	Hints     []string
}

// Encode gives the bytes of an error value.
func (e Error) Encode() []byte { return wire.Marshal(e) }

// Value is a value in a frame. Bytes and Refs point into the frame.
type Value struct {
	Kind    uint8
	Form    uint8
	Refs    []byte // 16 bytes each
	Size    int64
	Bytes   []byte // Inline, Failure
	Segment uint32 // Shared, to the agent
	Offset  int64
}

// Ref is the i-th of the ids inside the value.
func (v *Value) Ref(i int) (id wire.ObjectID) {
	copy(id[:], v.Refs[16*i:])
	return id
}

// NumRefs counts them.
func (v *Value) NumRefs() int { return len(v.Refs) / 16 }

const valueHead = 16

func short(what string) error { return errs.New(errs.Corrupt, "%s is cut short", what) }

// CutValue takes a value off the front of a frame that goes to the agent.
func CutValue(b []byte) (v Value, rest []byte, err error) {
	if len(b) < valueHead {
		return v, nil, short("a value")
	}
	refs, size := binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint64(b[8:])
	v.Kind, v.Form, v.Size = b[0], b[1], int64(size)
	b = b[valueHead:]
	if int64(refs)*16 > int64(len(b)) || v.Size < 0 {
		return v, nil, short("a value")
	}
	v.Refs, b = b[:16*refs], b[16*refs:]
	switch v.Kind {
	case Inline, Failure:
		if size > uint64(len(b)) {
			return v, nil, short("a value")
		}
		v.Bytes, b = b[:size], b[size:]
	case Shared:
		if len(b) < 16 {
			return v, nil, short("a value")
		}
		v.Segment, v.Offset = binary.LittleEndian.Uint32(b), int64(binary.LittleEndian.Uint64(b[8:]))
		b = b[16:]
	case End:
	default:
		return v, nil, errs.New(errs.Corrupt, "a value of kind %d", v.Kind)
	}
	return v, b, nil
}

// AppendValue adds a value to a frame that goes to a client: of a shared one only how
// large it is.
func AppendValue(b []byte, kind, form uint8, refs []wire.ObjectID, size int64, data []byte) []byte {
	b = append(b, kind, form, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(refs)))
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	for i := range refs {
		b = append(b, refs[i][:]...)
	}
	return append(b, data...)
}

// Submit is a Submit frame; its slices point into it.
type Submit struct {
	Task    wire.ObjectID
	Func    FuncID
	Shape   uint32
	Returns uint32
	Flags   uint32
	Deps    []byte // 16 bytes each
	Held    []byte
	Payload []byte
}

const submitHead = 16 + 16 + 5*4

// ParseSubmit reads a Submit frame.
func ParseSubmit(b []byte) (s Submit, err error) {
	if len(b) < submitHead {
		return s, short("Submit")
	}
	copy(s.Task[:], b)
	copy(s.Func[:], b[16:])
	s.Shape, s.Returns, s.Flags = u32(b[32:]), u32(b[36:]), u32(b[40:])
	deps, held := int64(u32(b[44:])), int64(u32(b[48:]))
	b = b[submitHead:]
	if 16*(deps+held) > int64(len(b)) {
		return s, short("Submit")
	}
	s.Deps, b = b[:16*deps], b[16*deps:]
	s.Held, s.Payload = b[:16*held], b[16*held:]
	return s, nil
}

// Result is the head of a Result frame.
type Result struct {
	Task       wire.ObjectID
	Attempt    uint32
	Status     uint32
	Start, End int64
	Values     int
}

// ParseResult reads the head; the values follow in rest.
func ParseResult(b []byte) (r Result, rest []byte, err error) {
	if len(b) < 44 {
		return r, nil, short("Result")
	}
	copy(r.Task[:], b)
	r.Attempt, r.Status = u32(b[16:]), u32(b[20:])
	r.Start, r.End = int64(binary.LittleEndian.Uint64(b[24:])), int64(binary.LittleEndian.Uint64(b[32:]))
	r.Values = int(u32(b[40:]))
	return r, b[44:], nil
}

// Begin starts a frame at the end of b; Finish gives it its length.
func Begin(b []byte, typ, flags uint16) ([]byte, int) {
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint16(b, typ)
	return binary.LittleEndian.AppendUint16(b, flags), at
}

// Finish writes the length of the frame that began at a place of b.
func Finish(b []byte, at int) []byte {
	binary.LittleEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}

// IDs reads ids up to the end of a frame.
func IDs(b []byte, each func(id wire.ObjectID)) error {
	if len(b)%16 != 0 {
		return short("a list of ids")
	}
	for ; len(b) > 0; b = b[16:] {
		var id wire.ObjectID
		copy(id[:], b)
		each(id)
	}
	return nil
}

func u32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
