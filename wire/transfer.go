package wire

// MsgPeerOpen is the first message of a stream of kind StreamObjects, StreamTasks or StreamPrograms.
const MsgPeerOpen uint16 = 0x0508

// PeerOpen says between which lives of nodes a stream is: what is said on it means
// nothing to another life at the same address. It is answered, when it is not right, by
// MsgError and the end of the stream.
type PeerOpen struct {
	From   NodeID
	Number uint32 // Welcome.Number of From
	To     uint32
}

// Messages of a stream of kind StreamObjects. A node asks for stretches of objects, one
// after the other; each Pull is answered by
//
//   - Piece, then Piece.Length bytes, then their CRC-32C, four bytes little-endian, or
//   - Wait any number of times while the object is on its way to that node itself, or
//   - Elsewhere: others have it, this node has given it often enough, or
//   - MsgError; the stream stays usable.
const (
	MsgPull      uint16 = 0x0504
	MsgPiece     uint16 = 0x0505
	MsgWait      uint16 = 0x0506
	MsgElsewhere uint16 = 0x0507
)

// MaxRange bounds the bytes of one Pull.
const MaxRange = 16 << 20

// Pull asks for Length bytes of an object from From on; less when it ends before.
type Pull struct {
	ID     []byte // 16 bytes
	From   int64
	Length int64
	First  bool     // of this object by this node: the answer may be Elsewhere
	Avoid  []uint32 // First: nodes (Welcome.Number) that it could not get it from
}

// Piece begins an answer and says what the object is.
type Piece struct {
	Size   int64
	Form   uint32
	From   int64
	Length int64
}

// Wait says that the answer takes a while longer.
type Wait struct{}

// Elsewhere names nodes that have the object, or will have it before this one could
// give it.
type Elsewhere struct{ Nodes []uint32 }

// Messages of a stream of kind StreamPrograms: after PeerOpen comes Program, answered by
// ProgramIs and that many bytes, or by MsgError.
const (
	MsgProgram   uint16 = 0x0509
	MsgProgramIs uint16 = 0x050a
)

// Program asks for a program by the SHA-256 (hexadecimal) of its bytes.
type Program struct{ Sum string }

// ProgramIs says how many bytes follow.
type ProgramIs struct{ Size int64 }

// Messages of a stream of kind StreamPrograms about the working_dir of tasks: Dir, answered
// by DirIs. A reader that does not find the token in the directory that it sees sends
// DirWanted; the answer is DirHas and that many bytes, a tar stream, or MsgError.
const (
	MsgDir       uint16 = 0x050b
	MsgDirIs     uint16 = 0x050c
	MsgDirWanted uint16 = 0x050d
	MsgDirHas    uint16 = 0x050e
)

// Dir asks about a directory of the node that the stream goes to.
type Dir struct{ Job, Path string }

// DirIs names a file that is in the directory until the next message, or the end of the
// stream; "" = none can be made there.
type DirIs struct{ Token string }

// DirWanted asks for what is in it.
type DirWanted struct{}

// DirHas says what follows: its size, and its SHA-256 (hexadecimal).
type DirHas struct {
	Size int64
	Sum  string
}
