package sdk

import (
	"encoding/binary"

	"launcher/internal/errs"
	"launcher/wire"
)

// Between agents, on a stream of kind wire.StreamTasks, an agent is a client of another,
// much as a program is: it submits tasks under leases for its own programs, holds and
// releases objects, and asks for values. The frames are those of programs, and these.
const (
	MsgPeerHello  uint16 = 0x0460 // PeerHello, first
	MsgPeerSubmit uint16 = 0x0461 // u64 lease, u32 attempt, u32 0, body of Submit
	MsgPeerKeep   uint16 = 0x0462 // ids: all objects and tasks that the client still wants
	MsgPeerSync   uint16 = 0x0463 // u64: answered when everything before it has been dealt with
	MsgPeerSynced uint16 = 0x0464 // u64
	MsgPeerLost   uint16 = 0x0465 // id 16, u32 node: the object is not there any more
	MsgPeerKeeps  uint16 = 0x0466 // ids: a part of those of the PeerKeep that follows
	MsgPeerEnd    uint16 = 0x0467 // id 16: an actor, whose handle is not held any more
	MsgPeerCopy   uint16 = 0x0468 // id 16, value: an object of the client's, of which a copy is to be kept
	MsgPeerCopied uint16 = 0x0469 // id 16, text: it is kept (no text), or why it cannot be
	MsgPeerUncopy uint16 = 0x046a // ids: of which no copy is to be kept any more
	MsgPeerSpare  uint16 = 0x046b // id 16, value: where copies of an object that the client holds are kept
)

// KindPeer is an agent as a client.
const KindPeer = 3

// ResultBounced is the status of a Result of a task that was not begun: its lease is over.
const ResultBounced uint32 = 4

// ResultGone is the status of a Result of an actor or task whose process died, or of a call
// that it may have begun.
const ResultGone uint32 = 5

// idsMax is how many bytes of ids one frame gets.
const idsMax = 4 << 20

// AppendIDs adds frames of ids: as many as they take.
func AppendIDs(b []byte, typ uint16, ids []byte) []byte {
	for len(ids) > 0 {
		n := min(len(ids), idsMax)
		b = wire.AppendFrame(b, typ, ids[:n])
		ids = ids[n:]
	}
	return b
}

// AppendKeep adds a PeerKeep, in parts if need be.
func AppendKeep(b []byte, ids []byte) []byte {
	n := max(0, len(ids)-idsMax)
	b = AppendIDs(b, MsgPeerKeeps, ids[:n])
	return wire.AppendFrame(b, MsgPeerKeep, ids[n:])
}

// PeerHello says for whose programs an agent is a client: what their workers need. One
// that has no tasks to run, and only refers to objects, has no Job.
type PeerHello struct {
	Job      string
	Language string
	Program  string
	Dir      string
	Path     []string
	Sum      string // SHA-256 (hexadecimal) of a Go program, to be had of this agent; "" = not known
	DirOf    uint32 // Dir is a working_dir of the node of this number; 0 = each node's own
	Terms    wire.Terms
}

// AppendElsewhere adds a value that is in the memory of the given nodes.
func AppendElsewhere(b []byte, form uint8, refs []byte, size int64, nodes []uint32) []byte {
	b = append(b, Elsewhere, form, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(refs)/16))
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	b = append(b, refs...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(nodes)))
	for _, n := range nodes {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return b
}

// CutGiven takes a value off the front of a frame that comes from another agent.
func CutGiven(b []byte) (v Value, nodes []uint32, rest []byte, err error) {
	if len(b) < valueHead {
		return v, nil, nil, short("a value")
	}
	if b[0] != Elsewhere {
		if b[0] == Shared {
			return v, nil, nil, errs.New(errs.Corrupt, "a value that is shared between nodes")
		}
		v, rest, err = CutValue(b)
		return v, nil, rest, err
	}
	refs, size := binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint64(b[8:])
	v.Kind, v.Form, v.Size = b[0], b[1], int64(size)
	b = b[valueHead:]
	if int64(refs)*16+4 > int64(len(b)) || v.Size < 0 {
		return v, nil, nil, short("a value")
	}
	v.Refs, b = b[:16*refs], b[16*refs:]
	n := u32(b)
	b = b[4:]
	if n == 0 || int64(n)*4 > int64(len(b)) {
		return v, nil, nil, short("a value")
	}
	for range n {
		nodes = append(nodes, u32(b))
		b = b[4:]
	}
	return v, nodes, b, nil
}

// PeerSubmit is the head of a PeerSubmit frame.
type PeerSubmit struct {
	Lease   uint64
	Attempt uint32
}

const peerSubmitHead = 16

// ParsePeerSubmit reads the head; rest is the body of a Submit.
func ParsePeerSubmit(b []byte) (s PeerSubmit, rest []byte, err error) {
	if len(b) < peerSubmitHead {
		return s, nil, short("PeerSubmit")
	}
	return PeerSubmit{binary.LittleEndian.Uint64(b), u32(b[8:])}, b[peerSubmitHead:], nil
}

// AppendPeerSubmit adds one: the body of a Submit, with another number of its shape.
func AppendPeerSubmit(b []byte, lease uint64, attempt, shape uint32, submit []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, lease)
	b = binary.LittleEndian.AppendUint32(b, attempt)
	b = append(b, 0, 0, 0, 0)
	at := len(b)
	b = append(b, submit...)
	binary.LittleEndian.PutUint32(b[at+32:], shape)
	return b
}
