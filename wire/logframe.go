package wire

import (
	"encoding/binary"

	"launcher/internal/errs"
)

// A log frame is a piece of one process's output, in a node's spool and in the cluster's
// record alike:
//
//	magic u16 0x4c46 · stream u8 (1 stdout, 2 stderr) · reserved u8 · length u32
//	index u32 · attempt u32 · rank u32 · node u32 (in the record: number in its node table; in a spool 0)
//	time i64 unix ns
//	data, length bytes
//
// little-endian. The header is written first and the data spliced behind it, so a file
// may end in a header with too little data: the reader stops there, the writer cuts it.
const LogFrameHeader = 32

const logMagic = 0x4c46

// LogFrame is the decoded header of a log frame.
type LogFrame struct {
	Stream  uint8
	Length  uint32
	Index   uint32
	Attempt Attempt
	Rank    uint32
	Node    uint32
	Time    int64
}

// Append appends the header of f to b.
func (f LogFrame) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, logMagic)
	b = append(b, f.Stream, 0)
	b = binary.LittleEndian.AppendUint32(b, f.Length)
	b = binary.LittleEndian.AppendUint32(b, f.Index)
	b = binary.LittleEndian.AppendUint32(b, uint32(f.Attempt))
	b = binary.LittleEndian.AppendUint32(b, f.Rank)
	b = binary.LittleEndian.AppendUint32(b, f.Node)
	return binary.LittleEndian.AppendUint64(b, uint64(f.Time))
}

// MaxLogData bounds the data of one log frame.
const MaxLogData = 1 << 20

// ParseLogFrame reads the frame at the start of b. n is its whole length; n = 0 with a
// nil error means that b ends before the frame does.
func ParseLogFrame(b []byte) (f LogFrame, data []byte, n int, err error) {
	if len(b) < LogFrameHeader {
		return f, nil, 0, nil
	}
	f.Stream, f.Length = b[2], binary.LittleEndian.Uint32(b[4:])
	if binary.LittleEndian.Uint16(b) != logMagic || f.Length > MaxLogData || f.Stream == 0 || f.Stream > 2 {
		return f, nil, 0, errs.New(errs.Corrupt, "not a log frame")
	}
	f.Index = binary.LittleEndian.Uint32(b[8:])
	f.Attempt = Attempt(binary.LittleEndian.Uint32(b[12:]))
	f.Rank = binary.LittleEndian.Uint32(b[16:])
	f.Node = binary.LittleEndian.Uint32(b[20:])
	f.Time = int64(binary.LittleEndian.Uint64(b[24:]))
	n = LogFrameHeader + int(f.Length)
	if len(b) < n {
		return f, nil, 0, nil
	}
	return f, b[LogFrameHeader:n], n, nil
}
