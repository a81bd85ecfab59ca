// Package reclog frames records in an append-only file. The head's journal is made of
// such files on disk; the agent's state log is one in a memfd that its supervisor holds.
//
// A record is
//
//	length u32  of the payload
//	crc    u32  CRC32C of the record's offset in the file (u64), then of all that follows this field, then of length
//	back   u32  bytes from the start of the write that this record was part of
//	seq    u64  one more than the record before it
//	payload
//
// with little-endian integers. Because the offset is part of the sum, bytes that were
// copied here from elsewhere (a payload that itself holds a log, a recycled block) are
// never taken for a record.
//
// A file that ends in something that is no record has a torn tail: the writer died, or
// the machine did, before the write was safe. Nobody was told that it was, so Open cuts
// it off. What a torn tail is, and what is damage, is told by back: a writer begins a
// write only when the one before it is safe, so a bad place followed by a good record
// of a later write is damage, and an error that names the offset; it is never skipped.
package reclog

import (
	"encoding/binary"
	"hash/crc32"
	"io"

	"launcher/internal/errs"
)

const (
	// Header is the size of what precedes each payload.
	Header = 20
	// MaxRecord bounds a payload.
	MaxRecord = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// File is what a log lives in; *os.File is one.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Seeker
	Truncate(size int64) error
}

// Log is a file that is open for appending. It is not safe for concurrent use.
type Log struct {
	f    File
	end  int64
	next uint64
	bad  error // the file could not be brought back to its last good record
	buf  []byte
}

// Open reads the records of f from offset base on, hands each to fn, cuts a torn tail
// off and leaves the log ready for appending. The first record has number first. The
// payload is only valid during the call of fn, whose error ends the reading and is
// returned as it is.
//
// A log that has grown too long is replaced, never rewritten in place: write a snapshot
// as the first record of a new file, then let the new file take the old one's name.
func Open(f File, base int64, first uint64, fn func(seq uint64, payload []byte) error) (*Log, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	end, next, err := Scan(f, base, size, first, fn)
	if err != nil {
		return nil, err
	}
	if end < size {
		if err := f.Truncate(end); err != nil {
			return nil, errs.Wrap(errs.Unknown, err, "cannot cut the torn tail off at offset %d", end)
		}
	}
	return &Log{f: f, end: end, next: next}, nil
}

// Append writes the payloads as consecutive records with one write and gives the number
// of the first. When it fails, none of them is in the log. It does not sync.
func (l *Log) Append(payloads ...[]byte) (seq uint64, err error) {
	if l.bad != nil {
		if err := l.repair(); err != nil {
			return 0, err
		}
	}
	l.buf = l.buf[:0]
	for i, p := range payloads {
		if len(p) > MaxRecord {
			return 0, errs.New(errs.Invalid, "a record of %d bytes, the limit is %d", len(p), MaxRecord)
		}
		if int64(len(l.buf))+Header+int64(len(p)) > 1<<31 {
			return 0, errs.New(errs.Invalid, "a write of more than 2 GiB to a log")
		}
		l.buf = AppendRecord(l.buf, l.end+int64(len(l.buf)), uint32(len(l.buf)), l.next+uint64(i), p)
	}
	_, err = l.f.WriteAt(l.buf, l.end)
	n := len(l.buf)
	if cap(l.buf) > 1<<20 {
		l.buf = nil
	}
	if err != nil {
		l.bad = err
		// The cause is what matters to the caller; repair is tried again by the next Append.
		_ = l.repair()
		return 0, err
	}
	seq = l.next
	l.end += int64(n)
	l.next += uint64(len(payloads))
	return seq, nil
}

// Undo takes back everything from offset end on, which the caller knew to be before the
// write that it could not make safe; next is the number that the next record gets.
func (l *Log) Undo(end int64, next uint64) error {
	l.end, l.next = end, next
	l.bad = errs.New(errs.Unavailable, "writing was taken back")
	return l.repair()
}

func (l *Log) repair() error {
	if err := l.f.Truncate(l.end); err != nil {
		return errs.Wrap(errs.Unknown, err, "a log that could not be written cannot be cut back to offset %d", l.end)
	}
	l.bad = nil
	return nil
}

// End is the offset behind the last record, and the size of the file.
func (l *Log) End() int64 { return l.end }

// Next is the number that the next record gets.
func (l *Log) Next() uint64 { return l.next }

// AppendRecord appends one framed record to b. at is the offset in the file that the
// record is going to have.
func AppendRecord(b []byte, at int64, back uint32, seq uint64, payload []byte) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, back)
	b = binary.LittleEndian.AppendUint64(b, seq)
	b = append(b, payload...)
	binary.LittleEndian.PutUint32(b[start+4:], sum(at, b[start:]))
	return b
}

// sum is the checksum of the framed record rec (its crc field is not looked at).
func sum(at int64, rec []byte) uint32 {
	var o [8]byte
	binary.LittleEndian.PutUint64(o[:], uint64(at))
	c := crc32.Update(0, castagnoli, o[:])
	c = crc32.Update(c, castagnoli, rec[8:])
	return crc32.Update(c, castagnoli, rec[:4])
}
