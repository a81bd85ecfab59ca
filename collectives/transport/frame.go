// Package transport is what the agents of a group say to each other: frames on
// connections that somebody else has opened and authenticated, one direction each. It
// adds nothing to the data but a header per frame.
package transport

import (
	"encoding/binary"
	"io"

	"launcher/internal/errs"
	"launcher/wire"
)

// Kind is what a frame is. The values are part of the protocol between agents.
type Kind uint8

const (
	Hello    Kind = iota + 1 // first frame of a connection: Greeting
	Ready                    // the sender's ranks have called Seq; nothing else
	Partial                  // a stretch of a round, combined so far; to be combined further
	Final                    // a stretch of a round as everybody gets it
	Exchange                 // blocks of a small round
	End                      // the group has ended: Farewell
	endKind
)

// HeaderSize is the length of an encoded Header.
const HeaderSize = 44

// MaxPayload bounds a frame; what a frame may really carry, the receiver knows from the
// round it belongs to.
const MaxPayload = 64 << 20

const magic = 0x524c // "LR"

// Header precedes every frame. Little-endian: magic u16, kind u8, zero u8, length u32,
// round u64, seq u64, signature u64, offset u32, node u32, zero u32.
type Header struct {
	Kind   Kind
	Length uint32 // of the payload
	Round  uint64 // number of the round since the group began, from 0
	Seq    uint64 // number of the operation, from 1
	Sig    uint64 // plan.Call.Signature
	Off    uint32 // bytes from the start of the round
	Node   uint32 // Partial, Final: where the stretch ends or begins; Exchange: the hop
}

// Append encodes h.
func (h Header) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, magic)
	b = append(b, byte(h.Kind), 0)
	b = binary.LittleEndian.AppendUint32(b, h.Length)
	b = binary.LittleEndian.AppendUint64(b, h.Round)
	b = binary.LittleEndian.AppendUint64(b, h.Seq)
	b = binary.LittleEndian.AppendUint64(b, h.Sig)
	b = binary.LittleEndian.AppendUint32(b, h.Off)
	b = binary.LittleEndian.AppendUint32(b, h.Node)
	return binary.LittleEndian.AppendUint32(b, 0)
}

// ParseHeader decodes the first HeaderSize bytes of b.
func ParseHeader(b []byte) (h Header, err error) {
	if len(b) < HeaderSize || binary.LittleEndian.Uint16(b) != magic || b[2] == 0 || b[2] >= byte(endKind) {
		return h, errs.New(errs.Corrupt, "not a frame of a collective")
	}
	h = Header{
		Kind: Kind(b[2]), Length: binary.LittleEndian.Uint32(b[4:]), Round: binary.LittleEndian.Uint64(b[8:]),
		Seq: binary.LittleEndian.Uint64(b[16:]), Sig: binary.LittleEndian.Uint64(b[24:]),
		Off: binary.LittleEndian.Uint32(b[32:]), Node: binary.LittleEndian.Uint32(b[36:]),
	}
	if h.Length > MaxPayload {
		return h, errs.New(errs.Corrupt, "a frame of a collective with %d bytes, the limit is %d", h.Length, MaxPayload)
	}
	return h, nil
}

// ReadHeader reads one header. io.EOF means that the stream ended between frames.
func ReadHeader(r io.Reader) (Header, error) {
	var b [HeaderSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Header{}, err
	}
	return ParseHeader(b[:])
}

// Greeting says who dialled and for what; both sides must see the group the same way.
type Greeting struct {
	Group wire.Try
	From  uint32 // index of the node that dialled
	Lane  uint32
	Nodes uint32
	World uint32
	Round uint32 // bytes
}

const greetingSize = 32

// Append encodes g.
func (g Greeting) Append(b []byte) []byte {
	for _, v := range []uint32{uint32(g.Group.Job), g.Group.Index, uint32(g.Group.Attempt), g.From, g.Lane, g.Nodes, g.World, g.Round} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// ParseGreeting decodes a greeting.
func ParseGreeting(b []byte) (g Greeting, err error) {
	if len(b) != greetingSize {
		return g, errs.New(errs.Corrupt, "a greeting of %d bytes, not %d", len(b), greetingSize)
	}
	u := func(i int) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }
	g.Group = wire.Try{Task: wire.Task{Job: wire.JobID(u(0)), Index: u(1)}, Attempt: wire.Attempt(u(2))}
	g.From, g.Lane, g.Nodes, g.World, g.Round = u(3), u(4), u(5), u(6), u(7)
	return g, nil
}

// Farewell says why the group ended; the kinds are those of the shared memory's records.
type Farewell struct {
	Kind  uint32
	Rank  int32
	Cause string
}

// maxCause bounds a cause; records in shared memory hold less.
const maxCause = 4096

// Append encodes f.
func (f Farewell) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, f.Kind)
	b = binary.LittleEndian.AppendUint32(b, uint32(f.Rank))
	return append(b, f.Cause[:min(len(f.Cause), maxCause)]...)
}

// ParseFarewell decodes a farewell.
func ParseFarewell(b []byte) (f Farewell, err error) {
	if len(b) < 8 || len(b) > 8+maxCause {
		return f, errs.New(errs.Corrupt, "a farewell of %d bytes", len(b))
	}
	return Farewell{Kind: binary.LittleEndian.Uint32(b), Rank: int32(binary.LittleEndian.Uint32(b[4:])), Cause: string(b[8:])}, nil
}

// ReadPayload reads a small payload, at most limit bytes.
func ReadPayload(r io.Reader, h Header, limit int) ([]byte, error) {
	if int64(h.Length) > int64(limit) {
		return nil, errs.New(errs.Corrupt, "a frame of kind %d with %d bytes, allowed are %d", h.Kind, h.Length, limit)
	}
	b := make([]byte, h.Length)
	_, err := io.ReadFull(r, b)
	return b, err
}

// MaxFarewell is the longest payload of an End frame.
const MaxFarewell = 8 + maxCause
